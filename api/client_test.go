package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave/grant"
	"wayleave/operate"
	"wayleave/secret"
)

const token = "wlop_hush"

func TestParseURL(t *testing.T) {
	for address, want := range map[string]string{
		"https://gate.example.com": "https://gate.example.com", "https://gate.example.com:8443/": "https://gate.example.com:8443",
		"http://127.0.0.1:3180": "http://127.0.0.1:3180", "http://[::1]:3180/": "http://[::1]:3180", "http://localhost:3180": "http://localhost:3180",
		"http://gate.example.com": "", "http://10.0.0.1": "", "http://127.0.0.1.example.com": "", "gate.example.com": "", "": "", "https://": "", "ftp://gate.example.com": "",
		"https://me:wlop_hush@gate.example.com": "", "https://gate.example.com/api/v1": "", "https://gate.example.com?token=wlop_hush": "", "https://gate.example.com#wlop_hush": "",
	} {
		u, err := ParseURL(address)
		if (err == nil) != (want != "") || err == nil && u.String() != want {
			t.Errorf("%s: %v, %v", address, u, err)
		}
		if err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: the error repeats a secret", address)
		}
	}
}

// gate is a server whose answers the test says, one after the other; the last one stays.
type gate struct {
	*httptest.Server
	mu      sync.Mutex
	answers []string // a status and a body
	asked   []string // methods and paths
}

func newGate(t *testing.T, answers ...string) (*gate, *Client) {
	t.Helper()
	g := &gate{answers: answers}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if got := r.Header.Get("Authorization"); got != "Bearer "+token {
			t.Errorf("the token is %q", got)
		}
		g.asked = append(g.asked, r.Method+" "+r.URL.EscapedPath())
		status, body, _ := strings.Cut(g.answers[0], " ")
		if len(g.answers) > 1 {
			g.answers = g.answers[1:]
		}
		code := map[string]int{"200": 200, "302": 302, "404": 404, "409": 409, "422": 422, "502": 502, "503": 503}[status]
		if code == http.StatusFound {
			w.Header().Set("Location", body)
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(g.Close)
	at, err := url.Parse(g.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := New(at, secret.New(token), Options{Every: time.Millisecond})
	t.Cleanup(c.Close)
	return g, c
}

func (g *gate) heard() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.asked)
}

// What a gate refuses is a refusal here, of the same kind; what is no gate is said, and no token goes elsewhere.
func TestProblems(t *testing.T) {
	kind := func(k operate.Kind) *operate.Kind { return &k }
	for _, c := range []struct {
		answer, says string
		kind         *operate.Kind
	}{
		{`404 {"status":404,"error":"no grant"}`, "no grant", kind(operate.NoSuch)},
		{`409 {"status":409,"error":"not now"}`, "not now", kind(operate.NotNow)},
		{`422 {"status":422,"error":"not this"}`, "not this", kind(operate.Misused)},
		{`503 {"status":503,"error":"Vault is away"}`, "Vault is away", nil},
		{`404 <html>`, "does not answer as a gate's console: 404", nil},
		{`502 <html>`, "does not answer as a gate's console: 502", nil},
		{`200 <html>`, "does not answer as a gate's console: 200", nil},
		{`302 https://elsewhere.example/x?secret=hush`, "sends its callers to https://elsewhere.example, and", nil},
	} {
		_, client := newGate(t, c.answer)
		_, err := client.Find(t.Context(), "a/b")
		var refusal *operate.Refusal
		if err == nil || !strings.Contains(err.Error(), c.says) || errors.As(err, &refusal) != (c.kind != nil) || refusal != nil && refusal.Kind != *c.kind || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v", c.answer, err)
		}
	}
	_, client := newGate(t, `422 {"status":422,"error":"it is an example"}`)
	var refusal *operate.Refusal
	if _, err := client.Import(t.Context(), "key", []byte("your-api-key")); !errors.As(err, &refusal) || refusal.Kind != operate.Unusable {
		t.Errorf("%v", err)
	}
}

