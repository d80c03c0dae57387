package worker

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"wayleave/identity"
	"wayleave/secret"
	"wayleave/vault/vaulttest"
)

const ciToken = "a-static-token-of-the-worker-called-ci"

func testCA(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// gate is a worker API with one worker, a clock that the test moves, and a log that it reads.
type gate struct {
	*httptest.Server
	sessions *Sessions
	registry *Registry
	ca       []byte

	mu    sync.Mutex
	now   time.Time     // guarded by mu
	log   *bytes.Buffer // written by the handler, read after the answer
	fail  error         // guarded by mu; what rendering credentials answers
	creds []Credential
}

func newGate(t testing.TB, issuers ...identity.Issuer) *gate {
	return newGateOn(t, vaulttest.NewMemory(), issuers...)
}

// Now is the gate's clock.
func (g *gate) Now() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.now
}

func newGateOn(t testing.TB, docs Documents, issuers ...identity.Issuer) *gate {
	t.Helper()
	g := &gate{ca: testCA(t), now: now, log: new(bytes.Buffer)}
	var err error
	if g.sessions, err = OpenSessions(t.Context(), docs, LedgerOptions{Now: g.Now}); err != nil {
		t.Fatal(err)
	}
	registry, err := NewRegistry([]Worker{{Name: "ci", Profile: "default", TokenSHA256: sha256.Sum256([]byte(ciToken)), SessionTTL: time.Hour, MaxSession: 3 * time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	g.registry = registry
	g.creds = []Credential{{
		Grant: "claude", Provider: "anthropic", Placeholder: "sk-" + Marker, Env: map[string]string{"ANTHROPIC_AUTH_TOKEN": "sk-" + Marker},
		Unset: []string{"ANTHROPIC_API_KEY"}, Files: map[string]string{"a/b.json": "{}"}, Note: "a note",
	}}
	g.Server = httptest.NewServer(NewAPI(APIConfig{
		Workers:  registry,
		Issuers:  identity.NewVerifier(issuers, identity.Options{}),
		Sessions: g.sessions,
		CA:       func() []byte { return g.ca },
		Credentials: func(_ context.Context, s Session) ([]Credential, error) {
			g.mu.Lock()
			defer g.mu.Unlock()
			return g.creds, g.fail
		},
		Now: g.Now,
		Log: slog.New(slog.NewTextHandler(g.log, nil)),
	}))
	t.Cleanup(g.Close)
	return g
}

func (g *gate) url(t testing.TB) *url.URL {
	t.Helper()
	u, err := url.Parse(g.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func (g *gate) post(t testing.TB, body string, headers ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", g.URL+sessionsPath, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := g.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestEnrol(t *testing.T) {
	g := newGate(t)
	e, err := Enrol(t.Context(), g.url(t), nil, Presented{Token: secret.New(ciToken)})
	if err != nil {
		t.Fatal(err)
	}
	want := Session{ID: e.Session.ID, Worker: "ci", Profile: "default", Expires: now.Add(time.Hour)}
	if diff := cmp.Diff(want, e.Session); diff != "" {
		t.Error(diff)
	}
	if s, err := g.sessions.Verify(e.Session.ID, e.Password); err != nil || s != want {
		t.Errorf("the password does not open the session: %v", err)
	}
	if diff := cmp.Diff(g.creds, e.Credentials); diff != "" {
		t.Error(diff)
	}
	if !bytes.Equal(e.CA, g.ca) || e.Gate.String() != g.URL {
		t.Error("CA or gate is not the right one")
	}
	if log := g.log.String(); strings.Contains(log, ciToken) || strings.Contains(log, e.Password.Reveal()) || !strings.Contains(log, e.Session.ID) {
		t.Error("the log holds a token, or lacks the session id")
	}
}

func TestAPIRefuses(t *testing.T) {
	for _, c := range []struct {
		name    string
		body    string
		headers []string
		status  int
		reason  string
		says    string
	}{
		{"no token", "", nil, 401, "unknown_worker", "is missing"},
		{"empty token", "", []string{"authorization", "Bearer "}, 401, "unknown_worker", "is missing"},
		{"wrong token", "", []string{"authorization", "Bearer x" + ciToken}, 401, "unknown_worker", "WAYLEAVE_TOKEN"},
		{"part of the token", "", []string{"authorization", "Bearer " + ciToken[:10]}, 401, "unknown_worker", "WAYLEAVE_TOKEN"},
		{"wrong scheme", "", []string{"authorization", "Basic " + ciToken}, 401, "unknown_worker", "is missing"},
		{"asks for a profile", `{"profile":"admin"}`, []string{"authorization", "Bearer " + ciToken}, 400, "nothing_to_ask", "empty body"},
		{"long body", strings.Repeat(" ", 5000), []string{"authorization", "Bearer " + ciToken}, 400, "nothing_to_ask", "empty body"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGate(t)
			resp := g.post(t, c.body, append(c.headers, "x-request-id", "req-7")...)
			var said struct{ Error, Message, RequestID string }
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(bytes.ReplaceAll(body, []byte("request_id"), []byte("RequestID")), &said); err != nil {
				t.Fatalf("%v in %s", err, body)
			}
			if resp.StatusCode != c.status || said.Error != c.reason || resp.Header.Get(reasonHeader) != c.reason || said.RequestID != "req-7" {
				t.Errorf("%d, %+v", resp.StatusCode, said)
			}
			if !strings.Contains(said.Message, c.says) {
				t.Errorf("message %q does not say %q", said.Message, c.says)
			}
			if !strings.Contains(g.log.String(), "reason="+c.reason) || strings.Contains(g.log.String(), ciToken[:10]) {
				t.Errorf("log: %s", g.log)
			}
		})
	}
	t.Run("empty object", func(t *testing.T) {
		if resp := newGate(t).post(t, " {} ", "authorization", "bearer "+ciToken); resp.StatusCode != 200 {
			t.Errorf("%d", resp.StatusCode)
		}
	})
	t.Run("cannot render", func(t *testing.T) {
		g := newGate(t)
		g.fail = errors.New("inner detail")
		resp := g.post(t, "", "authorization", "Bearer "+ciToken)
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 503 || bytes.Contains(body, []byte("inner detail")) || resp.Header.Get("retry-after") == "" {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
	t.Run("what it does not do", func(t *testing.T) {
		g := newGate(t)
		for path, want := range map[string]int{sessionsPath: http.StatusMethodNotAllowed, "/.wayleave/v2": http.StatusNotFound} {
			resp, err := g.Client().Get(g.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != want || resp.Header.Get(reasonHeader) != "no_such_request" || !bytes.Contains(body, []byte(sessionsPath)) {
				t.Errorf("%s: %d %s", path, resp.StatusCode, body)
			}
		}
	})
}

func TestAPIServesCAAndLiveness(t *testing.T) {
	g := newGate(t)
	for path, want := range map[string]string{caPath: string(g.ca), livePath: "ok\n"} {
		resp, err := g.Client().Get(g.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(body) != want {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
}

// Guessing is slowed down per address; right tokens cost nothing, and time forgives.
func TestAPILimitsWrongTokens(t *testing.T) {
	g := newGate(t)
	attempt := func(token, from string) *http.Response {
		return g.post(t, "", "authorization", "Bearer "+token, "x-forwarded-for", "8.8.8.8, "+from)
	}
	for range 50 {
		if resp := attempt(ciToken, "10.0.0.1"); resp.StatusCode != 200 {
			t.Fatalf("a right token was answered %d", resp.StatusCode)
		}
	}
	for i := range burst {
		if resp := attempt("wrong", "10.0.0.1"); resp.StatusCode != 401 {
			t.Fatalf("failure %d was answered %d", i+1, resp.StatusCode)
		}
	}
	resp := attempt(ciToken, "10.0.0.1")
	if resp.StatusCode != 429 {
		t.Fatalf("after %d failures: %d", burst, resp.StatusCode)
	}
	if resp := attempt(ciToken, "10.0.0.2"); resp.StatusCode != 200 {
		t.Errorf("another address was answered %d", resp.StatusCode)
	}
	seconds, err := strconv.Atoi(resp.Header.Get("retry-after"))
	if err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	g.now = g.now.Add(time.Duration(seconds) * time.Second)
	g.mu.Unlock()
	if resp := attempt(ciToken, "10.0.0.1"); resp.StatusCode != 200 {
		t.Errorf("after retry-after: %d", resp.StatusCode)
	}
}

func TestRegistry(t *testing.T) {
	hash := func(s string) [32]byte { return sha256.Sum256([]byte(s)) }
	ok := Worker{Name: "ci", Profile: "default", TokenSHA256: hash("one"), SessionTTL: time.Hour, MaxSession: time.Hour}
	for name, bad := range map[string][]Worker{
		"no name":      {{Profile: "default", TokenSHA256: hash("x"), SessionTTL: 1, MaxSession: 1}},
		"no profile":   {{Name: "ci", TokenSHA256: hash("x"), SessionTTL: 1, MaxSession: 1}},
		"no lifetime":  {{Name: "ci", Profile: "default", TokenSHA256: hash("x")}},
		"empty token":  {{Name: "ci", Profile: "default", TokenSHA256: hash(""), SessionTTL: 1, MaxSession: 1}},
		"shared token": {ok, {Name: "two", Profile: "default", TokenSHA256: hash("one"), SessionTTL: 1, MaxSession: 1}},
	} {
		if _, err := NewRegistry(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	r, err := NewRegistry([]Worker{ok, {Name: "two", Profile: "other", TokenSHA256: hash("two"), SessionTTL: time.Hour, MaxSession: 3 * time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	if w, known := r.Lookup(secret.New("one")); !known || w.Name != "ci" {
		t.Errorf("Lookup = %+v, %v", w, known)
	}
	if _, known := r.Lookup(secret.Text{}); known {
		t.Error("the empty token is known")
	}
	if err := r.Update([]Worker{{}}); err == nil {
		t.Error("a bad update was accepted")
	}
	if _, known := r.Lookup(secret.New("two")); !known {
		t.Error("a refused update changed the workers")
	}
	if err := r.Update(nil); err != nil {
		t.Fatal(err)
	}
	if _, known := r.Lookup(secret.New("one")); known {
		t.Error("a removed worker is still known")
	}
}

// Whatever is wrong, the person who starts a worker reads one line that says what to do, without the token.
func TestEnrolErrors(t *testing.T) {
	answer := func(status int, contentType, body string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("content-type", contentType)
			w.WriteHeader(status)
			io.WriteString(w, body)
		})
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	gate := newGate(t)
	e, err := Enrol(t.Context(), gate.url(t), nil, Presented{Token: secret.New(ciToken)})
	if err != nil {
		t.Fatal(err)
	}
	good, err := e.marshal()
	if err != nil {
		t.Fatal(err)
	}
	altered := func(old, new string) http.Handler {
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("an answer has no %q", old)
		}
		return answer(200, "application/json", strings.Replace(string(good), old, new, 1))
	}
	start := func(h http.Handler) string {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		return s.URL
	}
	tls := httptest.NewTLSServer(answer(200, "text/plain", ""))
	t.Cleanup(tls.Close)
	tls.Config.ErrorLog = nil
	redirectTarget := ""
	redirecting := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, redirectTarget, http.StatusTemporaryRedirect)
	}))
	stolen := make(chan string, 1)
	redirectTarget = start(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { stolen <- r.Header.Get("authorization") }))

	for _, c := range []struct {
		name, gate, token string
		says              []string
	}{
		{"nothing listens", "http://" + closed.Addr().String(), ciToken, []string{"cannot be reached", "is it running"}},
		{"unknown host", "http://gate.invalid:3128", ciToken, []string{"cannot be reached", "gate.invalid"}},
		{"wrong token", gate.URL, "wrong", []string{"refused this worker", "WAYLEAVE_TOKEN"}},
		{"no token", gate.URL, "", []string{"WAYLEAVE_TOKEN"}},
		{"a web page", start(answer(200, "text/html", "<html>")), ciToken, []string{"not a Wayleave gate", "text/html"}},
		{"other JSON", start(answer(200, "application/json", `{"ok":true}`)), ciToken, []string{"not a Wayleave gate"}},
		{"not found", start(answer(404, "text/plain", "nope")), ciToken, []string{"not a Wayleave gate", "404"}},
		{"another proxy's 401", start(answer(401, "text/plain", "nope")), ciToken, []string{"not a Wayleave gate", "401"}},
		{"not ready", start(answer(503, "text/plain", "no healthy upstream")), ciToken, []string{"not ready", "503"}},
		{"redirect", redirecting, ciToken, []string{"not a Wayleave gate", "307"}},
		{"https to http", strings.Replace(gate.URL, "http:", "https:", 1), ciToken, []string{"does not speak TLS", "http://"}},
		{"unknown authority", tls.URL, ciToken, []string{"does not trust"}},
		{"not an address", "gate:3128", ciToken, []string{"http://host:port"}},
		{"user in the address", "http://u:hidden@gate:3128", ciToken, []string{"http://host:port"}},
		{"path in the address", gate.URL + "/x", ciToken, []string{"http://host:port"}},
		{"no CA", start(altered("BEGIN CERTIFICATE", "BEGIN NOTHING")), ciToken, []string{"no CA certificate", "same version"}},
		{"odd password", start(altered(e.Password.Reveal(), "a@b")), ciToken, []string{"no usable proxy user"}},
		{"odd variable", start(altered("ANTHROPIC_AUTH_TOKEN", "A B")), ciToken, []string{`a variable "A B"`}},
		{"file elsewhere", start(altered("a/b.json", "../b.json")), ciToken, []string{`a file "../b.json"`}},
		{"absolute file", start(altered("a/b.json", "/etc/passwd")), ciToken, []string{`a file "/etc/passwd"`}},
		{"grant elsewhere", start(altered(`"grant":"claude"`, `"grant":"../x"`)), ciToken, []string{`a grant "../x"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u, err := url.Parse(c.gate)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Enrol(t.Context(), u, nil, Presented{Token: secret.New(c.token)})
			if err == nil {
				t.Fatal("no error")
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), ciToken) || strings.Contains(err.Error(), "hidden") {
				t.Error("the error has more than one line, or holds a secret")
			}
		})
	}
	select {
	case <-stolen:
		t.Error("a redirect was followed")
	default:
	}
}

// A worker may begin before its network does: then a gate is away, while a name that does not exist is a mistake.
func TestAway(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"nobody listens":    {os.NewSyscallError("connect", syscall.ECONNREFUSED), true},
		"no way yet":        {os.NewSyscallError("connect", syscall.EHOSTUNREACH), true},
		"no network yet":    {os.NewSyscallError("connect", syscall.ENETUNREACH), true},
		"no resolver yet":   {&net.DNSError{Err: "server misbehaving", IsTemporary: true}, true},
		"resolver is mute":  {&net.DNSError{Err: "i/o timeout", IsTimeout: true}, true},
		"no such name":      {&net.DNSError{Err: "no such host", IsNotFound: true}, false},
		"no answer in time": {context.DeadlineExceeded, false},
	} {
		if got := away(nil, &url.Error{Op: "Post", Err: &net.OpError{Op: "dial", Err: c.err}}); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzParseEnrolment(f *testing.F) {
	e := Enrolment{Session: Session{ID: "abcdefghijklmnopqrstuvwx", Worker: "ci", Profile: "default", Expires: now}, Password: secret.New("p"), CA: testCA(f)}
	good, err := e.marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"api":"wayleave/v1"}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		e, err := parseEnrolment(in)
		if err == nil && (!validSessionID(e.Session.ID) || !plain(e.Password.Reveal()) || len(e.CA) == 0) {
			t.Error("an unusable answer was accepted")
		}
	})
}
