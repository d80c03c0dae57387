package oauth

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// site is a server with documents at some paths; {} in them is its address. It keeps which paths were asked for.
type site struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
}

type page struct {
	status    int
	body      string
	challenge string // WWW-Authenticate
	location  string
}

func newSite(t *testing.T, pages map[string]page) *site {
	t.Helper()
	s := &site{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r.URL.Path)
		s.mu.Unlock()
		p, ok := pages[r.URL.Path]
		if !ok {
			p.status = 404
		}
		fill := strings.NewReplacer("{}", "http://"+r.Host)
		if p.challenge != "" {
			w.Header().Set("WWW-Authenticate", fill.Replace(p.challenge))
		}
		if p.location != "" {
			w.Header().Set("Location", fill.Replace(p.location))
		}
		if p.status != 0 {
			w.WriteHeader(p.status)
		}
		io.WriteString(w, fill.Replace(p.body))
	}))
	t.Cleanup(s.Close)
	return s
}

const (
	planted = "planted-7d3f9b1a5c" // in documents that are refused: no error may repeat it
	asPath  = "/.well-known/oauth-authorization-server"
	oidPath = "/.well-known/openid-configuration"
	prPath  = "/.well-known/oauth-protected-resource"
)

// document is metadata of the issuer, with further fields.
func document(issuer string, more string) string {
	return `{"issuer":"` + issuer + `","authorization_endpoint":"{}/a","token_endpoint":"{}/t"` + more + `}`
}

