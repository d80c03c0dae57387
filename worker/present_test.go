package worker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/secret"
	"wayleave/vault/vaulttest"
)

func gateURL(t testing.TB) *url.URL {
	t.Helper()
	u, err := url.Parse("https://gate.example.com:3129/")
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// github stands in for the service of GitHub Actions that makes tokens, in the wire format of the runner's toolkit.
type github struct {
	*httptest.Server
	asked    atomic.Int32
	query    atomic.Pointer[url.Values]
	statuses []int // of the first answers; then 200
	body     string
}

func newGitHub(t testing.TB, body string, statuses ...int) *github {
	t.Helper()
	g := &github{statuses: statuses, body: body}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		g.query.Store(&query)
		n := int(g.asked.Add(1))
		switch {
		case r.Header.Get("authorization") != "bearer of-the-job":
			w.WriteHeader(http.StatusUnauthorized)
		case n <= len(g.statuses):
			w.WriteHeader(g.statuses[n-1])
		default:
			w.Header().Set("content-type", "application/json; charset=utf-8")
			io.WriteString(w, g.body)
		}
	}))
	t.Cleanup(g.Close)
	return g
}

func (g *github) variables() map[string]string {
	return map[string]string{githubURLVariable: g.URL + "/token/job?api-version=2.0", githubTokenVariable: "of-the-job"}
}

func sources(variables map[string]string) Sources {
	return Sources{Getenv: func(name string) string { return variables[name] }, Pause: func(context.Context, time.Duration) {}}
}

