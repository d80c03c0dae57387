package xds

import (
	"bytes"
	"io"
	"testing"
)

// A server name that is no text, and so could be no string of a protocol buffer, is refused, and takes with it nothing of what Envoy and the
// gate tell one another.
func TestServerNamesThatAreNoText(t *testing.T) {
	l := startLeaves(t, 0)
	l.await("Envoy", Node.Current)
	since := l.server.Nodes()[0].Since
	for _, w := range l.ways() {
		for _, odd := range []string{"\xff\xfe\xc3\x28", "zz\x80z", "z\nz\xff", "\u00e4\u00f6"} {
			conn, err := w.dial(w.host())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(bytes.ReplaceAll(lateName(t, "zzzz.provider.test", 100), []byte("zzzz"), []byte(odd))); err != nil {
				t.Fatal(err)
			}
			if said, err := io.ReadAll(conn); len(said) == 0 || said[0] != 21 {
				t.Errorf("%s, %q: %q, %v; want an alert", w.name, odd, said, err)
			}
			if err := l.handshake(w, w.host()); err != nil {
				t.Errorf("%s, after %q, another name: %v", w.name, odd, err)
			}
		}
	}
	if nodes := l.server.Nodes(); len(nodes) != 1 || nodes[0].Since != since {
		t.Errorf("Envoy came anew: %+v", nodes)
	}
}
