package console

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave/api"
)

const everybody Role = "" // also who is not logged in

// stated is who may come in where. What is served and does not stand here makes the test fail, and so does a role that is another.
var stated = map[string]Role{
	"/":                                      everybody,
	"/api/v1/":                               everybody,
	"DELETE /api/v1/connects/{id}":           Operator,
	"DELETE /api/v1/tokens/{token}":          Viewer,
	"GET /access":                            Viewer,
	"GET /api/v1/approvals":                  Viewer,
	"GET /api/v1/approvals/{id}":             Viewer,
	"GET /api/v1/audit":                      Operator,
	"GET /api/v1/configuration":              Operator,
	"GET /api/v1/connects/{id}":              Operator,
	"GET /api/v1/decisions":                  Viewer,
	"GET /api/v1/events":                     Viewer,
	"GET /api/v1/fleet":                      Viewer,
	"GET /api/v1/fleet/{envoy}":              Viewer,
	"GET /api/v1/grants":                     Viewer,
	"GET /api/v1/grants/{grant}":             Viewer,
	"GET /api/v1/log":                        Viewer,
	"GET /api/v1/me":                         Viewer,
	"GET /api/v1/openapi.json":               everybody,
	"GET /api/v1/revisions":                  Viewer,
	"GET /api/v1/revisions/{id}":             Operator,
	"GET /api/v1/rollout":                    Viewer,
	"GET /api/v1/routes":                     Viewer,
	"GET /api/v1/sessions":                   Viewer,
	"GET /api/v1/tokens":                     Viewer,
	"GET /api/v1/workers":                    Viewer,
	"GET /approvals":                         Viewer,
	"GET /audit":                             Operator,
	"GET /callback":                          Operator,
	"GET /configuration":                     Operator,
	"GET /connects/{id}":                     Operator,
	"GET /events":                            Viewer,
	"GET /favicon.ico":                       everybody,
	"GET /fleet":                             Viewer,
	"GET /grants/{grant}":                    Viewer,
	"GET /login":                             everybody,
	"GET /login/callback":                    everybody,
	"GET /login/start":                       everybody,
	"GET /requests":                          Viewer,
	"GET /rollouts":                          Viewer,
	"GET /rollouts/{from}/{to}":              Operator,
	"GET /routes":                            Viewer,
	"GET /workers":                           Viewer,
	"GET /{$}":                               Viewer,
	"POST /access/tokens":                    Viewer,
	"POST /access/tokens/{token}/end":        Viewer,
	"POST /api/v1/approvals/{id}/decide":     Operator,
	"POST /api/v1/approvals/{id}/forget":     Operator,
	"POST /api/v1/connects/{id}/answer":      Operator,
	"POST /api/v1/fleet/{envoy}/drain":       Operator,
	"POST /api/v1/fleet/{envoy}/undrain":     Operator,
	"POST /api/v1/grants/{grant}/connect":    Operator,
	"POST /api/v1/grants/{grant}/disconnect": Operator,
	"POST /api/v1/grants/{grant}/import":     Operator,
	"POST /api/v1/grants/{grant}/refresh":    Operator,
	"POST /api/v1/rollout":                   Admin,
	"POST /api/v1/rollout/abort":             Operator,
	"POST /api/v1/rollout/pause":             Operator,
	"POST /api/v1/rollout/promote":           Admin,
	"POST /api/v1/rollout/resume":            Operator,
	"POST /api/v1/sessions/revoke":           Operator,
	"POST /api/v1/sessions/{id}/revoke":      Operator,
	"POST /api/v1/tokens":                    Viewer,
	"POST /api/v1/workers/{worker}/revoke":   Operator,
	"POST /approvals/{id}/decide":            Operator,
	"POST /approvals/{id}/forget":            Operator,
	"POST /connects/{id}/answer":             Operator,
	"POST /fleet/{envoy}/drain":              Operator,
	"POST /fleet/{envoy}/undrain":            Operator,
	"POST /grants/{grant}/connect":           Operator,
	"POST /grants/{grant}/disconnect":        Operator,
	"POST /grants/{grant}/import":            Operator,
	"POST /grants/{grant}/refresh":           Operator,
	"POST /login":                            everybody,
	"POST /logout":                           Viewer,
	"POST /rollouts/abort":                   Operator,
	"POST /rollouts/pause":                   Operator,
	"POST /rollouts/promote":                 Admin,
	"POST /rollouts/resume":                  Operator,
	"POST /sessions/{id}/revoke":             Operator,
	"POST /workers/{worker}/revoke":          Operator,
	"PUT /api/v1/log":                        Operator,
}

