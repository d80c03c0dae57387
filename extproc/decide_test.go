package extproc

import (
	"encoding/base64"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"wayleave/secret"
	"wayleave/vault/vaulttest"
	"wayleave/worker"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var testConfig = Config{
	Routes: []Route{{
		Name: "anthropic", Hosts: []string{"api.anthropic.com"}, Credential: "claude", PlaceholderPrefix: "sk-ant-oat01-",
		Scopes: []string{"user:inference"}, ErrorFormat: "anthropic", Status: map[string]int{"needs_reconnect": 400, "policy_denied": 400},
		EnsureHeaders: map[string]string{"Anthropic-Beta": "oauth-2025-04-20"}, EnsurePaths: []string{"/v1/messages"},
		Rules: []Rule{
			{PathExact: "/v1/organizations", Deny: "organization administration is not for workers"},
			{PathPrefix: "/v1/code/", Scopes: []string{"user:sessions:claude_code", "user:inference"}},
			{PathPrefix: "/readonly/", Methods: []string{"POST"}, Deny: "read only"},
		},
	}, {
		Name: "github", Hosts: []string{"github.com", "api.github.com", "*.githubusercontent.com"}, Credential: "github", PlaceholderPrefix: "gho_", BasicUser: "x-access-token",
	}, {
		Name: "keyed", Hosts: []string{"keyed.example.com:8443"}, Credential: "keyed", HeaderIn: "x-api-key", Methods: []string{"GET", "OPTIONS"},
		Foreign: Refuse, Absent: Refuse,
	}, {
		Name: "either", Hosts: []string{"either.example.com"}, Credential: "either", HeaderIn: "x-api-key", AlsoIn: "authorization",
	}, {
		Name: "turned", Hosts: []string{"turned.example.com"}, Credential: "turned", HeaderIn: "x-api-key", HeaderOut: "authorization", SchemeOut: "Bearer",
	}, {
		Name: "bare", Hosts: []string{"bare.example.com"}, Credential: "plain", HeaderIn: "authorization", HeaderOut: "authorization",
	}, {
		Name: "turned-bare", Hosts: []string{"turned-bare.example.com"}, Credential: "turned", HeaderIn: "x-api-key", HeaderOut: "authorization",
	}, {
		Name: "basic", Hosts: []string{"basic.example.com"}, Credential: "basic", SchemeOut: "Basic", BasicUser: "oauth2",
	}, {
		Name: "plain", Hosts: []string{"plain.example.com"}, Credential: "plain",
	}, {
		Name: "custom", Hosts: []string{"custom.example.com"}, Credential: "custom", HeaderIn: "x-auth", SchemeIn: "Key",
	}, {
		Name: "queried", Hosts: []string{"queried.example.com"}, Credential: "queried", HeaderIn: "x-goog-api-key", ParameterIn: "key",
	}, {
		Name: "bearer-queried", Hosts: []string{"bearer-queried.example.com"}, Credential: "queried", ParameterIn: "access_token",
	}, {
		Name: "replaced", Hosts: []string{"replaced.example.com"}, Credential: "replaced", Foreign: Replace,
	}, {
		Name: "own", Hosts: []string{"own.example.com"}, Credential: "plain", Foreign: Refuse,
	}, {
		Name: "asks", Hosts: []string{"asks.example.com"}, Credential: "github", BasicUser: "x-access-token", Foreign: Refuse, Absent: Refuse,
	}, {
		Name: "other", Hosts: []string{"other.example.com", "faulty.example.com"}, Credential: "others",
	}, {
		Name: "wild", Hosts: []string{"*.wild.example.com"}, Credential: "plain",
	}},
	Tunnel:      []string{"pypi.org", "*.pythonhosted.org"},
	Plain:       []string{"plain.example.com:80", "*.plain.example.com:8080", "tokens.pythonhosted.org:80"},
	Deny:        []string{"telemetry.wild.example.com", "*.deep.wild.example.com"},
	Quarantined: []string{"faulty.wild.example.com", "*.faulty.pythonhosted.org", "faulty.plain.example.com:8080", "faulty.example.com"},
	Refused:     []string{"api.anthropic.com/v1/oauth/token", "github.com/login/oauth/access_token", "tokens.pythonhosted.org", "login.pythonhosted.org/token", "pypi.org/token"},
	Replayable:  1 << 20,
	Profiles: map[string]Profile{
		"default": {Grants: []string{"claude", "github", "keyed", "turned", "basic", "plain", "custom", "queried", "replaced", "either"}},
		"poor":    {},
	},
	Workers: map[string]string{"ci": "default", "poor": "poor", "moved": "poor"},
}

// fixture is a policy, and a session that it knows.
type fixture struct {
	policy         *policy
	sessions       *worker.Sessions
	session, other worker.Session
	token          secret.Text
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	k, err := worker.OpenSessions(t.Context(), vaulttest.NewMemory(), worker.LedgerOptions{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{policy: newPolicy(testConfig), sessions: k}
	if f.session, f.token, err = k.IssueTo("repo:acme/app", "ci", "default", time.Hour, now); err != nil {
		t.Fatal(err)
	}
	if f.other, _, err = k.Issue("ci", "default", time.Hour, now); err != nil {
		t.Fatal(err)
	}
	return f
}

// placeholder of the fixture's session.
func (f *fixture) placeholder(credential, prefix string) string {
	return f.sessions.Placeholder(f.session, credential, prefix)
}

func (f *fixture) claude() string { return f.placeholder("claude", "sk-ant-oat01-") }

// to is a request with nothing wrong, to host on 443.
func (f *fixture) to(host, method, path string, headers ...string) request {
	r := request{
		method: method, authority: host, path: path,
		identity: f.session.Identity(), connectAuthority: host + ":443", serverName: host,
	}
	for i := 0; i < len(headers); i += 2 {
		r.headers = append(r.headers, header{headers[i], headers[i+1]})
	}
	return r
}

func (f *fixture) anthropic(method, path string, headers ...string) request {
	return f.to("api.anthropic.com", method, path, headers...)
}

func basicAuth(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// What is swapped, and into what.
func TestDecideSwaps(t *testing.T) {
	f := newFixture(t)
	claude, github := f.claude(), f.placeholder("github", "gho_")
	either := f.placeholder("either", "")
	keyed, turned, basic, plain, custom := f.placeholder("keyed", ""), f.placeholder("turned", ""), f.placeholder("basic", ""), f.placeholder("plain", ""), f.placeholder("custom", "")
	for _, c := range []struct {
		name    string
		request request
		header  string
		value   string // with TOKEN for the token
		scopes  []string
		remove  string
		set     []header
	}{
		{"bearer", f.anthropic("POST", "/v1/complete", "authorization", "Bearer "+claude), "authorization", "Bearer TOKEN", []string{"user:inference"}, "", nil},
		{"bearer in lower case", f.anthropic("POST", "/v1/complete", "authorization", "bearer "+claude), "authorization", "bearer TOKEN", []string{"user:inference"}, "", nil},
		{"several spaces", f.anthropic("POST", "/v1/complete", "authorization", "Bearer   "+claude), "authorization", "Bearer TOKEN", []string{"user:inference"}, "", nil},
		{"a rule adds scopes", f.anthropic("POST", "/v1/code/sessions?x=1", "authorization", "Bearer "+claude), "authorization", "Bearer TOKEN", []string{"user:inference", "user:sessions:claude_code"}, "", nil},
		{"a rule for another method", f.anthropic("GET", "/readonly/x", "authorization", "Bearer "+claude), "authorization", "Bearer TOKEN", []string{"user:inference"}, "", nil},
		{"list header added", f.anthropic("POST", "/v1/messages?beta=true", "authorization", "Bearer "+claude), "authorization", "Bearer TOKEN", []string{"user:inference"}, "",
			[]header{{"anthropic-beta", "oauth-2025-04-20"}}},
		{"list header merged", f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+claude, "anthropic-beta", "a, b"), "authorization", "Bearer TOKEN", []string{"user:inference"}, "",
			[]header{{"anthropic-beta", "a, b,oauth-2025-04-20"}}},
		{"list header in two lines merged", f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+claude, "anthropic-beta", "a", "anthropic-beta", "b"), "authorization", "Bearer TOKEN", []string{"user:inference"}, "",
			[]header{{"anthropic-beta", "a,b,oauth-2025-04-20"}}},
		{"list header complete", f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+claude, "anthropic-beta", "a, oauth-2025-04-20 ,b"), "authorization", "Bearer TOKEN", []string{"user:inference"}, "", nil},
		{"list header with a longer item", f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+claude, "anthropic-beta", "oauth-2025-04-20x"), "authorization", "Bearer TOKEN", []string{"user:inference"}, "",
			[]header{{"anthropic-beta", "oauth-2025-04-20x,oauth-2025-04-20"}}},
		{"token scheme", f.to("api.github.com", "GET", "/user", "authorization", "token "+github), "authorization", "token TOKEN", nil, "", nil},
		{"Basic password", f.to("github.com", "GET", "/r.git/info/refs", "authorization", basicAuth("x-access-token", github)), "authorization", basicAuth("x-access-token", "TOKEN"), nil, "", nil},
		{"Basic password, another user", f.to("github.com", "GET", "/r.git/info/refs", "authorization", basicAuth("me", github)), "authorization", basicAuth("x-access-token", "TOKEN"), nil, "", nil},
		{"Basic user", f.to("github.com", "GET", "/r.git/info/refs", "authorization", basicAuth(github, "x-oauth-basic")), "authorization", basicAuth("x-access-token", "TOKEN"), nil, "", nil},
		{"Basic both", f.to("github.com", "GET", "/", "authorization", basicAuth(github, github)), "authorization", basicAuth("x-access-token", "TOKEN"), nil, "", nil},
		{"Basic without a user of its own: password", f.to("plain.example.com", "GET", "/", "authorization", basicAuth("me", plain)), "authorization", basicAuth("me", "TOKEN"), nil, "", nil},
		{"Basic without a user of its own: user", f.to("plain.example.com", "GET", "/", "authorization", basicAuth(plain, "x")), "authorization", basicAuth("TOKEN", "x"), nil, "", nil},
		{"Basic without a user of its own: both", f.to("plain.example.com", "GET", "/", "authorization", basicAuth(plain, plain)), "authorization", basicAuth("TOKEN", "TOKEN"), nil, "", nil},
		{"no word, where the route has none", f.to("bare.example.com", "GET", "/", "authorization", plain), "authorization", "TOKEN", nil, "", nil},
		{"a word, where the route has none", f.to("bare.example.com", "GET", "/", "authorization", "Bearer "+plain), "authorization", "Bearer TOKEN", nil, "", nil},
		{"out without a word", f.to("turned-bare.example.com", "GET", "/", "x-api-key", turned), "authorization", "TOKEN", nil, "x-api-key", nil},
		{"wildcard host", f.to("raw.githubusercontent.com", "GET", "/", "authorization", "Bearer "+github), "authorization", "Bearer TOKEN", nil, "", nil},
		{"raw header", func() request {
			r := f.to("keyed.example.com", "GET", "/", "x-api-key", keyed)
			r.authority, r.connectAuthority = "keyed.example.com:8443", "keyed.example.com:8443"
			return r
		}(), "x-api-key", "TOKEN", nil, "", nil},
		{"in the one header", f.to("either.example.com", "GET", "/", "x-api-key", either), "x-api-key", "TOKEN", nil, "", nil},
		{"in the other header, out there", f.to("either.example.com", "GET", "/", "authorization", "Bearer "+either), "authorization", "Bearer TOKEN", nil, "", nil},
		{"in the other header, the one empty", f.to("either.example.com", "GET", "/", "x-api-key", "", "authorization", "Bearer "+either), "authorization", "Bearer TOKEN", nil, "", nil},
		{"in one header, out another", f.to("turned.example.com", "GET", "/", "x-api-key", turned), "authorization", "Bearer TOKEN", nil, "x-api-key", nil},
		{"in as Bearer, out as Basic", f.to("basic.example.com", "GET", "/", "authorization", "Bearer "+basic), "authorization", basicAuth("oauth2", "TOKEN"), nil, "", nil},
		{"in as Basic, out as Basic", f.to("basic.example.com", "GET", "/", "authorization", basicAuth("me", basic)), "authorization", basicAuth("oauth2", "TOKEN"), nil, "", nil},
		{"a scheme of its own", f.to("custom.example.com", "GET", "/", "x-auth", "key "+custom), "x-auth", "key TOKEN", nil, "", nil},
		{"port named", func() request {
			r := f.anthropic("GET", "/v1/models", "authorization", "Bearer "+claude)
			r.authority = "api.anthropic.com:443"
			return r
		}(), "authorization", "Bearer TOKEN", []string{"user:inference"}, "", nil},
		{"names in upper case", func() request {
			r := f.anthropic("GET", "/v1/models", "authorization", "Bearer "+claude)
			r.authority, r.connectAuthority, r.serverName = "API.Anthropic.com", "api.ANTHROPIC.com:443", "Api.Anthropic.Com"
			return r
		}(), "authorization", "Bearer TOKEN", []string{"user:inference"}, "", nil},
		{"odd but harmless path", f.anthropic("GET", "/v1/files/a%2Fb;c/../d", "authorization", "Bearer "+claude), "authorization", "Bearer TOKEN", []string{"user:inference"}, "", nil},
		{"empty second credential header", f.anthropic("GET", "/v1/models", "authorization", "Bearer "+claude, "x-api-key", ""), "authorization", "Bearer TOKEN", []string{"user:inference"}, "", nil},
		{"cookie beside", f.anthropic("GET", "/v1/models", "authorization", "Bearer "+claude, "cookie", "a=b"), "authorization", "Bearer TOKEN", []string{"user:inference"}, "", nil},
		{"hop-by-hop of other headers", f.anthropic("GET", "/v1/models", "authorization", "Bearer "+claude, "connection", "keep-alive, upgrade"), "authorization", "Bearer TOKEN", []string{"user:inference"}, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(f.policy, f.sessions, &c.request, now)
			if d.refusal != nil {
				t.Fatalf("refused: %s", d.refusal.message())
			}
			if d.swap == nil {
				t.Fatal("passed")
			}
			if d.swap.out.header != c.header || d.swap.out.value("TOKEN") != c.value {
				t.Errorf("%s: %s, want %s: %s", d.swap.out.header, d.swap.out.value("TOKEN"), c.header, c.value)
			}
			if strings.Join(d.swap.remove, ",") != c.remove || d.swap.grant != d.route.Credential {
				t.Errorf("remove %q, grant %q", d.swap.remove, d.swap.grant)
			}
			if diff := cmp.Diff(c.scopes, d.swap.scopes); diff != "" {
				t.Error("scopes", diff)
			}
			if diff := cmp.Diff(c.set, d.swap.set, cmp.AllowUnexported(header{})); diff != "" {
				t.Error("list headers", diff)
			}
		})
	}
}

