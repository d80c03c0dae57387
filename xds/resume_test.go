package xds

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

// Hosts at one address, each with a certificate of its own, are told apart however often they are connected to: no connection
// is for two of them, and a session of one is never resumed with another, which would have no certificate to show for it.
func TestUpstreamsAtOneAddress(t *testing.T) {
	resumed := 0
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		for _, dialled := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, connect_to %v", name, dialled), func(t *testing.T) {
				server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/close" {
						w.Header().Set("Connection", "close")
					}
					fmt.Fprint(w, r.TLS.ServerName, map[bool]string{true: " again"}[r.TLS.DidResume])
				}))
				server.EnableHTTP2 = true
				_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
				var hosts []string
				for _, of := range []string{"one", "two"} {
					hosts = append(hosts, of+".wild.localhost:"+port)
				}
				s := start(t, func(c *Config) {
					r := Route{Name: "wild", Hosts: []string{"*.wild.localhost:" + port}}
					if dialled {
						r.ConnectTo = server.Listener.Addr().String()
					}
					c.Routes = append(c.Routes, r)
					c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
				}, nil)
				certificates := map[string]*tls.Certificate{}
				for _, of := range []string{"one.wild.localhost", "two.wild.localhost"} {
					c := s.upstream.ca.certificate(t, of)
					certificates[of] = &c
				}
				server.TLS = &tls.Config{NextProtos: []string{"h2", "http/1.1"}, MinVersion: version, MaxVersion: version, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
					if c := certificates[h.ServerName]; c != nil {
						return c, nil
					}
					return nil, fmt.Errorf("nobody here is %q", h.ServerName)
				}}
				server.StartTLS()
				t.Cleanup(server.Close)
				ann := s.worker("ann")
				for i := range 24 {
					host, path := hosts[i/6%2], []string{"/close", "/"}[i%2]
					name, _, _ := net.SplitHostPort(host)
					a := get(t, ann, "https://"+host+path)
					if seen, again := strings.CutSuffix(a.body, " again"); a.status != http.StatusOK || seen != name {
						t.Errorf("%s: %d %q", host, a.status, a.body)
					} else if again {
						resumed++
					}
				}
			})
		}
	}
	if resumed == 0 {
		t.Error("no session was resumed, by anybody: the test shows nothing")
	}
}
