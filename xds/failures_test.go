package xds

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	extprocconfig "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	gocmp "github.com/google/go-cmp/cmp"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"wayleave/envoy/envoytest"
	"wayleave/extproc"
)

// loggedGate notes what Envoy's log says of requests, once the gate has read it.
type loggedGate struct {
	*extproc.Server
	mu   sync.Mutex
	read []string // guarded by mu; paths of those that failed
	well []string // guarded by mu; and of those that did not
}

func (g *gate) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	if real, ok := g.real.(accesslogv3.AccessLogServiceServer); ok {
		return real.StreamAccessLogs(stream)
	}
	return g.UnimplementedAccessLogServiceServer.StreamAccessLogs(stream)
}

func (l *loggedGate) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	return l.Server.StreamAccessLogs(&readStream{AccessLogService_StreamAccessLogsServer: stream, to: l})
}

type readStream struct {
	accesslogv3.AccessLogService_StreamAccessLogsServer
	to   *loggedGate
	last *accesslogv3.StreamAccessLogsMessage
}

func (s *readStream) RecvMsg(m any) error {
	s.to.mu.Lock()
	for _, e := range s.last.GetHttpLogs().GetLogEntry() {
		r := e.GetResponse()
		if code := r.GetResponseCode().GetValue(); code == 401 || code >= 500 || strings.HasPrefix(r.GetResponseCodeDetails(), "upstream_reset_after_response_started") {
			s.to.read = append(s.to.read, e.GetRequest().GetPath())
		} else if code < 400 && proto.Size(e.GetCommonProperties().GetResponseFlags()) == 0 {
			s.to.well = append(s.to.well, e.GetRequest().GetPath())
		}
	}
	s.to.mu.Unlock()
	s.last = &accesslogv3.StreamAccessLogsMessage{}
	if err := s.AccessLogService_StreamAccessLogsServer.RecvMsg(m); err != nil {
		return err
	}
	return proto.Unmarshal(m.(proto.Message).ProtoReflect().GetUnknown(), s.last)
}

