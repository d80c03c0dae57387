package vault

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wayleave/secret"
)

var given = Auth{Method: "token", Token: secret.New("s.given")}

// vaultHandler answers a log-in by token and hands the rest on.
func vaultHandler(rest http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/auth/token/lookup-self" {
			fmt.Fprint(w, `{"data":{"ttl":0,"renewable":false,"expire_time":null}}`)
			return
		}
		rest(w, r)
	}
}

func openAt(t *testing.T, cfg Config) *Client {
	t.Helper()
	cfg.Auth = given
	c, err := Open(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

const aDocument = `{"data":{"data":{"k":"v"},"metadata":{"version":3}}}`

// Only a standby's redirect takes our token to another host.
func TestRedirects(t *testing.T) {
	var reached atomic.Int32
	active := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		fmt.Fprint(w, aDocument)
	}))
	defer active.Close()
	for _, tt := range []struct {
		name   string
		status int
		to     string
		follow bool
	}{
		{"standby", 307, "/v1/wayleave/data/grants/a", true},
		{"another path", 307, "/v1/sys/health", false},
		{"moved", 301, "/v1/wayleave/data/grants/a", false},
		{"found", 302, "/v1/wayleave/data/grants/a", false},
		{"permanent", 308, "/v1/wayleave/data/grants/a", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reached.Store(0)
			standby := httptest.NewServer(vaultHandler(func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, active.URL+tt.to, tt.status)
			}))
			defer standby.Close()
			c := openAt(t, Config{Address: standby.URL})
			v, err := c.Get(t.Context(), "grants/a", &struct{}{})
			if tt.follow && (err != nil || v != 3) {
				t.Errorf("version %d, %v", v, err)
			}
			if !tt.follow && (!errors.Is(err, ErrUnavailable) || reached.Load() > 0) {
				t.Errorf("%v, the other host was reached %d times", err, reached.Load())
			}
		})
	}
}

func TestRedirectNeverLeavesTLS(t *testing.T) {
	var reached atomic.Int32
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	defer plain.Close()
	s := httptest.NewTLSServer(vaultHandler(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer s.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c := openAt(t, Config{Address: s.URL, CAFile: ca})
	if _, err := c.Get(t.Context(), "grants/a", &struct{}{}); !errors.Is(err, ErrUnavailable) || reached.Load() > 0 {
		t.Errorf("%v, reached in plain text %d times", err, reached.Load())
	}
	_, err := Open(t.Context(), Config{Address: s.URL, Auth: given}, nil)
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the CA: %v", err)
	}
}

// certificateFor is a self-signed certificate for a name or address, and its PEM.
func certificateFor(t *testing.T, host string) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// The server's authority can be replaced while we run; what the file is in between changes nothing, and a certificate for another name is as
// good as none.
func TestAuthorityIsReplaced(t *testing.T) {
	s := httptest.NewUnstartedServer(vaultHandler(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, aDocument) }))
	s.EnableHTTP2 = true
	var shown atomic.Pointer[tls.Certificate]
	first, firstPEM := certificateFor(t, "127.0.0.1")
	second, secondPEM := certificateFor(t, "127.0.0.1")
	other, otherPEM := certificateFor(t, "vault.example")
	shown.Store(&first)
	s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{*shown.Load()}, NextProtos: []string{"h2"}}, nil
	}}
	s.StartTLS()
	defer s.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(ca, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(firstPEM)
	c := openAt(t, Config{Address: s.URL, CAFile: ca})
	for _, step := range []struct {
		name  string
		shows *tls.Certificate
		file  []byte
		works bool
	}{
		{"as it began", &first, firstPEM, true},
		{"emptied to be written", &first, nil, true},
		{"something else", &first, []byte("x"), true},
		{"a new certificate before its authority", &second, []byte("x"), false},
		{"both authorities", &second, append(firstPEM, secondPEM...), true},
		{"the new one alone", &second, secondPEM, true},
		{"the old certificate", &first, secondPEM, false},
		{"a certificate for another name", &other, otherPEM, false},
	} {
		shown.Store(step.shows)
		write(step.file)
		c.http.CloseIdleConnections()
		if _, err := c.Get(t.Context(), "grants/a", &struct{}{}); (err == nil) != step.works || err != nil && !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", step.name, err)
		}
	}
}

