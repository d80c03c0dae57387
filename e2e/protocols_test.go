package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"wayleave/demo"
)

// What clients speak passes through as it is.
func TestProtocols(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	odd, again := newUpstream(t, made.CA, "odd.demo.test", oddities), newUpstream(t, made.CA, "again.demo.test", oddities)
	onlyH1, onlyH2 := newUpstream(t, made.CA, "h1.demo.test", oddities, "http/1.1"), newUpstream(t, made.CA, "h2.demo.test", oddities, "h2")
	routeH1, routeH2 := newUpstream(t, made.CA, "route-h1.demo.test", oddities), newUpstream(t, made.CA, "route-h2.demo.test", oddities)
	raw := newRawUpstream(t, made.CA, "raw.demo.test", untilClose)
	old := newOldUpstream(t, made.CA, "old.demo.test")
	rpc := newGRPCUpstream(t, made.CA, "grpc.demo.test")
	g := startIn(t, made, base(fmt.Sprintf(`
  - {hosts: [api.demo.test], grant: claude, connect_to: "$API"}
  - {hosts: [odd.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [again.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [raw.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [old.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [grpc.demo.test], grant: claude, connect_to: "%s", alpn: [h2]}
  - {hosts: [h1.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [h2.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [route-h1.demo.test], grant: claude, connect_to: "%s", alpn: [http/1.1]}
  - {hosts: [route-h2.demo.test], grant: claude, connect_to: "%s", alpn: [h2]}
`, odd.address, again.address, raw, old, rpc.address, onlyH1.address, onlyH2.address, routeH1.address, routeH2.address), "", ""), "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")

	for _, v := range []struct {
		name  string
		http2 bool
	}{{"HTTP/1.1", false}, {"HTTP/2.0", true}} {
		t.Run(v.name, func(t *testing.T) {
			client := w.client(t, v.http2)
			get := func(url string) (answer, error) { return do(client, w.request(http.MethodGet, url, nil)) }
			a, err := get("https://api.demo.test/echo?q=1")
			if err != nil || a.status != http.StatusOK || a.proto != v.name {
				t.Fatalf("got %v, %v; want 200", a, err)
			}
			for _, header := range []string{"X-Forwarded", "X-Envoy", "Proxy-", "X-Wayleave", "X-Request-Id"} {
				if strings.Contains(a.body, `"`+header) {
					t.Errorf("a header of ours, %s…, arrived upstream: %s", header, a.body)
				}
			}

			t.Run("events arrive one by one", func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				// The second event is a minute away: reading the first proves that nothing waits for more.
				resp, err := client.Do(w.request(http.MethodGet, "https://api.demo.test/sse?n=2&ms=60000", nil).WithContext(ctx))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				line, err := bufio.NewReader(resp.Body).ReadString('\n')
				if err != nil || !strings.HasPrefix(line, "event: tick") {
					t.Errorf("read %q, %v", line, err)
				}
			})
			t.Run("a large body", func(t *testing.T) { largeBody(t, g, w, client) })
			t.Run("a large answer", func(t *testing.T) { largeAnswer(t, g, w, client) })
			t.Run("an upstream of TLS 1.2 that knows of no protocols", func(t *testing.T) {
				if a, err := get("https://old.demo.test/"); err != nil || a.status != http.StatusOK || a.body != "until the end" {
					t.Errorf("%v, %v", a, err)
				}
			})
			t.Run("bodies that are packed", func(t *testing.T) {
				packed := "\x1f\x8b\x08 as good as gzip to who does not look \x00\xff"
				req := w.request(http.MethodPost, "https://odd.demo.test/packed", strings.NewReader(packed))
				req.Header.Set("Content-Encoding", "gzip")
				req.Header.Set("Accept-Encoding", "gzip, br") // so that Go does not unpack it
				if a, err := do(client, req); err != nil || a.body != packed || a.header.Get("Content-Encoding") != "gzip" || a.header.Get("X-Accepts") != "gzip, br" {
					t.Errorf("%v, %v, %v", a, a.header, err)
				}
			})
			t.Run("bytes beyond ASCII", func(t *testing.T) {
				req := w.request(http.MethodGet, "https://odd.demo.test/long", nil)
				req.Header.Set("X-Long", "caf\xe9 \xff \xc3\xa9")
				req.Header.Set("User-Agent", "\xff")
				if a, err := do(client, req); err != nil || a.status != http.StatusOK || a.header.Get("X-Long") != req.Header.Get("X-Long") {
					t.Errorf("%d, %q, %v", a.status, a.header.Get("X-Long"), err)
				}
			})
			t.Run("an answer before the request is over", func(t *testing.T) {
				in, out := io.Pipe()
				defer out.Close()
				go func() { _, _ = out.Write([]byte("the beginning")) }()
				if a, err := do(client, w.request(http.MethodPost, "https://odd.demo.test/early", in)); err != nil || a.status != http.StatusConflict || a.body != "no more" {
					t.Errorf("%v, %v", a, err)
				}
			})
			t.Run("early hints", func(t *testing.T) {
				if a, err := get("https://odd.demo.test/hints"); err != nil || a.status != http.StatusOK || a.body != "final" {
					t.Errorf("%v, %v", a, err)
				}
			})
			t.Run("an answer of unknown length", func(t *testing.T) {
				if a, err := get("https://raw.demo.test/"); err != nil || a.status != http.StatusOK || a.body != "until the end" {
					t.Errorf("%v, %v", a, err)
				}
			})
			t.Run("trailers of the answer", func(t *testing.T) {
				resp, err := client.Do(w.request(http.MethodGet, "https://odd.demo.test/trailers", nil))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				// HTTP/1.1 has no way to say that a client reads them, and few do: there they end at the gate.
				if got := resp.Trailer.Get("X-Sum"); err != nil || string(b) != "body" || (got == "1") != v.http2 {
					t.Errorf("%q, %v, trailer %q", b, err, got)
				}
			})
			t.Run("long headers", func(t *testing.T) {
				req := w.request(http.MethodGet, "https://odd.demo.test/long", nil)
				req.Header.Set("X-Long", strings.Repeat("x", 48<<10))
				if a, err := do(client, req); err != nil || a.status != http.StatusOK || a.header.Get("X-Long") != req.Header.Get("X-Long") {
					t.Errorf("%d, %d bytes came back, %v", a.status, len(a.header.Get("X-Long")), err)
				}
			})
			t.Run("one connection for many requests", func(t *testing.T) {
				before, conns := again.accepts.Load(), map[net.Conn]bool{}
				for range 20 {
					req := w.request(http.MethodGet, "https://again.demo.test/hints", nil)
					trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { conns[i.Conn] = true }}
					if a, err := do(client, req.WithContext(httptrace.WithClientTrace(req.Context(), trace))); err != nil || a.status != http.StatusOK {
						t.Fatalf("%v, %v", a, err)
					}
				}
				if n := again.accepts.Load() - before; len(conns) != 1 || n > 1 {
					t.Errorf("%d connections to the gate and %d to the upstream for 20 requests", len(conns), n)
				}
			})
		})
	}

	t.Run("gRPC", func(t *testing.T) { testGRPC(t, g, w, rpc) })

	// HTTP/1.1 is what every server speaks WebSocket on, whatever else it offers and the route is for.
	t.Run("WebSocket", func(t *testing.T) {
		for host, works := range map[string]bool{"odd": true, "h1": true, "route-h1": true, "route-h2": true, "h2": false} {
			status, err := w.echoes(t, host+".demo.test", "hello", strings.Repeat("x", 1<<20))
			if works != (err == nil) || !works && status != http.StatusServiceUnavailable {
				t.Errorf("%s: %d, %v; want it to work: %v", host, status, err, works)
			}
		}
	})

	// Who speaks HTTP/1.0 knows no chunks.
	t.Run("HTTP/1.0", func(t *testing.T) {
		for _, host := range []string{"odd.demo.test", "h1.demo.test", "raw.demo.test"} {
			c, err := g.inside(t, w, host, host)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "GET /trailers HTTP/1.0\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", host, w.placeholder)
			b, err := io.ReadAll(c)
			head, body, _ := strings.Cut(string(b), "\r\n\r\n")
			if err != nil || !strings.Contains(head, " 200 OK\r\n") || strings.Contains(strings.ToLower(head), "transfer-encoding") || body != "body" && body != "until the end" {
				t.Errorf("%s: %q, %v", host, b, err)
			}
		}
	})

	// Envoy takes who closes its side of an HTTP/1.1 connection as gone. Over HTTP/2 a request's end is no connection's.
	t.Run("half-close", func(t *testing.T) {
		c, err := g.inside(t, w, "odd.demo.test", "odd.demo.test")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "GET /hints HTTP/1.1\r\nHost: odd.demo.test\r\nAuthorization: Bearer %s\r\n\r\n", w.placeholder)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
			t.Errorf("%v: docs/production.md says that no answer comes", resp)
		}
	})
	t.Run("tunnels in one connection", func(t *testing.T) { manyTunnels(t, g, w) })

	if g.API.Saw(placeholderMarker) || odd.sawText(placeholderMarker) || rpc.sawText(placeholderMarker) {
		t.Error("a placeholder arrived")
	}
	if err := stands(g.adminLeaks()); err != nil {
		t.Error(err)
	}
}

