package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// worker is what a process inside `wayleave run` knows, taken out so that a test can be many workers at once.
type worker struct {
	proxy       *url.URL // with the session's user and password
	roots       *x509.CertPool
	placeholder string
	env         map[string]string // all of its environment

	// dial connects in place of a proxy, where the network leads to the gate. Nil: there is a proxy.
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// sayEnvironment is a shell command that says what the process in `wayleave run` has been given.
const (
	sayEnvironment = "env; echo '" + caFollows + "'; cat \"$NODE_EXTRA_CA_CERTS\""
	caFollows      = "-- the CA follows --"
)

// enrol runs the launcher as the named worker and keeps the environment it makes.
func (g *gate) enrol(t *testing.T, name, variable string) worker {
	t.Helper()
	c := g.command("wayleave", "run", "--keep-session", "--worker", name, "--", "sh", "-c", sayEnvironment)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("enrolling %s: %v\n%s", name, err, stderr.String())
	}
	w := workerFrom(t, string(out), variable)
	if w.proxy == nil {
		t.Fatalf("the worker's environment lacks HTTPS_PROXY:\n%s", out)
	}
	return w
}

// enrolByAPI is enrol without the launcher, for tests with many workers. The worker's one credential is for its grant.
func (g *gate) enrolByAPI(t *testing.T, name string) worker {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(g.getenv("WAYLEAVE_STATE"), "workers", name+".token"))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+g.proxy+"/.wayleave/v1/sessions", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	a, err := do(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}, req)
	var said struct {
		Proxy       struct{ Username, Password string }
		CA          string `json:"ca_pem"`
		Credentials []struct{ Placeholder string }
	}
	if err = errors.Join(err, json.Unmarshal([]byte(a.body), &said)); err != nil || len(said.Credentials) != 1 {
		t.Fatalf("enrolling %s: %v %v", name, a, err)
	}
	w := worker{
		proxy: &url.URL{Scheme: "http", Host: g.proxy, User: url.UserPassword(said.Proxy.Username, said.Proxy.Password)},
		roots: x509.NewCertPool(), placeholder: said.Credentials[0].Placeholder,
	}
	w.roots.AppendCertsFromPEM([]byte(said.CA))
	return w
}

// workerFrom reads what sayEnvironment said.
func workerFrom(t *testing.T, said, variable string) worker {
	t.Helper()
	env, ca, _ := strings.Cut(said, caFollows)
	w := worker{roots: x509.NewCertPool(), env: map[string]string{}}
	if !w.roots.AppendCertsFromPEM([]byte(ca)) {
		t.Fatalf("no CA in the worker's environment:\n%s", said)
	}
	for line := range strings.Lines(env) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		w.env[name] = value
		switch name {
		case "HTTPS_PROXY":
			var err error
			if w.proxy, err = url.Parse(value); err != nil {
				t.Fatal(err)
			}
		case variable:
			w.placeholder = value
		}
	}
	if w.placeholder == "" {
		t.Fatalf("the worker's environment lacks %s:\n%s", variable, env)
	}
	return w
}

// client returns an HTTP client with a connection pool of its own.
func (w worker) client(t *testing.T, http2 bool) *http.Client {
	t.Helper()
	tr := &http.Transport{Proxy: http.ProxyURL(w.proxy), TLSClientConfig: &tls.Config{RootCAs: w.roots}, ForceAttemptHTTP2: http2}
	if w.dial != nil {
		tr.Proxy, tr.DialContext = nil, w.dial
	}
	if !http2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// request prepares a request with the worker's placeholder.
func (w worker) request(method, url string, body io.Reader) *http.Request {
	req, err := http.NewRequestWithContext(context.Background(), method, url, body)
	if err != nil {
		panic(err) // a test's own URL
	}
	req.Header.Set("Authorization", "Bearer "+w.placeholder)
	return req
}

// answer is a response, read.
type answer struct {
	status int
	reason string // x-wayleave-reason
	proto  string
	header http.Header
	body   string
}

func (a answer) String() string {
	return fmt.Sprintf("%d %s %s %.300s", a.status, a.proto, a.reason, a.body)
}

func do(c *http.Client, req *http.Request) (answer, error) {
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header.Get("x-wayleave-reason"), resp.Proto, resp.Header, string(b)}, err
}