// certificateFile holds a worker's certificate and its key.
func certificateFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pair.pem")
	if err := os.WriteFile(path, []byte(vaulttest.NewAuthority(t, "ca").Client(t, "worker", time.Hour)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// withCertificate is what a worker presents that has one.
func withCertificate(t testing.TB) Presented {
	t.Helper()
	s := sources(nil)
	s.CertFile = certificateFile(t)
	s.KeyFile = s.CertFile
	me, err := s.Find(t.Context(), gateURL(t))
	if err != nil {
		t.Fatal(err)
	}
	return me
}

func TestFindsWhatToPresent(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tokenFile, other := file("token", "from.a.file\n"), file("other", "from.another.file")
	pair := certificateFile(t)
	actions := newGitHub(t, `{"count":1,"value":"from.git.hub"}`)
	with := func(more map[string]string) map[string]string {
		all := actions.variables()
		for k, v := range more {
			all[k] = v
		}
		return all
	}
	everything := with(map[string]string{
		tokenFileVariable: tokenFile, tokenVariable: " from.a.variable\n", idTokenVariable: "from.git.lab", certVariable: pair, keyVariable: pair,
	})
	without := func(names ...string) map[string]string {
		rest := map[string]string{}
		for k, v := range everything {
			rest[k] = v
		}
		for _, n := range names {
			rest[n] = ""
		}
		return rest
	}
	for _, c := range []struct {
		name      string
		variables map[string]string
		change    func(*Sources)
		token     string
		cert      bool
		removed   []string
	}{
		{"nothing", nil, nil, "", false, nil},
		{"a file that is named", everything, func(s *Sources) { s.TokenFile = other }, "from.another.file", false, nil},
		{"a certificate that is named", everything, func(s *Sources) { s.CertFile, s.KeyFile = pair, pair }, "", true, nil},
		{"a file", everything, nil, "from.a.file", false, nil},
		{"a variable", without(tokenFileVariable), nil, "from.a.variable", false, nil},
		{"GitLab", without(tokenFileVariable, tokenVariable), nil, "from.git.lab", false, nil},
		{"a certificate", without(tokenFileVariable, tokenVariable, idTokenVariable), nil, "", true, nil},
		{"GitHub", actions.variables(), nil, "from.git.hub", false, []string{githubURLVariable, githubTokenVariable}},
		{"half of GitHub", map[string]string{githubURLVariable: actions.URL}, nil, "", false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := sources(c.variables)
			if c.change != nil {
				c.change(&s)
			}
			got, err := s.Find(t.Context(), gateURL(t))
			if err != nil {
				t.Fatal(err)
			}
			if got.Token.Reveal() != c.token || (got.Certificate != nil) != c.cert || got.IsZero() != (c.token == "" && !c.cert) {
				t.Errorf("found a token %v, a certificate %v", !got.Token.IsZero(), got.Certificate != nil)
			}
			if diff := cmp.Diff(c.removed, got.Variables); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("a file is read each time", func(t *testing.T) {
		s := sources(map[string]string{tokenFileVariable: file("rotating", "one")})
		for _, want := range []string{"one", "two"} {
			file("rotating", want+"\n")
			if got, err := s.Find(t.Context(), gateURL(t)); err != nil || got.Token.Reveal() != want {
				t.Errorf("%v, want %s", err, want)
			}
		}
	})
}

func TestFindsNothingToPresent(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pair := certificateFile(t)
	for name, c := range map[string]struct {
		s    Sources
		says string
	}{
		"no such file":        {sources(map[string]string{tokenFileVariable: filepath.Join(dir, "none")}), "no such file"},
		"empty file":          {sources(map[string]string{tokenFileVariable: file("empty", " \n")}), "is empty"},
		"file of two lines":   {sources(map[string]string{tokenFileVariable: file("two", "secret-1\nsecret-2")}), "one line"},
		"certificate alone":   {sources(map[string]string{certVariable: pair}), "--key"},
		"key alone":           {sources(map[string]string{keyVariable: pair}), "--cert"},
		"no certificate":      {sources(map[string]string{certVariable: file("x", "x"), keyVariable: pair}), "certificate"},
		"GitHub in the clear": {sources(map[string]string{githubURLVariable: "http://attacker.example/", githubTokenVariable: "secret-1"}), "https address"},
		"no address":          {sources(map[string]string{githubURLVariable: "%", githubTokenVariable: "secret-1"}), "https address"},
		"GitHub refuses":      {sources(newGitHub(t, "", 403).variables()), "id-token: write"},
		"no token":            {sources(newGitHub(t, `{"value":""}`).variables()), "does not answer with a token"},
		"no JSON":             {sources(newGitHub(t, `<html>`).variables()), "does not answer with a token"},
		"GitHub is down":      {sources(newGitHub(t, "", 500, 502, 503, 500).variables()), "answers 500"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.s.Find(t.Context(), gateURL(t))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v does not say %q", err, c.says)
			}
			if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "secret-") || strings.Contains(err.Error(), "of-the-job") {
				t.Errorf("%q has several lines, or a secret", err)
			}
		})
	}
}

func TestAsksGitHub(t *testing.T) {
	g := newGitHub(t, `{"value":"from.git.hub"}`, 500, 429, 503)
	s := sources(g.variables())
	if got, err := s.Find(t.Context(), gateURL(t)); err != nil || got.Token.Reveal() != "from.git.hub" || g.asked.Load() != 4 {
		t.Errorf("%v after %d questions", err, g.asked.Load())
	}
	if q := *g.query.Load(); q.Get("audience") != "https://gate.example.com:3129" || q.Get("api-version") != "2.0" {
		t.Errorf("asked for %v", q)
	}
	s.Audience = "another & more"
	if _, err := s.Find(t.Context(), gateURL(t)); err != nil || g.query.Load().Get("audience") != s.Audience {
		t.Errorf("%v, asked for %v", err, g.query.Load())
	}
}

func TestHints(t *testing.T) {
	for variable, says := range map[string]string{
		"GITHUB_ACTIONS": "id-token: write", "GITLAB_CI": `{aud: "https://gate.example.com:3129"}`, "KUBERNETES_SERVICE_HOST": tokenFileVariable, "HOME": "",
	} {
		got := sources(map[string]string{variable: "true"}).Hint(gateURL(t))
		if !strings.Contains(got, says) || (got == "") != (says == "") {
			t.Errorf("%s: %q", variable, got)
		}
	}
}

// What proves who a worker is stays with whoever started its programs, and that is said.
func TestProofsAreNotPassedOn(t *testing.T) {
	e := testEnrolment("http://gate:3128")
	e.Proofs = []string{githubURLVariable, githubTokenVariable}
	env, report := Environment(e, []string{githubURLVariable + "=value-1", githubTokenVariable + "=value-2", "WAYLEAVE_TOKEN_FILE=value-3", "WAYLEAVE_ID_TOKEN=value-4"}, testFiles)
	if all := strings.Join(env, "\n"); strings.Contains(all, "value-") {
		t.Errorf("passed on: %s", all)
	}
	if diff := cmp.Diff([]string{"removed ACTIONS_ID_TOKEN_REQUEST_URL, ACTIONS_ID_TOKEN_REQUEST_TOKEN: programs could prove with it that they are this worker"}, report); diff != "" {
		t.Error(diff)
	}
}

// Nor is what the token was taken from: a variable of the job's settings, or one that its platform has for others too.
func TestTokenUnderOtherNames(t *testing.T) {
	base := []string{"WAYLEAVE_TOKEN=value-1", "AGENT_TOKEN=value-1\n", "CIRCLE_OIDC_TOKEN_V2=value-1", "OTHER=value-10", "EMPTY="}
	me := Presented{Token: secret.New("value-1")}
	got := me.Among(base)
	if diff := cmp.Diff([]string{"AGENT_TOKEN", "CIRCLE_OIDC_TOKEN_V2"}, got); diff != "" {
		t.Error(diff)
	}
	e := testEnrolment("http://gate:3128")
	e.Proofs = got
	if env, _ := Environment(e, base, testFiles); strings.Contains(strings.Join(env, "\n"), "value-1\n") {
		t.Errorf("passed on: %q", env)
	}
	if got := (Presented{}).Among(base); got != nil {
		t.Errorf("without a token: %q", got)
	}
}

// A gate that cannot enrol a worker now, and says when it can, is asked again, and so is one that is away; one that says nothing is not.
func TestEnrolTriesAgain(t *testing.T) {
	g := newGate(t)
	for _, c := range []struct {
		name    string
		refused int
		after   string
		asked   int32
		ok      bool
	}{
		{"soon", 2, "0", 3, true},
		{"not soon enough", 3, "0", 3, false},
		{"much later", 1, "3600", 1, false},
		{"without a word when", 1, "", 1, false},
		{"of who is before it", 2, "away", 3, true},
		{"by hanging up", 2, "hangs up", 3, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked atomic.Int32
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if int(asked.Add(1)) > c.refused {
					g.Config.Handler.ServeHTTP(w, r)
					return
				}
				switch c.after {
				case "away":
					http.Error(w, "no healthy upstream", http.StatusServiceUnavailable)
					return
				case "hangs up":
					panic(http.ErrAbortHandler)
				}
				w.Header().Set(reasonHeader, "issuer_unavailable")
				if c.after != "" {
					w.Header().Set("retry-after", c.after)
				}
				w.WriteHeader(http.StatusServiceUnavailable)
				io.WriteString(w, `{"message":"its keys cannot be had"}`)
			}))
			t.Cleanup(s.Close)
			u, err := url.Parse(s.URL)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Enrol(t.Context(), u, nil, Presented{Token: secret.New(ciToken)})
			if (err == nil) != c.ok || asked.Load() != c.asked {
				t.Errorf("%v after %d questions", err, asked.Load())
			}
			if err != nil && !strings.Contains(err.Error(), "its keys cannot be had") {
				t.Errorf("%q does not say why", err)
			}
		})
	}
}