// oddities is a server of what the demo API does not do.
func oddities(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/early":
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusConflict)
		fmt.Fprint(w, "no more")
	case "/hints":
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		fmt.Fprint(w, "final")
	case "/trailers":
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprint(w, "body")
		w.Header().Set("X-Sum", "1")
	case "/packed":
		w.Header().Set("Content-Encoding", r.Header.Get("Content-Encoding"))
		w.Header().Set("X-Accepts", r.Header.Get("Accept-Encoding"))
		_, _ = io.Copy(w, r.Body)
	case "/large":
		for range largeParts {
			if _, err := w.Write(make([]byte, largePart)); err != nil {
				return
			}
		}
	case "/long":
		w.Header().Set("X-Long", r.Header.Get("X-Long"))
	case "/ws":
		echoMessages(w, r)
	}
}

// untilClose answers each connection once, and its end is the answer's.
func untilClose(c net.Conn) {
	if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end")
	}
}

// newOldUpstream is a server for HTTP/1.1 without ALPN.
func newOldUpstream(t *testing.T, ca *demo.CA, host string) string {
	t.Helper()
	cert, err := ca.Issue(host)
	if err != nil {
		t.Fatal(err)
	}
	return serveRaw(t, &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: tls.VersionTLS12}, untilClose)
}

