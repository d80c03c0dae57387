package isolate

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// webPort is that of HTTP without TLS.
const webPort = 80

// How long the gate may take to answer a CONNECT, and a client to send one.
const (
	gatePatience   = 30 * time.Second
	clientPatience = 30 * time.Second
)

// relay brings connections to the gate, as the session.
type relay struct {
	way   Way
	names *names
	plain *http.Transport // for requests without TLS

	mu   sync.Mutex
	said map[string]bool // destinations that Refused was told of
}

func newRelay(way Way) *relay {
	proxy := &url.URL{Scheme: way.Gate.Scheme, Host: way.Gate.Host, User: url.UserPassword(way.User, way.Password.Reveal())}
	return &relay{
		way: way, names: newNames(way.Search, way.Dots, way.Known), said: map[string]bool{},
		plain: &http.Transport{Proxy: http.ProxyURL(proxy), TLSClientConfig: &tls.Config{RootCAs: way.Roots}, DisableCompression: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute},
	}
}

// serve serves what comes in at the sockets until ctx ends, and closes them.
func (r *relay) serve(ctx context.Context, s sockets) error {
	group, ctx := errgroup.WithContext(ctx)
	defer r.plain.CloseIdleConnections()
	group.Go(func() error {
		<-ctx.Done()
		s.close()
		return nil
	})
	serveHTTP := func(l net.Listener, h http.Handler) {
		server := &http.Server{Handler: h, ReadHeaderTimeout: clientPatience, ErrorLog: nil}
		context.AfterFunc(ctx, func() { _ = server.Close() })
		group.Go(func() error { return unlessEnded(ctx, server.Serve(l)) })
	}
	serveHTTP(s.proxy, http.HandlerFunc(r.serveProxy))
	for _, l := range s.captured {
		if p := port(l.Addr()); p == webPort || slices.Contains(r.way.PlainPorts, p) {
			serveHTTP(l, http.HandlerFunc(r.serveWeb))
			continue
		}
		group.Go(func() error { return unlessEnded(ctx, r.serveCaptured(ctx, l)) })
	}
	for _, l := range s.resolverTCP {
		group.Go(func() error { return unlessEnded(ctx, r.serveNamesTCP(ctx, l)) })
	}
	for _, c := range s.resolverUDP {
		group.Go(func() error { return unlessEnded(ctx, c.serve(r.names.answer)) })
	}
	return group.Wait()
}

func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// serveProxy is the proxy that programs are told of.
func (r *relay) serveProxy(w http.ResponseWriter, req *http.Request) {
	switch {
	case req.Method == http.MethodConnect:
		r.tunnel(w, req)
	case req.URL.Scheme == "http" && req.URL.Host != "":
		r.forward(w, req, req.URL.Host)
	default:
		http.Error(w, "wayleave: this is a proxy for http URLs and for CONNECT", http.StatusBadRequest)
	}
}

// serveWeb takes requests without TLS of programs that know no proxy.
func (r *relay) serveWeb(w http.ResponseWriter, req *http.Request) {
	r.forward(w, req, req.Host)
}

func (r *relay) forward(w http.ResponseWriter, req *http.Request, host string) {
	proxy := httputil.ReverseProxy{
		Transport: r.plain,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", host
			p.Out.Host = p.In.Host
		},
		FlushInterval: -1, // events go on as they come
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "wayleave: the gate cannot be reached: "+unwrapURL(err).Error(), http.StatusBadGateway)
		},
	}
	proxy.ServeHTTP(w, req)
}

// tunnel answers a CONNECT. A refusal of the gate's is passed on as it is.
func (r *relay) tunnel(w http.ResponseWriter, req *http.Request) {
	upstream, refusal, err := r.connect(req.Context(), req.Host)
	switch {
	case err != nil:
		r.refused(req.Host, err.Error())
		http.Error(w, "wayleave: "+err.Error(), http.StatusBadGateway)
		return
	case refusal != nil:
		body := r.refusedBy(req.Host, refusal)
		for _, name := range []string{"Content-Type", "X-Wayleave-Reason", "X-Request-Id"} {
			if v := refusal.Header.Get(name); v != "" {
				w.Header().Set(name, v)
			}
		}
		w.WriteHeader(refusal.StatusCode)
		_, _ = w.Write(body)
		return
	}
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		upstream.Close()
		return
	}
	if _, err := io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		client.Close()
		upstream.Close()
		return
	}
	splice(req.Context(), buffer{client, buffered.Reader}, upstream)
}

// serveCaptured takes connections that were meant for somebody else.
func (r *relay) serveCaptured(ctx context.Context, l net.Listener) error {
	return serveEach(l, func(conn net.Conn) { r.capture(ctx, conn) })
}

// serveEach serves connections until there are no more, and returns when the last one has ended.
func serveEach(l net.Listener, serve func(net.Conn)) error {
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		open.Go(func() { serve(conn) })
	}
}

func (r *relay) capture(ctx context.Context, conn net.Conn) {
	to, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		conn.Close()
		return
	}
	address, _ := netip.AddrFromSlice(to.IP)
	program := conn
	host, known := r.names.at(address)
	if !known { // the program has the address from elsewhere
		names := r.way.Hosts[address.Unmap()]
		if len(names) != 1 {
			host, program = serverName(conn)
		}
		if host == "" && len(names) > 0 {
			host = names[0]
		}
		host = cmp.Or(host, address.Unmap().String()) // of which the gate says what it thinks
	}
	destination := net.JoinHostPort(host, strconv.Itoa(to.Port))
	upstream, refusal, err := r.connect(ctx, destination)
	switch {
	case err != nil:
		r.refused(destination, err.Error())
	case refusal != nil:
		r.refusedBy(destination, refusal)
	default:
		splice(ctx, program, upstream)
		return
	}
	reset(conn)
}