// Everything that is served is for whom it is said to be for and nobody else: every page, every form and every operation of the API,
// for browsers and for programs.
func TestEveryDoor(t *testing.T) {
	w := newWorld(t, nil)
	got := maps.Clone(w.console.doors.needs)
	maps.DeleteFunc(got, func(pattern string, needs Role) bool {
		return strings.HasPrefix(pattern, "GET /static/") && needs == everybody
	}) // what pages are made of
	if !maps.Equal(got, stated) {
		for _, pattern := range slices.Sorted(maps.Keys(got)) {
			if role, known := stated[pattern]; !known || role != got[pattern] {
				t.Errorf("%s is served to the role %q, and stated is %q (stated at all: %v)", pattern, got[pattern], role, known)
			}
		}
		t.Fatal("who may come in is not what is stated")
	}
	at, _ := url.Parse(w.address)
	b := w.browser()
	become := func(role Role) {
		id := w.console.logins.begin(actor{Name: "maria", Role: role, Via: "oidc", id: "oidc maria"}, "")
		b.http.Jar.SetCookies(at, []*http.Cookie{{Name: w.console.cookieName(loginCookie), Value: id, Path: "/"}})
		b.get("/access")
	}
	request := func(pattern string) *http.Request {
		method, path, found := strings.Cut(pattern, " ")
		if !found {
			method, path = http.MethodGet, pattern+"nowhere"
		}
		path = strings.NewReplacer("{grant}", "nobody", "{worker}", "nobody", "{id}", "none", "{token}", "none", "{envoy}", "none", "{from}", "stable", "{to}", "stable", "{$}", "").Replace(path)
		r := b.request(method, path, "")
		if isAPI(r) && method != http.MethodGet {
			r = b.request(method, path, "{}")
			r.Header.Set("Content-Type", "application/json")
		}
		return r
	}
	patterns := slices.Sorted(maps.Keys(stated))

	nobody := w.browser()
	for _, pattern := range patterns {
		for what, header := range map[string]string{"nobody": "", "a wrong token": "Bearer wlop_guess", "a token of something else": "Basic eDp5"} {
			w.later(time.Minute) // which forgives
			r := request(pattern)
			if header != "" {
				r.Header.Set("Authorization", header)
			}
			a := nobody.head(r)
			if h := a.header; h.Get("Content-Security-Policy") != contentPolicy || h.Get("X-Frame-Options") != "DENY" || h.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: %v", pattern, h)
			}
			shut := a.status == http.StatusUnauthorized || strings.HasPrefix(a.to(), "/login?")
			if shut != (stated[pattern] != everybody) {
				t.Errorf("%s by %s: %d %s", pattern, what, a.status, a.to())
			}
		}
	}
	for _, role := range roles {
		become(role)
		for _, pattern := range patterns {
			r := request(pattern)
			r.Header.Set("X-Csrf-Token", b.csrf)
			if a := b.head(r); a.refused() == role.may(stated[pattern]) && stated[pattern] != everybody {
				t.Errorf("%s by %s: %d %.300s", pattern, role, a.status, a.body)
			}
			if pattern == "POST /logout" {
				become(role)
			}
		}
		program := w.as(role)
		for _, pattern := range patterns {
			r := request(pattern)
			r.Header.Del("Sec-Fetch-Site")
			r.Header.Set("Authorization", "Bearer "+program.token)
			a := program.head(r)
			switch needs := stated[pattern]; {
			case needs == everybody:
			case !isAPI(r): // which programs do not use
				if a.status != http.StatusUnauthorized && !strings.HasPrefix(a.to(), "/login?") {
					t.Errorf("%s by a program that is %s: %d", pattern, role, a.status)
				}
			case a.refused() == role.may(needs), a.status == http.StatusUnauthorized:
				t.Errorf("%s by a program that is %s: %d %.300s", pattern, role, a.status, a.body)
			}
		}
	}
}