const largePart, largeParts = 8 << 20, 8

// largeAnswer reads a large answer part by part, and looks between the parts at what Envoy keeps of it.
func largeAnswer(t *testing.T, g *gate, w worker, client *http.Client) {
	const kept = 8 << 20
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	before, most := g.allocated(t), int64(0)
	resp, err := client.Do(w.request(http.MethodGet, "https://odd.demo.test/large", nil).WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for range largeParts {
		if _, err := io.CopyN(io.Discard, resp.Body, largePart); err != nil {
			t.Fatal(err)
		}
		most = max(most, g.allocated(t)-before)
	}
	if n, err := io.Copy(io.Discard, resp.Body); n != 0 || err != nil {
		t.Errorf("%d bytes more, %v", n, err)
	}
	if most > kept {
		t.Errorf("Envoy holds %d KiB of an answer that is read slowly: it buffers", most>>10)
	}
}

// largeBody sends 30 MiB of unknown length, after the server has said that it wants them, and stops in between to see what
// Envoy keeps of them.
func largeBody(t *testing.T, g *gate, w worker, client *http.Client) {
	const size, part, kept = 30 << 20, 10 << 20, 4 << 20
	body := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(body)
	want := sha256.Sum256(body)
	before, most := g.allocated(t), int64(0)
	in, out := io.Pipe()
	go func() {
		for i := 0; i < size; i += part {
			if _, err := out.Write(body[i : i+part]); err != nil {
				return
			}
			most = max(most, g.allocated(t)-before)
		}
		_ = out.Close()
	}()
	continued := false
	req := w.request(http.MethodPost, "https://api.demo.test/upload", in)
	req.Header.Set("Expect", "100-continue")
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got100Continue: func() { continued = true },
	}))
	a, err := do(client, req)
	if err != nil || a.status != http.StatusOK || !strings.Contains(a.body, hex.EncodeToString(want[:])) || !continued {
		t.Errorf("got %v, %v, 100 Continue: %v; want the hash of what was sent", a, err, continued)
	}
	if most > kept {
		t.Errorf("Envoy holds %d KiB more after each part of %d: it buffers", most>>10, part>>10)
	}
}