// helloPatience is how long a program may take to say whom it wants. Where TLS is not spoken it may wait for the server to begin.
const helloPatience = time.Second

// serverName is whom a TLS client wants (RFC 6066 section 3), with a connection in which what was read for that is still to come. It is empty where TLS does
// not begin, or without a name.
func serverName(conn net.Conn) (name string, whole net.Conn) {
	var read bytes.Buffer
	_ = conn.SetReadDeadline(time.Now().Add(helloPatience))
	hello := tls.Server(unanswered{conn, io.TeeReader(conn, &read)}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name = strings.ToLower(h.ServerName)
		return nil, errors.New("nothing more is wanted of it")
	}})
	_ = hello.Handshake()
	_ = conn.SetReadDeadline(time.Time{})
	return name, buffer{conn, bufio.NewReader(io.MultiReader(&read, conn))}
}

// unanswered is a connection that is read by another way, and on which nothing is sent.
type unanswered struct {
	net.Conn
	in io.Reader
}

func (u unanswered) Read(p []byte) (int, error) { return u.in.Read(p) }

func (u unanswered) Write(p []byte) (int, error) { return len(p), nil }

// connect opens a tunnel through the gate. What is not 200 comes back as a refusal, whose body is read to its end.
func (r *relay) connect(ctx context.Context, destination string) (tunnel net.Conn, refusal *http.Response, err error) {
	ctx, cancel := context.WithTimeout(ctx, gatePatience)
	defer cancel()
	conn, err := r.dial(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("the gate %s cannot be reached: %w", r.way.Gate, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: destination}, Host: destination, Header: http.Header{}}
	req.SetBasicAuth(r.way.User, r.way.Password.Reveal())
	req.Header["Proxy-Authorization"] = req.Header["Authorization"]
	delete(req.Header, "Authorization")
	in := bufio.NewReader(conn)
	err = req.Write(conn)
	var answer *http.Response
	if err == nil {
		answer, err = http.ReadResponse(in, req)
	}
	if err == nil && answer.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
		answer.Body = io.NopCloser(strings.NewReader(string(body)))
		conn.Close()
		return nil, answer, nil
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("the gate %s did not answer: %w", r.way.Gate, err)
	}
	return buffer{conn, in}, nil, nil
}

func (r *relay) dial(ctx context.Context) (net.Conn, error) {
	gate := r.way.Gate
	dialer := &net.Dialer{}
	if gate.Scheme == "https" {
		d := tls.Dialer{NetDialer: dialer, Config: &tls.Config{RootCAs: r.way.Roots, NextProtos: []string{"http/1.1"}}}
		return d.DialContext(ctx, "tcp", withPort(gate, "443"))
	}
	return dialer.DialContext(ctx, "tcp", withPort(gate, "80"))
}

func withPort(u *url.URL, standard string) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), standard)
}

// refusedBy tells of a refusal of the gate's in its words, and returns the body.
func (r *relay) refusedBy(destination string, answer *http.Response) []byte {
	body, _ := io.ReadAll(answer.Body)
	var said struct {
		Message string `json:"message"`
	}
	why := "the gate answers " + answer.Status
	if json.Unmarshal(body, &said) == nil && said.Message != "" {
		why = strings.TrimPrefix(said.Message, "wayleave: ")
	}
	r.refused(destination, why)
	return body
}

func (r *relay) refused(destination, why string) {
	r.mu.Lock()
	first := !r.said[destination]
	if len(r.said) < 1000 {
		r.said[destination] = true
	}
	r.mu.Unlock()
	if first && r.way.Refused != nil {
		r.way.Refused(destination, why)
	}
}

// buffer is a connection of which something has been read already.
type buffer struct {
	net.Conn
	in *bufio.Reader
}

func (b buffer) Read(p []byte) (int, error) { return b.in.Read(p) }

func (b buffer) CloseWrite() error { return closeWrite(b.Conn) }

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// splice copies both ways until both have ended; the end of one is passed on alone, as half-closed connections need it.
func splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() {
		a.Close()
		b.Close()
	})
	defer stop()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			_, err := io.Copy(way[0], way[1])
			if err != nil || closeWrite(way[0]) != nil { // broken: nothing comes any more, in either direction
				a.Close()
				b.Close()
			}
		})
	}
	both.Wait()
	a.Close()
	b.Close()
}

// reset ends a connection so that the program sees an error rather than an empty answer.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	c.Close()
}

// serveNamesTCP answers DNS queries over TCP (RFC 7766), each behind its length.
func (r *relay) serveNamesTCP(ctx context.Context, l net.Listener) error {
	return serveEach(l, func(conn net.Conn) {
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		for {
			_ = conn.SetDeadline(time.Now().Add(clientPatience))
			var length [2]byte
			if _, err := io.ReadFull(conn, length[:]); err != nil {
				return
			}
			query := make([]byte, binary.BigEndian.Uint16(length[:]))
			if _, err := io.ReadFull(conn, query); err != nil {
				return
			}
			answer := r.names.answer(query)
			if answer == nil {
				return
			}
			if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
				return
			}
		}
	})
}

func port(a net.Addr) uint16 {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Port()
	}
	return 0
}

func unwrapURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}
