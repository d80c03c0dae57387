// Package demo owns a stand-in for the world outside: an OAuth provider that rotates refresh tokens and revokes on reuse,
// an HTTPS API that accepts that provider's access tokens, and a certificate authority for it. It exists for `make demo`
// and for tests, so it can also be made to misbehave, and it remembers what it received. It knows nothing of Wayleave;
// driving Wayleave against it is left to cmd/demo and to the tests of other packages.
//
//	operator's browser ─▶ Provider /authorize      grant ─▶ Provider /token      worker ─▶ … ─▶ API
//	                                  └──────────── one table of tokens ────────────────────────┘
//
// Every secret it issues begins with "demo-", so that a leak is easy to search for. Nothing here is fit for real use.
package demo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// Options of Start. The zero value serves on free loopback ports.
type Options struct {
	// ProviderAddr and APIAddr are host:port to listen on; default 127.0.0.1:0, a free port.
	ProviderAddr, APIAddr string
	// Hosts are the names in the API's certificate, beside localhost and 127.0.0.1; default api.demo.test.
	Hosts []string
	// Provider options.
	Provider ProviderOptions
}

// Demo is a running provider and API.
type Demo struct {
	Provider *Provider
	API      *API
	CA       *CA // signed the API's certificate

	ProviderURL string // http://127.0.0.1:port
	APIURL      string // https://127.0.0.1:port
	APIAddr     string // host:port of APIURL

	stop    context.CancelFunc
	servers []*http.Server
	serving sync.WaitGroup

	mu       sync.Mutex
	closed   bool           // no handler may begin; guarded by mu
	handlers sync.WaitGroup // net/http does not wait for WebSockets
}

// Start listens and serves until Close.
func Start(opts Options) (*Demo, error) {
	if len(opts.Hosts) == 0 {
		opts.Hosts = []string{"api.demo.test"}
	}
	ca, err := NewCA("Wayleave demo CA")
	if err != nil {
		return nil, err
	}
	cert, err := ca.Issue(append([]string{"localhost", "127.0.0.1"}, opts.Hosts...)...)
	if err != nil {
		return nil, err
	}
	providerListener, err := listen(opts.ProviderAddr)
	if err != nil {
		return nil, fmt.Errorf("starting the demo provider: %w", err)
	}
	apiListener, err := listen(opts.APIAddr)
	if err != nil {
		providerListener.Close()
		return nil, fmt.Errorf("starting the demo API: %w", err)
	}

	d := &Demo{CA: ca, Provider: NewProvider(opts.Provider)}
	d.API = NewAPI(d.Provider)
	d.APIAddr = apiListener.Addr().String()
	d.ProviderURL = "http://" + providerListener.Addr().String()
	d.APIURL = "https://" + d.APIAddr
	d.API.issuer = d.ProviderURL

	ctx, cancel := context.WithCancel(context.Background())
	d.stop = cancel
	d.serve(ctx, providerListener, d.Provider)
	d.serve(ctx, tls.NewListener(apiListener, &tls.Config{
		Certificates: []tls.Certificate{cert},
		NextProtos:   []string{"h2", "http/1.1"},
	}), d.API)
	return d, nil
}

func listen(addr string) (net.Listener, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	return net.Listen("tcp", addr)
}

func (d *Demo) serve(ctx context.Context, l net.Listener, h http.Handler) {
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !d.begin() {
				panic(http.ErrAbortHandler)
			}
			defer d.handlers.Done()
			h.ServeHTTP(w, r)
		}),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // handshakes that clients break off
	}
	d.servers = append(d.servers, srv)
	d.serving.Go(func() { _ = srv.Serve(l) }) // it ends when Close closes l
}

func (d *Demo) begin() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.handlers.Add(1)
	}
	return !d.closed
}

// Close breaks every connection and returns when nothing of the demo runs any more.
func (d *Demo) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.stop()
	d.Provider.Close()
	var errs []error
	for _, srv := range d.servers {
		errs = append(errs, srv.Close())
	}
	d.serving.Wait()
	d.handlers.Wait()
	return errors.Join(errs...)
}
