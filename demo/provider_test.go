package demo

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// clock is moved by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

func (c *clock) advance(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.now = c.now.Add(d) }

// as is a provider under test and what its client needs.
type as struct {
	*Provider
	*clock
	url string
}

func newAS(t *testing.T) as {
	t.Helper()
	c := &clock{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	p := NewProvider(ProviderOptions{Now: c.Now})
	srv := httptest.NewServer(p)
	t.Cleanup(srv.Close)
	t.Cleanup(p.Close)
	return as{p, c, srv.URL}
}

const verifier = "a-verifier-of-at-least-forty-three-characters"

func challenge() string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (a as) authorizeURL(edit func(url.Values)) string {
	q := url.Values{
		"response_type": {"code"}, "client_id": {"wayleave-demo"}, "redirect_uri": {"http://127.0.0.1:4711/callback"},
		"scope": {"a b"}, "state": {"st"}, "code_challenge": {challenge()}, "code_challenge_method": {"S256"},
	}
	if edit != nil {
		edit(q)
	}
	return a.url + "/authorize?" + q.Encode()
}

// code goes through the browser's part.
func (a as) code(t *testing.T) string {
	t.Helper()
	location, err := Approve(t.Context(), a.authorizeURL(nil))
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("code")
}

// tokenAnswer is an answer of /token; Status is 0 when there was none.
type tokenAnswer struct {
	Status  int    `json:"-"`
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
	Expires int    `json:"expires_in"`
	Scope   string `json:"scope"`
	Error   string `json:"error"`
}

func (a as) post(ctx context.Context, form url.Values) (tokenAnswer, error) {
	if !form.Has("client_id") {
		form.Set("client_id", "wayleave-demo")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		return tokenAnswer{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return tokenAnswer{}, err
	}
	defer resp.Body.Close()
	t := tokenAnswer{Status: resp.StatusCode}
	err = json.NewDecoder(resp.Body).Decode(&t)
	return t, err
}

func (a as) refresh(t *testing.T, token, scope string) tokenAnswer {
	t.Helper()
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}
	if scope != "" {
		form.Set("scope", scope)
	}
	got, err := a.post(t.Context(), form)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (a as) exchange(t *testing.T, code string, edit func(url.Values)) tokenAnswer {
	t.Helper()
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "code_verifier": {verifier}, "redirect_uri": {"http://127.0.0.1:4711/callback"}}
	if edit != nil {
		edit(form)
	}
	got, err := a.post(t.Context(), form)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (a as) live(access string) bool { _, ok := a.scopesOf(access); return ok }

func TestAuthorize(t *testing.T) {
	a := newAS(t)
	set := func(k, v string) func(url.Values) { return func(q url.Values) { q.Set(k, v) } }
	for _, tt := range []struct {
		name  string
		edit  func(url.Values)
		error string // in the redirect; "page" for none
	}{
		{"good", nil, ""},
		{"another port on loopback", set("redirect_uri", "http://127.0.0.1:9/callback"), ""},
		{"code to paste", set("redirect_uri", a.url+"/code"), ""},
		{"other client", set("client_id", "x"), "page"},
		{"other path", set("redirect_uri", "http://127.0.0.1:4711/callback2"), "page"},
		{"more query", set("redirect_uri", "http://127.0.0.1:4711/callback?x=1"), "page"},
		{"other host", set("redirect_uri", "http://evil.example/callback"), "page"},
		{"host that looks like it", set("redirect_uri", "http://127.0.0.1.evil.example/callback"), "page"},
		{"no redirect", set("redirect_uri", ""), "page"},
		{"no PKCE", func(q url.Values) { q.Del("code_challenge") }, "invalid_request"},
		{"plain PKCE", set("code_challenge_method", "plain"), "invalid_request"},
		{"implicit", set("response_type", "token"), "unsupported_response_type"},
		{"no scopes", set("scope", ""), "invalid_scope"},
	} {
		location, err := Approve(t.Context(), a.authorizeURL(tt.edit))
		if (err != nil) != (tt.error == "page") {
			t.Errorf("%s: %q, %v", tt.name, location, err)
			continue
		}
		if err != nil {
			continue
		}
		u, err := url.Parse(location)
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		if q.Get("state") != "st" || q.Get("error") != tt.error || q.Has("code") != (tt.error == "") {
			t.Errorf("%s: state %q, error %q", tt.name, q.Get("state"), q.Get("error"))
		}
	}
}

func TestCodePageShowsCodeAndState(t *testing.T) {
	a := newAS(t)
	location, err := Approve(t.Context(), a.authorizeURL(func(q url.Values) { q.Set("redirect_uri", a.url+"/code") }))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(location)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, _ := io.ReadAll(resp.Body)
	u, _ := url.Parse(location)
	if !strings.Contains(string(page), u.Query().Get("code")+"#st\n") {
		t.Error("the page does not show code#state")
	}
}

func TestExchange(t *testing.T) {
	a := newAS(t)
	for name, edit := range map[string]func(url.Values){
		"verifier": func(f url.Values) { f.Set("code_verifier", "x") },
		"redirect": func(f url.Values) { f.Set("redirect_uri", "http://127.0.0.1:1/callback") },
		"code":     func(f url.Values) { f.Set("code", "x") },
	} {
		if got := a.exchange(t, a.code(t), edit); got.Status != 400 || got.Error != "invalid_grant" {
			t.Errorf("wrong %s: %d %s", name, got.Status, got.Error)
		}
	}
	if got := a.exchange(t, a.code(t), func(f url.Values) { f.Set("client_id", "x") }); got.Status != 401 || got.Error != "invalid_client" {
		t.Errorf("wrong client: %d %s", got.Status, got.Error)
	}

	code := a.code(t)
	got := a.exchange(t, code, nil)
	if got.Status != 200 || !strings.HasPrefix(got.Access, AccessPrefix) || !strings.HasPrefix(got.Refresh, RefreshPrefix) || got.Expires != 3600 || got.Scope != "a b" {
		t.Fatalf("status %d, expires %d, scope %q", got.Status, got.Expires, got.Scope)
	}
	if again := a.exchange(t, code, nil); again.Error != "invalid_grant" || a.live(got.Access) {
		t.Error("a code presented twice does not end its tokens")
	}

	late := a.code(t)
	a.advance(codeTTL + time.Second)
	if got := a.exchange(t, late, nil); got.Error != "invalid_grant" {
		t.Error("an old code is good")
	}
}

// JSON bodies and the client in a Basic header are understood too.
func TestOtherWaysToAsk(t *testing.T) {
	a := newAS(t)
	_, rt := a.Issue("a")
	body, _ := json.Marshal(map[string]any{"grant_type": "refresh_token", "refresh_token": rt, "expires_in": 5})
	req, _ := http.NewRequest(http.MethodPost, a.url+"/token", strings.NewReader(string(body)))
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	req.SetBasicAuth("wayleave-demo", "")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// Each refresh token is good once; the second time everything from that consent ends.
func TestRotationAndReuse(t *testing.T) {
	a := newAS(t)
	at1, rt1 := a.Issue("a", "b")
	other, _ := a.Issue("a")
	second := a.refresh(t, rt1, "")
	if second.Status != 200 || second.Refresh == rt1 || second.Refresh == "" || !a.live(at1) || !a.live(second.Access) {
		t.Fatalf("status %d", second.Status)
	}
	if again := a.refresh(t, rt1, ""); again.Error != "invalid_grant" {
		t.Errorf("a spent token: %d %s", again.Status, again.Error)
	}
	if a.live(at1) || a.live(second.Access) || a.refresh(t, second.Refresh, "").Error != "invalid_grant" {
		t.Error("the family lives on after reuse")
	}
	if !a.live(other) {
		t.Error("another family died")
	}
	want := Stats{TokenCalls: 3, Refreshes: 1, Reuses: 1, Revoked: 1, Presented: map[string]int{fingerprint(rt1): 2, fingerprint(second.Refresh): 1}}
	if diff := cmp.Diff(want, a.Stats()); diff != "" || a.Stats().MaxPresented() != 2 {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
}

// A refresh may narrow the access token and not widen it; refusing leaves the refresh token unspent.
func TestScopesAtRefresh(t *testing.T) {
	a := newAS(t)
	_, rt := a.Issue("a", "b")
	if got := a.refresh(t, rt, "a c"); got.Error != "invalid_scope" {
		t.Fatalf("widening: %d %s", got.Status, got.Error)
	}
	narrow := a.refresh(t, rt, "a")
	if narrow.Scope != "a" {
		t.Fatalf("narrowing: %q", narrow.Scope)
	}
	whole := a.refresh(t, narrow.Refresh, "")
	if whole.Scope != "a b" {
		t.Errorf("the refresh token itself was narrowed: %q", whole.Scope)
	}
	a.AllowScopes("b")
	if got := a.refresh(t, whole.Refresh, ""); got.Scope != "b" {
		t.Errorf("the allow list does not narrow a refresh: %q", got.Scope)
	}
}

func TestExpiry(t *testing.T) {
	a := newAS(t)
	a.SetAccessTTL(20 * time.Second)
	at, rt := a.Issue("a")
	a.advance(19 * time.Second)
	if !a.live(at) {
		t.Error("expired too early")
	}
	a.advance(time.Second)
	if a.live(at) {
		t.Error("never expires")
	}
	got := a.refresh(t, rt, "")
	if got.Expires != 20 || !a.live(got.Access) {
		t.Errorf("expires_in %d", got.Expires)
	}
	a.ExpireAccess()
	if a.live(got.Access) || a.refresh(t, got.Refresh, "").Status != 200 {
		t.Error("ExpireAccess ends more or less than the access tokens")
	}
	at, rt = a.Issue("a")
	a.RevokeAll()
	if a.live(at) || a.refresh(t, rt, "").Error != "invalid_grant" {
		t.Error("RevokeAll leaves something")
	}
}

func TestRevoke(t *testing.T) {
	a := newAS(t)
	at, rt := a.Issue("a")
	at2, rt2 := a.Issue("a")
	for _, token := range []string{rt, at2, "nobody's"} {
		resp, err := http.PostForm(a.url+"/revoke", url.Values{"token": {token}, "client_id": {"wayleave-demo"}})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
	if a.live(at) || a.live(at2) || a.refresh(t, rt2, "").Status != 200 {
		t.Error("revoking a refresh token ends its family, revoking an access token only that")
	}
}

func TestMisbehaviour(t *testing.T) {
	a := newAS(t)
	_, rt := a.Issue("a")
	form := func() url.Values { return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {rt}} }

	a.FailNext(1, 503, `{"error":"invalid_grant"}`)
	if got, err := a.post(t.Context(), form()); err != nil || got.Status != 503 {
		t.Fatalf("%d, %v", got.Status, err)
	}
	a.SetDown(true)
	if got, err := a.post(t.Context(), form()); err == nil {
		t.Fatalf("down, and yet %d", got.Status)
	}
	a.SetDown(false)
	a.SetRotation(false)
	if got, err := a.post(t.Context(), form()); err != nil || got.Status != 200 || got.Refresh != "" {
		t.Fatalf("%d, %v", got.Status, err)
	}
	if n := a.Stats().Presented[fingerprint(rt)]; n != 1 {
		t.Errorf("failed calls count as presented: %d", n)
	}
	a.SetRotation(true)
	a.LoseAnswers(1)
	if got, err := a.post(t.Context(), form()); err == nil {
		t.Fatalf("the answer was to be lost: %d", got.Status)
	}
	if got, err := a.post(t.Context(), form()); err != nil || got.Error != "invalid_grant" {
		t.Errorf("the lost answer did not spend the token: %d, %v", got.Status, err)
	}
	if s := a.Stats(); s.TokenCalls != 4 || s.Refreshes != 2 || s.Reuses != 1 {
		t.Errorf("%+v", s)
	}

	_, rt = a.Issue("a")
	a.FailCalls(func(w http.ResponseWriter, params map[string]string) bool {
		if params["refresh_token"] != rt {
			return false
		}
		w.WriteHeader(http.StatusTemporaryRedirect)
		fmt.Fprint(w, "{}")
		return true
	})
	if got, _ := a.post(t.Context(), form()); got.Status != 307 {
		t.Errorf("%d", got.Status)
	}
	a.FailCalls(nil)
	a.EditAnswers(func(_ map[string]string, answer map[string]any) { delete(answer, "scope"); answer["expires_in"] = "7" })
	if got, _ := a.post(t.Context(), form()); got.Status != 200 || got.Scope != "" || got.Refresh == "" {
		t.Errorf("%d, scope %q", got.Status, got.Scope)
	}
	a.SetDenied(true)
	if location, err := Approve(t.Context(), a.authorizeURL(nil)); err != nil || !strings.Contains(location, "error=access_denied") {
		t.Errorf("%s, %v", location, err)
	}
}

// Giving up does not undo what the provider does meanwhile; closing it ends the delay.
func TestLatencySurvivesTheClient(t *testing.T) {
	a := newAS(t)
	_, rt := a.Issue("a")
	a.SetLatency(time.Hour, 0)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := a.post(ctx, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {rt}})
		ended <- err
	}()
	for a.Stats().TokenCalls == 0 {
		time.Sleep(time.Millisecond) // until the call is inside
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("the client did not give up")
	}
	a.Close()
	for a.Stats().Refreshes == 0 {
		time.Sleep(time.Millisecond)
	}
}
