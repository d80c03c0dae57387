package e2e

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func (w worker) basic() string {
	p, _ := w.proxy.User.Password()
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(w.proxy.User.Username()+":"+p))
}

func dialProxy(t *testing.T, w worker) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", w.proxy.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func rawTo(t *testing.T, c net.Conn, text string) string {
	fmt.Fprint(c, text)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return "ERR " + err.Error()
	}
	if resp.StatusCode == 200 && strings.HasPrefix(text, "CONNECT") {
		return "200 tunnel"
	}
	b, _ := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s %v %s", resp.StatusCode, resp.Header.Get("x-wayleave-reason"), resp.Close, b)
}

func tunnelTo(t *testing.T, w worker, authority, sni string, alpn ...string) (*tls.Conn, error) {
	c := dialProxy(t, w)
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nProxy-Authorization: %s\r\n\r\n", authority, authority, w.basic())
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != 200 {
		b, _ := io.ReadAll(resp.Body)
		return nil, fmt.Errorf("%d %s", resp.StatusCode, b)
	}
	var roots *x509.CertPool = w.roots
	tc := tls.Client(c, &tls.Config{ServerName: sni, RootCAs: roots, NextProtos: alpn, InsecureSkipVerify: true})
	return tc, tc.Handshake()
}

func TestProbe(t *testing.T) {
	g := start(t, oneTeam, "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	auth := "Proxy-Authorization: " + w.basic() + "\r\n"
	ph := "Authorization: Bearer " + w.placeholder + "\r\n"
	show := func(name, s string) { s = strings.ReplaceAll(s, w.placeholder, "PH"); fmt.Printf("%-46s → %.240s\n", name, s) }
	for _, line := range []string{
		"POST https://api.demo.test/echo", "GET http://api.demo.test/echo", "GET http://api.demo.test:443/echo", "GET /echo", "GET //api.demo.test/", "OPTIONS *", "GET http://127.0.0.1:1/", "GET ftp://api.demo.test/", "GET https://u:p@api.demo.test/",
		"GET https://api.demo.test/.wayleave/v1/sessions", "POST http://x/.wayleave/../echo", "GET /.wayleave/nothing", "PRI *", "TRACE /", "GET api.demo.test",
		"POST https://api.demo.test/.wayleave/%2e%2e/echo",
	} {
		show(line, rawTo(t, dialProxy(t, w), line+" HTTP/1.1\r\nHost: api.demo.test\r\n"+auth+ph+"Content-Length: 0\r\n\r\n"))
		show(line+" noauth", rawTo(t, dialProxy(t, w), line+" HTTP/1.1\r\nHost: api.demo.test\r\n"+ph+"Content-Length: 0\r\n\r\n"))
	}
	for _, a := range []string{
		"api.demo.test:443", "API.DEMO.TEST:443", "api.demo.test.:443", "api.demo.test", "api.demo.test:0", "api.demo.test:65536", "api.demo.test:443:443", "api.demo.test:+443", "api.demo.test:0443", "api.demo.test:80",
		"u@api.demo.test:443", "u:p@api.demo.test:443", "127.0.0.1:443", "[::1]:443", "[::ffff:127.0.0.1]:443", "2130706433:443", "0x7f000001:443", "127.1:443", "0177.0.0.1:443", "::1:443", "169.254.169.254:80",
		"api.demo.test:443/path", "https://api.demo.test:443", "/", "*", "", "api.demo.test\x00:443", "api.demo.test\r:443", "api.demo.test%00:443", "api.demo.test\t:443", "api%2edemo%2etest:443", strings.Repeat("a", 300) + ".test:443", strings.Repeat("a.", 40000) + "test:443", "api.demo.test:443#x", "api.demo.test:443?x", "ａpi.demo.test:443", "xn--pi-7ka.demo.test:443", "unknown.test:443", "api.demo.test:", ":443", "api..demo.test:443",
	} {
		show(fmt.Sprintf("CONNECT %.40q", a), rawTo(t, dialProxy(t, w), "CONNECT "+a+" HTTP/1.1\r\nHost: api.demo.test:443\r\n"+auth+"\r\n"))
	}
	show("CONNECT two auth", rawTo(t, dialProxy(t, w), "CONNECT api.demo.test:443 HTTP/1.1\r\nHost: x\r\n"+auth+auth+"\r\n"))
	show("CONNECT no host", rawTo(t, dialProxy(t, w), "CONNECT api.demo.test:443 HTTP/1.1\r\n"+auth+"\r\n"))
	show("CONNECT with CL", rawTo(t, dialProxy(t, w), "CONNECT api.demo.test:443 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"+auth+"\r\nhello"))
	show("CONNECT with TE", rawTo(t, dialProxy(t, w), "CONNECT api.demo.test:443 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"+auth+"\r\n5\r\nhello\r\n0\r\n\r\n"))
	show("connect lower", rawTo(t, dialProxy(t, w), "connect api.demo.test:443 HTTP/1.1\r\nHost: x\r\n"+auth+"\r\n"))
	show("garbage", rawTo(t, dialProxy(t, w), "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
	show("socks5", rawTo(t, dialProxy(t, w), "\x05\x01\x00"))
	show("folded", rawTo(t, dialProxy(t, w), "CONNECT api.demo.test:443 HTTP/1.1\r\nHost: x\r\n"+"Proxy-Authorization:\r\n "+w.basic()+"\r\n\r\n"))

	// inside
	inside := func(name, raw string) {
		c, err := tunnelTo(t, w, "api.demo.test:443", "api.demo.test", "http/1.1")
		if err != nil {
			show(name, "TUNNEL "+err.Error())
			return
		}
		n := len(g.API.Requests())
		a := rawTo(t, c, raw)
		rs := g.API.Requests()[n:]
		x := ""
		for _, r := range rs {
			x += fmt.Sprintf(" [%s %s %s %v]", r.Method, r.Path, r.Authorization, r.Headers)
		}
		show(name, a[:min(len(a), 120)]+" UP"+x)
	}
	h := "Host: api.demo.test\r\n"
	P := "Bearer " + w.placeholder
	for _, c := range [][2]string{
		{"ok", "GET /echo HTTP/1.1\r\n" + h + ph + "\r\n"},
		{"two evil second", "GET /echo HTTP/1.1\r\n" + h + ph + "Authorization: Bearer evil\r\n\r\n"},
		{"two evil first", "GET /echo HTTP/1.1\r\n" + h + "AUTHORIZATION: Bearer evil\r\n" + ph + "\r\n"},
		{"two empty second", "GET /echo HTTP/1.1\r\n" + h + ph + "Authorization:\r\n\r\n"},
		{"two empty first", "GET /echo HTTP/1.1\r\n" + h + "Authorization: \r\n" + ph + "\r\n"},
		{"folded value", "GET /echo HTTP/1.1\r\n" + h + "Authorization: Bearer\r\n " + w.placeholder + "\r\n\r\n"},
		{"folded tail", "GET /echo HTTP/1.1\r\n" + h + "Authorization: Bearer " + w.placeholder + "\r\n\t, Bearer evil\r\n\r\n"},
		{"comma", "GET /echo HTTP/1.1\r\n" + h + "Authorization: " + P + ", Bearer evil\r\n\r\n"},
		{"space before colon", "GET /echo HTTP/1.1\r\n" + h + "Authorization : " + P + "\r\n\r\n"},
		{"tab sep", "GET /echo HTTP/1.1\r\n" + h + "Authorization: Bearer\t" + w.placeholder + "\r\n\r\n"},
		{"two spaces", "GET /echo HTTP/1.1\r\n" + h + "Authorization: Bearer  " + w.placeholder + "\r\n\r\n"},
		{"trailing space", "GET /echo HTTP/1.1\r\n" + h + "Authorization: " + P + "  \r\n\r\n"},
		{"nul", "GET /echo HTTP/1.1\r\n" + h + "Authorization: " + P + "\x00\r\n\r\n"},
		{"bare LF", "GET /echo HTTP/1.1\n" + "Host: api.demo.test\nAuthorization: " + P + "\n\n"},
		{"underscore proxy_authorization", "GET /echo HTTP/1.1\r\n" + h + ph + "Proxy_Authorization: x\r\nX_Api_Key: y\r\n\r\n"},
		{"underscore placeholder", "GET /echo HTTP/1.1\r\n" + h + "X_Api_Key: " + w.placeholder + "\r\n\r\n"},
		{"conn auth", "GET /echo HTTP/1.1\r\n" + h + ph + "Connection: authorization\r\n\r\n"},
		{"conn close, x-api-key", "GET /echo HTTP/1.1\r\n" + h + ph + "Connection: close, x-api-key\r\n\r\n"},
		{"conn host", "GET /echo HTTP/1.1\r\n" + h + ph + "Connection: host, x-foo\r\nX-Foo: 1\r\n\r\n"},
		{"conn cookie", "GET /echo HTTP/1.1\r\n" + h + ph + "Connection: cookie\r\nCookie: a=b\r\n\r\n"},
		{"proxy-auth inside", "GET /echo HTTP/1.1\r\n" + h + ph + auth + "Proxy-Foo: 1\r\n\r\n"},
		{"ident spoof", "GET /echo HTTP/1.1\r\n" + h + ph + "X-Wayleave-Identity: bob\r\nX-Forwarded-For: 1.2.3.4\r\nX-Envoy-Original-Path: /x\r\nX-Real-Ip: 1.1.1.1\r\nForwarded: for=1\r\nVia: 1.1 x\r\nTrue-Client-Ip: 1\r\nX-Forwarded: 2\r\nX_Wayleave_Identity: 3\r\nX_Forwarded_For: 3\r\n\r\n"},
		{"CL TE", "POST /upload HTTP/1.1\r\n" + h + ph + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n" + h + "\r\n"},
		{"TE TE", "POST /upload HTTP/1.1\r\n" + h + ph + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"},
		{"TE xchunked", "POST /upload HTTP/1.1\r\n" + h + ph + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
		{"TE gzip chunked", "POST /upload HTTP/1.1\r\n" + h + ph + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
		{"TE _", "POST /upload HTTP/1.1\r\n" + h + ph + "Transfer_Encoding: chunked\r\nContent-Length: 4\r\n\r\nabcd"},
		{"TE vtab", "POST /upload HTTP/1.1\r\n" + h + ph + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"},
		{"CL CL", "POST /upload HTTP/1.1\r\n" + h + ph + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"},
		{"CL CL same", "POST /upload HTTP/1.1\r\n" + h + ph + "Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd"},
		{"CL +", "POST /upload HTTP/1.1\r\n" + h + ph + "Content-Length: +4\r\n\r\nabcd"},
		{"CL list", "POST /upload HTTP/1.1\r\n" + h + ph + "Content-Length: 4, 4\r\n\r\nabcd"},
		{"chunk ext", "POST /upload HTTP/1.1\r\n" + h + ph + "Transfer-Encoding: chunked\r\n\r\n4;x=\"\n\"\r\nabcd\r\n0\r\n\r\n"},
		{"trailer ph", "POST /upload HTTP/1.1\r\n" + h + ph + "Transfer-Encoding: chunked\r\nTrailer: authorization, x-note\r\n\r\n4\r\nabcd\r\n0\r\nAuthorization: " + P + "\r\nX-Note: " + w.placeholder + "\r\n\r\n"},
		{"two hosts", "GET /echo HTTP/1.1\r\n" + h + "Host: other.demo.test\r\n" + ph + "\r\n"},
		{"no host", "GET /echo HTTP/1.1\r\n" + ph + "\r\n"},
		{"http/1.0", "GET /echo HTTP/1.0\r\n" + h + ph + "\r\n"},
		{"http/0.9", "GET /echo\r\n\r\n"},
		{"http/2.0", "GET /echo HTTP/2.0\r\n" + h + ph + "\r\n"},
		{"abs other", "GET https://other.demo.test/echo HTTP/1.1\r\n" + h + ph + "\r\n"},
		{"abs same", "GET https://api.demo.test/echo HTTP/1.1\r\n" + h + ph + "\r\n"},
		{"abs http same", "GET http://api.demo.test/echo HTTP/1.1\r\n" + h + ph + "\r\n"},
		{"host port 444", "GET /echo HTTP/1.1\r\nHost: api.demo.test:444\r\n" + ph + "\r\n"},
		{"host port 443", "GET /echo HTTP/1.1\r\nHost: api.demo.test:443\r\n" + ph + "\r\n"},
		{"host upper", "GET /echo HTTP/1.1\r\nHost: API.demo.test\r\n" + ph + "\r\n"},
		{"host dot", "GET /echo HTTP/1.1\r\nHost: api.demo.test.\r\n" + ph + "\r\n"},
		{"host userinfo", "GET /echo HTTP/1.1\r\nHost: a@api.demo.test\r\n" + ph + "\r\n"},
		{"nested connect", "CONNECT api.demo.test:443 HTTP/1.1\r\n" + h + ph + "\r\n"},
		{"nested connect other", "CONNECT other.demo.test:443 HTTP/1.1\r\nHost: other.demo.test:443\r\n" + ph + auth + "\r\n"},
		{"TRACE", "TRACE /echo HTTP/1.1\r\n" + h + ph + "\r\n"},
		{"track", "track /echo HTTP/1.1\r\n" + h + ph + "\r\n"},
		{"M-SEARCH?", "F!O /echo HTTP/1.1\r\n" + h + ph + "\r\n"},
		{"OPTIONS MF", "OPTIONS * HTTP/1.1\r\n" + h + ph + "Max-Forwards: 0\r\n\r\n"},
		{"h2c", "GET /echo HTTP/1.1\r\n" + h + ph + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"},
		{"upgrade foo", "GET /echo HTTP/1.1\r\n" + h + ph + "Connection: Upgrade\r\nUpgrade: foo\r\n\r\n"},
		{"ws nokey", "GET /ws HTTP/1.1\r\n" + h + ph + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"},
		{"ws no conn", "GET /ws HTTP/1.1\r\n" + h + ph + "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"},
		{"ws+h2c", "GET /ws HTTP/1.1\r\n" + h + ph + "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"},
		{"ws ph in key", "GET /ws HTTP/1.1\r\n" + h + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + w.placeholder + "\r\n\r\n"},
		{"ws ph in protocol", "GET /ws HTTP/1.1\r\n" + h + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: openai-insecure-api-key." + w.placeholder + "\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"},
		{"preface h2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		{"garbage", "\x00\x01\x02garbage\r\n\r\n"},
		{"huge header", "GET /echo HTTP/1.1\r\n" + h + ph + "X-Big: " + strings.Repeat("x", 100<<10) + "\r\n\r\n"},
		{"many headers", "GET /echo HTTP/1.1\r\n" + h + ph + strings.Repeat("X-A: b\r\n", 200) + "\r\n"},
		{"fragment ph", "GET /echo#" + w.placeholder + " HTTP/1.1\r\n" + h + "\r\n"},
		{"fragment", "GET /echo#x HTTP/1.1\r\n" + h + ph + "\r\n"},
		{"token endpoint", "POST /v1/oauth/token HTTP/1.1\r\n" + h + ph + "Content-Length: 0\r\n\r\n"},
		{"upper marker", "GET /echo HTTP/1.1\r\n" + h + "Authorization: Bearer " + strings.ToUpper(w.placeholder) + "\r\n\r\n"},
		{"expect", "POST /upload HTTP/1.1\r\n" + h + ph + "Expect: 200-maybe\r\nContent-Length: 0\r\n\r\n"},
	} {
		inside(c[0], c[1])
	}
}
