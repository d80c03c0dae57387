package e2e

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sync/errgroup"
)

// The corpus in HTTP/2: what its header fields can say that HTTP/1.1 cannot, and sequences of frames that are none.

// fieldsEntry is one request by its header fields, as they are written.
type fieldsEntry struct {
	name   string
	fields [][2]string // in place of the usual ones of that name, or more; {ph} and {host} are filled in
	want   string      // "/path credential", "status reason", "reset" for the stream, or "ended" for the connection
}

const authorizationPH = "Bearer {ph}"

func also(fields ...string) (list [][2]string) {
	list = [][2]string{{"authorization", authorizationPH}}
	for i := 0; i < len(fields); i += 2 {
		list = append(list, [2]string{fields[i], fields[i+1]})
	}
	return list
}

var corpusFields = []fieldsEntry{
	{"the right request", also(), "/a real"},
	{"a cookie in crumbs", also("cookie", "a=b", "cookie", "c=d"), "/a real"},
	{"te: trailers", also("te", "trailers"), "/a real"},
	{"a Host that differs", also("host", "evil.example"), "/a real"}, // Envoy drops it beside :authority
	{"headers of ours", also("x-wayleave-identity", "x|admin|admin|9999999999", "x-envoy-retry-on", "5xx", "x_wayleave-verdict", "pass", "proxy-authorization", "Basic eDp5", "proxy", "x"), "/a real"},

	{"two credentials", also("authorization", "Bearer evil"), "400 duplicate_credential"},
	{"two credentials, evil first", append([][2]string{{"authorization", "Bearer evil"}}, also()...), "400 duplicate_credential"},
	{"a placeholder in a crumb", also("cookie", "a=b", "cookie", "t={ph}"), "400 misplaced_placeholder"},
	{"a placeholder in a name", also("x-{ph}", "1"), "400 misplaced_placeholder"},
	{"a placeholder in the path", also(":path", "/{ph}"), "400 misplaced_placeholder"},

	{"connection", also("connection", "authorization"), "reset"},
	{"keep-alive", also("keep-alive", "timeout=5"), "reset"},
	{"proxy-connection", also("proxy-connection", "close"), "reset"},
	{"transfer-encoding", also("transfer-encoding", "chunked"), "reset"},
	{"upgrade", also("upgrade", "websocket"), "reset"},
	{"te: gzip", also("te", "gzip"), "reset"},
	{"a line break in a value", also("x", "a\r\nauthorization: Bearer evil"), "reset"},
	{"a line feed in a value", also("x", "a\nb"), "reset"},
	{"a NUL in a value", also("x", "a\x00b"), "reset"},
	{"a line break in the path", also(":path", "/a HTTP/1.1\r\nx: y"), "reset"},
	{"upper case in a name", [][2]string{{"Authorization", authorizationPH}}, "reset"},
	{"a colon in a name", also("x:y", "1"), "reset"},
	{"a space in a name", also("x y", "1"), "reset"},
	{"a line break in a name", also("x\r\ny", "1"), "reset"},
	{"a control character in a value", also("x", "a\x01b"), "reset"},
	{"DEL in a value", also("x", "a\x7fb"), "reset"},
	{"bytes beyond ASCII in a value", also("x", "caf\xe9 \xff"), "/a real"},
	{"bytes beyond ASCII in a name", also("x\xff", "1"), "reset"},
	{"no name", also("", "1"), "reset"},
	{"te: trailers and more", also("te", "trailers, deflate"), "reset"},
	{"transfer-encoding: identity", also("transfer-encoding", "identity"), "reset"},
	{"expect: 100-continue", also("expect", "100-continue"), "/a real"},
	{"refused before it continues", also("expect", "100-continue", ":path", "/a?k={ph}"), "400 misplaced_placeholder"},
	{"two Hosts", also("host", "{host}", "host", "evil.example"), "reset"},
	{"a placeholder in a second Host", also("host", "{ph}"), "/a real"},
	{"a late pseudo header", append(also(), [2]string{"+:path", "/b"}), "reset"},
	{"a second :path", append([][2]string{{"+:path", "/b"}}, also()...), "reset"},
	{"a second :authority", append([][2]string{{"+:authority", "evil.example"}}, also()...), "reset"},
	{"a second :method", append([][2]string{{"+:method", "POST"}}, also()...), "reset"},
	{"an unknown pseudo header", append([][2]string{{"+:evil", "1"}}, also()...), "reset"},
	{"a :status", append([][2]string{{"+:status", "200"}}, also()...), "reset"},
	{"an empty :path", append([][2]string{{"=:path", ""}}, also()...), "reset"},
	{"an empty :method", append([][2]string{{"=:method", ""}}, also()...), "reset"},
	{"an empty :scheme", append([][2]string{{"=:scheme", ""}}, also()...), "reset"},
	{"an empty :authority", append([][2]string{{"=:authority", ""}}, also()...), "reset"},
	{"a second :scheme", append([][2]string{{"+:scheme", "http"}}, also()...), "reset"},
	{"no :path", also(":path", ""), "reset"},
	{"no :method", also(":method", ""), "reset"},
	{"no :scheme", also(":scheme", ""), "reset"},
	{"a length that is none", also("content-length", "x"), "reset"},
	{"a length without a body", also("content-length", "4"), "reset"},
	{"two lengths", also("content-length", "0", "content-length", "4"), "reset"},

	{"no :authority", also(":authority", ""), "reset"},
	{"no :authority, and a Host", also(":authority", "", "host", "{host}"), "/a real"},
	{"no :authority, and another Host", also(":authority", "", "host", "evil.example"), "421 misdirected"},
	{"another :authority", also(":authority", "evil.example"), "421 misdirected"},
	{"an :authority with a port", also(":authority", "{host}:444"), "421 misdirected"},
	{"an :authority with a user", also(":authority", "x@{host}"), "reset"},
	{"an :authority with a dot", also(":authority", "{host}."), "421 misdirected"},
	{"an :authority of two", also(":authority", "{host},evil.example"), "421 misdirected"},
	{"an :authority with a space", also(":authority", "{host} evil.example"), "reset"},
	{"an :authority that is an address", also(":authority", "127.0.0.1"), "421 misdirected"},
	{"an :authority that is an address in brackets", also(":authority", "[::ffff:127.0.0.1]"), "421 misdirected"},
	{"an :authority with a path", also(":authority", "{host}/evil"), "reset"},
	{"a path that is a URL", also(":path", "https://evil.example/"), "reset"},
	{"a path without /", also(":path", "a"), "reset"},
	{"a path with a space", also(":path", "/a b"), "reset"},
	{"a path with a fragment", also(":path", "/a#b"), "400 malformed"},
	{"*", also(":path", "*"), "reset"},
	{"OPTIONS *", also(":method", "OPTIONS", ":path", "*"), "404 malformed"},
	{"another scheme", also(":scheme", "http"), "/a real"},
	{"a scheme that is none", also(":scheme", "http\r\n"), "reset"},
	{"a scheme of files", also(":scheme", "file"), "/a real"},
	{"TRACE", also(":method", "TRACE"), "400 policy_denied"},
	{"a method in lower case", also(":method", "get"), "/a real"},
	{"a method with a space", also(":method", "GET /b"), "reset"},
	{"a nested CONNECT", also(":method", "CONNECT", ":scheme", "", ":path", ""), "400 policy_denied"},
	{"an extended CONNECT", append([][2]string{{"+:protocol", "websocket"}}, also(":method", "CONNECT", ":path", "/ws")...), "reset"},
	{"a long header", also("x", strings.Repeat("x", 100<<10)), "reset"},
	{"a header that is too long when it is packed too", also("x", strings.Repeat("x", 160<<10)), "ended"},
	{"long headers", also(slices.Repeat([]string{"x", strings.Repeat("x", 40<<10)}, 3)...), "reset"},
	{"too many headers", also(slices.Repeat([]string{"x", "y"}, 1100)...), "reset"},
	{"many cookies, each by itself", also(slices.Repeat([]string{"cookie", "a=b"}, 900)...), "/a real"},
}

