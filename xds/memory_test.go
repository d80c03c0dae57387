package xds

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"wayleave/envoy"
	"wayleave/envoy/envoytest"
)

// A worker that reads nothing of ever more answers fills Envoy's memory to a part of it, and then loses answers; the requests of others
// go on.
func TestUnreadAnswersFillNoMemory(t *testing.T) {
	const memory = 64 << 20
	var many bytes.Buffer
	for eve, n := newSpeaker(t, &many), 0; n < 5; n++ {
		eve.get("/endless")
	}
	for _, c := range []struct {
		name string
		most int    // connections, which would take much more
		alpn string // of each, on which
		asks string // for answers, of which none is read
	}{
		{"HTTP/2", 100, "h2", many.String()},
		{"HTTP/1.1", 300, "http/1.1", fmt.Sprintf("GET /endless HTTP/1.1\r\nHost: %s\r\n\r\n", apiHost)},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := startWith(t, func(w http.ResponseWriter, r *http.Request) {
				for chunk := make([]byte, 16<<10); r.URL.Path == "/endless"; {
					if _, err := w.Write(chunk); err != nil {
						return
					}
				}
				_, _ = io.WriteString(w, "an answer")
			})
			s.killEnvoy()
			s.memory = memory
			s.startEnvoy()
			ann := s.worker("ann")
			goesOn := func(when string) { // at the latest when Envoy has looked at its memory again
				t.Helper()
				envoytest.Await(t, when, func() error {
					a := get(t, ann, "https://"+apiHost+"/")
					if a.status != http.StatusOK {
						return fmt.Errorf("%d %q", a.status, a.body)
					}
					return nil
				})
			}
			for n := 0; ; n++ {
				if n == c.most {
					t.Fatal("no answer was cut")
				}
				proxy := s.proxyOverHTTP2()
				envoytest.Await(t, "a tunnel for eve", func() error { // there may be no memory for it until some is cut
					tunnel, err := s.triedOver(proxy, "eve", c.alpn)
					if err == nil {
						_, _ = io.WriteString(tunnel, c.asks) // or that is cut
					}
					return err
				})
				goesOn(fmt.Sprintf("an answer beside %d connections of another", n+1))
				if held, err := envoy.Allocated(t.Context(), s.bootstrap().AdminSocket); err != nil || held > memory {
					t.Fatalf("Envoy holds %d bytes: %v", held, err)
				}
				const cut = "envoy.overload_actions.reset_high_memory_stream.count"
				stats, err := envoy.Stats(t.Context(), s.bootstrap().AdminSocket, cut)
				if err != nil {
					t.Fatal(err)
				}
				if stats[cut] > 0 {
					break
				}
			}
			goesOn("an answer afterwards")
		})
	}
}

// Where there is no memory left, whoever asks is told so, on connections that are there.
func TestNoMemoryIsSaid(t *testing.T) {
	s := start(t, nil, nil)
	s.killEnvoy()
	s.memory = 32 << 20
	s.startEnvoy()
	quiet, err := s.connect(apiHost+":443", apiHost, s.leaves.pool())
	if err != nil {
		t.Fatal(err)
	}
	var proxies []*http.ClientConn
	for range 5 {
		proxies = append(proxies, s.proxyOverHTTP2())
	}
	refused := func(proxy *http.ClientConn) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+apiHost+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := proxy.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	for n := 0; ; n++ {
		if n == 1000 {
			t.Fatal("Envoy takes as many tunnels as there are")
		}
		proxy := proxies[n/200]
		tunnel, status, err := connectOver(t.Context(), proxy, "eve", apiHost+":443")
		if err != nil {
			t.Fatal(err)
		}
		if status == http.StatusServiceUnavailable {
			break
		}
		go func() {
			_ = tls.Client(tunnel, &tls.Config{ServerName: apiHost, RootCAs: s.leaves.pool()}).HandshakeContext(t.Context())
		}()
	}
	for _, a := range []testAnswer{read(t, refused(proxies[4])), ask(t, quiet, bufio.NewReader(quiet), apiHost)} {
		if a.status != http.StatusServiceUnavailable || a.header.Get(reasonHeader) != "gate_unavailable" || !strings.Contains(a.body, "no memory left") || a.header.Get("x-should-retry") != "true" {
			t.Errorf("%d %v %q", a.status, a.header, a.body)
		}
	}
}