// The environment does not decide where we go, nor as whom.
func TestEnvironmentIsIgnored(t *testing.T) {
	for name, value := range map[string]string{
		"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1", "VAULT_PROXY_ADDR": "http://127.0.0.1:1", "VAULT_HTTP_PROXY": "http://127.0.0.1:1",
		"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_AGENT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "s.environment", "VAULT_NAMESPACE": "environment",
		"VAULT_WRAP_TTL": "60s", "VAULT_TLS_SERVER_NAME": "environment", "VAULT_SKIP_VERIFY": "true", "VAULT_SRV_LOOKUP": "true", "VAULT_CLIENT_TIMEOUT": "1ns",
		"VAULT_DISABLE_REDIRECTS": "true", "VAULT_MFA": "environment", "BAO_ADDR": "http://127.0.0.1:1", "BAO_TOKEN": "s.environment", "BAO_NAMESPACE": "environment",
		"VAULT_HEADERS": `{"X-Environment":"1"}`, "VAULT_MAX_RETRIES": "0", "VAULT_RATE_LIMIT": "0.001",
	} {
		t.Setenv(name, value)
	}
	s := httptest.NewServer(vaultHandler(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Vault-Token") != "s.given" || r.Header.Get("X-Vault-Namespace") != "team" || r.Header.Get("X-Environment") != "" || r.Header.Get("X-Vault-Wrap-Ttl") != "" || r.Header.Get("X-Vault-Request") != "true" {
			http.Error(w, `{"errors":["wrong headers"]}`, 400)
			return
		}
		fmt.Fprint(w, aDocument)
	}))
	defer s.Close()
	c := openAt(t, Config{Address: s.URL, Namespace: "team"})
	if c.transport.(*http.Transport).Proxy != nil {
		t.Error("the transport asks for a proxy")
	}
	if v, err := c.Get(t.Context(), "grants/a", &struct{}{}); v != 3 || err != nil {
		t.Errorf("version %d, %v", v, err)
	}
}

// A variable that stops the library says so.
func TestBrokenEnvironment(t *testing.T) {
	for name, value := range map[string]string{"VAULT_CACERT": "/nowhere/ca.pem", "VAULT_SKIP_VERIFY": "perhaps", "VAULT_CLIENT_TIMEOUT": "soon", "VAULT_HEADERS": "x"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, value)
			if _, err := Open(t.Context(), Config{Address: "http://127.0.0.1:1", Auth: given}, nil); err == nil || !strings.Contains(err.Error(), "unset the VAULT_ variable") {
				t.Errorf("%v", err)
			}
		})
	}
}

// A read is repeated; a write only when the server cannot have applied it.
func TestRetries(t *testing.T) {
	for _, tt := range []struct {
		status      int
		read, write bool
	}{
		{429, true, true}, {412, true, true}, {500, true, false}, {502, true, false}, {503, true, false},
	} {
		var calls atomic.Int32
		s := httptest.NewServer(vaultHandler(func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 1 {
				w.WriteHeader(tt.status)
				return
			}
			if r.Method == http.MethodGet {
				fmt.Fprint(w, aDocument)
			} else {
				fmt.Fprint(w, `{"data":{"version":4}}`)
			}
		}))
		c := openAt(t, Config{Address: s.URL})
		_, err := c.Get(t.Context(), "grants/a", &struct{}{})
		if (err == nil) != tt.read {
			t.Errorf("read after %d: %v", tt.status, err)
		}
		calls.Store(0)
		_, err = c.Put(t.Context(), "grants/a", struct{}{}, 3)
		if (err == nil) != tt.write || (err != nil && !errors.Is(err, ErrUnavailable)) {
			t.Errorf("write after %d: %v", tt.status, err)
		}
		s.Close()
	}

	// The answer to a write got lost.
	var calls atomic.Int32
	s := httptest.NewServer(vaultHandler(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		panic(http.ErrAbortHandler)
	}))
	defer s.Close()
	c := openAt(t, Config{Address: s.URL})
	if _, err := c.Put(t.Context(), "grants/a", struct{}{}, 3); !errors.Is(err, ErrUnavailable) || calls.Load() != 1 {
		t.Errorf("write without an answer: %v after %d attempts", err, calls.Load())
	}
}

