package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// received is a request as an upstream of the test's own got it.
type received struct {
	URI    string
	Header map[string][]string // names in lower case
}

// reveal answers with the request, and repeats what it was sent in headers, as a debugging endpoint would.
func reveal(w http.ResponseWriter, r *http.Request) {
	got := received{URI: r.URL.RequestURI(), Header: map[string][]string{}}
	for name, values := range r.Header {
		got.Header[strings.ToLower(name)] = values
		for _, v := range values {
			w.Header().Add("X-Echo-"+name, "you sent "+v)
		}
	}
	w.Header().Add("Set-Cookie", "session=of-the-account")
	w.Header().Set("Alt-Svc", `h3=":443"`)
	_ = json.NewEncoder(w).Encode(got)
}

// However a worker's client sends its placeholder, the provider gets one credential, in the form it wants; and whatever
// comes back, the worker does not see it in a header.
func TestForms(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	up := newUpstream(t, made.CA, "*.forms.demo.test", reveal)
	routes := "\n"
	for host, more := range map[string]string{
		"bearer": "", "keyed": "header: {in: x-api-key}", "goog": "header: {in: x-goog-api-key}", "azure": "header: {in: api-key}", "private": "header: {in: private-token}",
		"turned": "header: {in: x-api-key, out: authorization}", "basic": "header: {out_scheme: Basic}",
		"bare": `header: {in_scheme: ""}`, "turned-bare": `header: {in: x-api-key, out: authorization, out_scheme: ""}`,
		"query": "header: {in: x-goog-api-key, in_query: key}", "replace": "foreign_bearer: replace", "cookies": "response: {set_cookie: pass}",
	} {
		routes += fmt.Sprintf("  - {hosts: [%s.forms.demo.test], grant: claude, connect_to: \"%s\"%s}\n", host, up.address, strings.TrimSuffix(", "+more, ", "))
	}
	g := startIn(t, made, base(routes, "", ""), "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	ask := func(t *testing.T, http2 bool, url string, headers ...string) (received, answer) {
		t.Helper()
		req := w.request(http.MethodGet, url, nil)
		req.Header.Del("Authorization")
		for i := 0; i < len(headers); i += 2 {
			req.Header.Add(headers[i], headers[i+1])
		}
		a, err := do(w.client(t, http2), req)
		if err != nil || a.status != http.StatusOK {
			t.Fatal(a, err)
		}
		var got received
		if err := json.Unmarshal([]byte(a.body), &got); err != nil {
			t.Fatal(err)
		}
		return got, a
	}
	first, _ := ask(t, true, "https://bearer.forms.demo.test/", "Authorization", "Bearer "+w.placeholder)
	real, ok := strings.CutPrefix(strings.Join(first.Header["authorization"], ","), "Bearer ")
	if !ok || strings.Contains(real, placeholderMarker) {
		t.Fatalf("got %v", first)
	}
	basic := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	for _, c := range []struct {
		name, url    string
		headers      []string
		header, want string // the only credential that arrives
		uri          string
	}{
		{"bearer", "https://bearer.forms.demo.test/", []string{"Authorization", "Bearer " + w.placeholder}, "authorization", "Bearer " + real, "/"},
		{"basic password", "https://bearer.forms.demo.test/", []string{"Authorization", basic("me", w.placeholder)}, "authorization", basic("me", real), "/"},
		{"basic user", "https://bearer.forms.demo.test/", []string{"Authorization", basic(w.placeholder, "x")}, "authorization", basic(real, "x"), "/"},
		{"token", "https://bearer.forms.demo.test/", []string{"Authorization", "token " + w.placeholder}, "authorization", "token " + real, "/"},
		{"no word", "https://bare.forms.demo.test/", []string{"Authorization", w.placeholder}, "authorization", real, "/"},
		{"no word out", "https://turned-bare.forms.demo.test/", []string{"X-Api-Key", w.placeholder}, "authorization", real, "/"},
		{"x-api-key", "https://keyed.forms.demo.test/", []string{"X-Api-Key", w.placeholder}, "x-api-key", real, "/"},
		{"x-goog-api-key", "https://goog.forms.demo.test/", []string{"X-Goog-Api-Key", w.placeholder}, "x-goog-api-key", real, "/"},
		{"api-key", "https://azure.forms.demo.test/", []string{"Api-Key", w.placeholder}, "api-key", real, "/"},
		{"private-token", "https://private.forms.demo.test/", []string{"Private-Token", w.placeholder}, "private-token", real, "/"},
		{"another header out", "https://turned.forms.demo.test/", []string{"X-Api-Key", w.placeholder}, "authorization", "Bearer " + real, "/"},
		{"another scheme out", "https://basic.forms.demo.test/", []string{"Authorization", "Bearer " + w.placeholder}, "authorization", basic("", real), "/"},
		{"query", "https://query.forms.demo.test/models?key=" + w.placeholder + "&alt=sse", nil, "x-goog-api-key", real, "/models?alt=sse"},
		{"a foreign bearer replaced", "https://replace.forms.demo.test/", []string{"Authorization", "Bearer of-the-worker"}, "authorization", "Bearer " + real, "/"},
		{"a foreign password replaced", "https://replace.forms.demo.test/", []string{"Authorization", basic("me", "of-the-worker")}, "authorization", basic("me", real), "/"},
		{"a foreign key replaced", "https://replace.forms.demo.test/", []string{"X-Api-Key", "of-the-worker"}, "authorization", "Bearer " + real, "/"},
	} {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/http2=%v", c.name, http2), func(t *testing.T) {
				got, a := ask(t, http2, c.url, c.headers...)
				if got.URI != c.uri {
					t.Errorf("the address is %q", got.URI)
				}
				for _, name := range []string{"authorization", "x-api-key", "x-goog-api-key", "api-key", "private-token"} {
					want := []string{c.want}
					if name != c.header {
						want = nil
					}
					if fmt.Sprint(got.Header[name]) != fmt.Sprint(want) {
						t.Errorf("%d lines of %s arrived, want %d, or another value", len(got.Header[name]), name, len(want))
					}
				}
				for name := range got.Header {
					if strings.HasPrefix(name, "proxy-") || strings.HasPrefix(name, "x-envoy-") || strings.HasPrefix(name, "x-wayleave-") {
						t.Errorf("%s arrived", name)
					}
				}
				if text := fmt.Sprint(a.header); strings.Contains(text, real) || strings.Contains(text, strings.TrimPrefix(basic("me", real), "Basic ")) ||
					!strings.Contains(text, "you sent ") || a.header.Get("Set-Cookie")+a.header.Get("Alt-Svc") != "" {
					t.Errorf("the worker sees %s", strings.ReplaceAll(text, real, "THE REAL TOKEN"))
				}
			})
		}
	}
	if _, a := ask(t, true, "https://cookies.forms.demo.test/", "Authorization", "Bearer "+w.placeholder); a.header.Get("Set-Cookie") == "" || a.header.Get("Alt-Svc") != "" {
		t.Errorf("with cookies passed: %v", a.header["Set-Cookie"])
	}
	if up.sawText(placeholderMarker) {
		t.Error("a placeholder arrived")
	}
}
