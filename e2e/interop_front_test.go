package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
)

// front passes on whatever it receives, untouched, and remembers what the token endpoint was asked and answered, and every
// secret that went by.
type front struct {
	*httptest.Server
	mu      sync.Mutex
	calls   []tokenCall
	secrets map[string]bool
	changed chan struct{}
}

// tokenCall is one request to the token endpoint with its answer.
type tokenCall struct {
	client string
	form   url.Values
	status int
	answer map[string]any
}

func (c tokenCall) String() string {
	names := slices.Sorted(maps.Keys(c.answer))
	return fmt.Sprintf("%s → %d %v (has %s)", c.form.Get("grant_type"), c.status, c.answer["error"], strings.Join(names, " "))
}

// newFront is a front before the server that a transport leads to.
func newFront(t *testing.T, server http.RoundTripper) *front {
	f := &front{secrets: map[string]bool{}, changed: make(chan struct{})}
	behind := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", r.In.Host // Host, and so every address the server writes, stays ours
		},
		Transport:    server,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }, // not up yet
	}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		rec := httptest.NewRecorder()
		behind.ServeHTTP(rec, r)
		f.remember(r, body, rec)
		maps.Copy(w.Header(), rec.Header())
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	}))
	t.Cleanup(f.Close)
	return f
}

// takingTurns keeps requests to a server from overlapping, until the answer begins.
type takingTurns struct {
	turn *sync.Mutex
	next http.RoundTripper
}

func (t takingTurns) RoundTrip(r *http.Request) (*http.Response, error) {
	t.turn.Lock()
	defer t.turn.Unlock()
	return t.next.RoundTrip(r)
}

// Parameters and members of answers that nobody else may see.
var (
	secretParams  = []string{"code", "code_verifier", "refresh_token", "client_secret", "client_assertion", "assertion", "device_code", "token"}
	secretMembers = []string{"access_token", "refresh_token", "id_token", "device_code", "client_secret", "registration_access_token"}
)

func (f *front) remember(r *http.Request, body []byte, rec *httptest.ResponseRecorder) {
	form := url.Values{}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		form, _ = url.ParseQuery(string(body))
	}
	answer := map[string]any{}
	_ = json.Unmarshal(rec.Body.Bytes(), &answer)
	f.mu.Lock()
	defer f.mu.Unlock()
	keep := func(s string) {
		if len(s) >= shortest {
			f.secrets[s] = true
			handedOut.add("a secret of an authorization server", s)
		}
	}
	for _, name := range secretParams {
		keep(form.Get(name))
	}
	for _, name := range secretMembers {
		s, _ := answer[name].(string)
		keep(s)
	}
	client := form.Get("client_id")
	if user, password, ok := r.BasicAuth(); ok {
		keep(password)
		client = user
	}
	if to, err := url.Parse(rec.Header().Get("Location")); err == nil {
		keep(to.Query().Get("code"))
	}
	if form.Has("grant_type") {
		f.calls = append(f.calls, tokenCall{client, form, rec.Code, answer})
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// tokenCalls returns the calls of a client at the token endpoint, oldest first, and a channel that is closed when more
// was asked of the server.
func (f *front) tokenCalls(grantType, client string) ([]tokenCall, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var calls []tokenCall
	for _, c := range f.calls {
		if c.form.Get("grant_type") == grantType && c.client == client {
			calls = append(calls, c)
		}
	}
	return calls, f.changed
}

// reused says which refresh tokens were presented more than once, other than by a test itself.
func (f *front) reused() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []error
	presented := map[string]bool{}
	for _, c := range f.calls {
		token := c.form.Get("refresh_token")
		if presented[token] && !c.form.Has(byTest) {
			found = append(found, fmt.Errorf("%s presents a refresh token once more: %v", c.client, c))
		}
		presented[token] = token != ""
	}
	return errors.Join(found...)
}

// byTest is a parameter that marks a request as one of a test's; servers ignore what they do not know (RFC 6749 section 3.2).
const byTest = "by_test"

// looked says whether there were secrets for the leak check to look for.
func (f *front) looked() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.secrets) < 5 {
		return fmt.Errorf("only %d secrets to look for: the check is not looking", len(f.secrets))
	}
	return nil
}

// fetchJSON sends a body, a form or any other value as JSON, and reads a JSON object.
func fetchJSON(c *http.Client, method, address string, body any) (map[string]any, error) {
	var r io.Reader
	contentType := "application/json"
	switch b := body.(type) {
	case nil:
	case url.Values:
		r, contentType = strings.NewReader(b.Encode()), "application/x-www-form-urlencoded"
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, address, r)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Accept", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer := map[string]any{}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s %s: status %d: %w", method, address, resp.StatusCode, err)
	}
	if resp.StatusCode/100 != 2 {
		return answer, fmt.Errorf("%s %s: status %d: %v", method, address, resp.StatusCode, answer)
	}
	return answer, nil
}
