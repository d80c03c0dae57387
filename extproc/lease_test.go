package extproc

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/grant"
	"wayleave/limit"
	rules "wayleave/policy"
)

const testLane = "anthropic authorization claude Bearer"

// leaseCase is the request of a worker to a route with a lane, with something about it that is not so usual.
type leaseCase struct {
	name    string
	config  func(*Config)
	options func(*Options)
	request func(*request)
	tokens  func(*vault) Tokens
	session time.Duration // zero: it lasts
}

func (c leaseCase) lease(t *testing.T) string {
	t.Helper()
	f := newFixture(t)
	if c.session != 0 {
		var err error
		if f.session, f.token, err = f.sessions.Issue("ci", "default", c.session, now); err != nil {
			t.Fatal(err)
		}
	}
	cfg := testConfig
	cfg.Routes = slices.Clone(cfg.Routes)
	cfg.Profiles = map[string]Profile{"default": testConfig.Profiles["default"]}
	cfg.Routes[0].Lane = testLane
	if c.config != nil {
		c.config(&cfg)
	}
	o := Options{Leases: time.Second, Now: func() time.Time { return now }}
	if c.options != nil {
		c.options(&o)
	}
	v := &vault{}
	var tokens Tokens = v
	if c.tokens != nil {
		tokens = c.tokens(v)
	}
	r := f.anthropic("POST", "/v1/messages", "x-request-id", "request-1234", "authorization", "Bearer "+f.claude())
	if c.request != nil {
		c.request(&r)
	}
	out, err := New(cfg, f.sessions, tokens, o).processMessage(t.Context(), message(r), &phases{})
	if err != nil || verdictOf(out) == "" {
		t.Fatalf("not let out: %v, %v", out, err)
	}
	lease := out.GetDynamicMetadata().GetFields()[metadataNamespace].GetStructValue().GetFields()[fieldLease].GetStringValue()
	return strings.ReplaceAll(lease, f.claude(), "{placeholder}")
}

