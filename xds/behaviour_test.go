package xds

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocconfig "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"

	"wayleave/envoy"
	"wayleave/envoy/envoytest"
)

// replied fails the test unless a is one of Envoy's own replies, in JSON, with a reason and words.
func replied(t *testing.T, a testAnswer, status int, reason string) {
	t.Helper()
	var body struct {
		Type  string
		Error struct{ Type, Code, Message string }
	}
	if err := json.Unmarshal([]byte(a.body), &body); err != nil {
		t.Fatalf("status %d, body %q is not JSON: %v", a.status, a.body, err)
	}
	got := []string{fmt.Sprint(a.status), a.header.Get("x-wayleave-reason"), body.Error.Code, body.Type, a.header.Get("content-type")}
	want := []string{fmt.Sprint(status), reason, reason, "error", "application/json"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("reply (-want +got):\n%s", diff)
	}
	if a.header.Get("x-request-id") == "" || body.Error.Message == "" {
		t.Errorf("the reply has no request id or no words: %v %q", a.header, a.body)
	}
	if strings.Contains(a.body, "%") || strings.Contains(a.body, "rbac") || strings.Contains(a.body, "ext_proc") {
		t.Errorf("the reply tells of the inside: %q", a.body)
	}
}

// What a worker's request looks like to the gate and to the upstream, and the answer to the worker.
func TestRequestPath(t *testing.T) {
	seen := make(chan request, 100)
	s := start(t, func(c *Config) {
		c.Routes = append(c.Routes,
			Route{Name: "h1", Hosts: []string{"h1.provider.test"}, ALPN: []string{"http/1.1"}, ConnectTo: c.Routes[0].ConnectTo},
			Route{Name: "port", Hosts: []string{"any.provider.test:8443"}, ConnectTo: c.Routes[0].ConnectTo},
			Route{Name: "wild", Hosts: []string{"*.wild.provider.test"}, ConnectTo: c.Routes[0].ConnectTo},
			Route{Name: "closed", Hosts: []string{"closed.provider.test"}, ConnectTo: freeAddress(t)},
			Route{Name: "dynamic", Hosts: []string{"localhost"}},
		)
	}, nil)
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
		seen <- r
		return swap(r.identity)
	}
	ann := s.worker("ann")

	t.Run("swapped and cleaned", func(t *testing.T) {
		a := get(t, ann, "https://"+apiHost+"/v1?key=value", "Authorization", "Bearer placeholder", "X-Forwarded-Host", "evil",
			"X-Envoy-Retry-On", "5xx", "Proxy-Connection", "keep-alive", "X-Wayleave-Reason", "forged", "X-Api-Version", "2", "X-Request-Id", "mine")
		if a.status != 200 || a.body != "Bearer real-ann" {
			t.Fatalf("got %d %q", a.status, a.body)
		}
		r := <-seen
		if r.identity != "ann" || r.authority != apiHost+":443" || r.serverName != apiHost {
			t.Errorf("the gate saw %+v", r)
		}
		if source, err := netip.ParseAddrPort(r.source); err != nil || !source.Addr().IsLoopback() {
			t.Errorf("the gate saw the worker at %q", r.source)
		}
		got := s.upstream.last.Load()
		if id := r.header.Get("X-Request-Id"); id == "" || id == "mine" || strings.Join(got.Header.Values("X-Request-Id"), " ") != "mine" {
			t.Errorf("the gate saw the request id %q, the upstream %q", id, got.Header.Get("X-Request-Id"))
		}
		if got.Host != apiHost || got.TLS.ServerName != apiHost || got.Header.Get("X-Api-Version") != "2" {
			t.Errorf("the upstream saw host %q, server name %q, headers %v", got.Host, got.TLS.ServerName, got.Header)
		}
		for name := range got.Header {
			for _, prefix := range []string{"X-Forwarded-", "X-Envoy-", "Proxy-", "X-Wayleave-", "X-Request-Id-"} {
				if strings.HasPrefix(name, prefix) {
					t.Errorf("the upstream saw %s", name)
				}
			}
		}
		if a.header.Get("x-wayleave-reason") != "" || a.header.Get("proxy-authenticate") != "" {
			t.Errorf("the worker saw headers that only the gate may send: %v", a.header)
		}
	})

	t.Run("protocols", func(t *testing.T) {
		for host, want := range map[string]string{apiHost: "h2", "h1.provider.test": "http/1.1"} {
			conn, err := s.connectALPN(host)
			if err != nil {
				t.Fatal(err)
			}
			if got := conn.ConnectionState().NegotiatedProtocol; got != want {
				t.Errorf("%s speaks %q, want %q", host, got, want)
			}
		}
	})

	t.Run("port of its own", func(t *testing.T) {
		a := get(t, ann, "https://any.provider.test:8443/")
		if r := <-seen; a.status != 200 || r.authority != "any.provider.test:8443" || s.upstream.last.Load().Host != "any.provider.test:8443" {
			t.Errorf("got %d, gate saw %+v, upstream host %q", a.status, r, s.upstream.last.Load().Host)
		}
		// The name is right and the port is not: no virtual host.
		a = get(t, ann, "https://any.provider.test/")
		<-seen
		replied(t, a, 421, "misdirected")
	})

	t.Run("upstream cannot be reached", func(t *testing.T) {
		a := get(t, ann, "https://closed.provider.test/")
		<-seen
		replied(t, a, 503, "upstream_unreachable")
	})

	t.Run("upstream is not who it should be", func(t *testing.T) {
		a := get(t, ann, "https://too.deep.wild.provider.test/") // the upstream's certificate has *.provider.test
		<-seen
		replied(t, a, 503, "upstream_unreachable")
	})

	t.Run("name resolves to a private address", func(t *testing.T) {
		a := get(t, ann, "https://localhost/")
		<-seen
		replied(t, a, 503, "upstream_unreachable")
	})

	t.Run("unknown host", func(t *testing.T) {
		_, err := s.connect("unknown.test:443", "unknown.test", s.leaves.pool())
		if err == nil || !strings.Contains(err.Error(), "access denied") {
			t.Errorf("the handshake ended with %v, want TLS's access denied", err)
		}
	})

	t.Run("unminted host", func(t *testing.T) {
		_, err := s.connect("x.wild.provider.test:443", "-x.wild.provider.test", s.leaves.pool())
		if err == nil || !strings.Contains(err.Error(), "remote error: tls: handshake failure") {
			t.Errorf("the handshake for a name that is no host name ended with %v, want an alert", err)
		}
	})
}