// A credential of somebody else is replaced where the route says so, whatever its form and its header.
func TestDecideReplacesForeignCredentials(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		name    string
		headers []string
		value   string
		remove  string
	}{
		{"bearer", []string{"authorization", "Bearer of-the-worker"}, "Bearer TOKEN", ""},
		{"Basic", []string{"authorization", basicAuth("me", "secret")}, basicAuth("me", "TOKEN"), ""},
		{"a scheme nobody reads", []string{"authorization", "Digest username=x"}, "Bearer TOKEN", ""},
		{"bare", []string{"authorization", "of-the-worker"}, "Bearer TOKEN", ""},
		{"another header", []string{"x-api-key", "of-the-worker"}, "Bearer TOKEN", "x-api-key"},
		{"both", []string{"authorization", "Bearer a", "x-api-key", "b"}, "Bearer TOKEN", "x-api-key"},
		{"its own placeholder", []string{"authorization", "Bearer " + f.placeholder("replaced", "")}, "Bearer TOKEN", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := f.to("replaced.example.com", "GET", "/", c.headers...)
			d := decide(f.policy, f.sessions, &r, now)
			if d.swap == nil || d.swap.out.value("TOKEN") != c.value || d.swap.out.header != "authorization" || strings.Join(d.swap.remove, ",") != c.remove {
				t.Errorf("got %+v, refusal %+v", d.swap, d.refusal)
			}
		})
	}
	for name, headers := range map[string][]string{
		notYourPlaceholder:  {"authorization", "Bearer " + f.placeholder("replaced", "") + "x"},
		duplicateCredential: {"authorization", "Bearer a, Bearer b"},
	} {
		r := f.to("replaced.example.com", "GET", "/", headers...)
		if d := decide(f.policy, f.sessions, &r, now); d.refusal == nil || d.refusal.reason != name {
			t.Errorf("%s: got %+v", name, d.refusal)
		}
	}
	r := f.to("replaced.example.com", "GET", "/")
	if d := decide(f.policy, f.sessions, &r, now); d.swap != nil || d.refusal != nil {
		t.Errorf("a request without a credential: %+v", d)
	}
}

