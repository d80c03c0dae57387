package extproc

import (
	"net/http"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
)

// Whoever watches is told of each request once, with nothing of what it carried.
func TestDecided(t *testing.T) {
	f := newServer(t)
	f.server.only(standInConfig())
	var told []Decided
	f.server.decided = func(d Decided) error { told = append(told, d); return nil }
	ask := func(host, method, path string, fields ...string) {
		t.Helper()
		if _, err := f.server.processMessage(t.Context(), message(f.to(host, method, path, fields...)), new(phases)); err != nil {
			t.Fatal(err)
		}
	}
	connect := func(host string, password string) {
		t.Helper()
		r := &authv3.AttributeContext_HttpRequest{Method: http.MethodConnect, Host: host, Headers: map[string]string{"proxy-authorization": basicAuth(f.session.ID, password)}}
		from := &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: "10.0.0.9"}}}}
		if _, err := f.server.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Source: from, Request: &authv3.AttributeContext_Request{Http: r}}}); err != nil {
			t.Fatal(err)
		}
	}
	request := Decided{At: now, Worker: "ci", Session: f.session.ID, Source: "10.0.0.9", Host: "api.anthropic.com:443", Route: "anthropic", Grant: "claude"}
	with := func(d Decided, change func(*Decided)) Decided { change(&d); return d }
	for name, c := range map[string]struct {
		do   func()
		want []Decided
	}{
		"swapped": {func() {
			ask("api.anthropic.com", "POST", "/v1/messages?key=secret", "authorization", "Bearer "+f.claude(), "x-request-id", "request-1")
		}, []Decided{with(request, func(d *Decided) {
			d.Swapped, d.Method, d.Path, d.Token, d.RequestID = true, "POST", "/v1/messages", "1", "request-1"
		})}},
		"passed":                    {func() { ask("api.anthropic.com", "GET", "/v1/models", "x-request-id", "request-2") }, []Decided{with(request, func(d *Decided) { d.Method, d.Path, d.RequestID = "GET", "/v1/models", "request-2" })}},
		"a placeholder in the path": {func() { ask("api.anthropic.com", "GET", "/v1/"+f.claude(), "x-request-id", "request-3") }, []Decided{with(request, func(d *Decided) { d.Method, d.RequestID, d.Reason = "GET", "request-3", misplacedPlaceholder })}},
		"one that is written otherwise": {func() {
			ask("api.anthropic.com", "GET", "/v1/"+strings.Replace(f.claude(), "wlplaceholder", "wl%70laceholder", 1), "x-request-id", "request-5")
		}, []Decided{with(request, func(d *Decided) { d.Method, d.RequestID, d.Reason = "GET", "request-5", misplacedPlaceholder })}},
		"answered": {func() {
			ask("api.anthropic.com", "POST", "/v1/oauth/token", "authorization", "Bearer x", "x-request-id", "request-4")
		}, []Decided{with(request, func(d *Decided) {
			d.Answered, d.Method, d.Path, d.RequestID, d.Route, d.Grant = true, "POST", "/v1/oauth/token", "request-4", "", ""
		})}},
		"a tunnel": {func() { connect("pypi.org:443", f.token.Reveal()) }, []Decided{with(request, func(d *Decided) {
			d.Method, d.Host, d.Route, d.Grant = "CONNECT", "pypi.org:443", "", ""
		})}},
		"a way to a routed host": {func() { connect("api.anthropic.com:443", f.token.Reveal()) }, nil},
		"a host that is not there": {func() { connect("nowhere.example:443", f.token.Reveal()) }, []Decided{with(request, func(d *Decided) {
			d.Method, d.Host, d.Route, d.Grant, d.Reason = "CONNECT", "nowhere.example:443", "", "", hostNotAllowed
		})}},
	} {
		told = nil
		c.do()
		for i := range told {
			if told[i].Method == http.MethodConnect {
				told[i].RequestID = "" // made here
			}
		}
		if diff := cmp.Diff(c.want, told); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}