// request is the usual fields, with those of the entry.
func (e fieldsEntry) request(fill func(string) string) (fields [][2]string) {
	usual := [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "{host}"}, {":path", "/a"}}
	var rest [][2]string
	for _, f := range e.fields {
		name, more := strings.CutPrefix(f[0], "+")
		i := slices.IndexFunc(usual, func(u [2]string) bool { return u[0] == strings.TrimPrefix(name, "=") })
		if i >= 0 && !more {
			usual[i] = [2]string{name, f[1]}
		} else {
			rest = append(rest, [2]string{name, f[1]})
		}
	}
	for _, f := range append(usual, rest...) {
		fields = append(fields, [2]string{fill(f[0]), fill(f[1])})
	}
	return fields
}

// framesEntry is a sequence of frames after the settings.
type framesEntry struct {
	name  string
	write func(f *http2.Framer, head []byte) error // head is the block of a right request for /a
	want  []string                                 // for each of the streams, as above
	or    []string                                 // as good, where it depends on which of two things is first
	// streams are those that are waited for; by default 1.
	streams []uint32
	// most is how many requests may reach the upstream of which nobody reads the answer; by default 1.
	most int
}

func (e framesEntry) awaited() []uint32 {
	if e.streams == nil {
		return []uint32{1}
	}
	return e.streams
}

