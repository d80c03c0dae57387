package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// fields answers each request over HTTP/2 with all of its header fields, the pseudo ones first, as they came.
func fields(c net.Conn) {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(c, c)
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
		if settings, is := frame.(*http2.SettingsFrame); is && !settings.IsAck() {
			_ = f.WriteSettingsAck()
		}
		if head, is := frame.(*http2.MetaHeadersFrame); is {
			var text strings.Builder
			for _, h := range head.Fields {
				fmt.Fprintf(&text, "%s=%s\n", h.Name, h.Value)
			}
			if errors.Join(headed(f, head.StreamID, ok, false), f.WriteData(head.StreamID, true, []byte(text.String()))) != nil {
				return
			}
		}
	}
}

// A request goes on with TLS whatever scheme it names, and nothing that a worker writes there goes with it: nobody looks into it.
func TestSchemeIsOurs(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	const host = "h2.demo.test"
	g := startIn(t, made, base(fmt.Sprintf(`
  - {hosts: [%s], grant: claude, connect_to: "%s"}
`, host, newRawUpstream(t, made.CA, host, fields, "h2")), "", ""), "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	check := func(name string, a answer, err error) {
		t.Helper()
		if err != nil || a.status != 200 || !strings.Contains(a.body, ":scheme=https\n") || strings.Count(a.body, ":scheme") != 1 || strings.Contains(a.body, placeholderMarker) {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
	for _, scheme := range []string{"https", "HTTPS", "http", "file", "x", w.placeholder} {
		conn := tls.Client(g.tunnel(t, w, host+":443"), &tls.Config{ServerName: host, RootCAs: w.roots, NextProtos: []string{"h2"}})
		a, err := exchange(conn, [][2]string{{":method", "GET"}, {":scheme", scheme}, {":authority", host}, {":path", "/a"}, {"authorization", "Bearer " + w.placeholder}})
		check("HTTP/2, "+scheme, a, err)
	}
	for _, scheme := range []string{"https", "http"} {
		conn, err := g.inside(t, w, host, host)
		if err != nil {
			t.Fatal(err)
		}
		check("HTTP/1.1, "+scheme, ask(t, conn, "GET "+scheme+"://"+host+"/a HTTP/1.1\r\nHost: "+host+"\r\nAuthorization: Bearer "+w.placeholder+"\r\n\r\n"), nil)
	}
}