// git sends its placeholder when it is asked, and before that nothing, or the user of the address. A refusal that asks for nothing would be its last word.
func TestDecideAsksForCredentials(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		host, authorization string
		asks                bool
	}{
		{"asks.example.com", "", true},
		{"asks.example.com", basicAuth("", ""), true},
		{"asks.example.com", basicAuth("me", ""), true},
		{"own.example.com", basicAuth("me", ""), false}, // an API whose key may be the user
		{"asks.example.com", basicAuth("me", "own"), false},
		{"asks.example.com", "Bearer own", false},
		{"asks.example.com", basicAuth("me", f.placeholder("plain", "")), false},
	} {
		r := f.to(c.host, "GET", "/r.git/info/refs", "authorization", c.authorization)
		d := decide(f.policy, f.sessions, &r, now)
		if d.refusal == nil {
			t.Errorf("%s, %q: not refused", c.host, c.authorization)
			continue
		}
		a := d.refusal.answer(d.route, "1")
		challenge := slices.Contains(a.headers, [2]string{"www-authenticate", `Basic realm="wayleave"`})
		if challenge != c.asks || (a.status == 401) != c.asks {
			t.Errorf("%s, %q: %d %v", c.host, c.authorization, a.status, a.headers)
		}
	}
}

// A placeholder in the query goes out as a token in a header, and the rest of the address as it came.
func TestDecideTakesParameters(t *testing.T) {
	f := newFixture(t)
	placeholder := f.placeholder("queried", "")
	encoded := strings.ReplaceAll(placeholder, "wl", "%77%6C")
	for _, c := range []struct {
		name, host, path string
		headers          []string
		want             string // path that is sent on; empty: refused, or passed as it is
		value            string
		reason           string
	}{
		{name: "alone", path: "/v1/models?key=" + placeholder, want: "/v1/models", value: "TOKEN"},
		{name: "first", path: "/v1/models?key=" + placeholder + "&alt=sse&q=a%20b+c", want: "/v1/models?alt=sse&q=a%20b+c", value: "TOKEN"},
		{name: "last", path: "/v1/models?&alt=sse&&x&key=" + placeholder, want: "/v1/models?&alt=sse&&x", value: "TOKEN"},
		{name: "percent-encoded", path: "/v1/models?%6bey=" + encoded + "&a=?b=/", want: "/v1/models?a=?b=/", value: "TOKEN"},
		{name: "with a scheme", host: "bearer-queried.example.com", path: "/?access_token=" + placeholder, want: "/", value: "Bearer TOKEN"},
		{name: "in the header", path: "/v1/models?a=b", headers: []string{"x-goog-api-key", placeholder}, value: "TOKEN"},
		{name: "a key of the worker's own", path: "/v1/models?key=own"},
		{name: "twice", path: "/?key=" + placeholder + "&key=own", reason: duplicateCredential},
		{name: "in the header as well", path: "/?key=" + placeholder, headers: []string{"x-goog-api-key", placeholder}, reason: duplicateCredential},
		{name: "another credential beside", path: "/?key=" + placeholder, headers: []string{"authorization", "Bearer x"}, reason: duplicateCredential},
		{name: "another parameter", path: "/?key2=" + placeholder, reason: misplacedPlaceholder},
		{name: "another separator", path: "/?a=b;key=" + placeholder, reason: misplacedPlaceholder},
		{name: "in upper case", path: "/?KEY=" + placeholder, reason: misplacedPlaceholder},
		{name: "elsewhere too", path: "/" + placeholder + "?key=" + placeholder, reason: misplacedPlaceholder},
		{name: "somebody else's", path: "/?key=" + placeholder + "x", reason: notYourPlaceholder},
		{name: "another route", host: "plain.example.com", path: "/?key=" + placeholder, reason: misplacedPlaceholder},
	} {
		t.Run(c.name, func(t *testing.T) {
			host := c.host
			if host == "" {
				host = "queried.example.com"
			}
			r := f.to(host, "GET", c.path, c.headers...)
			d := decide(f.policy, f.sessions, &r, now)
			switch {
			case c.reason != "":
				if d.refusal == nil || d.refusal.reason != c.reason {
					t.Errorf("got %+v", d.refusal)
				}
			case d.refusal != nil || (d.swap == nil) != (c.value == ""):
				t.Errorf("got %+v, refusal %+v", d.swap, d.refusal)
			case d.swap != nil && (d.swap.path != c.want || d.swap.out.value("TOKEN") != c.value):
				t.Errorf("got %q %q", d.swap.path, d.swap.out.value("TOKEN"))
			}
		})
	}
}