// Hosts that are reached at one address, by one cluster or by several, never share a connection: each was made, and verified, for the name that is asked for.
func TestUpstreamConnectionsAreOfOneHost(t *testing.T) {
	hosts := []string{"a.provider.test", "b.provider.test", "c.provider.test", "d.provider.test", "e.provider.test"}
	var mixed atomic.Int64
	s, _ := startWith(t, func(w http.ResponseWriter, r *http.Request) {
		if r.TLS.ServerName != r.Host {
			mixed.Add(1)
		}
		fmt.Fprint(w, r.TLS.ServerName, " ", r.Host)
	}, func(c *Config) {
		c.Routes = []Route{
			{Name: "two", Hosts: hosts[:2], ConnectTo: c.Routes[0].ConnectTo},
			{Name: "one", Hosts: hosts[2:3], ConnectTo: c.Routes[0].ConnectTo},
			{Name: "others", Hosts: []string{"*.provider.test"}, ConnectTo: c.Routes[0].ConnectTo},
		}
	})
	var clients sync.WaitGroup
	for i, http2 := range []bool{true, true, false, false} {
		client := s.worker(fmt.Sprintf("w%d", i))
		client.Transport.(*http.Transport).ForceAttemptHTTP2 = http2
		clients.Go(func() {
			for n := range 100 {
				host := hosts[(n+i)%len(hosts)]
				resp, err := client.Get("https://" + host + "/")
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || string(body) != host+" "+host {
					t.Errorf("a request to %s came by a connection for another: %d %q, %v", host, resp.StatusCode, body, err)
					return
				}
			}
		})
	}
	clients.Wait()
	if n := mixed.Load(); n != 0 {
		t.Errorf("%d requests came by a connection for another host", n)
	}
}

func (s *stack) connectALPN(host string) (*tls.Conn, error) {
	raw, err := s.dialTunnel(host + ":443")
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{ServerName: host, RootCAs: s.leaves.pool(), NextProtos: []string{"h2", "http/1.1"}})
	return conn, conn.HandshakeContext(s.t.Context())
}

// Requests that are not CONNECT.
func TestPlainRequests(t *testing.T) {
	s := start(t, nil, nil)
	s.serveAPI(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "api %s %s %s", r.URL.Path, r.Header.Get("Authorization"), r.Header.Get("X-Forwarded-For"))
	}))
	direct := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: s.config.ProxyAddress})}}

	a := get(t, direct, "http://"+s.config.ProxyAddress+"/.wayleave/v1/sessions", "Authorization", "Bearer worker-token", "X-Forwarded-For", "1.2.3.4")
	body, forwarded, _ := strings.Cut(a.body, "1.2.3.4,")
	if _, err := netip.ParseAddr(forwarded); a.status != 200 || body != "api /.wayleave/v1/sessions Bearer worker-token " || err != nil {
		t.Errorf("the API got %d %q", a.status, a.body)
	}
	replied(t, get(t, direct, "http://example.test/"), 403, "use_connect")
	if n := s.gate.checks.Load(); n != 0 {
		t.Errorf("the gate was asked about %d of them", n)
	}
	_, err := direct.Get("https://" + apiHost + "/") //nolint:bodyclose // there is none
	if err == nil || !strings.Contains(err.Error(), "Proxy Authentication Required") {
		t.Errorf("CONNECT without credentials: %v", err)
	}
}

