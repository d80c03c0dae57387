package xds

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"wayleave/envoy/envoytest"
	"wayleave/extproc"
	"wayleave/limit"
)

// limited is a stack of which the worker may have one request under way.
func limited(t *testing.T, mask bool) *phaseStack {
	t.Helper()
	return startPhases(t, mask, nil, func(c *extproc.Config) {
		p := c.Profiles["default"]
		p.Limit = limit.Limit{Concurrent: 1}
		c.Profiles["default"] = p
	})
}

// full fails the test unless another request is one too many.
func (p *phaseStack) full(t *testing.T) {
	t.Helper()
	resp, err := p.send(p.client(true), http.MethodGet, "/", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get(reasonHeader) != "rate_limited" || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("beside a request that is under way: %d %v", resp.StatusCode, resp.Header)
	}
}

// free waits until a request is let through.
func (p *phaseStack) free(t *testing.T) {
	t.Helper()
	c := p.client(true)
	envoytest.Await(t, "room for a request", func() error {
		resp, err := p.send(c, http.MethodGet, "/", nil, 0)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%d %s, %w", resp.StatusCode, resp.Header.Get(reasonHeader), err)
		}
		return nil
	})
}

// begin sends a request with a context of its own, and returns its answer and what ends both.
func (p *phaseStack) begin(t *testing.T, http2 bool, path string, body io.Reader, headers ...string) (*http.Response, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+apiHost+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+p.placeholder)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := p.client(http2).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp, cancel
}

// A request is under way from its verdict until it has ended, in whatever way, and no longer.
func TestUnderWayUntilTheEnd(t *testing.T) {
	for _, mask := range []bool{false, true} {
		t.Run(fmt.Sprintf("mask %v", mask), func(t *testing.T) {
			p := limited(t, mask)
			for _, http2 := range []bool{true, false} {
				version := fmt.Sprintf("http2 %v", http2)
				t.Run("event stream left by the client, "+version, func(t *testing.T) {
					resp, leave := p.begin(t, http2, "/events", nil)
					if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || line != "data: 1\n" {
						t.Fatalf("%q, %v", line, err)
					}
					p.full(t)
					leave()
					p.free(t)
				})
				t.Run("both ways at once, "+version, func(t *testing.T) {
					if !http2 {
						t.Skip("HTTP/1.1 has no such thing")
					}
					in, out := io.Pipe()
					go io.WriteString(out, "hello\n")
					resp, leave := p.begin(t, http2, "/talk", in)
					defer leave()
					if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || line != "hello\n" {
						t.Fatalf("%q, %v", line, err)
					}
					p.full(t)
					out.Close()
					if _, err := io.Copy(io.Discard, resp.Body); err != nil {
						t.Error(err)
					}
					p.free(t)
				})
				t.Run("upload broken off, "+version, func(t *testing.T) {
					in, out := io.Pipe()
					ctx, cancel := context.WithCancel(t.Context())
					req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+apiHost+"/", in)
					if err != nil {
						t.Fatal(err)
					}
					req.Header.Set("Authorization", "Bearer "+p.placeholder)
					ended := make(chan struct{})
					before := len(p.requests())
					go func() {
						defer close(ended)
						if resp, err := p.client(http2).Do(req); err == nil {
							resp.Body.Close()
						}
					}()
					if _, err := io.WriteString(out, strings.Repeat("x", 1000)); err != nil {
						t.Fatal(err)
					}
					envoytest.Await(t, "the request to arrive", func() error {
						if n := len(p.requests()); n == before {
							return fmt.Errorf("%d requests", n)
						}
						return nil
					})
					p.full(t)
					cancel()
					out.Close()
					<-ended
					p.free(t)
				})
				t.Run("each kind of answer, "+version, func(t *testing.T) {
					for _, path := range []string{"/empty", "/download", "/refused", "/token", "/broken", "/broken-off"} {
						resp, leave := p.begin(t, http2, path, nil)
						if _, err := io.Copy(io.Discard, resp.Body); err != nil && path != "/broken-off" {
							t.Errorf("%s: %v", path, err)
						}
						p.free(t)
						leave()
					}
					if _, err := p.echoes(p.client(http2), "/rpc", []byte("hello"), -1, "Content-Type", "application/grpc", "Te", "trailers"); err != nil {
						t.Errorf("trailers: %v", err)
					}
					p.free(t)
				})
			}
			t.Run("WebSocket", func(t *testing.T) {
				c := p.client(false)
				resp, err := p.send(c, http.MethodGet, "/ws", nil, 0, upgradeHeaders()...)
				if err != nil {
					t.Fatal(err)
				}
				if resp.StatusCode != http.StatusSwitchingProtocols {
					t.Fatal(resp.StatusCode)
				}
				p.full(t)
				resp.Body.Close()
				p.free(t)
				if resp, err = p.send(c, http.MethodGet, "/bye", nil, 0, upgradeHeaders()...); err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				p.free(t)
			})
			if n := p.spurious(t); n != "0" {
				t.Errorf("Envoy counts %s spurious messages", n)
			}
		})
	}
}

// A worker that sends one request after the other is never told that there are too many: it may know of an end before the gate.
func TestOneAfterTheOther(t *testing.T) {
	p := limited(t, false)
	clients := []*http.Client{p.client(true), p.client(false), p.client(true), p.client(false)} // over connections of different threads
	for i := range 200 {
		resp, err := p.send(clients[i%len(clients)], http.MethodGet, "/", nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("request %d: %d %s, %v", i, resp.StatusCode, resp.Header.Get(reasonHeader), err)
		}
	}
}

// What was under way in an Envoy that was killed is not counted any more.
func TestUnderWayInAKilledEnvoy(t *testing.T) {
	p := limited(t, false)
	resp, _ := p.begin(t, true, "/events", nil)
	defer resp.Body.Close()
	p.full(t)
	p.killEnvoy()
	p.startEnvoy()
	p.free(t)
}

// A gate that is told to stop lets go of what is under way, and Envoy goes on with it.
func TestLeftUnderWay(t *testing.T) {
	p := limited(t, false)
	in, out := io.Pipe()
	defer out.Close()
	say := func(text string) { go io.WriteString(out, text) }
	say("1\n")
	resp, leave := p.begin(t, true, "/talk", in)
	defer leave()
	socket, err := p.send(p.client(false), http.MethodGet, "/ws", nil, 0, upgradeHeaders()...)
	if err != nil {
		t.Fatal(err)
	}
	socket.Body.Close()
	if socket.StatusCode != http.StatusTooManyRequests {
		t.Errorf("a second: %d", socket.StatusCode)
	}
	r := bufio.NewReader(resp.Body)
	hears := func(want string) {
		t.Helper()
		if got, err := r.ReadString('\n'); err != nil || got != want {
			t.Fatalf("%q, %v", got, err)
		}
	}
	hears("1\n")
	p.gate.real.(*extproc.Server).Leave()
	p.free(t) // so it is not counted
	say("2\n")
	hears("2\n")
	p.stop()
	p.stop = func() {}
	say("3\n")
	hears("3\n")
}
