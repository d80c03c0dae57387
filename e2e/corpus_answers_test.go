package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// The corpus of answers: what an upstream, broken or hostile, can send that is no answer, or more than one. Whoever shares
// its connections gets their own answers all the same.

// answerEntry is an answer of an upstream and what the worker gets of it.
type answerEntry struct {
	name string
	text string // HTTP/1.1, as it is written; the connection is closed when it ends without Content-Length
	want string // "status body" or, when the gate answers for the upstream, "status reason"; "cut" when it is no whole answer
}

const (
	okHead   = "HTTP/1.1 200 OK\r\n"
	brokeOff = "502 upstream_broke_off"
)

var corpusAnswers = []answerEntry{
	{"the right answer", okHead + "Content-Length: 2\r\n\r\nok", "200 ok"},
	{"chunked", okHead + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "200 ok"},
	{"chunked with an extension and a trailer", okHead + "Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\nX-Wayleave-Reason: x\r\n\r\n", "200 ok"},
	{"to the end", okHead + "Connection: close\r\n\r\nok", "200 ok"},
	{"by an old server", "HTTP/1.0 200 OK\r\n\r\nok", "200 ok"},
	{"without words", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", "200 ok"},
	{"after hints", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + okHead + "Content-Length: 2\r\n\r\nok", "200 ok"},
	{"after a needless continue", "HTTP/1.1 100 Continue\r\n\r\n" + okHead + "Content-Length: 2\r\n\r\nok", "200 ok"},

	{"an offer of HTTP/2", okHead + "Connection: Upgrade\r\nUpgrade: h2,h2c\r\nContent-Length: 2\r\n\r\nok", "200 ok"}, // as Apache makes it with every answer
	{"an offer of HTTP/2, chunked", okHead + "Connection: Upgrade, Keep-Alive\r\nUpgrade: h2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "200 ok"},

	{"more than one", okHead + "Content-Length: 2\r\n\r\nok" + okHead + "Content-Length: 6\r\n\r\npoison", "200 ok"},
	{"more than it says", okHead + "Content-Length: 2\r\n\r\nokpoison", "200 ok"},
	{"more behind the last chunk", okHead + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\npoison", "200 ok"},
	{"a body where none may be", "HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison", brokeOff},
	{"a body of what has not changed", "HTTP/1.1 304 Not Modified\r\n\r\npoison", "304 "},

	{"what has not changed, chunked", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", "304 "},
	{"begin anew, with a body", "HTTP/1.1 205 Reset Content\r\nContent-Length: 2\r\n\r\nok", "205 ok"},
	{"a header for one hop", okHead + "Connection: x-a\r\nX-A: b\r\nContent-Length: 2\r\n\r\nok", "200 ok"},
	{"bytes beyond ASCII", okHead + "X: \xff\xe9\r\nContent-Length: 2\r\n\r\nok", "200 ok"},

	{"bare line feeds in chunks", okHead + "Transfer-Encoding: chunked\r\n\r\n2\nok\n0\n\n", "cut"},
	{"a bare line feed in an extension", okHead + "Transfer-Encoding: chunked\r\n\r\n2;a\nb\r\nok\r\n0\r\n\r\n", "cut"},
	{"a space before the colon", okHead + "Content-Length : 2\r\n\r\nok", brokeOff},
	{"two codings", okHead + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n2\r\nok\r\n0\r\n\r\n", brokeOff},
	{"a status of two digits", "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok", brokeOff},
	{"a status of four digits", "HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok", "2000 ok|cut"}, // HTTP/1.1 clients do not read it

	{"both lengths", okHead + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", brokeOff},
	{"two lengths", okHead + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nokx", brokeOff},
	{"lengths in a list", okHead + "Content-Length: 2, 3\r\n\r\nokx", brokeOff},
	{"less than nothing", okHead + "Content-Length: -2\r\n\r\nok", brokeOff},
	{"a coding nobody knows", okHead + "Transfer-Encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", brokeOff},
	{"a NUL in a header", okHead + "X: a\x00b\r\nContent-Length: 2\r\n\r\nok", brokeOff},
	{"a space in a name", okHead + "X Y: b\r\nContent-Length: 2\r\n\r\nok", brokeOff},
	{"a line without a colon", okHead + "X\r\nContent-Length: 2\r\n\r\nok", brokeOff},
	{"no HTTP", "SSH-2.0-x\r\n\r\n", brokeOff},
	{"another protocol", "ICY 200 OK\r\nContent-Length: 2\r\n\r\nok", brokeOff},
	{"an upgrade nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\npoison", "cut"},
	{"a long header", okHead + "X: " + strings.Repeat("x", 200<<10) + "\r\nContent-Length: 2\r\n\r\nok", brokeOff},
	{"too many headers", okHead + strings.Repeat("X: y\r\n", 2000) + "Content-Length: 2\r\n\r\nok", brokeOff},
	{"many headers", okHead + strings.Repeat("X: y\r\n", 900) + "Content-Length: 2\r\n\r\nok", "200 ok"},
	{"as long a header as may be", okHead + "X: " + strings.Repeat("x", 90<<10) + "\r\nContent-Length: 2\r\n\r\nok", "200 ok"},
	{"a flood of hints", strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("x", 1000)+"\r\n\r\n", 500) + okHead + "Content-Length: 2\r\n\r\nok", "200 ok"},
	{"nothing", "", "503 upstream_broke_off"},
	{"half a head", okHead + "Content-Le", brokeOff},

	{"half a body", okHead + "Content-Length: 100\r\nConnection: close\r\n\r\nok", "cut"},
	{"half a chunk", okHead + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n64\r\nok", "cut"},
	{"a chunk of no size", okHead + "Transfer-Encoding: chunked\r\n\r\nx\r\nok\r\n0\r\n\r\n", "cut"},
	{"a chunk too large", okHead + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nok\r\n0\r\n\r\n", "cut"},

	{"bare line feeds", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "200 ok"},
	{"a folded header", okHead + "X: a\r\n b\r\nContent-Length: 2\r\n\r\nok", "200 ok"},
	{"speaking for the gate", okHead + "X-Wayleave-Reason: needs_reconnect\r\nProxy-Authenticate: Basic\r\nProxy-Connection: close\r\nContent-Length: 2\r\n\r\nok", "200 ok"},
}

// corpusHeads are answers to HEAD, after which there is no body, whatever they say.
var corpusHeads = []answerEntry{
	{"the right answer", okHead + "Content-Length: 2\r\n\r\n", "200 "},
	{"chunked", okHead + "Transfer-Encoding: chunked\r\n\r\n", "200 "},
	{"without a length", okHead + "X: y\r\n\r\n", "200 "},
	{"with a body", okHead + "Content-Length: 6\r\n\r\npoison", "200 "},
	{"chunked, with a body", okHead + "Transfer-Encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n", "200 "},
	{"with another answer", okHead + "Content-Length: 0\r\n\r\n" + okHead + "Content-Length: 6\r\n\r\npoison", "200 "},
	{"what has not changed, chunked", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", "304 "},
	{"both lengths", okHead + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", brokeOff},
}

// answering is a server that answers requests for /answer/NAME as the entries say, and others with their path.
func answering(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		text := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
		var n int
		if _, err := fmt.Sscanf(req.URL.Path, "/answer/%d", &n); err == nil && req.Method == http.MethodHead {
			text = corpusHeads[n].text
		} else if err == nil {
			text = corpusAnswers[n].text
		}
		if _, err := io.WriteString(c, text); err != nil || !strings.Contains(text, "Content-Length") && !strings.Contains(text, "chunked") && !strings.Contains(text, "30") {
			return
		}
		if strings.Contains(text, "Connection: close") {
			return
		}
	}
}

// frameAnswer is an answer in HTTP/2; it gets the framer, the stream, and a block with :status 200.
type frameAnswer struct {
	name  string
	write func(f *http2.Framer, stream uint32, ok []byte) error
	want  string
}

func headed(f *http2.Framer, stream uint32, block []byte, end bool) error {
	const frame = 16 << 10
	first := block[:min(len(block), frame)]
	err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndHeaders: len(first) == len(block), EndStream: end})
	for rest := block[len(first):]; err == nil && len(rest) > 0; {
		part := rest[:min(len(rest), frame)]
		rest = rest[len(part):]
		err = f.WriteContinuation(stream, len(rest) == 0, part)
	}
	return err
}

func withFields(end bool, fields ...string) func(f *http2.Framer, stream uint32, _ []byte) error {
	return func(f *http2.Framer, stream uint32, _ []byte) error {
		var list [][2]string
		for i := 0; i < len(fields); i += 2 {
			list = append(list, [2]string{fields[i], fields[i+1]})
		}
		if err := headed(f, stream, encode(list), end); err != nil || end {
			return err
		}
		return f.WriteData(stream, true, []byte("ok"))
	}
}

var corpusFrameAnswers = []frameAnswer{
	{"the right answer", withFields(false, ":status", "200"), "200 ok"},
	{"speaking for the gate", withFields(false, ":status", "200", "x-wayleave-reason", "x", "proxy-authenticate", "Basic"), "200 ok"},
	{"many headers", withFields(false, append([]string{":status", "200"}, slices.Repeat([]string{"x", "y"}, 900)...)...), "200 ok"},
	{"as long headers as may be", withFields(false, append([]string{":status", "200"}, slices.Repeat([]string{"x", strings.Repeat("x", 9<<10)}, 10)...)...), "200 ok"},
	{"no status", withFields(false, "x", "y"), brokeOff},
	{"two statuses", withFields(false, ":status", "200", ":status", "201"), brokeOff},
	{"a status that is none", withFields(false, ":status", "2x0"), brokeOff},
	{"a path", withFields(false, ":status", "200", ":path", "/"), brokeOff},
	{"upper case in a name", withFields(false, ":status", "200", "X-Y", "z"), brokeOff},
	{"a line break in a value", withFields(false, ":status", "200", "x", "a\r\nset-cookie: b"), brokeOff},
	{"a connection", withFields(false, ":status", "200", "connection", "close"), brokeOff},
	{"a coding", withFields(false, ":status", "200", "transfer-encoding", "chunked"), brokeOff},
	{"an upgrade nobody asked for", withFields(false, ":status", "101"), brokeOff},
	{"more than it says", withFields(false, ":status", "200", "content-length", "1"), "cut"},
	{"less than it says", withFields(false, ":status", "200", "content-length", "3"), "cut"},
	{"a body before the head", func(f *http2.Framer, stream uint32, _ []byte) error { return f.WriteData(stream, true, []byte("ok")) }, brokeOff},
	{"a reset", func(f *http2.Framer, stream uint32, _ []byte) error {
		return f.WriteRSTStream(stream, http2.ErrCodeInternal)
	}, "503 upstream_broke_off"},
	{"a reset in the middle", func(f *http2.Framer, stream uint32, ok []byte) error {
		if err := headed(f, stream, ok, false); err != nil {
			return err
		}
		return f.WriteRSTStream(stream, http2.ErrCodeInternal)
	}, "cut"},
	{"a push", func(f *http2.Framer, stream uint32, ok []byte) error {
		return f.WritePushPromise(http2.PushPromiseParam{StreamID: stream, PromiseID: 2, BlockFragment: ok, EndHeaders: true})
	}, brokeOff},
	{"the end of the connection", func(f *http2.Framer, _ uint32, _ []byte) error {
		return f.WriteGoAway(0, http2.ErrCodeInternal, nil)
	}, "503 upstream_unreachable"},
	{"an answer to what nobody asked", func(f *http2.Framer, stream uint32, ok []byte) error {
		if err := headed(f, stream+100, ok, true); err != nil {
			return err
		}
		return headed(f, stream, ok, true)
	}, brokeOff},
	{"a flood of continuations", func(f *http2.Framer, stream uint32, ok []byte) error {
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: ok}); err != nil {
			return err
		}
		for range 3000 {
			if err := f.WriteContinuation(stream, false, encode([][2]string{{"x", strings.Repeat("y", 300)}})); err != nil {
				return err
			}
		}
		return nil
	}, "503 upstream_broke_off|" + brokeOff}, // whether Envoy has all of the head it takes before the upstream fails
}

// answeringHTTP2 is answering for frames. A connection that has failed is not spoken to any more.
func answeringHTTP2(c net.Conn) {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(c, c)
	f.AllowIllegalWrites = true
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if f.WriteSettings() != nil {
		return
	}
	ok := encode([][2]string{{":status", "200"}})
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			path, n := frame.PseudoValue("path"), 0
			write := func(f *http2.Framer, stream uint32, ok []byte) error {
				return errors.Join(headed(f, stream, ok, false), f.WriteData(stream, true, []byte(path)))
			}
			if _, err := fmt.Sscanf(path, "/answer/%d", &n); err == nil {
				write = corpusFrameAnswers[n].write
			}
			if write(f, frame.StreamID, ok) != nil {
				return
			}
		}
	}
}

func TestCorpusOfAnswers(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	g := startIn(t, made, base(fmt.Sprintf(`
  - {hosts: [h1.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [h2.demo.test], grant: claude, connect_to: "%s"}
`, newRawUpstream(t, made.CA, "h1.demo.test", answering), newRawUpstream(t, made.CA, "h2.demo.test", answeringHTTP2, "h2")), "", ""), "claude")
	first, second := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN"), g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")

	clients := map[bool]*http.Client{false: second.client(t, false), true: second.client(t, true)}
	var asked atomic.Int32
	check := func(t *testing.T, method, host string, n int, name, want string) {
		for _, h2 := range []bool{false, true} {
			a, err := do(first.client(t, h2), first.request(method, fmt.Sprintf("https://%s/answer/%d", host, n), nil))
			got := fmt.Sprintf("%d %s", a.status, a.body)
			switch {
			case err != nil, a.status == http.StatusSwitchingProtocols: // which nothing comes after, and HTTP/2 does not know
				got = "cut"
			case a.status >= 400 && a.reason != "" && (a.explained() || method == http.MethodHead):
				got = fmt.Sprintf("%d %s", a.status, a.reason)
			}
			if !slices.Contains(strings.Split(want, "|"), got) {
				t.Errorf("%s, HTTP/2 %v: %.200q (%v), want %q", name, h2, got, err, want)
			}
			for header := range a.header {
				if strings.HasPrefix(header, "Proxy-") || header == "X-Wayleave-Reason" && a.status < 400 {
					t.Errorf("%s: the header %s came from the upstream", name, header)
				}
			}
			// Others, on whichever connection, get their own answers; or are told that the connection has ended under them.
			for range 3 {
				path := fmt.Sprintf("/of/%d", asked.Add(1))
				a, err := do(clients[h2], second.request(http.MethodGet, "https://"+host+path, nil))
				if own := a.status == http.StatusOK && a.body == path; err != nil || !own && (a.reason != "upstream_broke_off" || !a.explained()) {
					t.Errorf("after %s, another asked for %s and got %v, %v", name, path, a, err)
				}
			}
		}
	}
	t.Run("HTTP/1.1", func(t *testing.T) {
		for n, e := range corpusAnswers {
			check(t, http.MethodGet, "h1.demo.test", n, e.name, e.want)
		}
		for n, e := range corpusHeads {
			check(t, http.MethodHead, "h1.demo.test", n, "HEAD: "+e.name, e.want)
		}
	})
	t.Run("HTTP/2", func(t *testing.T) {
		for n, e := range corpusFrameAnswers {
			check(t, http.MethodGet, "h2.demo.test", n, e.name, e.want)
		}
	})
}