// A request that Envoy would forward without a verdict, or with a placeholder in it, never reaches the upstream.
func TestBarrier(t *testing.T) {
	basic := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	placeholder := "sk-ant-oat01-" + testMarker + "abc234"
	pass := func(headers ...string) *extprocv3.ProcessingResponse {
		r := forward(headers...)
		r.DynamicMetadata = verdict("pass")
		return r
	}
	refuse := func(status int, reason string) *extprocv3.ProcessingResponse {
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extprocv3.ImmediateResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode(status)},
			Headers: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{
				rawHeader("content-type", "application/json"), rawHeader("x-wayleave-reason", reason), rawHeader("x-request-id", "r1"),
				rawHeader("x-should-retry", "false"), rawHeader("retry-after", "7"), rawHeader("www-authenticate", "Bearer"), rawHeader("proxy-authenticate", "Basic"),
			}},
			Body: []byte(`{"own":"words"}`),
		}}}
	}
	tests := []struct {
		name   string
		answer *extprocv3.ProcessingResponse
		header []string
		status int
		reason string // "": it reaches the upstream
	}{
		{"swap", swap("ann"), nil, 200, ""},
		{"pass", pass(), []string{"Authorization", "Bearer of-another-protocol"}, 200, ""},
		{"merged header", pass("anthropic-beta", "oauth-2025-04-20"), nil, 200, ""},
		{"no verdict", forward("authorization", "Bearer x"), nil, 403, "barrier"},
		{"unknown verdict", func() *extprocv3.ProcessingResponse { r := forward(); r.DynamicMetadata = verdict("maybe"); return r }(), nil, 403, "barrier"},
		{"empty answer", &extprocv3.ProcessingResponse{}, nil, 503, "gate_unavailable"},
		{"an answer to another phase", &extprocv3.ProcessingResponse{
			Response:        &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: swap("ann").GetRequestHeaders()},
			DynamicMetadata: verdict("swap"),
		}, nil, 503, "gate_unavailable"},
		{"an answer about a body", &extprocv3.ProcessingResponse{
			Response:        &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{Response: swap("ann").GetRequestHeaders().GetResponse()}},
			DynamicMetadata: verdict("swap"),
		}, nil, 503, "gate_unavailable"},
		{"a credential with a line break", func() *extprocv3.ProcessingResponse {
			r := forward("authorization", "Bearer real\r\nx-evil: 1")
			r.DynamicMetadata = verdict("swap")
			return r
		}(), []string{"Authorization", "Bearer " + placeholder}, 503, "gate_unavailable"},
		{"empty credential", func() *extprocv3.ProcessingResponse {
			r := forward("authorization", "")
			r.DynamicMetadata = verdict("swap")
			return r
		}(), []string{"Authorization", "Bearer " + placeholder}, 0, ""},
		{"placeholder as bearer", pass(), []string{"Authorization", "Bearer " + placeholder}, 403, "barrier"},
		{"placeholder as key", pass(), []string{"X-Api-Key", placeholder}, 403, "barrier"},
		{"placeholder in a configured header", pass(), []string{"Private-Token", placeholder}, 403, "barrier"},
		{"placeholder as password", pass(), []string{"Authorization", basic("x-access-token", placeholder)}, 403, "barrier"},
		{"placeholder as password, one byte on", pass(), []string{"Authorization", basic("x-access-token.", placeholder)}, 403, "barrier"},
		{"placeholder as password, two bytes on", pass(), []string{"Authorization", basic("x-access-token..", placeholder)}, 403, "barrier"},
		{"placeholder in the second of two", pass(), []string{"Authorization", "Bearer a", "Authorization", "Bearer " + placeholder}, 403, "barrier"},
		{"forbidden mutation: path", pass(":path", "/evil"), nil, 503, "gate_unavailable"},
		{"forbidden mutation: authority", pass(":authority", "evil.provider.test"), nil, 503, "gate_unavailable"},
		{"forbidden mutation: scheme", pass(":scheme", "http"), nil, 503, "gate_unavailable"},
		{"forbidden mutation: method", pass(":method", "DELETE"), nil, 503, "gate_unavailable"},
		{"forbidden mutation: host", pass("host", "evil.provider.test"), nil, 503, "gate_unavailable"},
		{"forbidden mutation: a header of no route", pass("x-other", "x"), nil, 503, "gate_unavailable"},
		{"forbidden mutation: length", pass("content-length", "9"), nil, 503, "gate_unavailable"},
		{"refused by the gate", refuse(400, "scope_missing"), nil, 400, "scope_missing"},
		{"refused by the gate as unavailable", refuse(503, "refresh_unavailable"), nil, 503, "refresh_unavailable"},
	}
	s := start(t, func(c *Config) {
		c.CredentialHeaders = []string{"private-token"}
		c.EnsureHeaders = []string{"anthropic-beta"}
	}, nil)
	client := s.worker("ann")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.gate.decide = func(request) *extprocv3.ProcessingResponse { return tt.answer }
			before := s.upstream.requests.Load()
			a := get(t, client, "https://"+apiHost+"/", tt.header...)
			reached := s.upstream.requests.Load() - before
			switch {
			case tt.status == 0: // whatever the answer, the placeholder stays here
				if reached != 0 && strings.Contains(a.body, testMarker) {
					t.Errorf("the upstream got the placeholder: %d %q", a.status, a.body)
				}
			case tt.reason == "":
				if a.status != tt.status || reached != 1 {
					t.Errorf("got %d %q, the upstream %d requests", a.status, a.body, reached)
				}
			case tt.answer.GetImmediateResponse() != nil:
				if a.status != tt.status || a.header.Get("x-wayleave-reason") != tt.reason || a.body != `{"own":"words"}` || reached != 0 {
					t.Errorf("got %d %v %q, the upstream %d requests", a.status, a.header, a.body, reached)
				}
				if a.header.Get("retry-after") != "7" || a.header.Get("x-request-id") != "r1" || a.header.Get("x-should-retry") != "false" || a.header.Get("www-authenticate") == "" {
					t.Errorf("headers are missing: %v", a.header)
				}
			default:
				replied(t, a, tt.status, tt.reason)
				if reached != 0 {
					t.Errorf("the upstream got %d requests", reached)
				}
			}
		})
	}
}