func TestAddresses(t *testing.T) {
	for _, tt := range []struct{ address, want string }{
		{"", "not a URL"}, {"vault.example:8200", "scheme"}, {"ftp://vault.example", "scheme"},
		{"https://vault.example:8200/v1", "without /v1"}, {"https://proxy.example/vault/v1/", "without /v1"}, {"unix:///nowhere/vault.sock", "vault is unavailable"},
	} {
		_, err := Open(t.Context(), Config{Address: tt.address, Auth: given}, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.address, err, tt.want)
		}
	}
	_, err := Open(t.Context(), Config{Address: "unix:///nowhere/vault.sock", Auth: given}, nil)
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, syscall.ENOENT) {
		t.Errorf("missing socket: %v", err)
	}
	for _, ca := range []string{"", "no certificate"} {
		file := filepath.Join(t.TempDir(), "ca.pem")
		if ca != "" {
			if err := os.WriteFile(file, []byte(ca), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(t.Context(), Config{Address: "https://127.0.0.1:1", CAFile: file, Auth: given}, nil); err == nil || !strings.Contains(err.Error(), "CA file") {
			t.Errorf("CA file %q: %v", ca, err)
		}
	}
}

func TestAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   error // nil: none of the four
		text   string
	}{
		{"missing", 404, `{"errors":[]}`, ErrNotFound, ""},
		{"deleted", 404, `{"data":{"data":null,"metadata":{"version":3}}}`, ErrNotFound, ""},
		{"null", 200, `{"data":{"data":null,"metadata":{"version":3}}}`, ErrNotFound, ""},
		{"no mount", 404, `{"errors":["no handler for route \"wayleave/data/grants/a\". route entry not found."]}`, nil, "nothing mounted"},
		{"denied", 403, `{"errors":["1 error occurred:\n\t* permission denied\n\n"]}`, ErrDenied, `"read" on wayleave/data/grants/a`},
		{"conflict", 400, `{"errors":["check-and-set parameter did not match the current version"]}`, ErrConflict, ""},
		{"bad request", 400, `{"errors":["no"]}`, nil, "400 on wayleave/data/grants/a: no"},
		{"sealed", 503, `{"errors":["Vault is sealed"]}`, ErrUnavailable, "Vault is sealed"},
		{"a proxy's page", 502, "<html>" + strings.Repeat("x", 5000), ErrUnavailable, "…"},
		{"a proxy's refusal", 403, "<html>go away", ErrUnavailable, "something on the way"},
		{"a balancer's nothing", 404, "", ErrUnavailable, "something on the way"},
		{"a proxy's nothing", 404, "404 page not found\n", ErrUnavailable, "something on the way"},
		{"a proxy's limit", 413, "<html>", ErrUnavailable, "something on the way"},
		{"another API's answer", 200, `{}`, ErrUnavailable, "names no version"},
		{"wrapped", 200, `{"data":null,"wrap_info":{"token":"s.wrap","ttl":60}}`, ErrUnavailable, "names no version"},
		{"the mount is being made", 400, `{"errors":["Upgrading from non-versioned to versioned data. This backend will be unavailable for a brief period and will resume service shortly."]}`, ErrUnavailable, "brief period"},
		{"the audit log is blocked", 500, `{"errors":["internal error"]}`, ErrUnavailable, "internal error"},
		{"a node that does not serve", 473, `{"errors":["performance standby"]}`, ErrUnavailable, "473"},
		{"the token is not accepted", 403, `{"errors":["permission denied"]}`, ErrDenied, "token_num_uses"},
		{"not JSON", 200, "<html>", ErrUnavailable, "decoding"},
		{"cut off", 200, `{"data":{"da`, ErrUnavailable, "decoding"},
		{"empty", 200, "", ErrUnavailable, "decoding"},
		{"another shape", 200, `{"data":{"data":[1],"metadata":{"version":3}}}`, nil, "cannot unmarshal"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(vaultHandler(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.body)
			}))
			defer s.Close()
			_, err := openAt(t, Config{Address: s.URL}).Get(t.Context(), "grants/a", &struct{}{})
			if err == nil {
				t.Fatal("no error")
			}
			for _, kind := range []error{ErrNotFound, ErrConflict, ErrDenied, ErrUnavailable} {
				if errors.Is(err, kind) != errors.Is(kind, tt.want) {
					t.Errorf("%v; want %v", err, tt.want)
				}
			}
			if !strings.Contains(err.Error(), tt.text) || len(err.Error()) > 600 || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q; want %q in it", err, tt.text)
			}
		})
	}
}

// A write counts as done only when the server says which version it made.
func TestWritesThatAreNotAnswered(t *testing.T) {
	for _, tt := range []struct {
		status int
		body   string
	}{{200, ""}, {204, ""}, {200, "{}"}, {200, `{"data":null,"wrap_info":{"token":"s.wrap"}}`}, {200, "<html>"}, {403, "<html>"}, {302, ""}} {
		s := httptest.NewServer(vaultHandler(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(tt.status)
			fmt.Fprint(w, tt.body)
		}))
		if v, err := openAt(t, Config{Address: s.URL}).Put(t.Context(), "grants/a", struct{}{}, 3); !errors.Is(err, ErrUnavailable) || v != 0 {
			t.Errorf("%d %q: version %d, %v", tt.status, tt.body, v, err)
		}
		s.Close()
	}
}

// Mounts as people write them.
func TestMountNames(t *testing.T) {
	var asked sync.Map
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.URL.Path, true)
		if strings.HasSuffix(r.URL.Path, "/login") {
			fmt.Fprint(w, `{"auth":{"client_token":"s.t"}}`)
			return
		}
		fmt.Fprint(w, aDocument)
	}))
	defer s.Close()
	for _, tt := range []struct{ mount, auth, document, login string }{
		{"", "", "wayleave", "approle"},
		{"wayleave/", "approle/", "wayleave", "approle"},
		{"/teams/wayleave", "auth/approle", "teams/wayleave", "approle"},
		{"teams/eu/wayleave", "/auth/teams/approle/", "teams/eu/wayleave", "teams/approle"},
	} {
		asked.Clear()
		c, err := Open(t.Context(), Config{Address: s.URL + "/", Mount: tt.mount, Auth: Auth{Method: "approle", Mount: tt.auth, RoleID: "r", SecretID: secret.New("s")}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Get(t.Context(), "grants/a", &struct{}{}); err != nil {
			t.Error(err)
		}
		c.Close()
		for _, path := range []string{"/v1/auth/" + tt.login + "/login", "/v1/" + tt.document + "/data/grants/a"} {
			if _, ok := asked.Load(path); !ok {
				t.Errorf("%+v: did not ask for %s", tt, path)
			}
		}
	}
}
