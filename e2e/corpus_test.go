package e2e

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The corpus is what a worker may write that two programs in a row could read in two ways: how long a message is, where
// it ends, whom it is for, and which credential is in it. Each entry says what becomes of it, for an upstream that speaks
// HTTP/1.1 and for one that speaks HTTP/2, and whatever that is:
//
//   - a request reaches the upstream when the gate has let that very request out, and no other does;
//   - the real token comes with the request whose placeholder it replaces, and with no other;
//   - no placeholder and no header of ours reaches the upstream;
//   - the worker has an answer for each, in words where it is refused, or the connection ends.

// entry is one message, or several in a row.
type entry struct {
	name string
	text string // with {host}, {ph}, {bearer} and {me} in it
	// want is, in order, "/path credential" for what is let out and answered by the upstream, or "status reason".
	want []string
}

// get and post are requests with more lines in their heads.
func get(path string, lines ...string) string { return message("GET "+path+" HTTP/1.1", lines, "") }

func post(path, body string, lines ...string) string {
	return message("POST "+path+" HTTP/1.1", lines, body)
}

func message(first string, lines []string, body string) string {
	return strings.Join(append([]string{first, "Host: {host}"}, lines...), "\r\n") + "\r\n\r\n" + body
}

const (
	// What URLs should not have in them, and clients send as it is.
	oddPath = "/a|b^c`d\"e<f>g'h[i]j\\k!l$m&n(o)p*q+r,s:t=u@v~w-x_y.z?a|b^c`d\"e<f>g'h[i]j\\k/l?m"

	bearer  = "Authorization: Bearer {ph}"
	chunked = "Transfer-Encoding: chunked"
	smuggle = "GET /smuggled HTTP/1.1\r\nHost: {host}\r\n" + bearer + "\r\n\r\n"
)

var longPath = "/a?" + strings.Repeat("x", 70<<10)