// Requests that failed are counted for their Envoy and for the revision that let them out, and no others are.
func TestFailuresAreCounted(t *testing.T) {
	const closed, misnamed = "closed.provider.test", "too.deep.wild.provider.test"
	const stable, next = "stable0123456789", "next0123456789"
	cfg := extproc.Config{}
	p := startPhases(t, false, nil, func(c *extproc.Config) {
		c.Routes[0].Hosts = append(c.Routes[0].Hosts, closed, misnamed)
		cfg = *c
	})
	real := &loggedGate{Server: p.gate.real.(*extproc.Server)}
	p.gate.real = real
	p.config.Routes = append(p.config.Routes,
		Route{Name: "closed", Hosts: []string{closed}, ConnectTo: freeAddress(t)},
		Route{Name: "misnamed", Hosts: []string{misnamed}, ConnectTo: p.config.Routes[0].ConnectTo})
	refusing := cfg
	refusing.Routes = slices.Clone(cfg.Routes)
	refusing.Routes[0].Methods = []string{http.MethodGet}
	real.Update(stable, map[string]extproc.Config{stable: cfg, next: refusing})
	for _, revision := range []string{"", next} {
		p.mutate = func(r *Resources) {
			if revision == "" {
				return
			}
			says := pack(&extprocconfig.ExtProcPerRoute{Override: &extprocconfig.ExtProcPerRoute_Overrides{Overrides: &extprocconfig.ExtProcOverrides{
				GrpcInitialMetadata: []*corev3.HeaderValue{{Key: "wayleave-revision", Value: revision}},
			}}})
			for _, routes := range r.Routes {
				if routes.GetName() == routesIntercept {
					routes.TypedPerFilterConfig = map[string]*anypb.Any{filterExtProc: says}
				}
			}
		}
		p.publish()
		c := p.client(true)
		ask := func(method, host, path string) int {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), method, "https://"+host+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+p.placeholder)
			return do(t, c, req).status
		}
		refusedBy := func(host string) (*http.Response, error) { // by the gate, if Envoy has the host
			req, err := http.NewRequestWithContext(t.Context(), http.MethodTrace, "https://"+host+"/", nil)
			if err != nil {
				return nil, err
			}
			return c.Do(req)
		}
		envoytest.Await(t, "the routes of revision "+revision, func() error {
			resp, err := refusedBy(misnamed)
			if err != nil {
				return err
			}
			_ = resp.Body.Close()
			if got := ask("DELETE", apiHost, "/"); (got == 403) != (revision == next) {
				return fmt.Errorf("DELETE is answered %d", got)
			}
			return nil
		})
		real.Counted()
		if got := p.gate.asker.Load(); got != "test" {
			t.Errorf("the gate is asked about connections by %q", got)
		}
		// Workers that go away, before the answer and in its middle. They share a connection with what follows, and so the thread whose log tells of it.
		ctx, leave := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+apiHost+"/silent", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+p.placeholder)
		before := len(p.requests())
		gone := make(chan error, 1)
		go func() {
			_, err := c.Do(req) //nolint:bodyclose // there is none
			gone <- err
		}()
		envoytest.Await(t, "the request to be at the upstream", func() error {
			if len(p.requests()) == before {
				return errors.New("it is not")
			}
			return nil
		})
		leave()
		if err := <-gone; err == nil {
			t.Error("a request without an answer has one")
		}
		resp, err := p.send(c, http.MethodGet, "/events", nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		// An answer that breaks off.
		if resp, err = p.send(c, http.MethodGet, "/broken-off", nil, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Error("an answer that broke off is whole")
		}
		_ = resp.Body.Close()
		for _, x := range []struct {
			method, host, path string
			status             int
		}{
			{"GET", apiHost, "/", 200}, {"GET", apiHost, "/empty", 204}, {"GET", apiHost, "/refused", 401},
			{"GET", apiHost, "/fails", 500}, {"GET", apiHost, "/broken", 503}, {"GET", closed, "/closed", 503}, {"GET", misnamed, "/misnamed", 503},
		} {
			if got := ask(x.method, x.host, x.path); got != x.status {
				t.Errorf("%s%s: %d", x.host, x.path, got)
			}
		}
		want := extproc.Count{Node: "test", Revision: cmp.Or(revision, stable), Requests: 10, Errors: 5}
		if revision != "" {
			if got := ask("DELETE", apiHost, "/"); got != 403 {
				t.Errorf("refused: %d", got)
			}
			want.Requests, want.Refusals = 11, 1
		}
		read := []string{"/broken", "/broken-off", "/closed", "/fails", "/misnamed", "/refused"}
		envoytest.Await(t, "Envoy's log", func() error {
			real.mu.Lock()
			defer real.mu.Unlock()
			got := slices.Sorted(slices.Values(real.read))
			if !slices.Equal(got, read) {
				return fmt.Errorf("it tells of %s", strings.Join(got, " "))
			}
			if real.read = nil; len(real.well) > 0 { // a gate that keeps no account has no use for them
				t.Errorf("Envoy tells also of %s", strings.Join(real.well, " "))
			}
			return nil
		})
		counted := real.Counted()
		counted = slices.DeleteFunc(counted, func(c extproc.Count) bool { return c == extproc.Count{} })
		if diff := gocmp.Diff([]extproc.Count{want}, counted); diff != "" {
			t.Errorf("revision %q:\n%s", revision, diff)
		}
	}
}

// A handshake that a worker ends because it does not trust the certificate is counted for its Envoy, however the worker says so, and
// one that ends otherwise is not.
func TestUntrustedCertificatesAreCounted(t *testing.T) {
	p := startPhases(t, false, nil, func(*extproc.Config) {})
	real := p.gate.real.(*extproc.Server)
	real.Counted()
	handshake := func(version uint16, alert byte) {
		t.Helper()
		c := p.client(true)
		tr := c.Transport.(*http.Transport)
		tr.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool(), MaxVersion: version}
		tr.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			inner, err := new(net.Dialer).DialContext(ctx, network, address)
			return &alertingConn{inner, alert}, err
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+apiHost+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			t.Error("a worker trusts what it does not know")
		}
	}
	handshake(tls.VersionTLS12, 40) // handshake_failure
	handshake(tls.VersionTLS12, 90) // user_canceled
	handshake(tls.VersionTLS13, 0)  // as Go does it
	for _, alert := range []byte{42, 45, 46, 48} {
		handshake(tls.VersionTLS12, alert)
	}
	var sum extproc.Count
	envoytest.Await(t, "Envoy's log", func() error {
		for _, c := range real.Counted() {
			if c.Revision == "" && c.Errors > 0 {
				sum.Node, sum.Requests, sum.Errors = c.Node, sum.Requests+c.Requests, sum.Errors+c.Errors
			}
		}
		if want := (extproc.Count{Node: "test", Requests: 5, Errors: 5}); sum != want {
			return fmt.Errorf("counted %+v", sum)
		}
		return nil
	})
}

// alertingConn ends handshakes with another alert than its user chose, where that is not encrypted.
type alertingConn struct {
	net.Conn
	alert byte
}

func (c *alertingConn) Write(b []byte) (int, error) {
	if len(b) == 7 && b[0] == 21 {
		b = append(slices.Clone(b[:6]), c.alert)
	}
	return c.Conn.Write(b)
}
