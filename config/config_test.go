package config_test

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wayleave/config"
	"wayleave/provider"
)

var update = flag.Bool("update", false, "rewrite the expected output")

// valid is a configuration the tests change in one place.
const valid = `
providers:
  acme:
    authorize_url: https://login.acme.example/a
    token_url: https://login.acme.example/t
    client_id: wayleave
    auth_style: client_secret_basic
    client_secret_file: acme.secret
    authorize_params: {audience: one}
grants:
  acme: {provider: acme, scopes: [read, write]}
  claude: {provider: anthropic}
routes:
  - hosts: [api.acme.example]
    grant: acme
  - hosts: ["*.anthropic.com:8443"]
    grant: claude
profiles:
  default: {grants: [acme, claude]}
workers:
  ci: {profile: default, token_file: ci.token}
  laptop: {profile: default}
`

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("wayleave.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Each file in testdata has its faults, or its warnings when it has none, in a file beside it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in testdata: %v", err)
	}
	expected, _ := filepath.Glob("testdata/*.out")
	for _, file := range files {
		golden := strings.TrimSuffix(file, ".yaml") + ".out"
		expected = slices.DeleteFunc(expected, func(s string) bool { return s == golden })
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c, err := config.Parse(filepath.Base(file), data)
			var got string
			switch bad := strings.HasPrefix(filepath.Base(file), "bad-"); {
			case bad && err == nil:
				t.Fatal("accepted")
			case !bad && err != nil:
				t.Fatalf("refused:\n%v", err)
			case bad:
				got = err.Error() + "\n"
			case len(c.Warnings) > 0:
				got = c.Warnings.Error() + "\n"
			}
			if strings.Contains(got, "hunter2") {
				t.Fatal("a fault shows a secret")
			}
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatalf("%v; run go test ./config -update and read what it wrote", err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	for _, stale := range expected {
		if *update {
			os.Remove(stale)
		} else {
			t.Errorf("%s belongs to no file", stale)
		}
	}
}

func TestFaultsAreErrors(t *testing.T) {
	_, err := config.Parse("f.yaml", []byte("tunnel: [A.example, B.example]"))
	faults, ok := errors.AsType[config.Faults](err)
	if !ok || len(faults) != 2 {
		t.Fatalf("got %T %v, want two faults", err, err)
	}
	fault, ok := errors.AsType[config.Fault](err)
	if !ok {
		t.Fatal("a fault cannot be reached through Unwrap")
	}
	want := config.Fault{File: "f.yaml", Line: 1, Column: 10, Key: "tunnel[0]", What: `"A.example" is not in lower case`, Fix: "write a.example"}
	if diff := cmp.Diff(want, fault); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// What others find wrong with a host has the place of the host.
func TestHostFault(t *testing.T) {
	c := parse(t, valid+"tunnel: [t.example]\nplain: [p.example]\n")
	for host, want := range map[string]string{
		"*.anthropic.com:8443": "wayleave.yaml:16:13: routes[1].hosts[0]: wrong; right",
		"t.example":            "wayleave.yaml:23:10: tunnel[0]: wrong; right",
		"p.example:80":         "wayleave.yaml:24:9: plain[0]: wrong; right",
		"elsewhere.example":    "wayleave.yaml:1:1: wrong; right",
	} {
		if got := c.HostFault(host, "wrong", "right").Error(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestLoad(t *testing.T) {
	c, err := config.Load("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	again, err := config.Load("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, again, cmpopts.IgnoreUnexported(config.Config{}), cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{})); diff != "" {
		t.Errorf("a second load differs: -first +second:\n%s", diff)
	}
	if got, want := c.Path(c.Vault.CAFile), filepath.Join("testdata", "vault-ca.pem"); got != want {
		t.Errorf("relative file: got %s, want %s", got, want)
	}
	if got := c.Path(c.Vault.Auth.SecretIDFile); got != "/run/secrets/vault-secret-id" {
		t.Errorf("absolute file: got %s", got)
	}
	if got := c.Path(""); got != "" {
		t.Errorf("no file: got %q", got)
	}
	if _, err := config.Load("testdata/missing.yaml"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: got %v", err)
	}
}

// A provider says where its credential is; a route may say otherwise.
func TestHeaderDefaultsOfProviders(t *testing.T) {
	const text = `
providers:
  key: {kind: static, header: {in: x-key}}
  git: {kind: static, header: {in_scheme: Basic}}
  moved: {kind: static, header: {in: x-in, out: x-out, out_scheme: Key}}
  plain: {kind: static}
grants: {key: {provider: key}, git: {provider: git}, moved: {provider: moved}, plain: {provider: plain}}
routes:
  - {hosts: [h.example], grant: %s, header: {%s}}
`
	for _, tt := range []struct {
		grant, header string
		want          config.Header
	}{
		{"plain", "", config.Header{In: "authorization", InScheme: "Bearer", Out: "authorization", OutScheme: "Bearer"}},
		{"key", "", config.Header{In: "x-key", Out: "x-key"}},
		{"key", "in: authorization", config.Header{In: "authorization", InScheme: "Bearer", Out: "authorization", OutScheme: "Bearer"}},
		{"key", "out: authorization", config.Header{In: "x-key", Out: "authorization", OutScheme: "Bearer"}},
		{"git", "", config.Header{In: "authorization", InScheme: "Basic", Out: "authorization", OutScheme: "Basic"}},
		{"git", `in_scheme: ""`, config.Header{In: "authorization", Out: "authorization"}},
		{"git", "in: x-key", config.Header{In: "x-key", Out: "x-key"}},
		{"moved", "", config.Header{In: "x-in", Out: "x-out", OutScheme: "Key"}},
		{"moved", "in: authorization", config.Header{In: "authorization", InScheme: "Bearer", Out: "x-out", OutScheme: "Key"}},
		{"moved", `out_scheme: ""`, config.Header{In: "x-in", Out: "x-out"}},
	} {
		c := parse(t, fmt.Sprintf(text, tt.grant, tt.header))
		if diff := cmp.Diff(tt.want, c.Routes[0].Header); diff != "" {
			t.Errorf("%s with {%s}: -want +got:\n%s", tt.grant, tt.header, diff)
		}
	}
}

func TestDefaults(t *testing.T) {
	c := parse(t, valid)
	for _, v := range []struct{ name, got, want string }{
		{"vault.mount", c.Vault.Mount, "wayleave"},
		{"vault.pki_mount", c.Vault.PKIMount, "wayleave-pki"},
		{"vault.auth.method", c.Vault.Auth.Method, "token"},
		{"listen.proxy", c.Listen.Proxy, "127.0.0.1:3128"},
		{"envoy.log_level", c.Envoy.LogLevel, "warning"},
		{"claude_code", c.Profiles["default"].ClaudeCode, "auth_token"},
		{"session_ttl", c.Profiles["default"].SessionTTL.String(), (24 * time.Hour).String()},
		{"provider name", c.Providers["anthropic"].Name, "anthropic"},
	} {
		if v.got != v.want {
			t.Errorf("%s: got %q, want %q", v.name, v.got, v.want)
		}
	}
	anthropic, _ := provider.Preset("anthropic")
	bearer := config.Header{In: "authorization", InScheme: "Bearer", Out: "authorization", OutScheme: "Bearer"}
	want := []config.Route{
		{Name: "api.acme.example", Hosts: []string{"api.acme.example"}, Grant: "acme", Header: bearer,
			ALPN: []string{"h2", "http/1.1"}, ForeignBearer: config.Pass, NoCredential: config.Pass, Lane: config.LaneAuto, Response: config.Response{SetCookie: config.Remove, Challenges: config.Pass}},
		{Name: "any.anthropic.com-8443", Hosts: []string{"*.anthropic.com:8443"}, Grant: "claude", Header: bearer,
			ALPN: anthropic.ALPN, ForeignBearer: config.Pass, NoCredential: config.Pass, Lane: config.LaneAuto, Response: config.Response{SetCookie: config.Remove, Challenges: config.Pass}},
	}
	if len(anthropic.ALPN) == 0 {
		want[1].ALPN = []string{"h2", "http/1.1"}
	}
	if diff := cmp.Diff(want, c.Routes); diff != "" {
		t.Errorf("routes: -want +got:\n%s", diff)
	}
}

// At port 465 a server waits for TLS, and a client that waits for its greeting does so in vain.
func TestMailEncryption(t *testing.T) {
	for lines, want := range map[string]string{
		"address: mail.example.com:587":                       "starttls",
		"address: mail.example.com:25":                        "starttls",
		"address: mail.example.com:465":                       "tls",
		"address: mail.example.com:465, encryption: starttls": "starttls",
		"address: '[2001:db8::1]:465'":                        "tls",
		"address: 127.0.0.1:25, encryption: none":             "none",
	} {
		c := parse(t, valid+"notify: {targets: {mail: {type: smtp, from: gate@example.com, to: [a@example.com], "+lines+"}}}\n")
		if got := c.Notify.Targets["mail"].Encryption; got != want {
			t.Errorf("%s: %s, want %s", lines, got, want)
		}
	}
}

func TestHeaderDefaults(t *testing.T) {
	for _, tt := range []struct {
		yaml string
		want config.Header
	}{
		{`{}`, config.Header{In: "authorization", InScheme: "Bearer", Out: "authorization", OutScheme: "Bearer"}},
		{`{in: x-api-key}`, config.Header{In: "x-api-key", Out: "x-api-key"}},
		{`{in: x-api-key, also_in: authorization}`, config.Header{In: "x-api-key", AlsoIn: "authorization", Out: "x-api-key"}},
		{`{in: x-api-key, out: authorization}`, config.Header{In: "x-api-key", Out: "authorization", OutScheme: "Bearer"}},
		{`{out: x-api-key}`, config.Header{In: "authorization", InScheme: "Bearer", Out: "x-api-key"}},
		{`{in_scheme: Basic}`, config.Header{In: "authorization", InScheme: "Basic", Out: "authorization", OutScheme: "Basic"}},
		{`{in_scheme: ""}`, config.Header{In: "authorization", Out: "authorization"}},
		{`{out_scheme: ""}`, config.Header{In: "authorization", InScheme: "Bearer", Out: "authorization"}},
	} {
		c := parse(t, "grants: {g: {provider: anthropic}}\nroutes: [{hosts: [a.example], grant: g, header: "+tt.yaml+"}]")
		if diff := cmp.Diff(tt.want, c.Routes[0].Header); diff != "" {
			t.Errorf("%s: -want +got:\n%s", tt.yaml, diff)
		}
	}
}

func TestAnswersForTheWiring(t *testing.T) {
	c := parse(t, valid+`
tunnel: [pypi.org]
`)
	if diff := cmp.Diff([]string{"*.anthropic.com", "api.acme.example"}, c.InterceptHosts()); diff != "" {
		t.Errorf("InterceptHosts: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"authorization"}, c.CredentialHeaders()); diff != "" {
		t.Errorf("CredentialHeaders: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"read", "write"}, c.RequestedScopes("acme")); diff != "" {
		t.Errorf("RequestedScopes(acme): -want +got:\n%s", diff)
	}
	anthropic, _ := provider.Preset("anthropic")
	if diff := cmp.Diff(anthropic.Scopes, c.RequestedScopes("claude")); diff != "" || len(anthropic.Scopes) == 0 {
		t.Errorf("RequestedScopes(claude) are not the preset's: -want +got:\n%s", diff)
	}
	if p, ok := c.ProviderOf("claude"); !ok || p.Name != "anthropic" || p.TokenURL != anthropic.TokenURL {
		t.Errorf("ProviderOf(claude): got %s %s", p.Name, p.TokenURL)
	}
	if _, ok := c.ProviderOf("nobody"); ok {
		t.Error("ProviderOf(nobody): got one")
	}
	refused := slices.Concat(anthropic.Refused(), []string{"login.acme.example/t"})
	slices.Sort(refused)
	if diff := cmp.Diff(refused, c.RefusedEndpoints()); diff != "" {
		t.Errorf("RefusedEndpoints: -want +got:\n%s", diff)
	}
	if got := c.EnvMode("default", "claude"); got != "auth_token" {
		t.Errorf("EnvMode(claude): got %q", got)
	}
	if got := c.EnvMode("default", "acme"); got != "" {
		t.Errorf("EnvMode(acme), which has no modes: got %q", got)
	}
	for _, tt := range []struct{ pattern, name, port string }{
		{"api.example.com", "api.example.com", "443"},
		{"*.example.com:8443", "*.example.com", "8443"},
	} {
		if name, port := config.SplitHost(tt.pattern); name != tt.name || port != tt.port {
			t.Errorf("SplitHost(%s): got %s %s", tt.pattern, name, port)
		}
	}
}

// An override changes its own field and neither the rest of the preset nor the preset itself.
func TestOverridesStayInTheirProvider(t *testing.T) {
	before, _ := provider.Preset("anthropic")
	c := parse(t, `
providers:
  anthropic: {client_id: mine, ensure_headers: {x-mine: "1"}, env: {}}
  work: {preset: anthropic, token_url: https://login.example/token}
grants: {a: {provider: anthropic}, b: {provider: work}}
`)
	after, _ := provider.Preset("anthropic")
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the preset changed: -before +after:\n%s", diff)
	}
	mine := before
	mine.ClientID, mine.EnsureHeaders, mine.Env = "mine", map[string]string{"x-mine": "1"}, map[string]string{}
	if diff := cmp.Diff(mine, c.Providers["anthropic"].Provider); diff != "" {
		t.Errorf("anthropic: -want +got:\n%s", diff)
	}
	work := before
	work.Name, work.TokenURL = "work", "https://login.example/token"
	if diff := cmp.Diff(work, c.Providers["work"].Provider); diff != "" {
		t.Errorf("work: -want +got:\n%s", diff)
	}
}

func TestHash(t *testing.T) {
	hash := func(text string) string { return parse(t, text).Hash() }
	base := hash(valid)
	if base != hash(valid) {
		t.Fatal("the same text has two hashes")
	}
	for name, text := range map[string]string{
		"comment":             "# hello\n" + valid,
		"default written out": valid + "envoy: {log_level: warning}\nlisten: {proxy: 127.0.0.1:3128}\n",
		"key order":           "workers:\n  laptop: {profile: default}\n  ci: {token_file: ci.token, profile: default}\n" + valid[:strings.Index(valid, "workers:")],
		"what is local":       valid + "vault: {mount: other}\nlisten: {proxy: 127.0.0.1:9}\nenvoy: {group: canary}\nrollout: {automatic: false}\n",
		"quotes":              strings.ReplaceAll(valid, "client_id: wayleave", `client_id: "wayleave"`),
		"default port":        strings.ReplaceAll(valid, "hosts: [api.acme.example]", "hosts: [api.acme.example:443]"),
	} {
		if hash(text) != base {
			t.Errorf("%s: the hash changed", name)
		}
	}
	for name, text := range map[string]string{
		"client id":  strings.ReplaceAll(valid, "client_id: wayleave", "client_id: other"),
		"deep value": strings.ReplaceAll(valid, "audience: one", "audience: two"),
		"scope":      strings.ReplaceAll(valid, "[read, write]", "[read]"),
		"ttl":        strings.ReplaceAll(valid, "grants: [acme, claude]", "grants: [acme, claude], session_ttl: 1h"),
		"network":    valid + "upstream: {allow_private: [10.0.0.0/8]}\n",
		"resolver":   valid + "upstream: {dns_resolvers: ['192.0.2.1:53']}\n",
	} {
		if hash(text) == base {
			t.Errorf("%s: the hash did not change", name)
		}
	}
}

// Whatever the bytes, Parse returns a configuration or faults that each have a place, and what is kept of what it accepts means the same.
func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("? {a: b}\n: c"))
	f.Add([]byte("&x routes: [*x]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := config.Parse("f.yaml", data)
		if err == nil {
			if c.Hash() == "" {
				t.Error("no hash")
			}
			shared, err := config.Shared("f.yaml", data)
			if err != nil {
				t.Fatal(err)
			}
			joined, err := config.Join("f.yaml", shared, data)
			if err != nil {
				t.Fatalf("what is kept of it is refused: %v\n%s", err, shared)
			}
			if joined.Hash() != c.Hash() {
				t.Errorf("what is kept of it means something else:\n%s", shared)
			}
			return
		}
		faults, ok := errors.AsType[config.Faults](err)
		if !ok || len(faults) == 0 {
			t.Fatalf("got %T, want faults", err)
		}
		lines := strings.Count(string(data), "\n") + strings.Count(string(data), "\r") + strings.Count(string(data), "\u0085") +
			strings.Count(string(data), "\u2028") + strings.Count(string(data), "\u2029") + 2
		for _, fault := range faults {
			if fault.File != "f.yaml" || fault.Line < 1 || fault.Line > lines || fault.Column < 1 || fault.What == "" {
				t.Errorf("%+v", fault)
			}
		}
	})
}