var corpusHTTP1 = slices.Concat(
	group("length", bad("400 malformed"), []entry{
		{"both lengths", post("/a", "0\r\n\r\n"+smuggle, bearer, "Content-Length: 4", chunked), nil},
		{"both lengths, chunked first", post("/a", "0\r\n\r\n"+smuggle, bearer, chunked, "Content-Length: 4"), nil},
		{"two lengths", post("/a", "abcd"+smuggle, bearer, "Content-Length: 4", "Content-Length: 5"), nil},
		{"the same length twice", post("/a", "abcd", bearer, "Content-Length: 4", "Content-Length: 4"), nil},
		{"lengths in a list", post("/a", "abcd", bearer, "Content-Length: 4, 5"), nil},
		{"with a sign", post("/a", "abcd", bearer, "Content-Length: +4"), nil},
		{"less than nothing", post("/a", "abcd", bearer, "Content-Length: -1"), nil},
		{"hexadecimal", post("/a", "abcd", bearer, "Content-Length: 0x4"), nil},
		{"two words", post("/a", "abcd", bearer, "Content-Length: 4 4"), nil},
		{"no number", post("/a", "abcd", bearer, "Content-Length: "), nil},
		{"too large a number", post("/a", "abcd", bearer, "Content-Length: 18446744073709551620"), nil},
		{"a space before the colon", post("/a", "0\r\n\r\n"+smuggle, bearer, "Transfer-Encoding : chunked"), nil},
		{"a control character before chunked", post("/a", "0\r\n\r\n", bearer, "Transfer-Encoding: \x0bchunked"), nil},
	}),
	group("coding", bad("501 malformed"), []entry{
		{"two codings", post("/a", "0\r\n\r\n", bearer, chunked, "Transfer-Encoding: identity"), nil},
		{"two codings in a list", post("/a", "0\r\n\r\n", bearer, "Transfer-Encoding: identity, chunked"), nil},
		{"chunked twice", post("/a", "0\r\n\r\n", bearer, "Transfer-Encoding: chunked, chunked"), nil},
		{"another coding", post("/a", "0\r\n\r\n", bearer, "Transfer-Encoding: gzip, chunked"), nil},
		{"a word like chunked", post("/a", "0\r\n\r\n", bearer, "Transfer-Encoding: xchunked"), nil},
		{"a parameter", post("/a", "0\r\n\r\n", bearer, "Transfer-Encoding: chunked;a=b"), nil},
		{"quoted", post("/a", "0\r\n\r\n", bearer, `Transfer-Encoding: "chunked"`), nil},
	}),
	group("chunks", nil, []entry{
		{"an extension", post("/a", "4;a=b\r\nabcd\r\n0\r\n\r\n", bearer, chunked), good("/a")},
		{"upper case", post("/a", "0\r\n\r\n", bearer, "Transfer-Encoding: CHUNKED"), good("/a")},
		{"trailers", post("/a", "4\r\nabcd\r\n0\r\n"+bearer+"\r\nX-Wayleave-Identity: x\r\n\r\n", bearer, chunked, "Trailer: authorization"), good("/a")},
		{"and another request", post("/a", "1\r\nx\r\n0\r\n\r\n"+get("/b", bearer), bearer, chunked), good("/a", "/b")},
		{"an end of many zeros", post("/a", "4\r\nabcd\r\n0000000\r\n\r\n", bearer, chunked), good("/a")},
		{"an extension in quotes", post("/a", "4;a=\"b;c\"\r\nabcd\r\n0\r\n\r\n", bearer, chunked), good("/a")},
		{"of a GET", get("/a", bearer, chunked) + "4\r\nabcd\r\n0\r\n\r\n" + get("/b", bearer), good("/a", "/b")},
	}),
	// What one program takes for the end of a line and another does not, and sizes that are read in two ways.
	group("chunks that are none", bad("400 malformed"), []entry{
		{"bare line feeds", post("/a", "4\nabcd\n0\n\n", bearer, chunked), nil},
		{"a bare line feed behind a size", post("/a", "4\nabcd\r\n0\r\n\r\n", bearer, chunked), nil},
		{"a bare return behind a size", post("/a", "4\rabcd\r\n0\r\n\r\n", bearer, chunked), nil},
		{"a bare line feed in an extension", post("/a", "4;a\nb\r\nabcd\r\n0\r\n\r\n", bearer, chunked), nil},
		{"an extension that ends at a line feed", post("/a", "2;\nxx\r\n"+fmt.Sprintf("%x", len(smuggle))+"\r\n0\r\n\r\n"+smuggle, bearer, chunked), nil},
		{"a bare return in an extension", post("/a", "4;a\rb\r\nabcd\r\n0\r\n\r\n", bearer, chunked), nil},
		{"no size", post("/a", ";a\r\nabcd\r\n0\r\n\r\n", bearer, chunked), nil},
		{"less than nothing", post("/a", "-4\r\nabcd\r\n0\r\n\r\n", bearer, chunked), nil},
		{"with a sign", post("/a", "+4\r\nabcd\r\n0\r\n\r\n", bearer, chunked), nil},
		{"with 0x", post("/a", "0x4\r\nabcd\r\n0\r\n\r\n", bearer, chunked), nil},
		{"with an underscore", post("/a", "0_4\r\nabcd\r\n0\r\n\r\n", bearer, chunked), nil},
		{"a space before a size", post("/a", " 4\r\nabcd\r\n0\r\n\r\n", bearer, chunked), nil},
		{"too large a size", post("/a", "10000000000000004\r\nabcd\r\n0\r\n\r\n", bearer, chunked), nil},
		{"less data than its size", post("/a", "6\r\nabcd\r\n0\r\n\r\n"+smuggle, bearer, chunked), nil},
		{"a request for trailers", post("/a", "0\r\n"+smuggle, bearer, chunked), nil},
	}),
	// Envoy takes these as they are meant, and writes them anew: no upstream sees how they were written, and what is behind them is
	// a request of its own.
	group("chunks of a kind", nil, []entry{
		{"a bare line feed behind the data", post("/a", "4\r\nabcd\n0\r\n\r\n", bearer, chunked), good("/a")},
		{"a NUL in an extension", post("/a", "4;a\x00b\r\nabcd\r\n0\r\n\r\n", bearer, chunked), good("/a")},
		{"two words", post("/a", "4 4\r\nabcd\r\n0\r\n\r\n", bearer, chunked), good("/a")},
		{"more data than its size", post("/a", "2\r\nabcd\r\n0\r\n\r\n"+smuggle, bearer, chunked), good("/a", "/smuggled")},
		{"trailers that end at a line feed", post("/a", "0\r\nX: y\n\n"+smuggle, bearer, chunked), good("/a", "/smuggled")},
	}),
	group("bodies that look like requests", nil, []entry{
		{"with a length", post("/a", smuggle, bearer, "Content-Length: {smuggled}"), good("/a")},
		{"of a GET", get("/a", bearer, "Content-Length: 0") + get("/b", bearer), good("/a", "/b")},
		{"of a GET, with a length", get("/a", bearer, "Content-Length: {smuggled}") + smuggle + get("/b", bearer), good("/a", "/b")},
		{"of a DELETE", message("DELETE /a HTTP/1.1", []string{bearer, "Content-Length: {smuggled}"}, smuggle), good("/a")},
		{"of an OPTIONS", message("OPTIONS /a HTTP/1.1", []string{bearer, "Content-Length: {smuggled}"}, smuggle), good("/a")},
		{"underscores give no length", post("/a", smuggle, bearer, "Content_Length: 1000", "Transfer_Encoding: chunked"), good("/a", "/smuggled")},
	}),
	group("requests in a row", nil, []entry{
		{"each its own", get("/a", bearer) + get("/b", "Authorization: Bearer other") + get("/c"), []string{"/a real", "/b other", "/c"}},
		{"the second is refused", get("/a", bearer) + get("/b?k={ph}", bearer), []string{"/a real", "400 misplaced_placeholder"}},
		{"the first is refused", get("/a?k={ph}", bearer) + get("/b", bearer), bad("400 misplaced_placeholder")},
		{"the second is for another host", get("/a", bearer) + "GET /b HTTP/1.1\r\nHost: evil.example\r\n" + bearer + "\r\n\r\n", []string{"/a real", "421 misdirected"}},
		{"the first was the last", get("/a", bearer, "Connection: close") + smuggle, good("/a")},
		{"rubbish behind", get("/a", bearer) + "\x00\x01\r\n\r\n", []string{"/a real", "400 malformed"}},
		{"empty lines before", "\r\n\r\n" + get("/a", bearer), good("/a")},
		{"a hundred", strings.Repeat(get("/a", bearer), 100), slices.Repeat(good("/a"), 100)},
	}),
	group("lines", bad("400 malformed"), []entry{
		{"a NUL in a value", get("/a", bearer, "X: a\x00b"), nil},
		{"a NUL in a name", get("/a", bearer, "X\x00: a"), nil},
		{"a CR in a value", get("/a", bearer, "X: a\rAuthorization: Bearer evil"), good("/a")},
		{"a space in a name", get("/a", bearer, "X Y: b"), nil},
		{"no colon", get("/a", bearer, "X"), nil},
		{"no name", get("/a", bearer, ": x"), nil},
		{"a space before the colon", get("/a", "Authorization : Bearer {ph}"), nil},
		{"a tab before the colon", get("/a", "Authorization\t: Bearer {ph}"), nil},
		{"a control character in a name", get("/a", bearer, "X\x01: b"), nil},
		{"a first line that begins with a space", " " + get("/a", bearer), nil},
		{"bare line feeds", "GET /a HTTP/1.1\nHost: {host}\n" + bearer + "\n\n", good("/a")},
		{"a bare line feed before a header", get("/a", bearer+"\nX: y"), good("/a")},
		{"a bare line feed before a credential", get("/a", "X: a\nAuthorization: Bearer evil", bearer), bad("400 duplicate_credential")},
		{"a control character in a value", get("/a", bearer, "X: a\x01b"), nil},
		{"every letter that a name may have", get("/a", bearer, "X!$%&'*+-.^`|~#: every letter of a value \t\"(),/:;<=>?@[\\]{}"), good("/a")},
		{"bytes beyond ASCII in values", get("/a", bearer, "X: \xff\xe9", "User-Agent: \xff", "X-Y: caf\xc3\xa9"), good("/a")},
		{"bytes beyond ASCII in a name", get("/a", bearer, "X\xff: y"), nil},
		{"bytes beyond ASCII in the path", get("/\xff", bearer), nil},
		{"bytes beyond ASCII in the query", get("/a?\xff", bearer), nil},
		{"a first header that begins with a space", "GET /a HTTP/1.1\r\n Host: {host}\r\n" + bearer + "\r\n\r\n", nil},
	}),
	group("first lines", bad("400 malformed"), []entry{
		{"no version", "GET /a\r\nHost: {host}\r\n" + bearer + "\r\n\r\n", nil},
		{"another protocol", message("GET /a FTP/1.1", []string{bearer}, ""), nil},
		{"a space in the path", message("GET /a b HTTP/1.1", []string{bearer}, ""), nil},
		{"a tab for a space", message("GET\t/a HTTP/1.1", []string{bearer}, ""), good("/a")},
		{"a fragment", get("/a#b", bearer), nil},
		{"a placeholder in a fragment", get("/a#{ph}"), nil},
		{"every letter that is not a space", get(oddPath, bearer), good(oddPath)},
		{"a long path", get(longPath, bearer), good(longPath)},
		{"a method that is none", message("F!O /a HTTP/1.1", []string{bearer}, ""), nil},
		{"the preface of HTTP/2", message("PRI * HTTP/2.0", nil, "SM\r\n\r\n"), nil},
		{"of TLS", "\x16\x03\x01\x00\x05hello\r\n\r\n", nil},
	}),
	group("methods", bad("400 policy_denied"), []entry{
		{"TRACE", message("TRACE /a HTTP/1.1", []string{bearer, "Max-Forwards: 0"}, ""), nil},
		{"TRACK", message("TRACK /a HTTP/1.1", []string{bearer}, ""), bad("400 malformed")},
		{"trace in lower case", message("trace /a HTTP/1.1", []string{bearer}, ""), bad("400 malformed")},
		{"CONNECT inside", message("CONNECT {host}:443 HTTP/1.1", []string{bearer}, ""), nil},
		{"CONNECT elsewhere", message("CONNECT evil.example:443 HTTP/1.1", []string{bearer}, ""), []string{"421 misdirected"}},
		{"OPTIONS *", message("OPTIONS * HTTP/1.1", []string{bearer}, ""), []string{"404 malformed"}},
		{"get in lower case", message("get /a HTTP/1.1", []string{bearer}, ""), bad("400 malformed")},
		{"TRACE in a header", post("/a", "", bearer, "Content-Length: 0", "X-HTTP-Method-Override: TRACE"), nil},
		{"TRACE in a header, with underscores", get("/a", bearer, "X_Method_Override: trace"), nil},
		{"another in a header, which nobody tells apart", get("/a", bearer, "X-HTTP-Method: POST", "X-Original-URL: /b"), good("/a")},
		{"no path in a header", get("/a", bearer, "X-Rewrite-URL: https://evil.example/"), nil},
		{"one nobody knows", message("BREW /a HTTP/1.1", []string{bearer}, ""), bad("400 malformed")},
	}),
	group("versions", nil, []entry{
		{"1.0", message("GET /a HTTP/1.0", []string{bearer}, ""), good("/a")},
		{"1.0 with a body", message("POST /a HTTP/1.0", []string{bearer, "Content-Length: 4"}, "abcd"), good("/a")},
		{"1.0 and keep-alive", message("GET /a HTTP/1.0", []string{bearer, "Connection: keep-alive"}, ""), good("/a")},
		{"1.0 and chunked", message("POST /a HTTP/1.0", []string{bearer, chunked}, "0\r\n\r\n"+smuggle), good("/a")},
		{"1.2", message("GET /a HTTP/1.2", []string{bearer}, ""), good("/a")},
		{"in lower case", message("GET /a http/1.1", []string{bearer}, ""), bad("400 malformed")},
		{"2.0 in the form of 1", message("GET /a HTTP/2.0", []string{bearer}, ""), good("/a")},
	}),
	group("hosts", bad("421 misdirected"), append(hosts(
		"evil.example", "{host}:444", "{host}:0443", "{host}:", "{host}.", "x@{host}", "x:y@{host}", "{host}@evil.example", "{host},evil.example",
		"127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[fe80::1%25eth0]", "2130706433", "0177.0.0.1", "0x7f.1", "xn--e1afmkfd.example", "x%2e{host}",
	), []entry{
		{"upper case and the port", "GET /a HTTP/1.1\r\nHost: {HOST}:443\r\n" + bearer + "\r\n\r\n", good("/a")},
		{"none", "GET /a HTTP/1.1\r\n" + bearer + "\r\n\r\n", bad("400 malformed")},
		{"two", get("/a", bearer, "Host: evil.example"), nil},
		{"the same twice", get("/a", bearer, "Host: {host}"), nil},
		{"an absolute form", get("https://{host}/a", bearer), good("/a")},
		{"an absolute form and another Host", "GET https://{host}/a HTTP/1.1\r\nHost: evil.example\r\n" + bearer + "\r\n\r\n", good("/a")},
		{"an absolute form of another host", get("https://evil.example/a", bearer), nil},
		{"an absolute form without TLS", get("http://{host}/a", bearer), good("/a")},
		{"an absolute form with a user", get("https://x:y@{host}/a", bearer), good("/a")},
		{"an absolute form of another port", get("https://{host}:444/a", bearer), nil},
		{"Host is for the next hop only", get("/a", bearer, "Connection: host"), bad("400 malformed")},
	}...)),
	group("hosts that are none", bad("400 malformed"), hosts("{host} evil.example", "хост.example", "{host}/evil", `{host}\evil`, "{host}#", "{host}?")),
	group("credentials", nil, []entry{
		{"lower case", get("/a", "aUTHORIZATION:bearer   {ph}  "), good("/a")},
		{"folded", get("/a", "Authorization:\r\n Bearer {ph}"), good("/a")},
		{"with an empty one", get("/a", bearer, "Authorization:"), good("/a")},
		{"Basic", get("/a", "Authorization: Basic {basic}"), []string{"/a Basic real"}},
		{"beside bytes that are no text", get("/a", bearer, "X: caf\xe9 \xff", "User-Agent: \xc3\x28"), good("/a")},
		{"another bearer", get("/a", "Authorization: Bearer other"), []string{"/a other"}},
		{"of the connection, which others share", get("/a", "Authorization: NTLM TlRMTVNTUAABAAAAB4IIAA=="), bad("400 policy_denied")},
		{"of another kind", get("/a", `Authorization: Digest username="a", response="b"`), []string{`/a Digest username="a", response="b"`}},
	}),
	group("two credentials", bad("400 duplicate_credential"), []entry{
		{"another after", get("/a", bearer, "Authorization: Bearer evil"), nil},
		{"another before", get("/a", "Authorization: Bearer evil", bearer), nil},
		{"the same", get("/a", bearer, bearer), nil},
		{"in other letters", get("/a", bearer, "AUTHORIZATION: x"), nil},
		{"joined", get("/a", bearer+", Bearer evil"), nil},
		{"joined, another first", get("/a", "Authorization: Bearer evil, Bearer {ph}"), nil},
		{"folded", get("/a", bearer+"\r\n , Bearer evil"), nil},
		{"in another header", get("/a", bearer, "X-Api-Key: evil"), nil},
		{"with underscores", get("/a", bearer, "X_Api_Key: evil"), nil},
		{"none of ours", get("/a", "Authorization: Bearer a", "Authorization: Bearer b"), nil},
	}),
	group("not the placeholder", bad("400 not_your_placeholder"), []entry{
		{"one character more", get("/a", bearer+"x"), nil},
		{"in upper case", get("/a", "Authorization: Bearer {PH}"), nil},
		{"a byte that is no text more", get("/a", bearer+"\xff"), nil},
		{"no scheme", get("/a", "Authorization: {ph}"), nil},
		{"another scheme", get("/a", "Authorization: Digest {ph}"), nil},
		{"a tab", get("/a", "Authorization: Bearer\t{ph}"), nil},
		{"folded and another word", get("/a", bearer+"\r\n Bearer"), nil},
		{"Basic and more", get("/a", "Authorization: Basic {basicx}"), nil},
	}),
	group("misplaced", bad("400 misplaced_placeholder"), []entry{
		{"a cookie", get("/a", bearer, "Cookie: a=b; t={ph}"), nil},
		{"between bytes that are no text", get("/a", "X: \xff{ph}\xfe"), nil},
		{"what a worker calls its request", get("/a", bearer, "X-Request-Id: {ph}"), nil},
		{"a referer", get("/a", "Referer: https://x/?t={ph}"), nil},
		{"the name of a header", get("/a", bearer, "X-{ph}: 1"), nil},
		{"another header of credentials", get("/a", "X-Api-Key: {ph}"), nil},
		{"with underscores", get("/a", "X_Api_Key: {ph}"), nil},
		{"base64", get("/a", bearer, "X: {basic}"), nil},
		{"upper case", get("/a", "User-Agent: {PH}"), nil},
		{"the query", get("/a?k={ph}"), nil},
		{"the path", get("/{ph}", bearer), nil},
		{"twice percent-encoded", get("/a?k={%2577}", bearer), nil},
		{"a WebSocket's protocol", get("/a", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: key.{ph}"), nil},
	}),
	group("connection", nil, []entry{
		{"close and more", get("/a", bearer, "Connection: close, x-api-key"), good("/a")},
		{"naming what is not there", get("/a", bearer, "Connection: x-nothing", "TE: trailers, gzip", "Keep-Alive: timeout=5"), good("/a")},
		{"h2c", get("/a", bearer, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), good("/a")},
		{"another upgrade", get("/a", bearer, "Connection: Upgrade", "Upgrade: foo"), bad("403 malformed")},
		{"two upgrades", get("/a", bearer, "Connection: Upgrade", "Upgrade: websocket, h2c", "Sec-WebSocket-Version: 13"), bad("403 malformed")},
		{"an upgrade to TLS", get("/a", bearer, "Connection: Upgrade", "Upgrade: TLS/1.2"), good("/a")}, // an offer, which is not taken
		{"an upgrade to TLS or another", get("/a", bearer, "Connection: Upgrade", "Upgrade: TLS/1.2, foo"), bad("403 malformed")},
		// It ends at the first hop, before anybody looks at it: the request goes on without (RFC 9110 section 7.6.1).
		{"naming the credential", get("/a", bearer, "Connection: authorization"), []string{"/a"}},
		{"naming the credential among others", get("/a", bearer, "Connection: x-a, AUTHORIZATION, x-b"), []string{"/a"}},
		{"continue", post("/a", "abcd", bearer, "Content-Length: 4", "Expect: 100-continue"), good("/a")},
		{"continue, and more", post("/a", "abcd", bearer, "Content-Length: 4", "Expect: 100-continue, x"), good("/a")},
		{"continue, behind something", post("/a", "abcd", bearer, "Content-Length: 4", "Expect: y 100-continue"), good("/a")},
		{"continue twice", post("/a", "abcd", bearer, "Content-Length: 4", "Expect: 100-continue", "Expect: 100-continue"), good("/a")},
		{"refused before it continues", post("/a?k={ph}", "", bearer, "Content-Length: 4", "Expect: 100-continue"), bad("400 misplaced_placeholder")},
		{"refused, and it had not waited", post("/a?k={ph}", smuggle, bearer, "Content-Length: 4", "Expect: 100-continue"), bad("400 misplaced_placeholder")},
		{"expecting something else", post("/a", "abcd", bearer, "Content-Length: 4", "Expect: 200-ok"), good("/a")},
		// Envoy does not take out what Connection names where there is an upgrade.
		{"a WebSocket that names the credential", get("/a", bearer, "Connection: Upgrade, Authorization", "Upgrade: websocket", "Sec-WebSocket-Version: 13"), bad("400 duplicate_credential")},
		{"continue without a body", get("/a", bearer, "Expect: 100-continue"), good("/a")},
	}),
	group("of ours", nil, []entry{
		{"identity", get("/a", bearer, "X-Wayleave-Identity: x|admin|admin|9999999999", "X-Wayleave-Verdict: pass", "X-Wayleave_Verdict: pass"), good("/a")},
		{"orders to Envoy", get("/a", bearer, "X-Envoy-Original-Path: /evil", "X-Envoy-Retry-On: 5xx", "X-Envoy-Upstream-Rq-Timeout-Ms: 1", "X_Envoy-Retry-On: 5xx"), good("/a")},
		{"another method and path", get("/a", bearer, "X-HTTP-Method-Override: DELETE", "X-Original-URL: /b"), good("/a")}, // no rule is about them
		{"for a proxy", get("/a", bearer, "Proxy-Authorization: Basic eDp5", "Proxy-Connection: close", "Proxy_Authorization: x", "Proxy: http://evil.example"), good("/a")},
		{"on whose behalf", get("/a", bearer, "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Host: evil.example", "X_Forwarded_For: 1.2.3.4", "Forwarded: for=1.2.3.4", "X-Request-Id: mine", "X-Request-Id-Sent: other"), good("/a")},
	}),
	group("size", bad("431 malformed"), []entry{
		{"a long header", get("/a", bearer, "X: "+strings.Repeat("x", 100<<10)), nil},
		{"too many headers", get("/a", append([]string{bearer}, slices.Repeat([]string{"X: y"}, 1100)...)...), nil},
		{"many headers", get("/a", append([]string{bearer}, slices.Repeat([]string{"X: y"}, 900)...)...), good("/a")},
	}),
)

// group names entries, and gives those that say nothing the same end.
func group(name string, want []string, entries []entry) []entry {
	for i := range entries {
		entries[i].name = name + "/" + entries[i].name
		if entries[i].want == nil {
			entries[i].want = want
		}
	}
	return entries
}

func bad(what string) []string { return []string{what} }

func good(paths ...string) (want []string) {
	for _, p := range paths {
		want = append(want, p+" real")
	}
	return want
}

func hosts(list ...string) (entries []entry) {
	for _, h := range list {
		entries = append(entries, entry{h, "GET /a HTTP/1.1\r\nHost: " + h + "\r\n" + bearer + "\r\n\r\n", nil})
	}
	return entries
}

// arrival is a request as an upstream got it.
type arrival struct{ path, credential string }

// as is the credential in the words of an entry; real is what arrives in place of the placeholder.
func (a arrival) as(real string) string {
	_, token, _ := strings.Cut(real, " ")
	credential := a.credential
	if _, password, ok := (&http.Request{Header: http.Header{"Authorization": {credential}}}).BasicAuth(); ok {
		credential = "Basic " + password
	}
	credential = strings.Replace(credential, token, "real", 1)
	if scheme, rest, ok := strings.Cut(credential, " "); ok && strings.EqualFold(scheme, "Bearer") {
		credential = rest
	}
	return credential
}

// recorder is an upstream that remembers what arrives, and answers with the path.
type recorder struct {
	mu       sync.Mutex
	arrivals []arrival
	faults   []string // what should not have arrived
}

func (r *recorder) took(req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.arrivals = append(r.arrivals, arrival{req.RequestURI, strings.Join(req.Header.Values("Authorization"), " | ")})
	said := []string{req.RequestURI, req.Host}
	for name, values := range req.Header {
		if ours.MatchString(name) {
			r.faults = append(r.faults, "the header "+name+" arrived")
		}
		if name == "X-Request-Id" && !slices.Equal(values, []string{"mine"}) { // as the worker has it
			r.faults = append(r.faults, fmt.Sprintf("the request was called %q", values))
		}
		said = append(append(said, name), values...)
	}
	if strings.ContainsAny(strings.Join(said, ""), "\r\n\x00") {
		r.faults = append(r.faults, fmt.Sprintf("what ends a line elsewhere arrived: %q", said))
	}
	if strings.Contains(strings.ToLower(strings.Join(said, " ")), placeholderMarker) {
		r.faults = append(r.faults, "a placeholder arrived")
	}
}

func (r *recorder) fault(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, fmt.Sprintf(format, args...))
}

// ours are headers that speak of or to the gate, in either spelling, and those that end at a hop.
var ours = regexp.MustCompile(`(?i)^(x[-_](wayleave|envoy|forwarded)[-_].*|proxy([-_].*)?|forwarded|x-request-id-sent|transfer_encoding|content_length|http2-settings|keep-alive|upgrade)$`)

// drain returns what arrived since it was last asked, at one path or, when that is empty, at all.
func (r *recorder) drain(path string) (arrivals []arrival, faults []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.arrivals = slices.DeleteFunc(r.arrivals, func(a arrival) bool {
		taken := path == "" || a.path == path
		if taken {
			arrivals = append(arrivals, a)
		}
		return taken
	})
	faults, r.faults = r.faults, nil
	return arrivals, faults
}

// learn makes the right request and returns the credential with which it arrives.
func (r *recorder) learn(t *testing.T, w worker, host string) string {
	t.Helper()
	a, err := do(w.client(t, true), w.request(http.MethodGet, "https://"+host+"/learn", nil))
	arrivals, _ := r.drain("")
	if err != nil || a.body != "/learn" || len(arrivals) != 1 || arrivals[0].credential == "" {
		t.Fatalf("the right request: %v, %v; %d arrived", a, err, len(arrivals))
	}
	return arrivals[0].credential
}

// serve is a server for HTTP/1.1.
func (r *recorder) serve(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				r.fault("what arrived is no request: %v", err)
			}
			return
		}
		if req.Header.Get("Expect") != "" {
			fmt.Fprint(c, "HTTP/1.1 100 Continue\r\n\r\n")
		}
		r.answer(c, req)
	}
}