func TestDiscover(t *testing.T) {
	const full = `,"revocation_endpoint":"{}/r","device_authorization_endpoint":"{}/d","registration_endpoint":"{}/reg",
		"scopes_supported":["openid","bad scope",7],"grant_types_supported":["authorization_code","refresh_token","\u001b[2J"],
		"token_endpoint_auth_methods_supported":["tls_client_auth","none","client_secret_post"],"code_challenge_methods_supported":["plain","S256"]`
	tests := []struct {
		name  string
		ask   string // path
		pages map[string]page
		want  Metadata // with {} too
		asked []string
	}{
		{
			name: "issuer", pages: map[string]page{asPath: {body: document("{}", full)}},
			want: Metadata{
				Issuer: "{}", RevokeURL: "{}/r", DeviceURL: "{}/d", RegistrationURL: "{}/reg", Scopes: []string{"openid"},
				GrantTypes: []string{"authorization_code", "refresh_token"}, AuthStyles: []AuthStyle{AuthNone, AuthPost}, PKCE: true,
			},
			asked: []string{"/", prPath, asPath},
		},
		{
			name: "issuer with a slash", ask: "/", pages: map[string]page{asPath: {body: document("{}/", "")}},
			want: Metadata{Issuer: "{}/"}, asked: []string{"/", prPath, asPath},
		},
		{
			name: "issuer with a path", ask: "/tenant/1", pages: map[string]page{asPath + "/tenant/1": {body: document("{}/tenant/1", "")}},
			want: Metadata{Issuer: "{}/tenant/1"}, asked: []string{"/tenant/1", prPath + "/tenant/1", prPath, asPath + "/tenant/1"},
		},
		{
			name: "OpenID Connect, path between", ask: "/tenant", pages: map[string]page{oidPath + "/tenant": {body: document("{}/tenant", "")}},
			want: Metadata{Issuer: "{}/tenant"}, asked: []string{"/tenant", prPath + "/tenant", prPath, asPath + "/tenant", oidPath + "/tenant"},
		},
		{
			name: "OpenID Connect, path before", ask: "/tenant/", pages: map[string]page{"/tenant" + oidPath: {body: document("{}/tenant", "")}},
			want:  Metadata{Issuer: "{}/tenant"},
			asked: []string{"/tenant/", prPath + "/tenant", prPath, asPath + "/tenant", oidPath + "/tenant", "/tenant" + oidPath},
		},
		{
			name: "the address of the document", ask: "/tenant" + oidPath, pages: map[string]page{"/tenant" + oidPath: {body: document("{}/tenant", "")}},
			want:  Metadata{Issuer: "{}/tenant"},
			asked: []string{"/tenant", prPath + "/tenant", prPath, asPath + "/tenant", oidPath + "/tenant", "/tenant" + oidPath},
		},
		{
			name: "an API whose host is the issuer", ask: "/v1/mcp", pages: map[string]page{asPath: {body: document("{}", "")}, "/v1/mcp": {status: 405}},
			want:  Metadata{Issuer: "{}"},
			asked: []string{"/v1/mcp", prPath + "/v1/mcp", prPath, asPath + "/v1/mcp", oidPath + "/v1/mcp", "/v1/mcp" + oidPath, asPath},
		},
		{
			name: "an API that says where", ask: "/mcp", pages: map[string]page{
				"/mcp":         {status: 401, challenge: `Bearer error="invalid_token", resource_metadata="{}/meta", scope="files:read"`},
				"/meta":        {body: `{"resource":"{}/mcp","authorization_servers":["{}/as","https://other.example","https://10.0.0.1","\u001b[2J"],"scopes_supported":["files:write"]}`},
				asPath + "/as": {body: document("{}/as", full)},
			},
			want: Metadata{
				Issuer: "{}/as", Resource: "{}/mcp", RevokeURL: "{}/r", DeviceURL: "{}/d", RegistrationURL: "{}/reg", Scopes: []string{"openid"}, Asked: []string{"files:read"},
				GrantTypes: []string{"authorization_code", "refresh_token"}, AuthStyles: []AuthStyle{AuthNone, AuthPost}, PKCE: true, Others: []string{"https://other.example"},
			},
			asked: []string{"/mcp", "/meta", asPath + "/as"},
		},
		{
			name: "an API with a document at its path", ask: "/mcp", pages: map[string]page{
				prPath + "/mcp": {body: `{"resource":"{}/mcp","authorization_servers":["{}"],"scopes_supported":["files:write"]}`},
				asPath:          {body: document("{}", full)},
			},
			want: Metadata{
				Issuer: "{}", Resource: "{}/mcp", RevokeURL: "{}/r", DeviceURL: "{}/d", RegistrationURL: "{}/reg", Scopes: []string{"openid"}, Asked: []string{"files:write"},
				GrantTypes: []string{"authorization_code", "refresh_token"}, AuthStyles: []AuthStyle{AuthNone, AuthPost}, PKCE: true,
			},
			asked: []string{"/mcp", prPath + "/mcp", asPath},
		},
		{
			name: "an API with one document for all its paths", ask: "/mcp/x", pages: map[string]page{
				prPath: {body: `{"resource":"{}","authorization_servers":["{}"]}`}, asPath: {body: document("{}", "")},
			},
			want: Metadata{Issuer: "{}", Resource: "{}"}, asked: []string{"/mcp/x", prPath + "/mcp/x", prPath, asPath},
		},
		{
			name: "an API that names its server with a slash", ask: "/mcp", pages: map[string]page{
				prPath + "/mcp": {body: `{"resource":"{}/mcp","authorization_servers":["{}/"]}`}, asPath: {body: document("{}", "")},
			},
			want: Metadata{Issuer: "{}", Resource: "{}/mcp"}, asked: []string{"/mcp", prPath + "/mcp", asPath},
		},
		{
			name: "an API that names its server without its slash", ask: "/mcp", pages: map[string]page{
				prPath + "/mcp": {body: `{"resource":"{}/mcp","authorization_servers":["{}/oauth2"]}`}, asPath + "/oauth2": {body: document("{}/oauth2/", "")},
			},
			want: Metadata{Issuer: "{}/oauth2/", Resource: "{}/mcp"}, asked: []string{"/mcp", prPath + "/mcp", asPath + "/oauth2"},
		},
		{
			name: "JSON, or a page, for every address that is none", ask: "/tenant", pages: map[string]page{
				"/tenant": {body: "<html>"}, prPath + "/tenant": {body: `{}`}, prPath: {body: "<html>"},
				asPath + "/tenant": {body: `{"message":"hello"}`}, oidPath + "/tenant": {body: "<html>"}, "/tenant" + oidPath: {body: "\ufeff" + document("{}/tenant", "")},
			},
			want:  Metadata{Issuer: "{}/tenant"},
			asked: []string{"/tenant", prPath + "/tenant", prPath, asPath + "/tenant", oidPath + "/tenant", "/tenant" + oidPath},
		},
		{
			name: "refused where there is nothing", ask: "/mcp", pages: map[string]page{
				"/mcp": {status: 401}, prPath + "/mcp": {status: 401}, prPath: {body: `{"resource":"{}/mcp","authorization_servers":["{}"]}`}, asPath: {status: 403},
				oidPath: {body: document("{}", "")},
			},
			want: Metadata{Issuer: "{}", Resource: "{}/mcp"}, asked: []string{"/mcp", prPath + "/mcp", prPath, asPath, oidPath},
		},
		{
			name: "a redirect on the same host", pages: map[string]page{asPath: {status: 302, location: "/here"}, "/here": {body: document("{}", "")}},
			want: Metadata{Issuer: "{}"}, asked: []string{"/", prPath, asPath, "/here"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, tt.pages)
			got, err := Discover(t.Context(), nil, s.URL+tt.ask, DiscoverOptions{AllowInsecure: true})
			if err != nil {
				t.Fatal(err)
			}
			tt.want.AuthorizeURL, tt.want.TokenURL = "{}/a", "{}/t"
			if tt.want.GrantTypes == nil {
				tt.want.GrantTypes, tt.want.AuthStyles = []string{"authorization_code", "implicit"}, []AuthStyle{AuthBasic}
			}
			text, _ := json.Marshal(tt.want)
			var want Metadata
			if err := json.Unmarshal([]byte(strings.ReplaceAll(string(text), "{}", s.URL)), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Metadata{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.asked, s.asked); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
		})
	}
}