// Whatever changes something is done for a page of ours alone, that this log-in has seen: not for another site that sends a form or a
// request, with the browser's cookie and even with the token of the page, nor without that token.
func TestEveryChangeIsAskedForHere(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	before := w.events()
	for pattern, needs := range stated {
		method, path, _ := strings.Cut(pattern, " ")
		if method != http.MethodPost && method != http.MethodPut && method != http.MethodDelete {
			continue
		}
		path = strings.NewReplacer("{grant}", "acme", "{worker}", "ci", "{id}", "none", "{token}", "none", "{envoy}", "envoy-1").Replace(path)
		send := func(change func(*http.Request), fields ...string) answer {
			r := b.request(method, path, strings.Join(fields, "&"))
			if isAPI(r) {
				r = b.request(method, path, "{}")
				r.Header.Set("Content-Type", "application/json")
			}
			change(r)
			return b.do(r)
		}
		token := func(r *http.Request) { r.Header.Set("X-Csrf-Token", b.csrf) }
		for from, change := range map[string]func(*http.Request){
			"another site":      func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
			"a sister site":     func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
			"another port":      func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "http://127.0.0.1:1") },
			"no origin that is": func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "null") },
		} {
			if a := send(func(r *http.Request) { token(r); change(r) }, "token="+w.once()); a.status != http.StatusForbidden || !strings.Contains(a.body, "page of another site") {
				t.Errorf("%s from %s: %d %.200s", pattern, from, a.status, a.body)
			}
		}
		if needs == everybody { // the log-in by link: its token is what others do not have
			continue
		}
		for what, change := range map[string]func(*http.Request){"no token": func(*http.Request) {}, "another's": func(r *http.Request) { r.Header.Set("X-Csrf-Token", strings.Repeat("A", 26)) }} {
			if a := send(change); a.status != http.StatusForbidden || !strings.Contains(a.body, "his page is from an earlier log-in") {
				t.Errorf("%s with %s: %d %.200s", pattern, what, a.status, a.body)
			}
		}
	}
	if after := w.events(); after != before {
		t.Errorf("something was done:\n%s", strings.TrimPrefix(after, before))
	}
}

// refused reports whether somebody's role is not enough.
func (a answer) refused() bool {
	return a.status == http.StatusForbidden && strings.Contains(a.body, "his needs the role")
}

// head is do, but of a stream that goes on only how it begins.
func (b *browser) head(r *http.Request) answer {
	b.t.Helper()
	if !strings.HasSuffix(r.URL.Path, "/events") {
		return b.do(r)
	}
	ctx, stop := context.WithCancel(r.Context())
	defer stop()
	resp, err := b.http.Do(r.WithContext(ctx))
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	return answer{status: resp.StatusCode, header: resp.Header}
}

// The document of the API says of everything that is served who may do it, and of nothing else.
func TestDocumentedRoles(t *testing.T) {
	w := newWorld(t, nil)
	var document struct {
		Paths map[string]map[string]struct{ Description string }
	}
	if err := json.Unmarshal([]byte(w.browser().get(api.Root+"/openapi.json").body), &document); err != nil {
		t.Fatal(err)
	}
	documented := map[string]Role{}
	for path, operations := range document.Paths {
		for method, o := range operations {
			documented[strings.ToUpper(method)+" "+api.Root+path] = Role(strings.TrimSuffix(strings.TrimPrefix(o.Description, "Needs the role "), "."))
		}
	}
	served := maps.Clone(stated)
	maps.DeleteFunc(served, func(pattern string, needs Role) bool {
		return needs == everybody || !strings.Contains(pattern, " "+api.Root+"/")
	})
	if !maps.Equal(documented, served) {
		t.Errorf("documented %v, served %v", documented, served)
	}
}