// Whatever a gate makes of a question, in place of answering it, nothing goes on and the worker is told in words. A stream that ends with OK means, by
// ext_proc's protocol, that Envoy is to go on without the gate.
func TestBarrierAgainstNonsense(t *testing.T) {
	type stream = extprocv3.ExternalProcessor_ProcessServer
	after := func(do func(stream) error) func(stream) error {
		return func(s stream) error {
			if _, err := s.Recv(); err != nil {
				return err
			}
			return do(s)
		}
	}
	// raw is a message of these bytes.
	raw := func(b []byte) *emptypb.Empty {
		m := &emptypb.Empty{}
		m.ProtoReflect().SetUnknown(b)
		return m
	}
	say := func(messages ...any) func(stream) error {
		return after(func(s stream) error {
			for _, m := range messages {
				if err := s.SendMsg(m); err != nil {
					return err
				}
			}
			_, err := s.Recv() // until Envoy has had enough
			return err
		})
	}
	with := func(change func(*extprocv3.CommonResponse)) *extprocv3.ProcessingResponse {
		r := swap("ann")
		change(r.GetRequestHeaders().GetResponse())
		return r
	}
	body := func(r *extprocv3.CommonResponse) *extprocv3.CommonResponse {
		r.BodyMutation = &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: []byte("of the gate")}}
		return r
	}
	tests := map[string]func(stream) error{
		"ends before the question": func(stream) error { return nil },
		"ends after the question":  after(func(stream) error { return nil }),
		"is no protocol buffer":    say(raw([]byte{0x0a, 0xff, 0xff, 0xff})),
		"is unknown":               say(raw([]byte{0xf2, 0x7f, 0x02, 0x6f, 0x6b})),
		"is longer than a header may": say(with(func(r *extprocv3.CommonResponse) {
			r.HeaderMutation.SetHeaders[0].Header.RawValue = bytes.Repeat([]byte("x"), 200<<10)
		})),
		"is 5 MiB": say(with(func(r *extprocv3.CommonResponse) {
			r.HeaderMutation.SetHeaders[0].Header.RawValue = bytes.Repeat([]byte("x"), 5<<20)
		})),
		"has very many headers": say(with(func(r *extprocv3.CommonResponse) {
			for range 5000 {
				h := rawHeader("authorization", "Bearer real-ann")
				h.AppendAction = corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD
				r.HeaderMutation.SetHeaders = append(r.HeaderMutation.SetHeaders, h)
			}
		})),
		"takes away what makes it a request": say(with(func(r *extprocv3.CommonResponse) {
			r.HeaderMutation.RemoveHeaders = []string{":authority", ":path", ":method", "host"}
		})),
		"has an empty name":       say(with(func(r *extprocv3.CommonResponse) { r.HeaderMutation.SetHeaders[0].Header.Key = "" })),
		"has a name that is none": say(with(func(r *extprocv3.CommonResponse) { r.HeaderMutation.SetHeaders[0].Header.Key = "a b\r\nx" })),
		"is about the answer, then about the request": say(&extprocv3.ProcessingResponse{
			Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}},
		}, swap("ann")),
		"is about trailers": say(&extprocv3.ProcessingResponse{
			Response: &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}}, DynamicMetadata: verdict("swap"),
		}),
		"replaces the request by another, without a verdict": say(func() *extprocv3.ProcessingResponse {
			r := with(func(r *extprocv3.CommonResponse) { body(r).Status = extprocv3.CommonResponse_CONTINUE_AND_REPLACE })
			r.DynamicMetadata = nil
			return r
		}()),
		"has a verdict in another's name": say(func() *extprocv3.ProcessingResponse {
			r := swap("ann")
			r.DynamicMetadata = &structpb.Struct{Fields: map[string]*structpb.Value{"envoy.lb": r.GetDynamicMetadata().GetFields()[metadataNamespace]}}
			return r
		}()),
		"has a verdict that is no text": say(func() *extprocv3.ProcessingResponse {
			r := swap("ann")
			r.GetDynamicMetadata().GetFields()[metadataNamespace].GetStructValue().GetFields()[metadataVerdict] = structpb.NewBoolValue(true)
			return r
		}()),
		"waits longer than Envoy does": after(func(s stream) error { <-s.Context().Done(); return s.Context().Err() }),
	}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		tests["fails with "+code.String()] = after(func(stream) error { return status.Error(code, "real-ann") })
	}
	s := start(t, func(c *Config) { c.MessageTimeout = time.Second }, nil)
	placeholder := "sk-ant-oat01-" + testMarker + "abc234"
	for _, http2 := range []bool{true, false} {
		client := s.worker("ann")
		client.Transport.(*http.Transport).ForceAttemptHTTP2 = http2
		for _, name := range sortedKeys(tests) {
			t.Run(fmt.Sprintf("http2 %v, %s", http2, name), func(t *testing.T) {
				s.gate.behave.Store(new(tests[name]))
				before := s.upstream.requests.Load()
				for _, method := range []string{http.MethodGet, http.MethodPost} {
					req, err := http.NewRequestWithContext(t.Context(), method, "https://"+apiHost+"/", nil)
					if err != nil {
						t.Fatal(err)
					}
					if method == http.MethodPost {
						req.Body, req.ContentLength = io.NopCloser(strings.NewReader("body")), 4
					}
					req.Header.Set("Authorization", "Bearer "+placeholder)
					a := do(t, client, req)
					reason := a.header.Get("x-wayleave-reason")
					if reason != reasonBarrier && reason != reasonGateUnavailable {
						t.Fatalf("%s: %d %q %q", method, a.status, reason, a.body)
					}
					replied(t, a, a.status, reason)
					if strings.Contains(a.body, "real-ann") {
						t.Errorf("%s: what the gate said is told: %q", method, a.body)
					}
				}
				if n := s.upstream.requests.Load() - before; n != 0 {
					t.Errorf("the upstream got %d requests", n)
				}
			})
		}
	}

	// What is said after a good answer changes nothing.
	twice := say(swap("ann"), swap("bob"), &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{
		ResponseHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{rawHeader("x-late", "1")}}}},
	}})
	s.gate.behave.Store(&twice)
	for range 20 {
		if a := get(t, s.worker("ann"), "https://"+apiHost+"/"); a.status != 200 || a.body != "Bearer real-ann" || a.header.Get("X-Late") != "" {
			t.Errorf("after more than one answer: %d %q", a.status, a.body)
		}
	}
}