// allocated is how much memory Envoy uses, in bytes.
func (g *gate) allocated(t *testing.T) int64 {
	t.Helper()
	var m struct {
		Allocated int64 `json:"allocated,string"`
	}
	b, err := g.admin("/memory")
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil || m.Allocated == 0 {
		t.Errorf("Envoy's memory: %s, %v", b, err)
	}
	return m.Allocated
}

// echoes sends messages over a WebSocket and reads each back.
func (w worker) echoes(t *testing.T, host string, messages ...string) (status int, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, "wss://"+host+"/ws", &websocket.DialOptions{
		HTTPClient: w.client(t, false), HTTPHeader: http.Header{"Authorization": {"Bearer " + w.placeholder}},
	})
	if resp != nil {
		status = resp.StatusCode
	}
	if err != nil {
		return status, err
	}
	defer conn.CloseNow()
	conn.SetReadLimit(2 << 20)
	for _, message := range messages {
		if err := conn.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
			return status, err
		}
		if _, got, err := conn.Read(ctx); err != nil || string(got) != message {
			return status, fmt.Errorf("%d bytes came back of %d: %w", len(got), len(message), err)
		}
	}
	return status, nil
}

// newGRPCUpstream is a gRPC server with a call of each kind. Every call says in its trailers which credential came.
func newGRPCUpstream(t *testing.T, ca *demo.CA, host string) *upstream {
	t.Helper()
	s := grpc.NewServer()
	t.Cleanup(s.Stop)
	say := func(ctx context.Context) (*wrapperspb.StringValue, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		authorization := strings.Join(md["authorization"], "|")
		sum := sha256.Sum256([]byte(authorization))
		_ = grpc.SetTrailer(ctx, metadata.Pairs("authorization-sha256", hex.EncodeToString(sum[:]), "binary-bin", "\x00\xff"))
		return wrapperspb.String("hello"), nil
	}
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "demo.Talk",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			{MethodName: "Ask", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				in := new(wrapperspb.StringValue)
				if err := decode(in); err != nil {
					return nil, err
				}
				if _, err := say(ctx); err != nil || in.Value == "fail" {
					return nil, status.Error(codes.ResourceExhausted, "enough: 100 %")
				}
				return in, nil
			}},
		},
		Streams: []grpc.StreamDesc{
			{StreamName: "Listen", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
				in := new(wrapperspb.StringValue)
				if err := stream.RecvMsg(in); err != nil {
					return err
				}
				for range 3 {
					if err := stream.SendMsg(in); err != nil {
						return err
					}
				}
				_, err := say(stream.Context())
				return err
			}},
			{StreamName: "Talk", ServerStreams: true, ClientStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
				_, _ = say(stream.Context())
				for {
					in := new(wrapperspb.StringValue)
					if err := stream.RecvMsg(in); errors.Is(err, io.EOF) {
						return status.Error(codes.Aborted, "over")
					} else if err != nil {
						return err
					}
					if err := stream.SendMsg(in); err != nil {
						return err
					}
				}
			}},
		},
	}, nil)
	return newUpstream(t, ca, host, s.ServeHTTP)
}

