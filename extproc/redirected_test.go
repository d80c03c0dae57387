package extproc

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"wayleave/limit"
	rules "wayleave/policy"
)

// redirectedTo is what Envoy asks about a connection that was redirected.
func redirectedTo(source, name string, port uint32) *authv3.CheckRequest {
	peer := func(address string, port uint32) *authv3.AttributeContext_Peer {
		return &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
		}}}}
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: peer(source, 40000), Destination: peer("198.51.100.9", port), TlsSession: &authv3.AttributeContext_TLSSession{Sni: name},
	}}
}

// Rules know of a redirected tunnel what they know of one that CONNECT opens, and whose address it comes from.
func TestRedirectedTunnels(t *testing.T) {
	f := newFixture(t)
	ruled := func(dry bool, when string) Config {
		cfg := ruled(dry, "", denying(when))
		cfg.Addresses = map[string][]netip.Prefix{"ci": {netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/64")}}
		return cfg
	}
	for _, c := range []struct {
		name   string
		cfg    Config
		asked  *authv3.CheckRequest
		reason string // of the log; "": it goes on
		lines  int    // recorded
	}{
		{"allowed", ruled(false, `host == "other.example.com"`), redirectedTo("10.1.2.3", "pypi.org", 443), "", 1},
		{"in upper case", ruled(false, `host == "pypi.org"`), redirectedTo("10.1.2.3", "PyPI.org", 443), policyDenied, 1},
		{"denied by host", ruled(false, `host == "pypi.org" && port == 443 && worker == "ci" && session == "" && subject == ""`), redirectedTo("10.1.2.3", "pypi.org", 443), policyDenied, 1},
		{"denied by address", ruled(false, `cidr("10.1.2.0/24").containsIP(source)`), redirectedTo("::ffff:10.1.2.3", "pypi.org", 443), policyDenied, 1},
		{"of IPv6", ruled(false, `source == "fd00::7"`), redirectedTo("fd00::7", "pypi.org", 443), policyDenied, 1},
		{"what is inside", ruled(false, `method == "DELETE"`), redirectedTo("10.1.2.3", "pypi.org", 443), policyDenied, 1},
		{"tried out", ruled(true, `true`), redirectedTo("10.1.2.3", "pypi.org", 443), "", 1},
		{"an unknown address", ruled(false, `false`), redirectedTo("10.2.0.1", "pypi.org", 443), proxyAuthRequired, 0},
		{"no address", ruled(false, `false`), redirectedTo("", "pypi.org", 443), proxyAuthRequired, 0},
		{"no name", ruled(false, `false`), redirectedTo("10.1.2.3", "", 443), hostNotAllowed, 0},
		{"an address as name", ruled(false, `false`), redirectedTo("10.1.2.3", "fd00::1", 443), hostNotAllowed, 0},
		{"another port", ruled(false, `false`), redirectedTo("10.1.2.3", "pypi.org", 8443), hostNotAllowed, 1},
		{"a routed host", ruled(false, `false`), redirectedTo("10.1.2.3", "api.anthropic.com", 443), hostNotAllowed, 1},
		{"a host with a fault", ruled(false, `false`), redirectedTo("10.1.2.3", "x.faulty.pythonhosted.org", 443), hostQuarantined, 0},
		{"nothing", ruled(false, `false`), &authv3.CheckRequest{}, proxyAuthRequired, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log bytes.Buffer
			lines := 0
			s := New(c.cfg, f.sessions, &vault{}, Options{
				Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(&log, nil)), Recording: Recording{To: func(rules.Judged) { lines++ }},
			})
			out, err := s.Check(t.Context(), c.asked)
			if err != nil {
				t.Fatal(err)
			}
			allowed := out.GetStatus().GetCode() == int32(codes.OK)
			if allowed != (c.reason == "") || !allowed && !strings.Contains(log.String(), "reason="+c.reason) || lines != c.lines {
				t.Errorf("allowed %v, %d recorded, log: %s", allowed, lines, &log)
			}
			if dry := strings.Contains(log.String(), "dry run"); dry != (c.name == "tried out") {
				t.Errorf("log: %s", &log)
			}
		})
	}
}