func (r *recorder) answer(w io.Writer, req *http.Request) {
	r.took(req)
	_, _ = io.Copy(io.Discard, req.Body)
	for name, values := range req.Trailer {
		if len(values) > 0 {
			r.fault("the trailer %s arrived", name)
		}
	}
	if rw, ok := w.(http.ResponseWriter); ok {
		fmt.Fprint(rw, req.RequestURI)
	} else {
		fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.RequestURI), req.RequestURI)
	}
}

// end is the request that shows that the connection is still in step.
const end = "/end"

// converse writes text, reads n answers, and then asks for end where the connection is open. An answer of status 0 is the
// end of the connection; rest is what follows until then, of which there should be nothing.
func converse(c net.Conn, host, text string, n int) (answers []answer, rest io.Reader) {
	go func() { _, _ = io.WriteString(c, text) }()
	in := bufio.NewReader(c)
	read := func() bool {
		resp, err := http.ReadResponse(in, nil)
		if err == nil && resp.StatusCode == http.StatusContinue {
			resp, err = http.ReadResponse(in, nil)
		}
		if err != nil {
			answers = append(answers, answer{body: err.Error()})
			return false
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			b = []byte(err.Error())
		}
		answers = append(answers, answer{resp.StatusCode, resp.Header.Get("x-wayleave-reason"), resp.Proto, resp.Header, string(b)})
		return !resp.Close
	}
	open := true
	for range n {
		if open = read(); !open {
			break
		}
	}
	if open {
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", end, host)
		read()
	}
	return answers, in
}

