package xds

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
)

// inPieces writes the first bytes, a ClientHello, as cut has them.
type inPieces struct {
	net.Conn
	once sync.Once
	cut  func([]byte) [][]byte
}

func (c *inPieces) Write(b []byte) (n int, err error) {
	pieces := [][]byte{b}
	c.once.Do(func() { pieces = c.cut(b) })
	for _, p := range pieces {
		if _, err := c.Conn.Write(p); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// records makes many of one TLS record (RFC 8446 section 5.1), of so many bytes each.
func records(size int) func([]byte) [][]byte {
	return func(record []byte) (all [][]byte) {
		for part := range slices.Chunk(record[5:], size) {
			all = append(all, append(binary.BigEndian.AppendUint16(slices.Clone(record[:3]), uint16(len(part))), part...))
		}
		return all
	}
}

func segments(b []byte) [][]byte { return slices.Collect(slices.Chunk(b, 1)) }

// A ClientHello comes in as many pieces as somebody likes, of TCP, as the large ones do that have keys for after quantum computers,
// or of TLS: its server name may be in any of them.
func TestHelloInPieces(t *testing.T) {
	l := startLeaves(t, 0)
	var protocols []string
	for i := range 150 { // nobody speaks these
		protocols = append(protocols, fmt.Sprintf("%s-%d", strings.Repeat("x", 60), i))
	}
	large := append(protocols, "http/1.1")
	for _, w := range l.ways() {
		for _, c := range []struct {
			name      string
			cut       func([]byte) [][]byte
			protocols []string
		}{
			{"bytes", segments, nil},
			{"records", records(50), nil},
			{"records of a byte", records(1), nil},
			{"records in bytes", func(b []byte) (all [][]byte) {
				for _, r := range records(50)(b) {
					all = append(all, segments(r)...)
				}
				return all
			}, nil},
			{"large", func(b []byte) [][]byte { return [][]byte{b} }, large},
			{"large, in records", records(1000), large},
		} {
			host := w.host()
			conn, err := w.dial(host)
			if err != nil {
				t.Fatal(err)
			}
			inside := tls.Client(&inPieces{Conn: conn, cut: c.cut}, &tls.Config{ServerName: host, RootCAs: l.leaves.pool(), NextProtos: c.protocols})
			if err := inside.HandshakeContext(t.Context()); err != nil {
				t.Errorf("%s, %s: %v", w.name, c.name, err)
			}
			_ = conn.Close()
		}
	}
}

// Browsers say the name anywhere in their ClientHello, also behind all that makes it large.
func TestLateServerName(t *testing.T) {
	l := startLeaves(t, 0)
	for _, w := range l.ways() {
		for _, before := range []int{500, 1_000, 4_000, 14_000} {
			host := w.host()
			conn, err := w.dial(host)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(lateName(t, host, before)); err != nil {
				t.Fatal(err)
			}
			var said []byte
			for buf := make([]byte, 4096); err == nil && !bytes.Contains(said, []byte(host)); {
				var n int
				n, err = conn.Read(buf)
				said = append(said, buf[:n]...)
			}
			if err != nil {
				t.Errorf("%s, behind %d bytes: no certificate for %s: %v, %.20q", w.name, before, host, err, said)
			}
			_ = conn.Close()
		}
	}
}

// lateName is a ClientHello of TLS 1.2, whose answer is readable, with a name behind so many bytes of padding (RFC 7685).
func lateName(t *testing.T, name string, before int) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		_ = tls.Client(ours, &tls.Config{ServerName: name, MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true}).HandshakeContext(t.Context())
	}()
	record := make([]byte, 5)
	if _, err := io.ReadFull(theirs, record); err != nil {
		t.Fatal(err)
	}
	number := binary.BigEndian.Uint16
	hello := make([]byte, number(record[3:]))
	if _, err := io.ReadFull(theirs, hello); err != nil {
		t.Fatal(err)
	}
	_, _ = theirs.Close(), ours.Close()
	hello = hello[4:]                       // its kind and length
	at := 2 + 32                            // version, random
	at += 1 + int(hello[at])                // session
	at += 2 + int(number(hello[at:]))       // ciphers
	at += 1 + int(hello[at])                // compression
	list, last := padding(before), []byte{} // extensions
	for rest := hello[at+2:]; len(rest) > 0; {
		size := 4 + int(number(rest[2:]))
		if number(rest) == 0 {
			last = rest[:size]
		} else {
			list = append(list, rest[:size]...)
		}
		rest = rest[size:]
	}
	list = append(list, last...)
	prefixed := func(prefix, b []byte) []byte {
		return append(binary.BigEndian.AppendUint16(slices.Clone(prefix), uint16(len(b))), b...)
	}
	return prefixed(record[:3], prefixed([]byte{1, 0}, prefixed(hello[:at], list)))
}

func padding(size int) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0, 21}, uint16(size)), make([]byte, size)...)
}

// TLS is 1.2 or 1.3, whichever way it comes.
func TestVersionsOfTLS(t *testing.T) {
	l := startLeaves(t, 0)
	for _, w := range l.ways() {
		for version, works := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
			host := w.host()
			conn, err := w.dial(host)
			if err != nil {
				t.Fatal(err)
			}
			err = tls.Client(conn, &tls.Config{ServerName: host, RootCAs: l.leaves.pool(), MinVersion: version, MaxVersion: version}).HandshakeContext(t.Context())
			if works != (err == nil) || !works && !strings.Contains(err.Error(), "protocol version not supported") {
				t.Errorf("%s, %s: %v", w.name, tls.VersionName(version), err)
			}
			_ = conn.Close()
		}
	}
}