// What is not believed, and what the error may say about it.
func TestDiscoverRefuses(t *testing.T) {
	other := newSite(t, map[string]page{asPath: {body: document("{}", "")}, "/": {body: document("{}", "")}})
	big := document("{}", `,"x":"`+strings.Repeat(planted, maxMetadata/10)+`"`)
	protected := func(body string) map[string]page {
		return map[string]page{"/": {status: 401, challenge: `Bearer resource_metadata="{}/meta"`}, "/meta": {body: body}, asPath: {body: document("{}", "")}}
	}
	for _, tt := range []struct {
		name  string
		pages map[string]page
		says  string
	}{
		{"nothing there", nil, "status 404"},
		{"page", map[string]page{asPath: {body: "<html>" + planted}}, "not a JSON object"},
		{"another issuer", map[string]page{asPath: {body: document("https://"+planted, "")}}, "issuer"},
		{"issuer in other case", map[string]page{asPath: {body: document("HTTP://localhost", "")}}, "issuer"},
		{"no issuer", map[string]page{asPath: {body: `{"token_endpoint":"{}/t"}`}}, "no issuer"},
		{"no token endpoint", map[string]page{asPath: {body: `{"issuer":"{}"}`}}, "token_endpoint"},
		{"endpoint over http", map[string]page{asPath: {body: document("{}", `,"revocation_endpoint":"http://`+planted+`.example/r"`)}}, "revocation_endpoint"},
		{"endpoint in the private network", map[string]page{asPath: {body: document("{}", `,"registration_endpoint":"https://10.0.0.7/`+planted+`"`)}}, "not a public one"},
		{"endpoint in the cloud", map[string]page{asPath: {body: document("{}", `,"registration_endpoint":"https://[::ffff:169.254.169.254]/`+planted+`"`)}}, "not a public one"},
		{"endpoint with a password", map[string]page{asPath: {body: document("{}", `,"device_authorization_endpoint":"https://a:`+planted+`@as.example/"`)}}, "device_authorization_endpoint"},
		{"endpoint that is none", map[string]page{asPath: {body: document("{}", `,"device_authorization_endpoint":"`+planted+`"`)}}, "device_authorization_endpoint"},
		{"too much", map[string]page{asPath: {body: big}}, "larger"},
		{"redirect to another host", map[string]page{asPath: {status: 302, location: other.URL + asPath}}, "status 302"},
		{"redirects without end", map[string]page{asPath: {status: 302, location: asPath}}, "status 302"},
		{"metadata elsewhere over http", map[string]page{"/": {status: 401, challenge: `Bearer resource_metadata="http://` + planted + `.example/m"`}}, "metadata"},
		{"metadata inside", map[string]page{"/": {status: 401, challenge: `Bearer resource_metadata="https://169.254.169.254/` + planted + `"`}}, "not a public one"},
		{"metadata that is not there", map[string]page{"/": {status: 401, challenge: `Bearer resource_metadata="{}/none"`}}, "status 404"},
		{"another resource", protected(`{"resource":"https://` + planted + `.example","authorization_servers":["{}"]}`), "another resource"},
		{"a resource below", protected(`{"resource":"{}/` + planted + `","authorization_servers":["{}"]}`), "another resource"},
		{"no server", protected(`{"resource":"{}"}`), "names no authorization server"},
		{"server over http", protected(`{"resource":"{}","authorization_servers":["http://` + planted + `.example"]}`), "authorization server"},
		{"server that is none", protected(`{"resource":"{}","authorization_servers":["` + planted + `"]}`), "authorization server"},
		{"server with a query", protected(`{"resource":"{}","authorization_servers":["{}/?x=` + planted + `"]}`), "query"},
		{"server by another case", protected(`{"resource":"{}","authorization_servers":["{}/As"]}`), "404"},
		{"one issuer for many tenants", map[string]page{asPath: {body: document("{}/{tenantid}/v2.0", "")}}, "your own tenant"},
		{"JSON for every address", map[string]page{asPath: {body: `{"message":"` + planted + `"}`}, oidPath: {body: `{}`}, prPath: {body: `{}`}}, "no issuer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, tt.pages)
			m, err := Discover(t.Context(), nil, s.URL, DiscoverOptions{AllowInsecure: true})
			if err == nil {
				t.Fatalf("taken: %+v", m)
			}
			if text := fmt.Sprintf("%v %+v", err, err); !strings.Contains(text, tt.says) || strings.Contains(text, planted) || strings.Contains(text, "\n") {
				t.Errorf("%v", err)
			}
		})
	}
	if len(other.asked) != 0 {
		t.Errorf("another host was asked for %v", other.asked)
	}
}