// Who is interrupted while a gate is asked is not told to look for a fault there; a gate that does not answer is one.
func TestUnanswered(t *testing.T) {
	asked := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	t.Cleanup(slow.Close)
	at, err := url.Parse(slow.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := New(at, secret.New(token), Options{})
	t.Cleanup(c.Close)
	interrupted := errors.New("interrupt signal received")
	ctx, stop := context.WithCancelCause(t.Context())
	go func() { <-asked; stop(interrupted) }()
	if _, err := c.List(ctx); !errors.Is(err, interrupted) || Passes(err) || strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("interrupted: %v", err)
	}
	go func() { <-asked }()
	if err := c.call(t.Context(), 50*time.Millisecond, http.MethodGet, nil, nil, "grants"); !Passes(err) || !strings.Contains(err.Error(), "has not answered within 50ms") {
		t.Errorf("no answer: %v", err)
	}
}

// A gate or a Vault that is away for a while is waited out, and a refusal is not.
func TestWatchWaitsOut(t *testing.T) {
	g, c := newGate(t, `503 {"status":503,"error":"Vault is away"}`, `502 <html>`, `200 {"grant":{"name":"a","state":"refreshing"}}`, `200 {"grant":{"name":"a","state":"healthy"}}`)
	s, err := c.Watch(t.Context(), "a", func(s grant.Summary) bool { return s.State == grant.Healthy })
	if err != nil || s.State != grant.Healthy || len(g.heard()) != 4 {
		t.Errorf("%+v, %v, %v", s, err, g.heard())
	}
	_, c = newGate(t, `404 {"status":404,"error":"no grant"}`)
	if _, err := c.Watch(t.Context(), "a", func(grant.Summary) bool { return true }); err == nil || err.Error() != "no grant" {
		t.Error(err)
	}
	_, c = newGate(t, `200 {"grant":{"name":"a","state":"degraded"}}`)
	ctx, stop := context.WithCancelCause(t.Context())
	s, err = c.Watch(ctx, "a", func(grant.Summary) bool { stop(operate.ErrNotInTime); return false })
	if !errors.Is(err, operate.ErrNotInTime) || s.State != grant.Degraded {
		t.Errorf("%+v, %v", s, err)
	}
}

// Who stops waiting for a connect gives it up, and hears of it when it was too late for that.
func TestAwaitGivesUp(t *testing.T) {
	for name, c := range map[string]struct {
		answers []string // the first look fails, as it is too late
		state   string   // empty: given up
		asks    []string
	}{
		"given up":      {[]string{`200 {"id":"x","state":"failed","error":"it was given up"}`}, "", []string{"DELETE /api/v1/connects/x"}},
		"just stored":   {[]string{`200 {"id":"x","state":"connected"}`}, FlowConnected, []string{"DELETE /api/v1/connects/x"}},
		"being stored":  {[]string{`200 {"id":"x","state":"storing"}`, `200 {"id":"x","state":"connected"}`}, FlowConnected, []string{"DELETE /api/v1/connects/x", "GET /api/v1/connects/x"}},
		"nobody at all": {[]string{`502 <html>`}, "", []string{"DELETE /api/v1/connects/x"}},
	} {
		t.Run(name, func(t *testing.T) {
			g, client := newGate(t, c.answers...)
			ctx, stop := context.WithCancelCause(t.Context())
			stop(operate.ErrNotInTime)
			f, err := client.Await(ctx, "x")
			if f.State != c.state || (err != nil) != (c.state == "") || err != nil && !errors.Is(err, operate.ErrNotInTime) {
				t.Errorf("%+v, %v", f, err)
			}
			if !slices.Equal(g.heard(), c.asks) {
				t.Errorf("asked %v", g.heard())
			}
		})
	}
}