// Where a tunnel may lead is one question, whether a CONNECT asks it or a connection that was redirected.
func TestTunnelsAreCheckedAlike(t *testing.T) {
	f := newFixture(t)
	cfg := testConfig
	cfg.Addresses = map[string][]netip.Prefix{"ci": {netip.MustParsePrefix("10.1.0.0/16")}}
	cfg.Tunnel = append(slices.Clone(cfg.Tunnel), "*.anthropic.com", "*.anthropic.com:8443", "api.wild.example.com:8443")
	cfg.Refused = append(slices.Clone(cfg.Refused), "console.anthropic.com/v1/oauth/token", "answered.anthropic.com/v1/oauth/token")
	limited := cfg.Profiles["default"]
	limited.Answers = []Answer{{Host: "answered.anthropic.com", Path: "/v1/oauth/token", Method: "POST", Credential: "claude", Token: true}}
	limited.Rules = []rules.Rule{{Name: "r", When: `host == "ruled.pythonhosted.org" && cidr("10.1.2.0/24").containsIP(source)`, Action: rules.Deny, Words: "no"}}
	cfg.Profiles = map[string]Profile{"default": limited, "poor": cfg.Profiles["poor"]}
	limited.Limit = limit.Limit{PerMinute: 1, Burst: 1}
	counted := cfg
	counted.Profiles = map[string]Profile{"default": limited, "poor": cfg.Profiles["poor"]}

	const routed = "routed" // by CONNECT each request inside is decided; Envoy asks of no redirected one
	for _, c := range []struct {
		name string
		cfg  Config
		host string
		port uint32
		want string // the reason; "": it is a tunnel
	}{
		{"by name", cfg, "pypi.org", 443, ""},
		{"in upper case", cfg, "PyPI.org", 443, ""},
		{"by a wildcard", cfg, "files.pythonhosted.org", 443, ""},
		{"by a wildcard, further down", cfg, "a.b.pythonhosted.org", 443, ""},
		{"a wildcard's own suffix", cfg, "pythonhosted.org", 443, hostNotAllowed},
		{"at another port", cfg, "pypi.org", 8443, hostNotAllowed},
		{"at the port that is tunnelled", cfg, "api.wild.example.com", 8443, ""},
		{"denied", cfg, "telemetry.wild.example.com", 443, hostNotAllowed},
		{"with a fault", cfg, "x.faulty.pythonhosted.org", 443, hostQuarantined},
		{"gives out tokens", cfg, "tokens.pythonhosted.org", 443, hostNotAllowed},
		{"gives out tokens at a path", cfg, "login.pythonhosted.org", 443, hostNotAllowed},
		{"gives out tokens at a path, by its name", cfg, "pypi.org", 443, ""},
		{"gives out tokens, under a wildcard beside a route", cfg, "console.anthropic.com", 443, hostNotAllowed},
		{"gives out tokens, at the other port", cfg, "console.anthropic.com", 8443, hostNotAllowed},
		{"a route's, where a wildcard covers it", cfg, "api.anthropic.com", 443, routed},
		{"a route's that gives out tokens, at a tunnel's port", cfg, "api.anthropic.com", 8443, hostNotAllowed},
		{"answered by the gate", cfg, "answered.anthropic.com", 443, routed},
		{"answered by the gate, at another port", cfg, "answered.anthropic.com", 8443, hostNotAllowed},
		{"plain", cfg, "plain.example.com", 80, hostNotAllowed},
		{"denied by a rule", cfg, "ruled.pythonhosted.org", 443, policyDenied},
		{"an address", cfg, "169.254.169.254", 443, hostNotAllowed},
		{"an address in IPv6", cfg, "::ffff:169.254.169.254", 443, hostNotAllowed},
		{"an address as a number", cfg, "2852039166", 443, hostNotAllowed},
		{"a final dot", cfg, "pypi.org.", 443, hostNotAllowed},
		{"two names", cfg, "pypi.org,evil.example.com", 443, hostNotAllowed},
		{"no name", cfg, "", 443, hostNotAllowed},
		{"no port", cfg, "pypi.org", 0, hostNotAllowed},
		{"over the limit", counted, "pypi.org", 443, rateLimited},
	} {
		t.Run(c.name, func(t *testing.T) {
			connect := checkRequest("CONNECT", net.JoinHostPort(c.host, strconv.Itoa(int(c.port))), basicAuth(f.session.ID, f.token.Reveal()))
			for name, asked := range map[string]*authv3.CheckRequest{"CONNECT": connect, "redirected": redirectedTo("10.1.2.3", c.host, c.port)} {
				judged := 0
				asked.Attributes.Source = redirectedTo("::ffff:10.1.2.3", "", 0).GetAttributes().GetSource()
				s := New(c.cfg, f.sessions, &vault{}, Options{Now: func() time.Time { return now }, Recording: Recording{To: func(rules.Judged) { judged++ }}})
				var out *authv3.CheckResponse
				var err error
				for range 2 { // the second is over a limit of one
					judged = 0
					if out, err = s.Check(t.Context(), asked); err != nil {
						t.Fatal(err)
					}
				}
				want := c.want
				switch {
				case want == routed && name == "CONNECT":
					want = ""
					if judged != 0 {
						t.Error("CONNECT: it is told of as a tunnel")
					}
				case want == routed:
					want = hostNotAllowed
				}
				if let := out.GetStatus().GetCode() == int32(codes.OK); let != (want == "") || !let && reasonIn(out.GetDynamicMetadata()) != want {
					t.Errorf("%s: %v, want %q", name, out, want)
				}
			}
		})
	}
	want := []string{"answered.anthropic.com:8443", "api.anthropic.com:8443", "console.anthropic.com:443", "console.anthropic.com:8443", "login.pythonhosted.org:443", "tokens.pythonhosted.org:443"}
	got := slices.DeleteFunc(cfg.NoTunnels(), func(h string) bool { return h == "answered.anthropic.com:443" }) // Envoy intercepts it before
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
