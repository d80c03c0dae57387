package e2e

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// A token that the provider revokes before its time, while many connections use it: the gate gets another, once, and no
// worker sees a 401.
func TestRevokedTokenIsReplaced(t *testing.T) {
	t.Parallel()
	const connections = 20
	g := start(t, oneTeam, "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	clients := make([]*http.Client, connections)
	for i := range clients {
		clients[i] = w.client(t, i%2 == 0)
		if _, err := arrived(clients[i], w); err != nil {
			t.Fatal(err)
		}
	}
	g.Provider.ExpireAccess()

	var wg sync.WaitGroup
	failures := make(chan error, connections)
	for i, client := range clients {
		wg.Go(func() {
			for n := range 5 {
				req := w.request(http.MethodPost, "https://api.demo.test/upload", bytes.NewReader(make([]byte, i*40<<10)))
				a, err := do(client, req)
				if err == nil && a.status != http.StatusOK {
					err = errors.New(a.String())
				}
				if err != nil {
					failures <- fmt.Errorf("connection %d, request %d: %w", i, n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	if s := g.Provider.Stats(); s.Refreshes != 1 || s.MaxPresented() != 1 || s.Reuses != 0 {
		t.Errorf("%d refreshes, a refresh token was presented %d times; want one of each", s.Refreshes, s.MaxPresented())
	}
	if out, err := g.command("wayleave", "grant", "history", "claude").CombinedOutput(); err != nil || !strings.Contains(string(out), "the provider rejected the token before it") {
		t.Errorf("history: %v\n%s", err, out)
	}
}

// A request that is too long to be kept for a second try gets the provider's 401. The gate learns of it all the same, and a
// later one gets through.
func TestRevokedTokenOfALongRequest(t *testing.T) {
	t.Parallel()
	g := start(t, oneTeam, "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	client := w.client(t, false)
	upload := func() (answer, error) {
		return do(client, w.request(http.MethodPost, "https://api.demo.test/upload", bytes.NewReader(make([]byte, 4<<20))))
	}
	if a, err := upload(); err != nil || a.status != http.StatusOK {
		t.Fatal(a, err)
	}
	g.Provider.ExpireAccess()
	if a, err := upload(); err == nil && a.status != http.StatusUnauthorized {
		t.Errorf("%v; want the provider's own 401", a)
	}
	if err := eventually(func() error {
		a, err := upload()
		if err == nil && a.status != http.StatusOK {
			err = errors.New(a.String())
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if s := g.Provider.Stats(); s.Refreshes != 1 {
		t.Errorf("%d refreshes", s.Refreshes)
	}
}

// gRPC has no 401: that a token is not taken is a status of its own, in the headers of an answer without a body or in the trailers of one
// with. The gate learns of it, and a later call gets through.
func TestRevokedTokenOfGRPC(t *testing.T) {
	t.Parallel()
	for _, begun := range []bool{false, true} {
		t.Run(fmt.Sprintf("the answer has begun: %v", begun), func(t *testing.T) {
			t.Parallel()
			made := makeWorld(t)
			var revoked atomic.Value
			up := newUpstream(t, made.CA, "grpc.demo.test", func(w http.ResponseWriter, r *http.Request) {
				status, token := "0", r.Header.Get("Authorization")
				if token == revoked.Load() {
					status = "16"
				}
				w.Header().Set("Content-Type", "application/grpc")
				if status == "16" && !begun {
					w.Header().Set("Grpc-Status", status)
					return
				}
				_, _ = w.Write([]byte{0, 0, 0, 0, 0})
				w.(http.Flusher).Flush()
				w.Header().Set(http.TrailerPrefix+"Grpc-Status", status)
				if status == "0" {
					revoked.CompareAndSwap(nil, token) // from now on
				}
			})
			g := startIn(t, made, base(fmt.Sprintf("  - {hosts: [grpc.demo.test], grant: claude, connect_to: \"%s\", alpn: [h2]}\n", up.address), "", ""), "claude")
			w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
			client := w.client(t, true)
			call := func() error {
				req := w.request(http.MethodPost, "https://grpc.demo.test/demo.Talk/Ask", bytes.NewReader(make([]byte, 5)))
				req.Header.Set("Content-Type", "application/grpc")
				req.Header.Set("Te", "trailers")
				resp, err := client.Do(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					return err
				}
				if status := cmp.Or(resp.Trailer.Get("Grpc-Status"), resp.Header.Get("Grpc-Status")); resp.StatusCode != http.StatusOK || status != "0" {
					return fmt.Errorf("%d, status %s of gRPC", resp.StatusCode, status)
				}
				return nil
			}
			if err := call(); err != nil {
				t.Fatal(err)
			}
			if err := call(); err == nil || !strings.Contains(err.Error(), "200, status 16") {
				t.Errorf("got %v; want the provider's own answer", err)
			}
			if err := eventually(call); err != nil {
				t.Error(err)
			}
			if s := g.Provider.Stats(); s.Refreshes != 1 {
				t.Errorf("%d refreshes", s.Refreshes)
			}
		})
	}
}

// An API that answers 401 whatever it is sent costs one refresh and not one for each request, and the worker reads the
// provider's own words.
func TestRejectionOfEveryTokenIsPassedOn(t *testing.T) {
	t.Parallel()
	g := start(t, oneTeam, "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	g.Provider.EditAnswers(func(_ map[string]string, answer map[string]any) { answer["access_token"] = "sk-ant-oat01-of-no-use" })
	g.Provider.ExpireAccess()
	var wg sync.WaitGroup
	for i := range 10 {
		client := w.client(t, i%2 == 0)
		wg.Go(func() {
			for range 10 {
				a, err := do(client, w.request(http.MethodGet, "https://api.demo.test/echo", nil))
				if err != nil || a.status != http.StatusUnauthorized || a.reason != "" || !strings.Contains(a.body, "authentication_error") {
					t.Errorf("got %v, %v", a, err)
				}
			}
		})
	}
	wg.Wait()
	if s := g.Provider.Stats(); s.Refreshes != 1 {
		t.Errorf("%d refreshes for 100 requests", s.Refreshes)
	}
}

// A consent that has been revoked is said in words that lead to its repair; the repair works for the very next request,
// although the gate held a token that looked good.
func TestRevokedConsentIsSaid(t *testing.T) {
	t.Parallel()
	g := start(t, oneTeam, "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	client := w.client(t, true)
	if _, err := arrived(client, w); err != nil {
		t.Fatal(err)
	}
	g.Provider.RevokeAll()
	for range 3 {
		a, err := do(client, w.request(http.MethodGet, "https://api.demo.test/echo", nil))
		if err != nil || a.reason != "needs_reconnect" || !strings.Contains(a.body, "wayleave grant connect claude") {
			t.Errorf("got %v, %v", a, err)
		}
	}
	connect := func() {
		if out, err := g.command("wayleave", "grant", "connect", "claude").CombinedOutput(); err != nil {
			t.Fatalf("connecting: %v\n%s", err, out)
		}
		if _, err := arrived(client, w); err != nil {
			t.Error(err)
		}
	}
	connect()
	g.Provider.RevokeAll()
	connect() // before the gate has noticed
}