// Nor is a tunnel opened by whatever the gate makes of the question about it.
func TestTunnelsAgainstNonsense(t *testing.T) {
	s := start(t, func(c *Config) { c.Plain = []string{"plain.localhost:80"} }, nil)
	tests := map[string]func() (*authv3.CheckResponse, error){
		"a refusal in nobody's words": func() (*authv3.CheckResponse, error) {
			return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)}}, nil
		},
		"a refusal with the status of a success": func() (*authv3.CheckResponse, error) {
			return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}}}, nil
		},
	}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		tests["fails with "+code.String()] = func() (*authv3.CheckResponse, error) { return nil, status.Error(code, "inner detail") }
	}
	for _, name := range sortedKeys(tests) {
		s.gate.check.Store(new(tests[name]))
		for _, first := range []string{"CONNECT " + apiHost + ":443 HTTP/1.1\r\nHost: " + apiHost, "GET http://plain.localhost/ HTTP/1.1\r\nHost: plain.localhost"} {
			var d net.Dialer
			c, err := d.DialContext(t.Context(), "tcp", s.config.ProxyAddress)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(c, first+"\r\nProxy-Authorization: Basic YW5uOnB3\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(c), nil) //nolint:bodyclose // read closes it
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			a := read(t, resp)
			_ = c.Close()
			if a.status < 400 || strings.Contains(a.body, "inner detail") {
				t.Errorf("%s: %.7s got %d %q", name, first, a.status, a.body)
			} else if strings.HasPrefix(name, "fails") {
				replied(t, a, 503, reasonGateUnavailable)
			}
		}
	}
	if n := s.upstream.requests.Load(); n != 0 {
		t.Errorf("the upstream got %d requests", n)
	}
}