// Who is interrupted while a gate is away is not told to look for a fault.
func TestEnrolIsInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		interrupt()
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Enrol(ctx, u, nil, Presented{Token: secret.New(ciToken)}); err == nil || !strings.HasSuffix(err.Error(), "was interrupted") {
		t.Errorf("got %v", err)
	}
}

func TestCertificateNeedsTLS(t *testing.T) {
	me := withCertificate(t)
	if _, err := Enrol(t.Context(), newGate(t).url(t), nil, me); err == nil || !strings.Contains(err.Error(), "over TLS only") {
		t.Errorf("got %v", err)
	}
}

// A gate that never asks for a certificate is told apart from one that does not take it.
func TestCertificateThatNobodyAsksFor(t *testing.T) {
	me := withCertificate(t)
	for says, auth := range map[string]tls.ClientAuthType{"asks for no certificates": tls.NoClientCert, "does not take this worker's certificate": tls.RequireAndVerifyClientCert} {
		gate := httptest.NewUnstartedServer(newGate(t).Config.Handler)
		gate.TLS = &tls.Config{ClientAuth: auth, ClientCAs: x509.NewCertPool()}
		gate.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		gate.StartTLS()
		t.Cleanup(gate.Close)
		u, err := url.Parse(gate.URL)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(gate.Certificate())
		if _, err := Enrol(t.Context(), u, roots, me); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v does not say %q", err, says)
		}
	}
}

func TestHowARefusedCertificateShows(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{errors.New("remote error: tls: expired certificate"), "expired certificate"},
		{&net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.EPIPE)}, "it ended the connection"},
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, "it ended the connection"},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, ""},
	} {
		if got := notTaken(c.err); got != c.want {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}

func TestProofIn(t *testing.T) {
	e := Enrolment{Proofs: []string{"JOB_TOKEN"}}
	for name, want := range map[string]bool{"WAYLEAVE_TOKEN": true, "WAYLEAVE_ID_TOKEN": true, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": true, "JOB_TOKEN": true, "WAYLEAVE_TOKEN_FILE": false, "WAYLEAVE_KEY": false} {
		if got := e.ProofIn(func(asked string) string { return map[string]string{name: "x"}[asked] }); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