func testGRPC(t *testing.T, g *gate, w worker, rpc *upstream) {
	real, err := arrived(w.client(t, true), w)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///grpc.demo.test:443",
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: w.roots})),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return g.tunnel(t, w, "grpc.demo.test:443"), nil }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+w.placeholder)
	check := func(trailer metadata.MD) {
		t.Helper()
		if got := trailer.Get("authorization-sha256"); len(got) != 1 || got[0] != real || trailer.Get("binary-bin")[0] != "\x00\xff" {
			t.Errorf("trailers %v; want the hash of the real token", trailer)
		}
	}

	t.Run("one message each way", func(t *testing.T) {
		for text, want := range map[string]codes.Code{"hello": codes.OK, "fail": codes.ResourceExhausted} {
			var out wrapperspb.StringValue
			var trailer metadata.MD
			err := conn.Invoke(ctx, "/demo.Talk/Ask", wrapperspb.String(text), &out, grpc.Trailer(&trailer))
			if status.Code(err) != want || err == nil && out.Value != text || err != nil && status.Convert(err).Message() != "enough: 100 %" {
				t.Errorf("%s: %q, %v", text, out.Value, err)
			}
			check(trailer)
		}
	})
	t.Run("a stream of answers", func(t *testing.T) {
		s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/demo.Talk/Listen")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SendMsg(wrapperspb.String("x")); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for err == nil {
			if err = s.RecvMsg(new(wrapperspb.StringValue)); err == nil {
				n++
			}
		}
		if n != 3 || !errors.Is(err, io.EOF) {
			t.Errorf("%d answers, %v", n, err)
		}
		check(s.Trailer())
	})
	t.Run("two streams", func(t *testing.T) {
		s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/demo.Talk/Talk")
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"a", strings.Repeat("b", 1<<20), "c"} { // each answer is there before the next message
			var out wrapperspb.StringValue
			if err := s.SendMsg(wrapperspb.String(text)); err != nil {
				t.Fatal(err)
			}
			if err := s.RecvMsg(&out); err != nil || out.Value != text {
				t.Fatalf("%d bytes, %v", len(out.Value), err)
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(new(wrapperspb.StringValue)); status.Code(err) != codes.Aborted || status.Convert(err).Message() != "over" {
			t.Errorf("it ended with %v", err)
		}
		check(s.Trailer())
	})
	// A refusal is a status, with the words for its message.
	t.Run("refused", func(t *testing.T) {
		ctx := metadata.AppendToOutgoingContext(ctx, "x-note", w.placeholder)
		if err := conn.Invoke(ctx, "/demo.Talk/Ask", wrapperspb.String("x"), new(wrapperspb.StringValue)); status.Code(err) != codes.InvalidArgument || !strings.HasPrefix(status.Convert(err).Message(), "wayleave: a placeholder is in x-note, ") {
			t.Errorf("%v", err)
		}
	})
	if rpc.sawText(placeholderMarker) {
		t.Error("a placeholder arrived")
	}
}

// manyTunnels opens a hundred tunnels in one HTTP/2 connection to the proxy, and uses all of them at once.
func manyTunnels(t *testing.T, g *gate, w worker) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	h2, err := (&http.Transport{Protocols: protocols}).NewClientConn(t.Context(), "http", g.proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer h2.Close()
	real, err := arrived(w.client(t, true), w)
	if err != nil {
		t.Fatal(err)
	}
	var wg errgroup.Group
	for i := range 100 {
		wg.Go(func() error {
			in, out := io.Pipe()
			name, value, _ := strings.Cut(strings.TrimSpace(w.proxyAuthorization()), ": ")
			req := &http.Request{Method: http.MethodConnect, URL: w.proxy, Host: "api.demo.test:443", Header: http.Header{name: {value}}, Body: in}
			resp, err := h2.RoundTrip(req)
			if err != nil || resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%v, %w", resp, err)
			}
			c := tls.Client(&stream{&net.TCPConn{}, resp.Body, out}, &tls.Config{ServerName: "api.demo.test", RootCAs: w.roots, NextProtos: []string{"http/1.1"}})
			defer c.Close()
			r := bufio.NewReader(c)
			for range 3 {
				fmt.Fprintf(c, "GET /echo?%d HTTP/1.1\r\nHost: api.demo.test\r\nAuthorization: Bearer %s\r\n\r\n", i, w.placeholder)
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					return err
				}
				b, err := io.ReadAll(resp.Body)
				if err != nil || !bytes.Contains(b, []byte(fmt.Sprintf(`"query":"%d"`, i))) || !bytes.Contains(b, []byte(real)) {
					return fmt.Errorf("tunnel %d: %s %s, %w", i, resp.Status, b, err)
				}
			}
			return nil
		})
	}
	if err := wg.Wait(); err != nil {
		t.Error(err)
	}
}

// stream is a tunnel in an HTTP/2 connection.
type stream struct {
	net.Conn // none
	in       io.ReadCloser
	out      io.WriteCloser
}

func (s *stream) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *stream) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s *stream) Close() error                { return errors.Join(s.out.Close(), s.in.Close()) }