// An ext_proc that cannot be called lets nothing through, whichever way it fails.
func TestBarrierWithoutGate(t *testing.T) {
	breakExtProc := func(edit func(*extprocconfig.ExternalProcessor)) func(*Resources) {
		return func(r *Resources) {
			e := &extprocconfig.ExternalProcessor{}
			if err := r.Extensions[0].GetTypedConfig().UnmarshalTo(e); err != nil {
				t.Fatal(err)
			}
			edit(e)
			r.Extensions[0].TypedConfig = pack(e)
		}
	}
	tests := []struct {
		name   string
		mutate func(*Resources)
		want   []string // one of these
	}{
		{"its cluster does not exist", breakExtProc(func(e *extprocconfig.ExternalProcessor) {
			e.GrpcService.GetEnvoyGrpc().ClusterName = "nowhere"
		}), []string{"403 barrier", "503 gate_unavailable"}},
		{"its failures are allowed", breakExtProc(func(e *extprocconfig.ExternalProcessor) {
			e.GrpcService.GetEnvoyGrpc().ClusterName = clusterAPI // nobody listens there
			e.FailureModeAllow = true
		}), []string{"403 barrier"}},
		{"the filter is gone", func(r *Resources) {
			editManagers(r, func(m *hcmv3.HttpConnectionManager) {
				m.HttpFilters = slices.DeleteFunc(m.GetHttpFilters(), func(f *hcmv3.HttpFilter) bool { return f.GetName() == filterExtProc })
			})
		}, []string{"403 barrier"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, nil, tt.mutate)
			a := get(t, s.worker("ann"), "https://"+apiHost+"/", "Authorization", "Bearer x")
			got := fmt.Sprint(a.status, " ", a.header.Get("x-wayleave-reason"))
			if !slices.Contains(tt.want, got) {
				t.Errorf("got %s %q, want one of %q", got, a.body, tt.want)
			}
			replied(t, a, a.status, a.header.Get("x-wayleave-reason"))
			if n := s.upstream.requests.Load(); n != 0 {
				t.Errorf("the upstream got %d requests", n)
			}
		})
	}
}

// A gate that does not answer in time is unavailable, in our words.
func TestSilentGate(t *testing.T) {
	s := start(t, func(c *Config) { c.MessageTimeout = 100 * time.Millisecond }, nil)
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	s.gate.decide = func(request) *extprocv3.ProcessingResponse { <-end; return swap("ann") }
	replied(t, get(t, s.worker("ann"), "https://"+apiHost+"/"), 504, "gate_unavailable")
	if n := s.upstream.requests.Load(); n != 0 {
		t.Errorf("the upstream got %d requests", n)
	}
}

// A gate that dies with a question open is unavailable too, and what was asked about goes nowhere.
func TestGateDiesWhileAsked(t *testing.T) {
	s := start(t, nil, nil)
	asked, end := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(end) })
	s.gate.decide = func(request) *extprocv3.ProcessingResponse { close(asked); <-end; return swap("ann") }
	died := make(chan struct{})
	go func() {
		defer close(died)
		<-asked
		s.stop()
	}()
	replied(t, get(t, s.worker("ann"), "https://"+apiHost+"/"), 503, "gate_unavailable")
	<-died
	s.stop = func() {}
	if n := s.upstream.requests.Load(); n != 0 {
		t.Errorf("the upstream got %d requests", n)
	}
}

// Tunnelled bytes arrive untouched, and only at the host the CONNECT was for.
func TestTunnel(t *testing.T) {
	var port string
	s := start(t, func(c *Config) {
		_, port, _ = strings.Cut(c.Routes[0].ConnectTo, ":")
		c.Tunnel = []string{"localhost:" + port}
		c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}, nil)
	conn, err := s.connect("localhost:"+port, "localhost", s.upstream.ca.pool())
	if err != nil {
		t.Fatal(err)
	}
	if a := ask(t, conn, bufio.NewReader(conn), "localhost"); a.status != 200 {
		t.Errorf("status %d", a.status)
	}
	for _, authority := range []string{apiHost + ":443", "localhost:443", "localhost"} {
		if conn, err := s.connect(authority, "localhost", s.upstream.ca.pool()); err == nil {
			_ = conn.Close()
			t.Errorf("CONNECT %s reached localhost:%s", authority, port)
		}
	}
}

