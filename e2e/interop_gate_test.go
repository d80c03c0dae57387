package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave/grant"
)

// resourceAPI is an API that knows no token itself: it asks the authorization server about each one that arrives.
type resourceAPI struct {
	*httptest.Server
	mu     sync.Mutex
	tokens []string // that arrived, oldest first
}

const (
	hostSuffix   = ".interop.test"        // each grant has a host of its own: its name and this
	metadataPath = "/about/authorization" // where the API names its authorization server; it may be anywhere
)

func newResourceAPI(t *testing.T, w *world, s *authServer) *resourceAPI {
	t.Helper()
	cert, err := w.CA.Issue("*"+hostSuffix, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	a := &resourceAPI{}
	a.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == metadataPath {
			_ = json.NewEncoder(w).Encode(map[string]any{
				"resource": a.URL, "authorization_servers": []string{s.issuer}, "scopes_supported": []string{"openid", "offline_access", "api:read"},
			})
			return
		}
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if token == "" {
			w.Header().Set("WWW-Authenticate", `Bearer resource_metadata="`+a.URL+metadataPath+`"`) // RFC 9728 section 5.1
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		known, err := s.introspect(token)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		a.mu.Lock()
		a.tokens = append(a.tokens, token)
		a.mu.Unlock()
		if known["active"] != true {
			w.WriteHeader(http.StatusUnauthorized)
		}
		_ = json.NewEncoder(w).Encode(known)
	}))
	a.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	a.Config.ErrorLog = log.New(io.Discard, "", 0)
	a.StartTLS()
	t.Cleanup(a.Close)
	return a
}

func (a *resourceAPI) last() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tokens[len(a.tokens)-1]
}

// interop is a gate between a worker and an API, with grants at a real authorization server.
type interop struct {
	*world
	*gate
	server *authServer
	api    *resourceAPI
	worker worker
	client *http.Client
	first  map[string]string // the token that arrived first, by grant
}

// newInterop is all but the gate.
func newInterop(t *testing.T, s *authServer) *interop {
	t.Helper()
	w := makeWorld(t)
	t.Cleanup(func() {
		if err := errors.Join(s.front.reused(), s.front.looked()); err != nil {
			t.Error(err)
		}
	})
	i := &interop{world: w, server: s, api: newResourceAPI(t, w, s), first: map[string]string{}}
	w.env = append(w.env, "BROWSER=", "ISSUER="+s.issuer, "KEYS="+s.dir, "RESOURCE="+i.api.Listener.Addr().String())
	return i
}

// start starts a gate with a provider, a grant and a route for each entry of a map from names to the provider's keys.
func (i *interop) start(t *testing.T, all map[string]string) {
	t.Helper()
	names := slices.Sorted(maps.Keys(all))
	var providers, grants, routes strings.Builder
	for _, name := range names {
		fmt.Fprintf(&providers, "  %s: {%s, env: {%s: \"{placeholder}\"}}\n", name, all[name], variable(name))
		fmt.Fprintf(&grants, "  %s: {provider: %s}\n", name, name)
		fmt.Fprintf(&routes, "  - {hosts: [%s%s], grant: %s, connect_to: \"$RESOURCE\"}\n", name, hostSuffix, name)
	}
	i.gate = startIn(t, i.world, fmt.Sprintf("listen: {proxy: $PROXY}\nupstream: {ca_files: [api-ca.pem]}\nproviders:\n%sgrants:\n%sroutes:\n%sprofiles:\n  default: {grants: [%s]}\nworkers:\n  w: {profile: default}\n",
		&providers, &grants, &routes, strings.Join(names, ", ")))
	i.worker = i.enrol(t, "w", variable(names[0]))
	i.client = i.worker.client(t, true)
}

func variable(name string) string { return "TOKEN_" + strings.ToUpper(name) }

// discover runs `wayleave provider discover --register` and returns the keys of the provider that it prints, and the client
// that it registered.
func (i *interop) discover(t *testing.T, address string) (provider, client string) {
	t.Helper()
	c := i.command("wayleave", "provider", "discover", address, "--name", "found", "--register", "--allow-insecure", "--json",
		"--secret-file", filepath.Join(i.server.dir, "found.secret"))
	c.Env = append(c.Env, "SSL_CERT_FILE="+i.saved("api-ca.pem"))
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("discovering %s: %v\n%s", address, err, stderr.String())
	}
	var printed struct {
		Providers map[string]map[string]any
		Grants    map[string]struct{ Scopes []string }
	}
	if err := json.Unmarshal(out, &printed); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	keys := printed.Providers["found"]
	keys["scopes"] = printed.Grants["found"].Scopes
	t.Logf("discovered %v", keys)
	flow, err := json.Marshal(keys) // which is YAML too
	if err != nil {
		t.Fatal(err)
	}
	client, _ = keys["client_id"].(string)
	return strings.Trim(string(flow), "{}"), client
}

