package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"

	"wayleave/ca"
	"wayleave/vault/vaulttest"
)

// What somebody writes who wants the header set and has Go: CONNECT, a certificate for each name, net/http inside it. It checks who
// connects and nothing else. It runs as a process of its own.

const (
	mitmCommand  = "mitm" // what bench starts itself with
	mitmUser     = "bench"
	mitmPassword = "a-password-of-a-proxy"
)

// mitmSpec is what it is told, as its first line of input. It answers with a gateHello, and goes on until its input ends.
type mitmSpec struct {
	Address     string
	Upstream    string // at which all hosts are
	UpstreamH2  string // but apiHostH2
	UpstreamCAs []byte // PEM
}

// at is where a host is.
func (s mitmSpec) at(host string) string {
	if host == apiHostH2 {
		return s.UpstreamH2
	}
	return s.Upstream
}

func serveMITM(ctx context.Context, in io.Reader, out io.Writer) error {
	questions := json.NewDecoder(in)
	var spec mitmSpec
	if err := questions.Decode(&spec); err != nil {
		return err
	}
	authority, err := ca.New(ctx, vaulttest.NewMemory(), ca.Config{Domains: []string{"*.bench.test"}})
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", spec.Address)
	if err != nil {
		return err
	}
	stop := mitm(spec, authority, l)
	defer stop()
	if err := json.NewEncoder(out).Encode(gateHello{Root: authority.RootPEM(), carried: carried{mitmUser, mitmPassword, placeholder}}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, io.MultiReader(questions.Buffered(), in))
	return err
}

// mitm serves l until stop.
func mitm(spec mitmSpec, authority *ca.Authority, l net.Listener) (stop func()) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(spec.UpstreamCAs)
	transport := &http.Transport{ // as for a proxy: it keeps connections for as many clients as there are
		DialContext: func(ctx context.Context, network, authority string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(authority)
			if err != nil {
				return nil, err
			}
			return new(net.Dialer).DialContext(ctx, network, spec.at(host))
		},
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true, DisableCompression: true, MaxIdleConnsPerHost: 256,
	}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // connections that end
	inner := &http.Server{                                           //nolint:gosec // its clients are ours
		ErrorLog: quiet,
		Handler: &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.Out.URL.Scheme, r.Out.URL.Host = "https", r.In.Host
				r.Out.Header.Set("Authorization", "Bearer "+realToken)
			},
			Transport: transport, BufferPool: &buffers{}, ErrorLog: quiet,
		},
	}
	certificates := &tls.Config{GetCertificate: (&leaves{authority: authority}).get, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12}
	within := &handed{conns: make(chan net.Conn), done: make(chan struct{})}
	outer := &http.Server{ErrorLog: quiet, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // as above
		r.Header.Set("Authorization", r.Header.Get("Proxy-Authorization"))
		if user, password, _ := r.BasicAuth(); r.Method != http.MethodConnect || user != mitmUser || password != mitmPassword {
			http.Error(w, "CONNECT with a password", http.StatusProxyAuthRequired)
			return
		}
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
			c.Close()
			return
		}
		within.hand(tls.Server(c, certificates))
	})}
	go func() { _ = inner.Serve(within) }() // until Close
	go func() { _ = outer.Serve(l) }()
	return func() {
		_ = outer.Close()
		_ = inner.Close()
		transport.CloseIdleConnections()
	}
}

// leaves are the certificates of the names that were asked for.
type leaves struct {
	authority *ca.Authority
	made      sync.Map // of *tls.Certificate
}

func (l *leaves) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c, ok := l.made.Load(hello.ServerName); ok {
		return c.(*tls.Certificate), nil
	}
	leaf, err := l.authority.Leaf(hello.ServerName, "")
	if err != nil {
		return nil, err
	}
	c, err := tls.X509KeyPair(leaf.CertificatePEM, leaf.KeyPEM)
	if err != nil {
		return nil, err
	}
	l.made.Store(hello.ServerName, &c)
	return &c, nil
}

// handed is a listener of connections that somebody else has accepted.
type handed struct {
	conns chan net.Conn
	done  chan struct{}
	end   sync.Once
}

func (h *handed) hand(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		c.Close()
	}
}

func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handed) Close() error {
	h.end.Do(func() { close(h.done) })
	return nil
}

func (h *handed) Addr() net.Addr { return &net.TCPAddr{} }

type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return *buf
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(buf []byte) { b.pool.Put(&buf) }

// newMITM starts one in front of the upstreams, as a world without a gate.
func newMITM(ctx context.Context, up, h2 *upstream) (*world, error) {
	address, spec, err := rival(up, h2)
	if err != nil {
		return nil, err
	}
	g, err := startSelf(ctx, mitmCommand, spec)
	if err != nil {
		return nil, err
	}
	w := &world{gate: &gate{gateHello: g.gateHello}, envoy: g.pid, proxy: address, upstream: up, roots: x509.NewCertPool(), stop: g.stop}
	if !w.roots.AppendCertsFromPEM(g.Root) {
		g.stop()
		return nil, errors.New("the proxy says no root")
	}
	return w, nil
}