// A WebSocket's bytes pass both ways, over HTTP/1.1, to an upstream that would also speak HTTP/2.
func TestWebSocket(t *testing.T) {
	echo := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer real-ann" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		_, _ = io.Copy(c, rw) // until the client is gone
	}))
	s := start(t, func(c *Config) {
		c.Routes = append(c.Routes, Route{Name: "echo", Hosts: []string{"echo.provider.test"}, ConnectTo: echo.Listener.Addr().String()})
	}, nil)
	echo.TLS = &tls.Config{Certificates: []tls.Certificate{s.upstream.ca.certificate(t, "echo.provider.test")}}
	echo.EnableHTTP2 = true
	echo.StartTLS()
	t.Cleanup(echo.Close)

	conn, err := s.connect("echo.provider.test:443", "echo.provider.test", s.leaves.pool())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "GET /chat HTTP/1.1\r\nHost: echo.provider.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil) //nolint:bodyclose // the connection is the body
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v %v", resp, err)
	}
	for _, word := range []string{"hello\n", "again\n"} {
		fmt.Fprint(conn, word)
		if got, err := r.ReadString('\n'); err != nil || got != word {
			t.Fatalf("echo of %q: %q %v", word, got, err)
		}
	}
}

// Envoy keeps serving what it had when it refuses a configuration, and we neither hide its words nor insist.
func TestRefusedConfiguration(t *testing.T) {
	s := start(t, nil, nil)
	client := s.worker("ann")
	if a := get(t, client, "https://"+apiHost+"/"); a.status != 200 {
		t.Fatalf("before: %d", a.status)
	}
	s.await("everything acknowledged", Node.Current)
	sends := listenerState(s).Sends

	s.mutate = func(r *Resources) {
		f := r.Listeners[0].GetFilterChains()[0].GetFilters()[0]
		f.Name, f.GetTypedConfig().TypeUrl = "nope", "type.googleapis.com/envoy.config.core.v3.Node"
	}
	s.publish()
	s.await("a refusal", func(Node) bool { return listenerState(s).Error != "" })
	for range 3 { // publishing the same again sends nothing new
		s.publish()
		if a := get(t, client, "https://"+apiHost+"/"); a.status != 200 {
			t.Errorf("after: %d", a.status)
		}
		client.CloseIdleConnections()
	}
	l := listenerState(s)
	if !strings.Contains(l.Error, "proxy") || l.Refused != l.Sent || l.Acked == l.Sent || l.Sends-sends > 2 {
		t.Errorf("listeners: %+v, sent %d times since", l, l.Sends-sends)
	}

	s.mutate = nil
	s.config.MessageTimeout = 6 * time.Second
	s.config.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} // changes the listeners
	s.publish()
	s.await("the refusal to be over", Node.Current)
}

// Whatever kind of resource Envoy refuses, its words are known, it goes on as before, and it is not asked again. What is mended arrives, and what was right
// beside it, whether or not the control plane has been away in between. Without authorities that it can read it reaches no upstream, rather than one that is
// not verified.
func TestRefusalsOfEveryKind(t *testing.T) {
	const nonsense = "%NO_SUCH_COMMAND%"
	header := []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x", Value: nonsense}}}
	for kind, mutate := range map[string]func(*Resources){
		"Cluster": func(r *Resources) {
			r.Clusters = append(r.Clusters, &clusterv3.Cluster{Name: "bad", LbPolicy: clusterv3.Cluster_CLUSTER_PROVIDED})
		},
		"TypedExtensionConfig": func(r *Resources) { r.Extensions[0].TypedConfig = pack(&extprocconfig.ExternalProcessor{}) },
		"RouteConfiguration":   func(r *Resources) { r.Routes[0].RequestHeadersToAdd = header },
		"VirtualHost": func(r *Resources) {
			for _, c := range r.Routes {
				for _, vh := range c.GetVirtualHosts() {
					if slices.Contains(vh.GetDomains(), apiHost) {
						vh.RequestHeadersToAdd = header
					}
				}
			}
		},
		"Secret": func(*Resources) {}, // by the configuration: what is in such a secret is in its name
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restart %v", kind, restart), func(t *testing.T) {
				s := start(t, nil, nil)
				serves := func(when string) {
					t.Helper()
					if a := get(t, s.worker("ann"), "https://"+apiHost+"/"); a.body != "Bearer real-ann" {
						t.Errorf("%s: %d %q", when, a.status, a.body)
					}
				}
				serves("before")
				s.await("everything acknowledged", Node.Current)
				sends, good := stateOf(s, kind).Sends, s.config.UpstreamCA
				s.mutate = mutate
				s.config.Routes = append(s.config.Routes, Route{Name: "new", Hosts: []string{"new.provider.test"}, ConnectTo: s.upstream.address})
				if kind == "Secret" {
					s.config.UpstreamCA = []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
				}
				s.publish()
				s.await("a refusal", func(Node) bool { return stateOf(s, kind).Error != "" })
				for range 3 {
					s.publish()
					if kind == "Secret" {
						envoytest.Await(t, "the clusters without authorities", func() error {
							if a := get(t, s.worker("ann"), "https://"+apiHost+"/"); a.status != 503 || a.header.Get("x-wayleave-reason") != "upstream_unreachable" {
								return fmt.Errorf("%d %q", a.status, a.body)
							}
							return nil
						})
					} else {
						serves("while something is refused")
					}
				}
				if is := stateOf(s, kind); is.Refused != is.Sent || is.Sends-sends > 2 {
					t.Errorf("%+v, sent %d times since", is, is.Sends-sends)
				}

				s.mutate, s.config.UpstreamCA = nil, good
				if restart {
					s.stop()
					s.serve()
				} else {
					s.publish()
				}
				envoytest.Await(t, "what is mended", func() error {
					conn, err := s.connect("new.provider.test:443", "new.provider.test", s.leaves.pool())
					if err == nil {
						_ = conn.Close()
					}
					return err
				})
				s.await("the refusal to be over", Node.Current)
				serves("after")
				if a := get(t, s.worker("ann"), "https://new.provider.test/"); a.body != "Bearer real-ann" {
					t.Errorf("the new host: %d %q", a.status, a.body)
				}
			})
		}
	}
}