func TestCorpus(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	h1, h2 := &recorder{}, &recorder{}
	g := startIn(t, made, base(fmt.Sprintf(`
  - {hosts: [h1.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [h2.demo.test], grant: claude, connect_to: "%s"}
`, newRawUpstream(t, made.CA, "h1.demo.test", h1.serve), newUpstream(t, made.CA, "h2.demo.test", func(w http.ResponseWriter, r *http.Request) { h2.answer(w, r) }).address), "", ""), "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

	for host, upstream := range map[string]*recorder{"h1.demo.test": h1, "h2.demo.test": h2} {
		t.Run(host, func(t *testing.T) {
			fill := strings.NewReplacer("{ph}", w.placeholder, "{PH}", strings.ToUpper(w.placeholder), "{host}", host, "{HOST}", strings.ToUpper(host), "{smuggled}", fmt.Sprint(len(smuggle)-len("{host}{ph}")+len(host)+len(w.placeholder)),
				"{basic}", b64("u:"+w.placeholder), "{basicx}", b64("u:"+w.placeholder+"x"), "{%2577}", strings.ReplaceAll(w.placeholder, "w", "%2577")).Replace
			real, rests := upstream.learn(t, w, host), map[string]io.Reader{}
			run := func(e entry) (got []string) {
				conn, err := g.inside(t, w, host, host)
				if err != nil {
					t.Fatal(err)
				}
				answers, rest := converse(conn, host, fill(e.text), len(e.want))
				rests[e.name] = rest
				arrivals, faults := upstream.drain("")
				for _, fault := range faults {
					t.Errorf("%s: %s", e.name, fault)
				}
				for _, a := range answers {
					arrived := a.status == http.StatusOK && len(arrivals) > 0 && arrivals[0].path == a.body
					switch {
					case arrived && a.body == end:
						arrivals = arrivals[1:]
					case arrived:
						got = append(got, strings.TrimSpace(a.body+" "+arrivals[0].as(real)))
						arrivals = arrivals[1:]
					case a.status >= 400 && a.explained() && a.header.Get("X-Should-Retry") == "false" && a.header.Get("X-Request-Id") != "":
						got = append(got, fmt.Sprintf("%d %s", a.status, a.reason))
					default:
						got = append(got, a.String())
					}
				}
				for _, a := range arrivals {
					got = append(got, "unasked "+a.path+" "+a.as(real))
				}
				return got
			}
			for _, e := range corpusHTTP1 {
				if diff := cmp.Diff(e.want, run(e)); diff != "" {
					t.Errorf("%s: %s", e.name, diff)
				}
			}
			// Envoy closes some seconds after an answer to what it could not read.
			for name, rest := range rests {
				if b, _ := io.ReadAll(rest); len(b) > 0 {
					t.Errorf("%s: behind the answers came %q", name, b)
				}
			}
			if late, faults := upstream.drain(""); len(late)+len(faults) > 0 {
				t.Errorf("later there came %v, %v", late, faults)
			}
		})
	}
}