func ended() []string { return []string{"ended"} }
func reset() []string { return []string{"reset"} }

// open writes the head of a request, whose body follows.
func open(f *http2.Framer, stream uint32, head []byte) error {
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head, EndHeaders: true})
}

// whole writes a request without a body.
func whole(f *http2.Framer, stream uint32, head []byte) error {
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head, EndHeaders: true, EndStream: true})
}

// raw writes a frame as it is, whatever its type makes of it; first are those before it.
func raw(kind http2.FrameType, flags http2.Flags, stream uint32, payload string) func(*http2.Framer, []byte) error {
	return func(f *http2.Framer, _ []byte) error { return f.WriteRawFrame(kind, flags, stream, []byte(payload)) }
}

func then(steps ...func(f *http2.Framer, head []byte) error) func(*http2.Framer, []byte) error {
	return func(f *http2.Framer, head []byte) error {
		for _, step := range steps {
			if err := step(f, head); err != nil {
				return err
			}
		}
		return nil
	}
}

func opened(f *http2.Framer, head []byte) error { return open(f, 1, head) }
func asked(f *http2.Framer, head []byte) error  { return whole(f, 1, head) }

func askedOn(stream uint32) func(f *http2.Framer, head []byte) error {
	return func(f *http2.Framer, head []byte) error { return whole(f, stream, head) }
}

// behind puts what is no part of a head behind one.
func behind(more string) func(f *http2.Framer, head []byte) error {
	return func(f *http2.Framer, head []byte) error { return whole(f, 1, append(slices.Clone(head), more...)) }
}

// lengthy is a request with a body, in these pieces, of which it says how long it is.
func lengthy(length string, pieces ...string) func(f *http2.Framer, head []byte) error {
	return func(f *http2.Framer, head []byte) error {
		err := open(f, 1, append(slices.Clone(head), encode([][2]string{{"content-length", length}})...))
		for i, piece := range pieces {
			err = errors.Join(err, f.WriteData(1, i == len(pieces)-1, []byte(piece)))
		}
		return err
	}
}

func many(n int, step func(f *http2.Framer, head []byte) error) func(*http2.Framer, []byte) error {
	return then(slices.Repeat([]func(*http2.Framer, []byte) error{step}, n)...)
}