// Metadata of another issuer is refused with what usually is the reason.
func TestOtherIssuer(t *testing.T) {
	for _, tt := range []struct{ got, asked, says string }{
		{"https://login.example/{tenantid}/v2.0", "https://login.example/common/v2.0", "your own tenant"},
		{"http://as.example/realms/a/", "https://as.example/realms/a", "X-Forwarded-Proto"},
		{"https://as.example:8443/realms/a", "https://as.example/realms/a", "exact name"},
		{"https://as.example", "https://as.example/tenant", "exact name"},
		{"", "https://as.example", "exact name"},
	} {
		if err := otherIssuer(tt.got, tt.asked); !strings.Contains(err.Error(), tt.says) || tt.got != "" && strings.Contains(err.Error(), tt.got) {
			t.Errorf("%s for %s: %v", tt.got, tt.asked, err)
		}
	}
}

func TestDiscoverLooksBeforeItConnects(t *testing.T) {
	s := newSite(t, map[string]page{asPath: {body: document("{}", "")}})
	port := s.URL[strings.LastIndex(s.URL, ":"):]
	for _, tt := range []struct {
		address string
		o       DiscoverOptions
		says    string
	}{
		{"https://localhost" + port, DiscoverOptions{}, "not a public one"}, // by name, so only the connection shows it
		{"https://127.0.0.1" + port, DiscoverOptions{}, "not a public one"},
		{"http://127.0.0.1" + port, DiscoverOptions{}, "https"},
		{"http://as.example", DiscoverOptions{AllowInsecure: true, AllowPrivate: true}, "https"},
		{"https://user@as.example", DiscoverOptions{}, "user"},
		{"as.example", DiscoverOptions{}, "full address"},
	} {
		_, err := Discover(t.Context(), nil, tt.address, tt.o)
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", tt.address, err)
		}
	}
	if len(s.asked) != 0 {
		t.Errorf("asked for %v", s.asked)
	}
	if _, err := Discover(t.Context(), &http.Client{Transport: &script{t: t}}, "https://as.example", DiscoverOptions{}); err == nil {
		t.Error("a transport that cannot be checked was used")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Discover(ctx, nil, s.URL, DiscoverOptions{AllowInsecure: true}); err == nil {
		t.Error("it went on without its context")
	}
}