// What leaves as it is: another credential, or none, is none of ours.
func TestDecidePasses(t *testing.T) {
	f := newFixture(t)
	keyed := func(method string, headers ...string) request {
		r := f.to("keyed.example.com", method, "/", headers...)
		r.authority, r.connectAuthority = "keyed.example.com:8443", "keyed.example.com:8443"
		return r
	}
	for _, c := range []struct {
		name      string
		request   request
		remove    []string
		socketKey bool
	}{
		{"nothing", f.anthropic("GET", "/"), nil, false},
		{"empty header", f.anthropic("GET", "/", "authorization", ""), nil, false},
		{"another bearer", f.anthropic("GET", "/v1/code/sessions/x/worker/events/stream", "authorization", "Bearer other-jwt.a.b"), nil, false},
		{"an API key of the worker's own", f.anthropic("POST", "/v1/messages", "x-api-key", "sk-own"), nil, false},
		{"both of its own", f.anthropic("POST", "/v1/messages", "authorization", "Bearer own", "x-api-key", "sk-own"), nil, false},
		{"Basic of its own", f.to("github.com", "GET", "/", "authorization", basicAuth("me", "own")), nil, false},
		{"Basic without a colon", f.to("github.com", "GET", "/", "authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("x"))), nil, false},
		{"a scheme with parameters", f.anthropic("GET", "/", "authorization", `Digest username="a", realm="b"`), nil, false},
		{"no scheme", f.anthropic("GET", "/", "authorization", "abc"), nil, false},
		{"OPTIONS *", f.anthropic("OPTIONS", "*"), nil, false},
		{"extension method", f.anthropic("PROPFIND", "/"), nil, false},
		{"a header with the same method and path", f.anthropic("GET", "/a?b", "x-http-method-override", "get", "x-original-url", "/a?b"), nil, false},
		{"a header with a method that no rule tells apart", f.anthropic("POST", "/a", "x-http-method-override", "GET"), nil, false},
		{"a header with a path that no rule tells apart", f.anthropic("POST", "/a", "x-original-url", "/b", "x-other-url", "/v1/organizations"), nil, false},
		{"proxy headers and ours", f.anthropic("GET", "/", "proxy-authorization", "Basic eA==", "proxy-connection", "close", "x-wayleave-identity", "root", "X-other", "1"),
			[]string{"proxy-authorization", "proxy-connection", "x-wayleave-identity"}, false},
		{"WebSocket without a key", f.anthropic("GET", "/ws", "upgrade", "WebSocket"), nil, true},
		{"WebSocket with a key", f.anthropic("GET", "/ws", "upgrade", "websocket", "sec-websocket-key", "x"), nil, false},
		{"another upgrade", f.anthropic("GET", "/ws", "upgrade", "h2c"), nil, false},
		{"wildcard", f.to("a.b.wild.example.com", "GET", "/"), nil, false},
		{"a browser's question where a credential is wanted", keyed("OPTIONS", "origin", "https://a.example", "access-control-request-method", "GET"), nil, false},
		{"nobody's name, which asks for a challenge, where no other credential is taken", f.to("own.example.com", "GET", "/", "authorization", basicAuth("", "")), nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(f.policy, f.sessions, &c.request, now)
			if d.refusal != nil {
				t.Fatalf("refused: %s", d.refusal.message())
			}
			if d.swap != nil {
				t.Fatal("swapped")
			}
			if diff := cmp.Diff(c.remove, d.remove); diff != "" {
				t.Error(diff)
			}
			if d.addSocketKey != c.socketKey {
				t.Errorf("addSocketKey = %v", d.addSocketKey)
			}
		})
	}
}

// Every reason decide can have, by several ways each. A case takes one good request, which would be swapped, apart.
func TestDecideRefuses(t *testing.T) {
	f := newFixture(t)
	claude := f.claude()
	b64 := base64.StdEncoding.EncodeToString
	good := func(change func(r *request)) request {
		r := f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+claude)
		change(&r)
		return r
	}
	authorization := func(value string) request {
		return good(func(r *request) { r.headers[0].value = value })
	}
	more := func(headers ...string) request {
		return good(func(r *request) {
			for i := 0; i < len(headers); i += 2 {
				r.headers = append(r.headers, header{headers[i], headers[i+1]})
			}
		})
	}
	at := func(path string) request { return good(func(r *request) { r.path = path }) }
	method := func(m string) request { return good(func(r *request) { r.method = m }) }
	identity := func(s string) request { return good(func(r *request) { r.identity = s }) }
	names := func(connect, sni, authority string) request {
		return good(func(r *request) { r.connectAuthority, r.serverName, r.authority = connect, sni, authority })
	}
	as := func(worker, profile string, r request) request {
		s, _, err := f.sessions.Issue(worker, profile, time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		r.identity = s.Identity()
		for i := range r.headers {
			r.headers[i].value = strings.ReplaceAll(r.headers[i].value, claude, f.sessions.Placeholder(s, "claude", "sk-ant-oat01-"))
		}
		return r
	}
	if r := good(func(*request) {}); decide(f.policy, f.sessions, &r, now).swap == nil {
		t.Fatal("the good request is not swapped")
	}

	for _, c := range []struct {
		reason  string
		name    string
		request request
	}{
		{proxyAuthRequired, "no identity", identity("")},
		{proxyAuthRequired, "not an identity", identity("-")},
		{proxyAuthRequired, "half an identity", identity(f.session.ID + "|ci|default")},
		{proxyAuthRequired, "identity in a header", good(func(r *request) {
			r.identity = ""
			r.headers = append(r.headers, header{"x-wayleave-identity", f.session.Identity()}, header{"wayleave.identity", f.session.Identity()})
		})},

		{sessionExpired, "over", identity(worker.Session{ID: f.session.ID, Worker: "ci", Profile: "default", Expires: now}.Identity())},
		{sessionExpired, "long over", identity(worker.Session{ID: f.session.ID, Worker: "ci", Profile: "default", Expires: now.Add(-1000 * time.Hour)}.Identity())},
		{sessionExpired, "the worker is gone", as("gone", "default", good(func(*request) {}))},
		{sessionExpired, "the worker has another profile now", as("moved", "default", good(func(*request) {}))},

		{policyDenied, "another user's name", f.to("own.example.com", "GET", "/", "authorization", basicAuth("me", ""))},
		{policyDenied, "nobody's password", f.to("own.example.com", "GET", "/", "authorization", basicAuth("", "own"))},
		{policyDenied, "nobody's name, and a key", f.to("own.example.com", "GET", "/", "authorization", basicAuth("", ""), "x-api-key", "own")},

		{policyDenied, "TRACE", method("TRACE")},
		{policyDenied, "trace in lower case", method("trace")},
		{policyDenied, "TRACK", method("TRACK")},
		{policyDenied, "CONNECT inside", method("CONNECT")},
		{policyDenied, "no method", method("")},
		{policyDenied, "two methods", method(repeated)},
		{policyDenied, "method with a space", method("GET /x")},
		{policyDenied, "a method the route does not have", func() request {
			r := f.to("keyed.example.com", "POST", "/", "x-api-key", f.placeholder("keyed", ""))
			r.authority, r.connectAuthority = "keyed.example.com:8443", "keyed.example.com:8443"
			return r
		}()},
		{policyDenied, "TRACE in a header", more("x-http-method-override", "trace")},
		{policyDenied, "no method in a header", more("x-http-method", "a b")},
		{policyDenied, "a method the route does not have in a header", func() request {
			r := f.to("keyed.example.com", "GET", "/", "x-api-key", f.placeholder("keyed", ""), "x-method-override", "DELETE")
			r.authority, r.connectAuthority = "keyed.example.com:8443", "keyed.example.com:8443"
			return r
		}()},
		{policyDenied, "a denied method on a path in a header", f.anthropic("GET", "/readonly/x", "authorization", "Bearer "+claude, "x-http-method-override", "post")},
		{policyDenied, "another method in a header than is denied on a path", good(func(r *request) {
			r.path, r.headers = "/readonly/x", append(r.headers, header{"x_http_method_override", "GET"})
		})},
		{policyDenied, "a denied path in a header", more("x-original-url", "/v1/organizations")},
		{policyDenied, "a denied path in a header, encoded", more("x-rewrite-url", "/v1/code/%2e%2e/organizations?a")},
		{policyDenied, "a path in a header that is none", more("x_original_url", "https://api.anthropic.com/v1/organizations")},
		{policyDenied, "another path in a header", more("x-original-url", "/v1/code/x")},
		{policyDenied, "a denied path", at("/v1/organizations")},
		{policyDenied, "a denied path with a query", at("/v1/organizations?a=/v1/messages")},
		{policyDenied, "a denied method on a path", at("/readonly/x")},
		{policyDenied, "a denied path, percent-encoded", at("/v1/organi%7aations")},
		{policyDenied, "a denied path, percent-encoded twice", at("/v1/organi%257aations")},
		{policyDenied, "a denied path by way of another", at("/v1/code/../organizations")},
		{policyDenied, "a denied path by way of another, encoded", at("/v1/code/%2e%2e/organizations")},
		{policyDenied, "a denied path by way of another, encoded slash", at("/v1/code/..%2forganizations")},
		{policyDenied, "a denied path with a backslash", at(`/v1/code/..\organizations`)},
		{policyDenied, "a denied path with slashes", at("//v1///organizations")},
		{policyDenied, "a denied path where only dots are resolved", at("/v1//../organizations")},
		{policyDenied, "a denied path where ; is part of a name", at("/v1/..;/../organizations")},
		{policyDenied, "a denied path in another case", at("/v1/Organizations")},
		{policyDenied, "a denied path in upper case", at("/V1/ORGANIZATIONS?a")},
		{policyDenied, "a denied path with a letter that is another in upper case", at("/v1/organization%C5%BF")},
		{policyDenied, "a denied path in bytes that old decoders take for its letters", at("/v1/%c1%afrganizations")},
		{policyDenied, "a denied path and a NUL", at("/v1/organizations%00x")},
		{policyDenied, "a denied path and a fragment", at("/v1/organizations%23x")},
		{policyDenied, "a denied path and final dots and spaces", at("/v1/organizations.%20.")},
		{policyDenied, "a denied path with a dot at the end of a name", at("/v1./organizations")},
		{policyDenied, "more methods than anybody means", at("/v1/messages?" + strings.Repeat("_method=PUT&_method=", 10) + "A&_method=B&_method=C&_method=D&_method=E&_method=F&_method=G&_method=H")},
		{policyDenied, "a denied path in another such header", more("x-override-url", "/v1/organizations")},
		{policyDenied, "a denied path and a slash", at("/v1/organizations/")},
		{policyDenied, "a denied path in another case and a slash, encoded", at("/v1/%4frganizations%2f")},
		{policyDenied, "a denied path in a header, in another case", more("x-original-url", "/v1/ORGANIZATIONS")},
		{policyDenied, "a denied method in the query", func() request {
			return f.anthropic("GET", "/readonly/x?_method=POST", "authorization", "Bearer "+claude)
		}()},
		{policyDenied, "a denied method in the query, as a header is called", func() request {
			return f.anthropic("GET", "/readonly/x?a;X-HTTP-Method-Override=post", "authorization", "Bearer "+claude)
		}()},
		{policyDenied, "a denied method in lower case", func() request {
			return f.anthropic("post", "/readonly/x", "authorization", "Bearer "+claude)
		}()},
		{policyDenied, "a denied path without its final slash", func() request {
			return f.anthropic("POST", "/readonly", "authorization", "Bearer "+claude)
		}()},
		{policyDenied, "TRACE in the query", at("/v1/messages?_method=TRACE")},
		{policyDenied, "a path of many readings", at(strings.Repeat(`//a\..;x%2f%252f%5c`, 5_000))},
		{policyDenied, "a denied path with parameters", at("/v1;a=b/organizations;c")},
		{policyDenied, "a rule's scopes evaded by encoding", at("/v1/c%6fde/sessions")},
		{policyDenied, "no path", at("")},
		{policyDenied, "a path that is a URL", at("https://evil.example.com/")},
		{policyDenied, "no credential where one is wanted, and no browser's question", func() request {
			r := f.to("keyed.example.com", "OPTIONS", "/", "origin", "https://a.example")
			r.authority, r.connectAuthority = "keyed.example.com:8443", "keyed.example.com:8443"
			return r
		}()},
		{policyDenied, "no credential where one is wanted, and a browser's question in name only", func() request {
			r := f.to("keyed.example.com", "OPTIONS", "/", "origin", "https://a.example", "access-control-request-method", "GET", "x-http-method-override", "GET")
			r.authority, r.connectAuthority = "keyed.example.com:8443", "keyed.example.com:8443"
			return r
		}()},
		{policyDenied, "no credential where one is wanted", func() request {
			r := f.to("keyed.example.com", "GET", "/")
			r.authority, r.connectAuthority = "keyed.example.com:8443", "keyed.example.com:8443"
			return r
		}()},
		{policyDenied, "another credential where none is taken", func() request {
			r := f.to("keyed.example.com", "GET", "/", "x-api-key", "own")
			r.authority, r.connectAuthority = "keyed.example.com:8443", "keyed.example.com:8443"
			return r
		}()},
		{policyDenied, "another credential in another header where none is taken", func() request {
			r := f.to("keyed.example.com", "GET", "/", "authorization", "Bearer own")
			r.authority, r.connectAuthority = "keyed.example.com:8443", "keyed.example.com:8443"
			return r
		}()},
		{policyDenied, "a profile without the credential", as("poor", "poor", good(func(*request) {}))},
		{policyDenied, "an own placeholder the profile no longer has", f.to("other.example.com", "GET", "/", "authorization", "Bearer "+f.placeholder("others", ""))},

		{misdirected, "another authority", names("api.anthropic.com:443", "api.anthropic.com", "evil.example.com")},
		{misdirected, "another authority of ours", names("api.anthropic.com:443", "api.anthropic.com", "github.com")},
		{misdirected, "another server name", names("api.anthropic.com:443", "github.com", "api.anthropic.com")},
		{misdirected, "another CONNECT", names("github.com:443", "api.anthropic.com", "api.anthropic.com")},
		{misdirected, "another port of CONNECT", names("api.anthropic.com:444", "api.anthropic.com", "api.anthropic.com")},
		{misdirected, "another port of the authority", names("api.anthropic.com:443", "api.anthropic.com", "api.anthropic.com:444")},
		{misdirected, "no port where one is needed", names("keyed.example.com:8443", "keyed.example.com", "keyed.example.com")},
		{misdirected, "no CONNECT", names("", "api.anthropic.com", "api.anthropic.com")},
		{misdirected, "CONNECT without a port", names("api.anthropic.com", "api.anthropic.com", "api.anthropic.com")},
		{misdirected, "no server name", names("api.anthropic.com:443", "", "api.anthropic.com")},
		{misdirected, "no authority", names("api.anthropic.com:443", "api.anthropic.com", "")},
		{misdirected, "final dot in the authority", names("api.anthropic.com:443", "api.anthropic.com", "api.anthropic.com.")},
		{misdirected, "final dot everywhere", names("api.anthropic.com.:443", "api.anthropic.com.", "api.anthropic.com.")},
		{misdirected, "user in the authority", names("api.anthropic.com:443", "api.anthropic.com", "evil@api.anthropic.com")},
		{misdirected, "two authorities", names("api.anthropic.com:443", "api.anthropic.com", repeated)},
		{misdirected, "authorities joined", names("api.anthropic.com:443", "api.anthropic.com", "api.anthropic.com,evil.example.com")},
		{misdirected, "another Host", more("host", "evil.example.com")},

		{hostNotAllowed, "no route", names("evil.example.com:443", "evil.example.com", "evil.example.com")},
		{hostNotAllowed, "no route on this port", names("api.anthropic.com:8443", "api.anthropic.com", "api.anthropic.com:8443")},
		{hostNotAllowed, "a tunnel is not a route", names("pypi.org:443", "pypi.org", "pypi.org")},
		{hostNotAllowed, "a wildcard does not cover its own suffix", names("wild.example.com:443", "wild.example.com", "wild.example.com")},
		{hostNotAllowed, "denied under a wildcard", names("telemetry.wild.example.com:443", "telemetry.wild.example.com", "telemetry.wild.example.com")},
		{hostNotAllowed, "denied by a longer wildcard", names("x.deep.wild.example.com:443", "x.deep.wild.example.com", "x.deep.wild.example.com")},
		{hostQuarantined, "a fault under a wildcard", names("faulty.wild.example.com:443", "faulty.wild.example.com", "faulty.wild.example.com")},
		{hostQuarantined, "a fault of a route", f.to("faulty.example.com", "GET", "/", "authorization", "Bearer own")},
		{hostNotAllowed, "passing on a route the profile does not have", f.to("other.example.com", "GET", "/", "authorization", "Bearer own")},

		{tokenEndpoint, "token endpoint", at("/v1/oauth/token")},
		{tokenEndpoint, "token endpoint and more", at("/v1/oauth/token/x?y")},
		{tokenEndpoint, "token endpoint, encoded", at("/v1/oauth/%74oken")},
		{tokenEndpoint, "token endpoint, encoded twice", at("/v1/oauth/%2574oken")},
		{tokenEndpoint, "token endpoint with dots", at("/v1/x/../oauth/token")},
		{tokenEndpoint, "token endpoint with slashes", at("/v1//oauth/token")},
		{tokenEndpoint, "token endpoint where only dots are resolved", at("/v1//../oauth/token")},
		{tokenEndpoint, "token endpoint in another case", at("/V1/OAuth/Token")},
		{tokenEndpoint, "token endpoint in another case, encoded", at("/v1/o%41uth/token")},
		{tokenEndpoint, "in a header, in another case", more("x-original-url", "/v1/OAuth/token")},
		{tokenEndpoint, "in a header", more("x-original-url", "/v1/oauth/token")},
		{tokenEndpoint, "in a second header", more("x-original-url", "/v1/messages", "x-rewrite-url", " /V1/../v1/oauth/token?x")},
		{tokenEndpoint, "without a credential", f.to("github.com", "POST", "/login/oauth/access_token")},

		{policyDenied, "of a connection", f.anthropic("GET", "/", "authorization", "NTLM TlRMTVNTUAABAAAAB4IIAA==")},
		{policyDenied, "of a connection, in other letters", f.anthropic("GET", "/", "authorization", "negotiate\tYIIabc")},
		{policyDenied, "of a connection, alone", f.anthropic("GET", "/", "authorization", "NTLM")},
		{policyDenied, "of a connection, in a list", f.anthropic("GET", "/", "authorization", `Digest username="a", NTLM TlRM`)},
		{policyDenied, "of a connection, where the credential is elsewhere", f.to("turned.example.com", "GET", "/", "authorization", "Kerberos abc")},

		{duplicateCredential, "placeholder, then another", more("authorization", "Bearer evil")},
		{duplicateCredential, "another, then placeholder", good(func(r *request) { r.headers = append([]header{{"authorization", "Bearer evil"}}, r.headers...) })},
		{duplicateCredential, "placeholder twice", more("authorization", "Bearer "+claude)},
		{duplicateCredential, "placeholder and nothing", more("authorization", "")},
		{duplicateCredential, "two others", f.anthropic("GET", "/", "authorization", "Bearer a", "authorization", "Bearer b")},
		{duplicateCredential, "joined", authorization("Bearer " + claude + ",Bearer evil")},
		{duplicateCredential, "joined with a space", authorization("Bearer evil, Bearer " + claude)},
		{duplicateCredential, "others joined", authorization("Bearer a,Bearer b")},
		{duplicateCredential, "joined without a scheme", f.to("turned.example.com", "GET", "/", "x-api-key", f.placeholder("turned", "")+", evil")},
		{duplicateCredential, "Basic joined", f.to("github.com", "GET", "/", "authorization", basicAuth("u", f.placeholder("github", "gho_"))+","+basicAuth("u", "evil"))},
		{duplicateCredential, "another header of credentials too", more("x-api-key", "evil")},
		{duplicateCredential, "a header of another route too", more("x-auth", "Key evil")},
		{duplicateCredential, "in both headers", f.to("either.example.com", "GET", "/", "x-api-key", f.placeholder("either", ""), "authorization", "Bearer "+f.placeholder("either", ""))},
		{duplicateCredential, "in the one, and another in the other", f.to("either.example.com", "GET", "/", "x-api-key", f.placeholder("either", ""), "authorization", "Bearer evil")},
		{misplacedPlaceholder, "in the other, and another in the one", f.to("either.example.com", "GET", "/", "x-api-key", "evil", "authorization", "Bearer "+f.placeholder("either", ""))},
		{misplacedPlaceholder, "in neither", f.to("either.example.com", "GET", "/", "authorization", "Bearer other", "x-note", f.placeholder("either", ""))},
		{notYourPlaceholder, "somebody's in the other header", f.to("either.example.com", "GET", "/", "authorization", "Bearer "+f.placeholder("turned", ""))},
		{duplicateCredential, "the outgoing header too", f.to("turned.example.com", "GET", "/", "x-api-key", f.placeholder("turned", ""), "authorization", "Bearer evil")},
		{duplicateCredential, "hop-by-hop", more("connection", "close, Authorization")},
		{duplicateCredential, "hop-by-hop in a second line", more("connection", "close", "connection", "x-api-key")},

		{misplacedPlaceholder, "query", at("/v1/messages?key=" + claude)},
		{misplacedPlaceholder, "path", at("/v1/" + claude + "/x")},
		{misplacedPlaceholder, "query, percent-encoded", at("/v1/messages?key=" + strings.ReplaceAll(claude, "wl", "%77%6C"))},
		{misplacedPlaceholder, "query, percent-encoded twice", at("/v1/messages?key=" + strings.ReplaceAll(claude, "wl", "%2577%256c"))},
		{misplacedPlaceholder, "query, percent-encoded beside nonsense", at("/v1/messages?x=%zz&key=" + strings.ReplaceAll(claude, "wl", "%77%6C"))},
		{misplacedPlaceholder, "query, base64", at("/v1/messages?state=" + url.QueryEscape(b64([]byte(`{"t":"`+claude+`"}`))))},
		{misplacedPlaceholder, "query, in upper case", at("/v1/messages?key=" + strings.ToUpper(claude))},
		{misplacedPlaceholder, "another header", more("x-forwarded-authorization", "Bearer "+claude)},
		{misplacedPlaceholder, "cookie", more("cookie", "a=b; session="+claude)},
		{misplacedPlaceholder, "cookie, base64", more("cookie", "session="+b64([]byte("xx"+claude)))},
		{misplacedPlaceholder, "user agent", more("user-agent", "curl "+claude)},
		{misplacedPlaceholder, "proxy-authorization", more("proxy-authorization", "Bearer "+claude)},
		{misplacedPlaceholder, "somebody else's", more("x-note", f.sessions.Placeholder(f.other, "claude", "sk-ant-oat01-"))},
		{misplacedPlaceholder, "the name of a header", more("x-"+worker.Marker, "1")},
		{misplacedPlaceholder, "referer", more("referer", "https://x/?k="+url.QueryEscape(claude))},
		{misplacedPlaceholder, "API key on a bearer route", f.anthropic("GET", "/", "x-api-key", claude)},
		{misplacedPlaceholder, "bearer on an API key route", f.to("turned.example.com", "GET", "/", "authorization", "Bearer "+f.placeholder("turned", ""))},
		{misplacedPlaceholder, "underscores", f.anthropic("GET", "/", "x_api_key", claude)},
		{duplicateCredential, "one more, with underscores", more("x_api_key", "sk-evil")},

		{notYourPlaceholder, "another session's", authorization("Bearer " + f.sessions.Placeholder(f.other, "claude", "sk-ant-oat01-"))},
		{notYourPlaceholder, "another credential's", authorization("Bearer " + f.placeholder("github", "gho_"))},
		{notYourPlaceholder, "another credential's with this prefix", authorization("Bearer " + f.placeholder("github", "sk-ant-oat01-"))},
		{notYourPlaceholder, "another prefix", authorization("Bearer " + f.placeholder("claude", "gho_"))},
		{notYourPlaceholder, "one character more", authorization("Bearer " + claude + "a")},
		{notYourPlaceholder, "one character less", authorization("Bearer " + claude[:len(claude)-1])},
		{notYourPlaceholder, "only the marker", authorization("Bearer sk-ant-oat01-" + worker.Marker)},
		{notYourPlaceholder, "upper case", authorization("Bearer " + strings.ToUpper(claude))},
		{notYourPlaceholder, "percent-encoded", authorization("Bearer " + strings.ReplaceAll(claude, "-", "%2D"))},
		{notYourPlaceholder, "quoted", authorization(`Bearer "` + claude + `"`)},
		{notYourPlaceholder, "with a parameter", authorization("Bearer " + claude + "; a=b")},
		{notYourPlaceholder, "trailing space", authorization("Bearer " + claude + " ")},
		{notYourPlaceholder, "tab after the scheme", authorization("Bearer\t" + claude)},
		{notYourPlaceholder, "no scheme", authorization(claude)},
		{notYourPlaceholder, "another scheme", authorization("Negotiate " + claude)},
		{notYourPlaceholder, "parameters of another scheme", authorization(`Digest username="a", response="` + claude + `"`)},
		{notYourPlaceholder, "a scheme where there is none", f.to("turned.example.com", "GET", "/", "x-api-key", "Bearer "+f.placeholder("turned", ""))},
		{notYourPlaceholder, "Basic with another session's", authorization(basicAuth("u", f.sessions.Placeholder(f.other, "claude", "sk-ant-oat01-")))},
		{notYourPlaceholder, "Basic with one of two wrong", authorization(basicAuth(f.sessions.Placeholder(f.other, "claude", "sk-ant-oat01-"), claude))},
		{notYourPlaceholder, "Basic with a suffix", authorization(basicAuth("u", claude+"\n"))},
		{notYourPlaceholder, "Basic with a second colon", authorization(basicAuth("u", claude+":x"))},
		{notYourPlaceholder, "Basic without a colon", authorization("Basic " + b64([]byte(claude)))},
		{notYourPlaceholder, "Basic without padding", authorization(strings.TrimRight(basicAuth("u", claude+"aa"), "="))},
		{notYourPlaceholder, "Basic in two layers", authorization(basicAuth("u", b64([]byte(claude))))},
	} {
		t.Run(c.reason+"/"+c.name, func(t *testing.T) {
			d := decide(f.policy, f.sessions, &c.request, now)
			if d.refusal == nil {
				t.Fatalf("not refused; swapped: %v", d.swap != nil)
			}
			if d.swap != nil {
				t.Error("refused and swapped")
			}
			if d.refusal.reason != c.reason {
				t.Errorf("refused as %s, want %s: %s", d.refusal.reason, c.reason, d.refusal.message())
			}
			if m := d.refusal.message(); strings.Contains(m, worker.Marker) || strings.Contains(m, "{") {
				t.Errorf("message: %s", m)
			}
		})
	}
}

// The order of the checks is part of the policy: nobody learns from a refusal what an earlier step protects.
func TestDecideOrder(t *testing.T) {
	f := newFixture(t)
	wrongEverything := func() request {
		r := f.anthropic("TRACE", "/v1/oauth/token?k="+f.claude(), "authorization", "Bearer "+worker.Marker, "authorization", "x")
		r.identity, r.authority = "", "evil.example.com"
		return r
	}
	steps := []struct {
		want string
		fix  func(r *request)
	}{
		{proxyAuthRequired, func(r *request) {
			r.identity = worker.Session{ID: f.session.ID, Worker: "ci", Profile: "default"}.Identity()
		}},
		{sessionExpired, func(r *request) { r.identity = f.session.Identity() }},
		{misdirected, func(r *request) { r.authority = "api.anthropic.com" }},
		{policyDenied, func(r *request) { r.method = "POST" }},
		{tokenEndpoint, func(r *request) { r.path = "/v1/messages?k=" + f.claude() }},
		{duplicateCredential, func(r *request) { r.headers = r.headers[:1] }},
		{misplacedPlaceholder, func(r *request) { r.path = "/v1/messages" }},
		{notYourPlaceholder, func(r *request) { r.headers[0].value = "Bearer " + f.claude() }},
	}
	r := wrongEverything()
	for _, step := range steps {
		d := decide(f.policy, f.sessions, &r, now)
		if d.refusal == nil || d.refusal.reason != step.want {
			t.Fatalf("got %+v, want %s", d.refusal, step.want)
		}
		step.fix(&r)
	}
	if d := decide(f.policy, f.sessions, &r, now); d.swap == nil {
		t.Errorf("with everything mended: %+v", d.refusal)
	}
}

func TestReasonsAreComplete(t *testing.T) {
	want := []string{neverConnected, scopeMissing, needsReconnect, refreshUnavailable, vaultUnavailable, notYourPlaceholder, hostNotAllowed, hostQuarantined, misdirected,
		duplicateCredential, policyDenied, sessionExpired, sessionRevoked, proxyAuthRequired, misplacedPlaceholder, badCredentialStored, tokenEndpoint,
		approvalNeeded, approvalDenied, approvalTimedOut, approvalUnavailable, rateLimited, AuditUnavailable}
	var got []string
	for _, r := range Reasons() {
		got = append(got, r.Name)
		if r.Status < 400 || r.Status > 599 || r.Status == 401 || r.Words == "" {
			t.Errorf("%+v", r)
		}
		if (r.Status == 503) != r.Retry && r.Name != badCredentialStored && r.Name != tokenEndpoint && r.Name != rateLimited {
			t.Errorf("%s: status %d, retry %v", r.Name, r.Status, r.Retry)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzBasic(f *testing.F) {
	f.Add("dTpw")
	f.Add("dTpw\n")
	f.Add("Og==")
	f.Fuzz(func(t *testing.T, in string) {
		user, password, ok := basic(in)
		if ok && base64.StdEncoding.EncodeToString([]byte(user+":"+password)) != in {
			t.Errorf("%q is read as %q and %q", in, user, password)
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	f := newFixture(b)
	r := f.anthropic("POST", "/v1/messages?beta=true",
		"accept", "application/json", "authorization", "Bearer "+f.claude(), "anthropic-version", "2023-06-01",
		"anthropic-beta", "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
		"content-type", "application/json", "content-length", "123456", "user-agent", "claude-cli/2.1.331 (external, sdk-cli)",
		"x-app", "cli", "x-claude-code-session-id", "9d1c250a-e61b-44d9-88ed-5944d1962f5e", "x-stainless-timeout", "600",
		"x-stainless-lang", "js", "x-stainless-os", "Linux", "accept-encoding", "gzip, deflate, br, zstd")
	b.ReportAllocs()
	for b.Loop() {
		if d := decide(f.policy, f.sessions, &r, now); d.swap == nil {
			b.Fatal(d.refusal.reason)
		}
	}
}

// A worker that is known by its address has the placeholders of its own sessions, while these last.
func TestDecideByAddress(t *testing.T) {
	f := newFixture(t)
	cfg := testConfig
	cfg.Addresses = map[string][]netip.Prefix{
		f.session.Worker: {netip.MustParsePrefix("10.1.2.3/32"), netip.MustParsePrefix("192.0.2.0/24")},
		"poor":           {netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("::/0")},
	}
	p := newPolicy(cfg)
	over, _, err := f.sessions.Issue(f.session.Worker, f.session.Profile, -time.Second, now)
	if err != nil {
		t.Fatal(err)
	}
	theirs, _, err := f.sessions.Issue("poor", "poor", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	placeholder := func(s worker.Session) string {
		return f.sessions.Placeholder(s, "claude", "sk-ant-oat01-")
	}
	replacing := cfg
	replacing.Routes = slices.Clone(cfg.Routes)
	for i := range replacing.Routes {
		replacing.Routes[i].Foreign = Replace
	}
	r := f.anthropic("POST", "/v1/messages", "authorization", "Bearer foreign")
	if d := decide(newPolicy(replacing), f.sessions, &r, now); d.swap == nil {
		t.Errorf("a foreign bearer of a session: %+v", d.refusal)
	}
	r.identity = "address|10.1.2.3"
	if d := decide(newPolicy(replacing), f.sessions, &r, now); d.refusal == nil || d.refusal.reason != policyDenied || d.swap != nil {
		t.Errorf("a foreign bearer from an address: %+v", d)
	}
	for _, c := range []struct {
		name, identity, placeholder string
		reason                      string // "": swapped
		status                      int
	}{
		{"its own", "address|10.1.2.3", placeholder(f.session), "", 0},
		{"in a network", "address|192.0.2.77", placeholder(f.session), "", 0},
		{"anywhere in IPv6", "address|2001:db8:1::9", placeholder(theirs), policyDenied, 0},
		{"IPv4 in IPv6", "address|::ffff:10.1.2.3", placeholder(f.session), "", 0},
		{"of a session that is over", "address|10.1.2.3", placeholder(over), sessionExpired, 0},
		{"of another worker", "address|10.1.2.3", placeholder(theirs), notYourPlaceholder, 0},
		{"at another worker's address", "address|10.2.255.255", placeholder(f.session), notYourPlaceholder, 0},
		{"of a worker without the grant", "address|10.2.0.1", placeholder(theirs), policyDenied, 0},
		{"changed", "address|10.1.2.3", placeholder(f.session) + "a", notYourPlaceholder, 0},
		{"at nobody's address", "address|10.1.2.4", placeholder(f.session), proxyAuthRequired, 403},
		{"at no address", "address|", placeholder(f.session), proxyAuthRequired, 0},
		{"at something else", "address|10.1.2.3|ci", placeholder(f.session), proxyAuthRequired, 0},
		{"by its name", "address|" + f.session.Worker, placeholder(f.session), proxyAuthRequired, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+c.placeholder)
			r.identity = c.identity
			d := decide(p, f.sessions, &r, now)
			if c.reason == "" {
				if d.swap == nil || d.refusal != nil || d.session.Worker != f.session.Worker || d.session.ID != f.session.ID {
					t.Errorf("got %+v", d)
				}
				return
			}
			if d.refusal == nil || d.swap != nil || d.refusal.reason != c.reason || d.refusal.status != c.status {
				t.Errorf("got %+v, want %s", d.refusal, c.reason)
			}
		})
	}
}

// A worker is told of the header that it sent, by whatever name Envoy keeps it.
func TestDecideNamesTheWorkersHeader(t *testing.T) {
	f := newFixture(t)
	for sent, want := range map[string]string{"x-request-id-sent": "x-request-id", "x-note": "x-note"} {
		r := f.anthropic("GET", "/", sent, f.placeholder("claude", "sk-ant-oat01-"))
		if d := decide(f.policy, f.sessions, &r, now); d.refusal == nil || d.refusal.reason != misplacedPlaceholder || d.refusal.detail != want {
			t.Errorf("%s: %+v", sent, d.refusal)
		}
	}
}
