package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"wayleave/envoy/envoytest"
)

// Workers share the connections to an upstream. What one of them does with its requests is nothing to the others.

// tunnelOver is a connection to the API inside a stream of an HTTP/2 connection to the proxy. All of one such connection are on one thread of
// Envoy's, and so on one connection to the upstream.
func (s *stack) tunnelOver(proxy *http.ClientConn, user string, alpn ...string) *tls.Conn {
	s.t.Helper()
	conn, err := s.triedOver(proxy, user, alpn...)
	if err != nil {
		s.t.Fatal(err)
	}
	return conn
}

// triedOver is tunnelOver where that may be refused.
func (s *stack) triedOver(proxy *http.ClientConn, user string, alpn ...string) (*tls.Conn, error) {
	tunnel, status, err := connectOver(s.t.Context(), proxy, user, apiHost+":443")
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("%s: %d", user, status)
	}
	conn := tls.Client(tunnel, &tls.Config{ServerName: apiHost, RootCAs: s.leaves.pool(), NextProtos: alpn})
	return conn, conn.HandshakeContext(s.t.Context())
}

// workerOver is a client with one such connection.
func (s *stack) workerOver(proxy *http.ClientConn, user string) *http.Client {
	tr := &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return s.tunnelOver(proxy, user), nil }}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// speaker writes HTTP/2 by hand.
type speaker struct {
	*http2.Framer
	t    *testing.T
	next uint32
}

func newSpeaker(t *testing.T, conn io.ReadWriter) *speaker {
	t.Helper()
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := &speaker{http2.NewFramer(conn, conn), t, 1}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

// get asks for a path and returns the stream.
func (f *speaker) get(path string) uint32 {
	f.t.Helper()
	var block strings.Builder
	e := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", apiHost}, {":path", path}} {
		if err := e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			f.t.Fatal(err)
		}
	}
	stream := f.next
	f.next += 2
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte(block.String()), EndHeaders: true, EndStream: true}); err != nil {
		f.t.Fatal(err)
	}
	return stream
}

// A worker that asks for much and reads nothing holds up nobody else's answers.
func TestUnreadAnswersHoldNobodyUp(t *testing.T) {
	var sent atomic.Int64
	s, _ := startWith(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/endless" {
			fmt.Fprint(w, strings.Repeat("x", 300<<10))
			return
		}
		for chunk := make([]byte, 4<<10); ; {
			n, err := w.Write(chunk)
			if err != nil {
				return
			}
			sent.Add(int64(n))
		}
	})
	proxy := s.proxyOverHTTP2()
	ann := s.workerOver(proxy, "ann")
	if a := get(t, ann, "https://"+apiHost+"/"); a.status != http.StatusOK { // a connection is there, or Envoy makes many at once
		t.Fatalf("got %d", a.status)
	}
	eve := newSpeaker(t, s.tunnelOver(proxy, "eve", "h2"))
	const streams = 40
	for range streams {
		eve.get("/endless")
	}
	envoytest.Await(t, "Envoy to hold what is not read", func() error { // of each stream as much as it buffers, and the window
		if n := sent.Load(); n < streams*2*streamWindow*9/10 {
			return fmt.Errorf("%d bytes were sent", n)
		}
		return nil
	})
	if a := get(t, ann, "https://"+apiHost+"/"); a.status != http.StatusOK || len(a.body) != 300<<10 {
		t.Errorf("got %d, %d bytes", a.status, len(a.body))
	}
}

// strict is an HTTP/2 upstream that ends a connection on which so many streams were reset, as several servers do since that was found to be an attack.
// It answers requests for /long when it is told to, and others never.
type strict struct {
	address       string
	allows        int
	asked, resets atomic.Int64
	end           chan struct{} // of the answer to /long
}

func newStrict(t *testing.T, ca *authority, allows int) *strict {
	t.Helper()
	up := &strict{allows: allows, end: make(chan struct{})}
	up.address = byHand(t, ca, up.connection)
	return up
}

func (up *strict) connection(f *http2.Framer) func(http2.Frame) bool {
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var writing sync.Mutex
	write := func(what func() error) bool {
		writing.Lock()
		defer writing.Unlock()
		return what() == nil
	}
	resets := 0
	return func(frame http2.Frame) bool {
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			up.asked.Add(1)
			if frame.PseudoValue("path") != "/long" {
				return true
			}
			stream := frame.StreamID
			if !write(func() error {
				return errors.Join(f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte{0x88}, EndHeaders: true}), f.WriteData(stream, false, []byte("begun ")))
			}) {
				return false
			}
			go func() {
				<-up.end
				write(func() error { return f.WriteData(stream, true, []byte("ended")) })
			}()
		case *http2.RSTStreamFrame:
			up.resets.Add(1)
			if resets++; resets > up.allows {
				write(func() error { return f.WriteGoAway(frame.StreamID, http2.ErrCodeEnhanceYourCalm, nil) })
				return false
			}
		}
		return true
	}
}

// A worker that asks and goes away, again and again, ends no other's answer: upstreams end a connection on which too many do so.
func TestManyWhoLeaveEndNobodysAnswer(t *testing.T) {
	var up *strict
	s := start(t, func(c *Config) {
		ca := newAuthority(t)
		up = newStrict(t, ca, 200)
		c.UpstreamCA, c.Routes[0].ConnectTo = ca.pem, up.address
	}, nil)
	proxy := s.proxyOverHTTP2()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+apiHost+"/long", nil)
	if err != nil {
		t.Fatal(err)
	}
	ann := s.workerOver(proxy, "ann")
	ann.Timeout = 0 // the answer is under way all the time
	resp, err := ann.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()

	eve := newSpeaker(t, s.tunnelOver(proxy, "eve", "h2"))
	const each = 40
	for n := range int64(240 / each) { // Envoy ends a worker's connection at 250
		var streams []uint32
		asked := up.asked.Load()
		for range each {
			streams = append(streams, eve.get("/never"))
		}
		envoytest.Await(t, "the requests to arrive", func() error {
			if got := up.asked.Load() - asked; got < each {
				return fmt.Errorf("%d of %d", got, each)
			}
			return nil
		})
		for _, stream := range streams {
			if err := eve.WriteRSTStream(stream, http2.ErrCodeCancel); err != nil {
				t.Fatal(err)
			}
		}
		envoytest.Await(t, "the upstream to hear that they are not wanted", func() error {
			if got := up.resets.Load(); got < (n+1)*each {
				return fmt.Errorf("%d of %d", got, (n+1)*each)
			}
			return nil
		})
	}
	close(up.end)
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "begun ended" {
		t.Errorf("got %q, %v", body, err)
	}
}