func TestAllows(t *testing.T) {
	public := []string{"1.1.1.1", "203.0.113.9", "2606:4700::1111", "::ffff:1.1.1.1"}
	loopback := []string{"127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"}
	private := []string{
		"10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "100.100.100.200", "169.254.169.254", "168.63.129.16", "192.0.0.1", "198.18.0.1", "0.1.2.3",
		"255.255.255.255", "fe80::1%eth0", "fe80::1", "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "::7f00:1", "::ffff:10.0.0.1", "fec0::1",
	}
	never := []string{"0.0.0.0", "::", "224.0.0.1", "ff02::1"}
	for _, tt := range []struct {
		o    DiscoverOptions
		good []string
		bad  []string
	}{
		{DiscoverOptions{}, public, slices.Concat(loopback, private, never)},
		{DiscoverOptions{AllowInsecure: true}, slices.Concat(public, loopback), slices.Concat(private, never)},
		{DiscoverOptions{AllowPrivate: true}, slices.Concat(public, loopback, private), never},
	} {
		for _, a := range tt.good {
			if !tt.o.allows(netip.MustParseAddr(a)) {
				t.Errorf("%+v refuses %s", tt.o, a)
			}
		}
		for _, a := range tt.bad {
			if tt.o.allows(netip.MustParseAddr(a)) {
				t.Errorf("%+v allows %s", tt.o, a)
			}
		}
	}
}

// Whatever a server says about itself: no panic, only addresses that may be used, an error that repeats nothing.
func FuzzMetadata(f *testing.F) {
	f.Add(strings.ReplaceAll(document("https://as.example", `,"scopes_supported":["a"]`), "{}", "https://as.example"))
	f.Add(`{"resource":"https://as.example","authorization_servers":["https://as.example"]}`)
	f.Add(`{"issuer":"https://as.example","token_endpoint":"https://127.0.0.1/t"}`)
	base := mustDiscoverable(f, "https://as.example/api")
	f.Fuzz(func(t *testing.T, body string) {
		doc := object([]byte(body))
		m, err := readMetadata(doc, "https://as.example", DiscoverOptions{})
		if err == nil {
			if m.TokenURL == "" {
				t.Fatal("no token endpoint")
			}
			for _, u := range []string{m.AuthorizeURL, m.TokenURL, m.RevokeURL, m.DeviceURL, m.RegistrationURL} {
				if u != "" && (!strings.HasPrefix(strings.ToLower(u), "https://") || strings.Contains(u, "//127.0.0.1")) {
					t.Fatalf("%q is used", u)
				}
			}
		}
		p, err := readProtected(doc, base, nil)
		if err == nil && (len(p.servers) == 0 || !strings.HasPrefix(strings.ToLower(p.resource), "https://as.example")) {
			t.Fatalf("%+v", p)
		}
	})
}

func mustDiscoverable(t testing.TB, address string) (u *url.URL) {
	t.Helper()
	u, err := DiscoverOptions{}.discoverable(address)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
