package extproc

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"

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
