package xds

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	dfpcommon "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"golang.org/x/net/dns/dnsmessage"

	"wayleave/envoy/envoytest"
)

// All who wait for the same name to be looked up are served, however many they are.
func TestManyWaitForAName(t *testing.T) {
	const workers, each = 8, 150
	release := make(chan struct{})
	var port string
	s := start(t, func(c *Config) {
		_, port, _ = strings.Cut(c.Routes[0].ConnectTo, ":")
		c.Routes = append(c.Routes, Route{Name: "late", Hosts: []string{"late.provider.test:" + port}})
		c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		c.DNSResolvers = []string{slowResolver(t, release)}
		c.MessageTimeout = time.Minute // the gate is asked about all at once, on a machine that may be busy
	}, func(r *Resources) {
		editDNS(t, r, func(c *dfpcommon.DnsCacheConfig) { c.DnsQueryTimeout = seconds(time.Minute) })
	})
	var asked atomic.Int64
	undecided := make(chan struct{}, 32) // more at once would only wait for a slow machine, and not all of them in time
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
		asked.Add(1)
		<-undecided
		return swap(r.identity)
	}
	var wg sync.WaitGroup
	for range workers {
		w := s.worker("ann")
		w.Timeout = time.Minute
		w.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: s.leaves.pool(), NextProtos: []string{"h2"}}
		for range each {
			wg.Go(func() {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://late.provider.test:"+port+"/", nil)
				if err != nil {
					t.Error(err)
					return
				}
				undecided <- struct{}{}
				resp, err := w.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = resp.Body.Close() }()
				if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
					t.Errorf("%d %s", resp.StatusCode, b)
				}
			})
		}
	}
	envoytest.Await(t, "all to have been decided about", func() error {
		if n := asked.Load(); n < workers*each {
			return fmt.Errorf("%d of %d", n, workers*each)
		}
		return nil
	})
	close(release)
	wg.Wait()
}

// slowResolver is a DNS server that knows every name to be this machine, and says so once it is released.
func slowResolver(t *testing.T, release <-chan struct{}) string {
	t.Helper()
	c, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			var m dnsmessage.Message
			if err != nil || m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			if q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
			}
			reply, err := m.Pack()
			if err != nil {
				continue
			}
			<-release
			_, _ = c.WriteTo(reply, from)
		}
	}()
	return c.LocalAddr().String()
}