var corpusFrames = []framesEntry{
	{name: "two requests", write: then(asked, askedOn(3)), want: good("/a", "/a"), or: append(good("/a"), ended()...), streams: []uint32{1, 3}},
	{name: "an unknown frame", write: then(raw(0x42, 0xff, 0, "hello"), raw(0x42, 0, 1, ""), asked), want: good("/a")},
	{name: "a head in pieces", write: func(f *http2.Framer, head []byte) error {
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head[:1], EndStream: true}); err != nil {
			return err
		}
		for i := 1; i < len(head); i += 40 {
			if err := f.WriteContinuation(1, i+40 >= len(head), head[i:min(i+40, len(head))]); err != nil {
				return err
			}
		}
		return nil
	}, want: good("/a")},
	{name: "padding", write: func(f *http2.Framer, head []byte) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head, EndHeaders: true, EndStream: true, PadLength: 200})
	}, want: good("/a")},
	{name: "trailers", write: then(opened, raw(http2.FrameData, 0, 1, "body"), func(f *http2.Framer, _ []byte) error {
		return whole(f, 1, encode([][2]string{{"authorization", "Bearer evil"}, {"x-wayleave-verdict", "pass"}}))
	}), want: good("/a")},
	{name: "a request after our end", write: then(asked, raw(http2.FrameGoAway, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\x00"), askedOn(3)), want: good("/a", "/a"), streams: []uint32{1, 3}},

	{name: "a reserved bit", write: func(f *http2.Framer, head []byte) error {
		return f.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, 1<<31|1, head)
	}, want: good("/a")},
	{name: "an unknown setting", write: then(raw(http2.FrameSettings, 0, 0, "\x12\x34\x00\x00\x00\x01"), asked), want: good("/a")},
	{name: "an answer to no ping", write: then(raw(http2.FramePing, http2.FlagPingAck, 0, "12345678"), asked), want: good("/a")},
	{name: "an unknown reason to end", write: then(asked, raw(http2.FrameGoAway, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\xff"), askedOn(3)), want: good("/a", "/a"), streams: []uint32{1, 3}},
	{name: "a reset for an unknown reason", write: then(opened, raw(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\xff"), askedOn(3)), want: good("/a"), streams: []uint32{3}},
	{name: "a window that grows later", write: then(raw(http2.FrameSettings, 0, 0, "\x00\x04\x00\x00\x00\x01"), asked, raw(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x20\x00")), want: good("/a")},
	{name: "a window that shrinks", write: then(raw(http2.FrameSettings, 0, 0, "\x00\x04\x00\x00\x00\x01"), asked, raw(http2.FrameSettings, 0, 0, "\x00\x04\x00\x00\x00\x00"), raw(http2.FrameSettings, 0, 0, "\x00\x04\x00\x00\x40\x00")), want: good("/a")},
	{name: "a table without room", write: then(raw(http2.FrameSettings, 0, 0, "\x00\x01\x00\x00\x00\x00"), asked), want: good("/a")},
	{name: "data as long as it says", write: lengthy("4", "ab", "cd"), want: good("/a")},
	{name: "data longer than it says", write: lengthy("4", "ab", "cdX"), want: reset()},
	{name: "data shorter than it says", write: lengthy("4", "ab"), want: reset()},
	{name: "a head that depends on itself", write: func(f *http2.Framer, head []byte) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head, EndHeaders: true, EndStream: true, Priority: http2.PriorityParam{StreamDep: 1}})
	}, want: ended()},

	// A client's right to this, as h2spec's list has it (generic, http2/5 to 8, hpack).
	{name: "a frame with flags that it has not", write: then(raw(http2.FramePing, 0x7e, 0, "12345678"), asked), want: good("/a")},
	{name: "data of the largest frame", write: then(opened, raw(http2.FrameData, http2.FlagDataEndStream, 1, strings.Repeat("x", 16384))), want: good("/a")},
	{name: "one setting several times", write: then(raw(http2.FrameSettings, 0, 0, "\x00\x04\x00\x00\x00\x01\x00\x04\x00\x00\x40\x00"), asked), want: good("/a")},
	{name: "priorities before and after", write: then(raw(http2.FramePriority, 0, 7, "\x00\x00\x00\x00\x00"), asked, raw(http2.FramePriority, 0, 1, "\x00\x00\x00\x00\x00"), askedOn(3)), want: good("/a", "/a"), streams: []uint32{1, 3}},
	{name: "a priority that depends on itself", write: then(raw(http2.FramePriority, 0, 1, "\x00\x00\x00\x01\x00"), asked), want: good("/a")}, // nobody heeds priorities
	{name: "a window after the end of the request", write: then(asked, raw(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x64")), want: good("/a")},
	{name: "a reset after the end of the request", write: then(asked, raw(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x08"), askedOn(3)), want: good("/a"), streams: []uint32{3}},
	{name: "a smaller table", write: func(f *http2.Framer, head []byte) error {
		return whole(f, 1, append([]byte("\x20\x3f\xe1\x1f"), head...))
	}, want: good("/a")},
	{name: "a header that is never indexed", write: behind("\x10\x01x\x01y"), want: good("/a")},
	{name: "a header in the letters' code", write: behind("\x00\x81\xf3\x01y"), want: good("/a")},
	{name: "a header of the table, again", write: behind("\x40\x01x\x01y\xbe\xbe"), want: good("/a")},

	{name: "a head longer than a frame", write: func(f *http2.Framer, head []byte) error {
		return whole(f, 1, append(slices.Clone(head), "\x00\x01x\x7f\x81\x7f"+strings.Repeat("y", 16384)...))
	}, want: ended()},
	{name: "a priority within a head", write: then(raw(http2.FrameHeaders, 0, 1, "\x82"), raw(http2.FramePriority, 0, 1, "\x00\x00\x00\x00\x00")), want: ended()},
	{name: "another head within a head", write: then(raw(http2.FrameHeaders, 0, 1, "\x82"), askedOn(3)), want: ended(), streams: []uint32{3}},
	{name: "a setting within a head", write: then(raw(http2.FrameHeaders, 0, 1, "\x82"), raw(http2.FrameSettings, 0, 0, "")), want: ended()},
	{name: "a continuation after data", write: then(opened, raw(http2.FrameData, 0, 1, "x"), raw(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 1, "\x82")), want: ended()},
	{name: "a continuation after the end", write: then(asked, raw(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 1, "\x82")), want: ended()},
	{name: "data after a reset", write: then(opened, raw(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x08"), raw(http2.FrameData, http2.FlagDataEndStream, 1, smuggle), askedOn(3)), want: good("/a"), streams: []uint32{3}},
	{name: "a head after a reset", write: then(opened, raw(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x08"), asked, askedOn(3)), want: good("/a"), streams: []uint32{3}},
	{name: "a continuation after a reset", write: then(opened, raw(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x08"), raw(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 1, "\x82")), want: ended()},
	{name: "a table larger than allowed, at the start", write: func(f *http2.Framer, head []byte) error {
		return whole(f, 1, append([]byte("\x3f\xe2\x1f"), head...))
	}, want: ended()},

	{name: "data before a head", write: raw(http2.FrameData, 0, 1, "x"), want: ended()},
	{name: "data of the connection", write: raw(http2.FrameData, 0, 0, "x"), want: ended()},
	{name: "data after the end", write: then(asked, raw(http2.FrameData, 0, 1, smuggle)), want: ended()},
	{name: "a head after the end", write: then(asked, asked), want: ended()},
	{name: "a head of the connection", write: raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 0, "\x82"), want: ended()},
	{name: "a head on a server's stream", write: askedOn(2), want: ended()},
	{name: "a head on an older stream", write: then(askedOn(3), asked), want: good("/a"), streams: []uint32{3}},
	{name: "padding longer than the frame", write: raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersPadded, 1, "\xff\x82"), want: ended()},
	{name: "a frame too long", write: raw(http2.FrameData, 0, 1, strings.Repeat("x", 16385)), want: ended()},
	{name: "a head that is no HPACK", write: raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, 1, "\xff\xff\xff\xff\xff\xff"), want: ended()},
	{name: "an entry of no table", write: raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, 1, "\xfe"), want: ended()},
	{name: "a table larger than allowed", write: raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, 1, "\x3f\xff\xff\x7f\x82"), want: ended()},
	{name: "data with padding longer than the frame", write: then(opened, raw(http2.FrameData, http2.FlagDataPadded|http2.FlagDataEndStream, 1, "\xffx")), want: ended()},
	{name: "an entry that is none", write: behind("\x80"), want: ended()},
	{name: "a table that changes at the end", write: behind("\x20"), want: ended()},
	{name: "padding of a letter's code too long", write: behind("\x00\x01x\x82\x1f\xff"), want: ended()},
	{name: "padding of a letter's code of zeros", write: behind("\x00\x01x\x81\x18"), want: ended()},
	{name: "the code of an end in a value", write: behind("\x00\x01x\x84\xff\xff\xff\xff"), want: ended()},
	{name: "a value longer than the head", write: behind("\x00\x01x\x7f\xff\x0f"), want: ended()},
	{name: "an unknown frame within a head", write: then(raw(http2.FrameHeaders, 0, 1, "\x82"), raw(0x42, 0, 0, "x")), want: ended()},
	{name: "a continuation of the connection", write: raw(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 0, "\x82"), want: ended()},
	{name: "a continuation after the head", write: then(opened, raw(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 1, "\x82")), want: ended()},
	{name: "a priority of the connection", write: then(raw(http2.FramePriority, 0, 0, "\x00\x00\x00\x00\x00"), asked), want: good("/a")}, // nobody heeds priorities
	{name: "a priority of no size", write: then(opened, raw(http2.FramePriority, 0, 1, "\x00")), want: ended()},
	{name: "a frame size too large", write: raw(http2.FrameSettings, 0, 0, "\x00\x05\x01\x00\x00\x00"), want: ended()},
	{name: "a window of an idle stream", write: raw(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x01"), want: ended()},
	{name: "a window of no size", write: raw(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x01"), want: ended()},
	{name: "a stream's window of nothing more", write: then(opened, raw(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x00")), want: ended()},
	{name: "a stream's window beyond the largest", write: then(opened, raw(http2.FrameWindowUpdate, 0, 1, "\x7f\xff\xff\xff")), want: ended()},
	{name: "a continuation of nothing", write: raw(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 1, "\x82"), want: ended()},
	{name: "another frame within a head", write: then(raw(http2.FrameHeaders, 0, 1, "\x82"), raw(http2.FrameData, 0, 1, "x")), want: ended()},
	{name: "a continuation of another stream", write: then(raw(http2.FrameHeaders, 0, 1, "\x82"), raw(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 3, "\x87")), want: ended()},
	{name: "settings of a stream", write: raw(http2.FrameSettings, 0, 1, ""), want: ended()},
	{name: "settings of no size", write: raw(http2.FrameSettings, 0, 0, "\x00"), want: ended()},
	{name: "settings in an acknowledgement", write: raw(http2.FrameSettings, http2.FlagSettingsAck, 0, "\x00\x04\x00\x00\xff\xff"), want: ended()},
	{name: "a window too large", write: raw(http2.FrameSettings, 0, 0, "\x00\x04\x80\x00\x00\x00"), want: ended()},
	{name: "a frame size too small", write: raw(http2.FrameSettings, 0, 0, "\x00\x05\x00\x00\x00\x01"), want: ended()},
	{name: "a push that is neither on nor off", write: raw(http2.FrameSettings, 0, 0, "\x00\x02\x00\x00\x00\x02"), want: ended()},
	{name: "a ping of a stream", write: raw(http2.FramePing, 0, 1, "12345678"), want: ended()},
	{name: "a ping of no size", write: raw(http2.FramePing, 0, 0, "1"), want: ended()},
	{name: "a reset of an idle stream", write: raw(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x08"), want: ended()},
	{name: "a reset of no size", write: then(opened, raw(http2.FrameRSTStream, 0, 1, "\x00")), want: ended()},
	{name: "a push from a client", write: then(opened, raw(http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, 1, "\x00\x00\x00\x02\x82")), want: ended()},
	{name: "a window of nothing more", write: raw(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x00\x00"), want: ended()},
	{name: "a window beyond the largest", write: then(raw(http2.FrameWindowUpdate, 0, 0, "\x7f\xff\xff\xff"), raw(http2.FrameWindowUpdate, 0, 0, "\x7f\xff\xff\xff")), want: ended()},
	{name: "the end of a stream", write: raw(http2.FrameGoAway, 0, 1, "\x00\x00\x00\x00\x00\x00\x00\x00"), want: ended()},
	{name: "pseudo headers in trailers", write: then(opened, func(f *http2.Framer, _ []byte) error {
		return whole(f, 1, encode([][2]string{{":path", "/b"}}))
	}), want: reset()},
	{name: "trailers before the end", write: then(opened, func(f *http2.Framer, _ []byte) error {
		return open(f, 1, encode([][2]string{{"x", "y"}}))
	}), want: reset()},

	{name: "a flood of continuations", write: then(raw(http2.FrameHeaders, http2.FlagHeadersEndStream, 1, "\x82\x87"), many(3000, raw(http2.FrameContinuation, 0, 1, "\x00\x01x\x7f\x81\x07"+strings.Repeat("y", 262)))), want: reset()},
	{name: "a flood of empty continuations", write: then(raw(http2.FrameHeaders, http2.FlagHeadersEndStream, 1, "\x82\x87"), many(20_000, raw(http2.FrameContinuation, 0, 1, ""))), want: ended()},
	{name: "many pings", write: then(many(900, raw(http2.FramePing, 0, 0, "12345678")), asked), want: good("/a")},
	{name: "a flood of pings", write: then(many(20_000, raw(http2.FramePing, 0, 0, "12345678")), asked), want: ended(), or: good("/a")},
	{name: "many settings", write: then(many(900, raw(http2.FrameSettings, 0, 0, "")), asked), want: good("/a")},
	{name: "a flood of settings", write: then(many(20_000, raw(http2.FrameSettings, 0, 0, "")), asked), want: ended(), or: good("/a")},
	{name: "a flood of priorities", write: then(opened, many(20_000, raw(http2.FramePriority, 0, 1, "\x00\x00\x00\x00\x00"))), want: ended()},
	{name: "a flood of windows", write: then(opened, many(20_000, raw(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x01"))), want: ended()},
	{name: "a flood of resets", most: 5000, want: ended(), write: func(f *http2.Framer, head []byte) error {
		for i := range uint32(5000) {
			if err := whole(f, 2*i+1, head); err != nil {
				return err
			}
			if err := f.WriteRSTStream(2*i+1, http2.ErrCodeCancel); err != nil {
				return err
			}
		}
		return nil
	}, streams: []uint32{9999}},
	{name: "more requests at a time than there may be", most: 256, want: reset(), or: ended(), write: func(f *http2.Framer, head []byte) error {
		for i := range uint32(257) {
			if err := open(f, 2*i+1, head); err != nil {
				return err
			}
		}
		return nil
	}, streams: []uint32{513}},
	{name: "a flood of empty data", write: then(opened, many(20_000, raw(http2.FrameData, 0, 1, ""))), want: ended()},
}

// speak begins a connection with what write writes, and returns what became of the streams: once all of wanted have
// ended or, in case of tunnels, opened, or the connection has ended, which counts as stream 0.
func speak(conn net.Conn, write func(f *http2.Framer) error, tunnels bool, wanted ...uint32) map[uint32]answer {
	// In one piece where it is short, so that no answer is given between two frames.
	out := bufio.NewWriterSize(conn, 16<<10)
	f := http2.NewFramer(out, conn)
	f.AllowIllegalWrites, f.MaxHeaderListSize = true, 1<<20
	go func() { // not read by the gate, it may not end before we read
		if _, err := out.WriteString(http2.ClientPreface); err == nil && f.WriteSettings() == nil {
			_ = errors.Join(write(f), out.Flush())
		}
	}()
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	answers, over := map[uint32]answer{}, map[uint32]bool{}
	for slices.ContainsFunc(wanted, func(id uint32) bool { return !over[id] }) {
		frame, err := f.ReadFrame()
		if err != nil {
			answers[0] = answer{body: err.Error()}
			return answers
		}
		id := frame.Header().StreamID
		a := answers[id]
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			if a.header == nil {
				a.proto, a.header = "HTTP/2.0", http.Header{}
			}
			for _, h := range frame.Fields {
				a.header.Add(h.Name, h.Value)
			}
			a.reason = a.header.Get("x-wayleave-reason")
			_, _ = fmt.Sscan(frame.PseudoValue("status"), &a.status)
			over[id] = over[id] || frame.StreamEnded() || tunnels && a.status == http.StatusOK
		case *http2.DataFrame:
			a.body += string(frame.Data())
			over[id] = over[id] || frame.StreamEnded()
		case *http2.RSTStreamFrame:
			if !over[id] {
				a = answer{body: "reset: " + frame.ErrCode.String()}
			}
			over[id] = true
		case *http2.GoAwayFrame:
			if frame.ErrCode != http2.ErrCodeNo { // else it only takes no more requests
				answers[0] = answer{body: frame.ErrCode.String() + " " + string(frame.DebugData())}
				return answers
			}
		default:
			continue
		}
		answers[id] = a
	}
	return answers
}

// outcomes says what became of the streams in the words of the entries; as is the credential with which the next request
// that was served arrived.
func outcomes(answers map[uint32]answer, streams []uint32, served func(answer) bool, as func() string) (got []string) {
	for _, id := range streams {
		a, answered := answers[id]
		switch {
		case (!answered || a.status == 0 && a.body == "") && strings.Contains(answers[0].body, "i/o timeout"):
			got = append(got, "nothing in all the time")
		case !answered || a.status == 0 && a.body == "":
			got = append(got, "ended")
		case strings.HasPrefix(a.body, "reset"):
			got = append(got, "reset")
		case a.status == http.StatusOK && served(a):
			got = append(got, "/a "+as())
		case a.status >= 400 && a.explained():
			got = append(got, fmt.Sprintf("%d %s", a.status, a.reason))
		default:
			got = append(got, a.String())
		}
	}
	return got
}

func TestCorpusHTTP2(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	up := &recorder{}
	g := startIn(t, made, base(fmt.Sprintf(`
  - {hosts: [h1.demo.test], grant: claude, connect_to: "%s"}
`, newRawUpstream(t, made.CA, "h1.demo.test", up.serve)), "", ""), "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	const host = "h1.demo.test"
	fill := strings.NewReplacer("{ph}", w.placeholder, "{host}", host).Replace
	real := up.learn(t, w, host)

	// run makes a connection to the host. Only its own requests have the path.
	run := func(name, path string, write func(f *http2.Framer) error, wanted ...uint32) (got []string) {
		conn := tls.Client(g.tunnel(t, w, host+":443"), &tls.Config{ServerName: host, RootCAs: w.roots, NextProtos: []string{"h2"}})
		if err := conn.HandshakeContext(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
			return nil
		}
		defer conn.Close()
		answers := speak(conn, write, false, wanted...)
		arrivals, faults := up.drain(path)
		for _, fault := range faults {
			t.Errorf("%s or another: %s", name, fault)
		}
		got = outcomes(answers, wanted, func(a answer) bool { return len(arrivals) > 0 && a.body == path }, func() (as string) {
			as, arrivals = arrivals[0].as(real), arrivals[1:]
			return as
		})
		for _, a := range arrivals {
			got = append(got, "unread "+a.as(real))
		}
		return got
	}
	head := func(path string) []byte {
		return encode(fieldsEntry{fields: also(":path", path)}.request(fill))
	}

	for _, e := range corpusFields {
		block := encode(e.request(fill))
		write := func(f *http2.Framer) error {
			pieces := slices.Collect(slices.Chunk(block, 16<<10))
			err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: pieces[0], EndHeaders: len(pieces) == 1, EndStream: true})
			for i, piece := range pieces[1:] {
				err = errors.Join(err, f.WriteContinuation(1, i == len(pieces)-2, piece))
			}
			return err
		}
		if diff := cmp.Diff([]string{e.want}, run(e.name, "/a", write, 1)); diff != "" {
			t.Errorf("%s: %s", e.name, diff)
		}
	}

	// Several at a time: Envoy takes a second to close what it could not read.
	var wg errgroup.Group
	wg.SetLimit(16)
	// The same at the proxy, where anybody may ask for the authority.
	open := encode([][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "gate"}, {":path", "/.wayleave/v1/ca.pem"}})
	for _, e := range corpusFrames {
		conn := g.dial(t)
		wg.Go(func() error {
			answers := speak(conn, func(f *http2.Framer) error { return e.write(f, open) }, false, e.awaited()...)
			got := outcomes(answers, e.awaited(), func(a answer) bool { return strings.HasPrefix(a.body, "-----BEGIN") }, func() string { return "real" })
			if diff := cmp.Diff(e.want, got); diff != "" && !slices.Equal(got, e.or) {
				t.Errorf("%s, at the proxy: %s", e.name, diff)
			}
			return nil
		})
	}
	for i, e := range corpusFrames {
		wg.Go(func() error {
			path := fmt.Sprintf("/frames-%d", i)
			got := run(e.name, path, func(f *http2.Framer) error { return e.write(f, head(path)) }, e.awaited()...)
			unread := 0
			got = slices.DeleteFunc(got, func(s string) bool {
				if s != "unread real" {
					return false
				}
				unread++
				return true
			})
			if diff := cmp.Diff(e.want, got); diff != "" && !slices.Equal(got, e.or) || unread > max(1, e.most) {
				t.Errorf("%s: %d requests of which nobody read the answer; %s", e.name, unread, diff)
			}
			return nil
		})
	}
	_ = wg.Wait()
	if got := run("afterwards", "/a", func(f *http2.Framer) error { return whole(f, 1, head("/a")) }, 1); !slices.Equal(got, good("/a")) {
		t.Errorf("afterwards: %q", got)
	}
	if late, _ := up.drain(""); len(late) > 0 { // of the floods
		for _, a := range late {
			if !strings.HasPrefix(a.path, "/frames-") || a.as(real) != "real" {
				t.Errorf("later there came %v", a)
			}
		}
	}
}