// A lease says what a request must be like for its answer to be the same.
func TestLease(t *testing.T) {
	const usual = `lane ` + testLane + `
ms 1000
header authorization
value Bearer {placeholder}
authority api.anthropic.com
method DELETE
method GET
method HEAD
method OPTIONS
method PATCH
method POST
method PUT
avoid /v1/organizations
avoid /v1/code/
avoid /readonly/
avoid /v1/oauth/token
absent x-http-method
absent x-http-method-override
absent x-method-override
absent x-original-method
absent x-original-uri
absent x-original-url
absent x-override-url
absent x-rewrite-uri
absent x-rewrite-url
ensure anthropic-beta oauth-2025-04-20
under /v1/messages
`
	without := func(lines string) string { return strings.Replace(usual, lines, "", 1) }
	for _, c := range []struct {
		leaseCase
		want string
	}{
		{leaseCase{name: "usual"}, usual},
		{leaseCase{name: "a path with a rule of its own", request: func(r *request) { r.path = "/v1/organizations/x" }}, usual},
		{leaseCase{name: "methods", config: func(c *Config) { c.Routes[0].Methods = []string{"GET", "POST"} }},
			"lane " + testLane + "\nms 1000\nheader authorization\nvalue Bearer {placeholder}\nauthority api.anthropic.com\nmethod GET\nmethod POST\n" + usual[strings.Index(usual, "avoid"):]},
		{leaseCase{name: "answers of the gate", config: func(c *Config) {
			p := c.Profiles["default"]
			p.Answers = []Answer{{Host: "api.anthropic.com", Path: "/api/profile", Method: "GET", Credential: "claude", Status: 200}}
			c.Profiles["default"] = p
		}}, strings.Replace(usual, "absent", "avoid /api/profile\nabsent", 1)},
		{leaseCase{name: "a header that gets a fact", config: func(c *Config) { c.Routes[0].RewriteHeaders = map[string]string{"x-organization": "organization"} }},
			strings.Replace(usual, "ensure", "absent x-organization\nensure", 1)},
		{leaseCase{name: "nothing to ensure", config: func(c *Config) { c.Routes[0].EnsureHeaders = nil }}, without("ensure anthropic-beta oauth-2025-04-20\n")},
		{leaseCase{name: "a token that can be replaced", tokens: func(v *vault) Tokens { v.replaceable = true; return v }}, usual + "retry 401\n"},
		{leaseCase{name: "a session that ends soon", session: time.Second, options: func(o *Options) { o.Leases = time.Minute }}, usual},
		{leaseCase{name: "a token that ends soon", tokens: func(v *vault) Tokens { return ending{v, now.Add(200 * time.Millisecond)} }}, strings.Replace(usual, "ms 1000", "ms 200", 1)},
		{leaseCase{name: "another version than Envoys have", options: func(o *Options) {
			o.Settled = func(grant, version string) bool { return grant == "claude" && version == "1" }
		}}, usual},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, c.lease(t)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What somebody has to decide, count or write down is never leased, nor what Envoy could not do as the gate does.
func TestNoLease(t *testing.T) {
	route := func(change func(*Route)) func(*Config) { return func(c *Config) { change(&c.Routes[0]) } }
	profile := func(change func(*Profile)) func(*Config) {
		return func(c *Config) {
			p := c.Profiles["default"]
			change(&p)
			c.Profiles["default"] = p
		}
	}
	with := func(name, value string) func(*request) {
		return func(r *request) { r.headers = append(r.headers, header{name, value}) }
	}
	for _, c := range []leaseCase{
		{name: "no lane", config: route(func(r *Route) { r.Lane = "" })},
		{name: "no leases", options: func(o *Options) { o.Leases = 0 }},
		{name: "recorded", options: func(o *Options) { o.Recording = Recording{To: func(rules.Judged) {}} }},
		{name: "not settled", options: func(o *Options) { o.Settled = func(string, string) bool { return false } }},
		{name: "another header", config: route(func(r *Route) { r.HeaderOut = "x-api-key" })},
		{name: "another scheme", request: func(r *request) {
			i := slices.IndexFunc(r.headers, func(h header) bool { return h.name == "authorization" })
			r.headers[i].value = strings.Replace(r.headers[i].value, "Bearer", "token", 1)
		}},
		{name: "bodies are masked", config: route(func(r *Route) { r.MaskBody = true })},
		{name: "a parameter", config: route(func(r *Route) { r.ParameterIn = "key" })},
		{name: "rules", config: profile(func(p *Profile) { p.Rules = []rules.Rule{{Name: "a", Action: rules.Allow}} })},
		{name: "rules that are tried out", config: profile(func(p *Profile) {
			p.Rules, p.DryRun = []rules.Rule{{Name: "d", When: `method == "POST"`, Action: rules.Deny, Words: "no"}}, true
		})},
		{name: "the worker's limit", config: profile(func(p *Profile) { p.Limit = limit.Limit{PerMinute: 1000, Burst: 10} })},
		{name: "how many at once", config: profile(func(p *Profile) { p.Limit = limit.Limit{Concurrent: 5} })},
		{name: "the grant's limit", config: func(c *Config) { c.Limits = map[string]limit.Limit{"claude": {PerMinute: 1000, Burst: 10}} }},
		{name: "two routes", config: func(c *Config) {
			second := c.Routes[0]
			second.Name, second.Credential = "second", "github"
			c.Routes = append(c.Routes, second)
		}},
		{name: "a WebSocket", request: func(r *request) {
			r.method = "GET"
			with("upgrade", "websocket")(r)
			with("connection", "Upgrade")(r)
		}},
		{name: "a token that ends at once", tokens: func(v *vault) Tokens { return ending{v, now.Add(time.Microsecond)} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if lease := c.lease(t); lease != "" {
				t.Errorf("leased:\n%s", lease)
			}
		})
	}
}

// ending has tokens that end.
type ending struct {
	Tokens
	at time.Time
}

func (e ending) Token(ctx context.Context, name, worker string, required []string) (grant.Token, error) {
	t, err := e.Tokens.Token(ctx, name, worker, required)
	t.Expires = e.at
	return t, err
}