// connect runs `wayleave grant connect` and does in a browser what it asks for.
func (i *interop) connect(name string) (string, error) {
	web, err := newBrowser()
	if err != nil {
		return "", err
	}
	c := i.command("wayleave", "grant", "connect", name)
	out := newOutput(i.saved("connect." + name + ".log"))
	c.Stdout, c.Stderr = out, out
	if err := c.Start(); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	for opened := false; ; {
		// The last address, where there are several, is one with the code in it.
		addresses := pageAddress.FindAllString(out.String(), -1)
		if waiting, _ := out.contains("Waiting for"); waiting && !opened && len(addresses) > 0 {
			opened = true
			if page, err := web.agree(strings.TrimSpace(addresses[len(addresses)-1])); err != nil {
				_ = c.Process.Kill()
				<-ended
				return out.String(), fmt.Errorf("in the browser: %w", err)
			} else if err := i.save("page."+name, page); err != nil {
				return out.String(), err
			}
		}
		_, more := out.contains("")
		select {
		case err := <-ended:
			return out.String(), err
		case <-more:
		case <-time.After(patience):
			_ = c.Process.Kill()
			<-ended
			return out.String(), errors.New("the command waits for more than a browser does")
		}
	}
}

// pageAddress is an address on a line of its own, whole.
var pageAddress = regexp.MustCompile(`(?m)^\s*https?://\S+$\n`)

func (i *interop) save(name, text string) error {
	return os.WriteFile(i.saved(name), []byte(text), 0o600)
}

// begins remembers the tokens that arrive first.
func (i *interop) begins(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		i.first[name] = i.arrives(t, name)
	}
}

// mustConnect connects grants, all at once.
func (i *interop) mustConnect(t *testing.T, names ...string) {
	t.Helper()
	var all sync.WaitGroup
	for _, name := range names {
		all.Go(func() {
			if out, err := i.connect(name); err != nil || !strings.Contains(out, string(grant.Healthy)) {
				t.Errorf("connecting %s: %v\n%s", name, err, out)
			}
		})
	}
	if all.Wait(); t.Failed() {
		t.FailNow()
	}
	i.begins(t, names...)
}

// arrives sends a worker's request to a grant's host and returns the token that arrived, of which the authorization server
// says that it is good. That may take more than one: some servers end a token in the moment in which they issue the next
// one, and one that is on its way then comes too late.
func (i *interop) arrives(t *testing.T, name string, scopes ...string) (token string) {
	t.Helper()
	var got answer
	err := eventually(func() (err error) {
		if got, err = i.ask(name); err == nil && got.status == http.StatusUnauthorized {
			err = errors.New("the token is not good")
		}
		return err
	})
	if err != nil || got.status != http.StatusOK {
		t.Fatalf("a worker's request with %s: %v, %v", name, got, err)
	}
	var known struct {
		Scope string `json:"scope"`
	}
	if err := json.Unmarshal([]byte(got.body), &known); err != nil {
		t.Fatal(err)
	}
	for _, s := range scopes {
		if !slices.Contains(strings.Fields(known.Scope), s) {
			t.Errorf("the token that arrived with %s has the scopes %q, not %s", name, known.Scope, s)
		}
	}
	if token = i.api.last(); token == i.worker.env[variable(name)] {
		t.Fatalf("the placeholder arrived with %s", name)
	}
	return token
}

func (i *interop) ask(name string) (answer, error) {
	w := i.worker
	w.placeholder = w.env[variable(name)]
	return do(i.client, w.request(http.MethodGet, "https://"+name+hostSuffix+"/", nil))
}

// refused sends a worker's requests until the gate answers one itself, for a reason: a token that the gate has lasts until
// it expires.
func (i *interop) refused(t *testing.T, name string, status int, reason string) {
	t.Helper()
	if err := eventually(func() error {
		got, err := i.ask(name)
		if err == nil && (got.status != status || got.reason != reason) {
			err = fmt.Errorf("got %v", got)
		}
		return err
	}); err != nil {
		t.Errorf("a worker's request with %s is to be refused with %d %s: %v", name, status, reason, err)
	}
}

// calls waits until a client has made n calls of a grant type at the token endpoint, and returns all of them.
func (i *interop) calls(t *testing.T, grantType, client string, n int) []tokenCall {
	t.Helper()
	for deadline := time.After(patience); ; {
		calls, more := i.server.front.tokenCalls(grantType, client)
		if len(calls) >= n {
			return calls
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("%d calls of %s with %s, want %d: %v", len(calls), client, grantType, n, calls)
		}
	}
}

// inState waits until a grant is listed in a state, and returns what is said of it.
func (i *interop) inState(t *testing.T, name string, state grant.State) grant.Summary {
	t.Helper()
	var is grant.Summary
	if err := eventually(func() error {
		all, err := i.listed()
		if is = all[name]; err == nil && is.State != state {
			err = fmt.Errorf("%s is %+v, want %s", name, is, state)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return is
}

func (i *interop) metadata(t *testing.T, member string) string {
	t.Helper()
	m, err := fetchJSON(i.server.front.Client(), http.MethodGet, i.server.issuer+"/.well-known/openid-configuration", nil)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := m[member].(string)
	return s
}