func listenerState(s *stack) TypeState { return stateOf(s, "Listener") }

// stateOf is how far Envoy has come with one kind of resource.
func stateOf(s *stack, kind string) TypeState {
	for _, n := range s.server.Nodes() {
		for _, t := range n.Types {
			if t.Type == kind {
				return t
			}
		}
	}
	return TypeState{}
}

// While the control plane is away nothing leaves, and no connection is lost; when it is back it is obeyed.
func TestControlPlaneRestart(t *testing.T) {
	s := start(t, nil, nil)
	conn, err := s.connect(apiHost+":443", apiHost, s.leaves.pool())
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	again := func() testAnswer {
		t.Helper()
		return ask(t, conn, r, apiHost)
	}
	if a := again(); a.body != "Bearer real-ann" {
		t.Fatalf("before: %d %q", a.status, a.body)
	}

	s.stop()
	replied(t, again(), 503, "gate_unavailable")
	if n := s.upstream.requests.Load(); n != 1 {
		t.Errorf("the upstream got %d requests", n)
	}

	s.config.Routes = append(s.config.Routes, Route{Name: "new", Hosts: []string{"new.provider.test"}, ConnectTo: s.upstream.address})
	s.serve()
	envoytest.Await(t, "the old connection to be served again", func() error {
		if a := again(); a.body != "Bearer real-ann" {
			return fmt.Errorf("%d %q", a.status, a.body)
		}
		return nil
	})
	s.await("the new configuration", Node.Current)
	if a := get(t, s.worker("bob"), "https://new.provider.test/"); a.body != "Bearer real-bob" {
		t.Errorf("the new host: %d %q", a.status, a.body)
	}
	if a := again(); a.body != "Bearer real-ann" {
		t.Errorf("after: %d %q", a.status, a.body)
	}
}

// A host added to the configuration cuts no connection, and neither do leaves made anew.
func TestChangesKeepConnections(t *testing.T) {
	s := start(t, nil, nil)
	conn, err := s.connect(apiHost+":443", apiHost, s.leaves.pool())
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	first := conn.ConnectionState().PeerCertificates[0].SerialNumber

	s.config.Routes = append(s.config.Routes, Route{Name: "new", Hosts: []string{"new.provider.test"}, ConnectTo: s.upstream.address})
	s.config.MessageTimeout = 7 * time.Second
	s.publish()
	s.server.RotateLeaves()
	envoytest.Await(t, "a new leaf", func() error {
		conn, err := s.connect(apiHost+":443", apiHost, s.leaves.pool())
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if conn.ConnectionState().PeerCertificates[0].SerialNumber.Cmp(first) == 0 {
			return errors.New("still the old one")
		}
		return nil
	})
	s.await("everything acknowledged", Node.Current)
	if a := get(t, s.worker("ann"), "https://new.provider.test/"); a.status != 200 {
		t.Errorf("the new host: %d %q", a.status, a.body)
	}
	if a := ask(t, conn, r, apiHost); a.status != 200 || a.header.Get("Connection") == "close" {
		t.Errorf("the old connection: %d %v", a.status, a.header)
	}
}

// A drained Envoy still answers, and tells its clients to go elsewhere.
func TestDrain(t *testing.T) {
	s := start(t, nil, nil)
	admin := s.bootstrap().AdminSocket
	if err := envoy.Drain(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	info, err := envoy.ServerInfo(t.Context(), admin)
	if err != nil || info.Version == "" {
		t.Errorf("info %+v, %v", info, err)
	}
	if a := get(t, s.worker("ann"), "https://"+apiHost+"/"); a.status != 200 {
		t.Errorf("got %d", a.status)
	}
}
