package xds

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// provider is a TLS upstream of a test's own, and what it was sent.
type provider struct {
	mu   sync.Mutex
	seen []http.Header
}

func (p *provider) requests() []http.Header {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.seen)
}

// startWith runs everything with handle as the upstream. configure may change the configuration.
func startWith(t *testing.T, handle http.HandlerFunc, configure ...func(*Config)) (*stack, *provider) {
	t.Helper()
	return startChanged(t, handle, nil, configure...)
}

// startChanged is startWith where mutate changes what was built.
func startChanged(t *testing.T, handle http.HandlerFunc, mutate func(*Resources), configure ...func(*Config)) (*stack, *provider) {
	t.Helper()
	p := &provider{}
	s := start(t, func(c *Config) {
		ca := newAuthority(t)
		up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p.mu.Lock()
			p.seen = append(p.seen, r.Header.Clone())
			p.mu.Unlock()
			handle(w, r)
		}))
		up.TLS = &tls.Config{Certificates: []tls.Certificate{ca.certificate(t, "*.provider.test", "localhost")}}
		up.EnableHTTP2 = true
		up.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
		up.StartTLS()
		t.Cleanup(up.Close)
		c.UpstreamCA, c.Routes[0].ConnectTo = ca.pem, up.Listener.Addr().String()
		for _, more := range configure {
			more(c)
		}
	}, mutate)
	return s, p
}

const oldToken, newToken = "Bearer real-old-0123456789", "Bearer real-new-0123456789"

// retrying is a gate's swap that may be tried again.
func retrying() *extprocv3.ProcessingResponse {
	r := forward("authorization", oldToken, "x-envoy-retry-on", "retriable-status-codes")
	r.DynamicMetadata = verdict("swap")
	return r
}

// onlyNew is an API that has forgotten the old token.
func onlyNew(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	switch {
	case err != nil:
		panic(http.ErrAbortHandler)
	case r.Header.Get("Authorization") != newToken:
		w.Header().Set("Www-Authenticate", "Bearer")
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == "/events":
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
		}
	case r.Header.Get("Upgrade") != "":
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		_, _ = io.Copy(c, rw)
	default:
		fmt.Fprint(w, n)
	}
}

// A swapped request that the provider answers with 401 goes out once more with the token the gate then gives: its body
// is kept for that up to a mebibyte. The worker sees nothing of it, and the provider no header but its own.
func TestRejectedTokenIsReplaced(t *testing.T) {
	tests := []struct {
		name   string
		path   string
		body   io.Reader
		status int
		want   string
	}{
		{"get", "/", nil, 200, "0"},
		{"16 KiB", "/", bytes.NewReader(make([]byte, 16<<10)), 200, "16384"},
		{"16 KiB in chunks", "/", io.LimitReader(endless{}, 16<<10), 200, "16384"},
		{"512 KiB", "/", bytes.NewReader(make([]byte, 512<<10)), 200, "524288"},
		{"events", "/events", nil, 200, "data: 0\n\ndata: 1\n\ndata: 2\n\n"},
		{"more than is kept", "/", bytes.NewReader(make([]byte, 4<<20)), 401, ""},
	}
	s, up := startWith(t, onlyNew)
	var asked int
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
		if r.answered == "" {
			return retrying()
		}
		asked++
		if r.answered != "401" || r.header.Get("authorization") != oldToken {
			t.Errorf("asked again about %+v", r)
		}
		return forward("authorization", newToken)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := len(up.requests())
			asked = 0
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+apiHost+tt.path, tt.body)
			if err != nil {
				t.Fatal(err)
			}
			a := do(t, s.worker("ann"), req)
			if a.status != tt.status || a.body != tt.want {
				t.Errorf("got %d %q", a.status, a.body)
			}
			attempts := up.requests()[before:]
			want := []string{oldToken, newToken}
			if tt.status == 401 {
				want = want[:1]
			}
			for i, h := range attempts {
				if i >= len(want) || h.Get("Authorization") != want[i] {
					t.Errorf("attempt %d with %q", i, h.Get("Authorization"))
				}
				for name := range h {
					if strings.HasPrefix(name, "X-") {
						t.Errorf("the provider got %s", name)
					}
				}
			}
			if len(attempts) != len(want) || asked != len(want)-1 {
				t.Errorf("%d attempts, the gate was asked again %d times", len(attempts), asked)
			}
		})
	}
	t.Run("websocket", func(t *testing.T) {
		conn, err := s.connect(apiHost+":443", apiHost, s.leaves.pool())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, "GET /chat HTTP/1.1\r\nHost: "+apiHost+"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil) //nolint:bodyclose // the connection is the body
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("upgrade: %v %v", resp, err)
		}
		fmt.Fprint(conn, "hello\n")
		if got, err := r.ReadString('\n'); err != nil || got != "hello\n" {
			t.Fatalf("echo: %q %v", got, err)
		}
	})
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A provider that rejects the new token as well, or whose 401 the gate has no cure for, has the last word.
func TestRejectionHasAnEnd(t *testing.T) {
	s, up := startWith(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, "its own words")
	})
	for name, tt := range map[string]struct {
		first, again *extprocv3.ProcessingResponse
		attempts     int
	}{
		"not to be retried": {swap("ann"), nil, 1},
		"passed":            {func() *extprocv3.ProcessingResponse { r := forward(); r.DynamicMetadata = verdict("pass"); return r }(), nil, 1},
		"no other token":    {retrying(), forward(), 3},
		"another token":     {retrying(), forward("authorization", newToken), 3},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(up.requests())
			s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
				if r.answered == "" {
					return tt.first
				}
				if tt.again == nil {
					t.Error("the gate was asked again")
				}
				return tt.again
			}
			// What a worker says of retries does not count.
			a := get(t, s.worker("ann"), "https://"+apiHost+"/", "x-envoy-retry-on", "retriable-status-codes", "x-envoy-retriable-status-codes", "401", "x-envoy-max-retries", "9")
			if a.status != 401 || a.body != "its own words" {
				t.Errorf("got %d %q", a.status, a.body)
			}
			if n := len(up.requests()) - before; n != tt.attempts {
				t.Errorf("%d attempts", n)
			}
		})
	}
}

// An upstream that answers before it has read a request that turns out too long to be kept: the worker is told.
func TestRejectionBeforeTheBodyEnds(t *testing.T) {
	s, up := startWith(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		w.(http.Flusher).Flush()
		_, _ = io.CopyN(io.Discard, r.Body, 64<<10)
	})
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
		if r.answered == "" {
			return retrying()
		}
		return forward("authorization", newToken)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+apiHost+"/", io.LimitReader(endless{}, 8<<20))
	if err != nil {
		t.Fatal(err)
	}
	a := do(t, s.worker("ann"), req)
	switch a.header.Get("x-wayleave-reason") {
	case "token_replaced":
		replied(t, a, 503, "token_replaced")
	case "": // the whole body was there before the second attempt, or the upstream's answer came through
		if a.status != 401 {
			t.Errorf("got %d %v %q", a.status, a.header, a.body)
		}
	default:
		t.Errorf("got %d %v %q", a.status, a.header, a.body)
	}
	for _, h := range up.requests() {
		if v := h.Get("Authorization"); v != oldToken && v != newToken {
			t.Errorf("the upstream got %q", v)
		}
	}
}

// A gate that fails when it is asked again refuses the request, in its words or in ours.
func TestRecoveryFails(t *testing.T) {
	for name, tt := range map[string]struct {
		again  *extprocv3.ProcessingResponse
		status int
		reason string
	}{
		"refused": {&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extprocv3.ImmediateResponse{
			Status:  &typev3.HttpStatus{Code: 400},
			Headers: &extprocv3.HeaderMutation{SetHeaders: slices.Concat(forward("x-wayleave-reason", "needs_reconnect", "x-should-retry", "false").GetRequestHeaders().GetResponse().GetHeaderMutation().GetSetHeaders())},
			Body:    []byte("reconnect"),
		}}}, 400, "needs_reconnect"},
		"nonsense":  {&extprocv3.ProcessingResponse{}, 503, "gate_unavailable"},
		"forbidden": {forward(":path", "/evil"), 503, "gate_unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			s, up := startWith(t, onlyNew)
			s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
				if r.answered == "" {
					return retrying()
				}
				return tt.again
			}
			a := get(t, s.worker("ann"), "https://"+apiHost+"/")
			if a.status != tt.status || a.header.Get("x-wayleave-reason") != tt.reason {
				t.Errorf("got %d %v %q", a.status, a.header, a.body)
			}
			if n := len(up.requests()); n != 1 {
				t.Errorf("%d attempts", n)
			}
		})
	}
	t.Run("silent", func(t *testing.T) {
		s, _ := startWith(t, onlyNew)
		s.config.MessageTimeout = 200 * time.Millisecond
		s.publish()
		s.await("the shorter time", Node.Current)
		hung := make(chan struct{})
		t.Cleanup(func() { close(hung) })
		s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
			if r.answered != "" {
				<-hung
			}
			return retrying()
		}
		a := get(t, s.worker("ann"), "https://"+apiHost+"/")
		replied(t, a, 504, "gate_unavailable")
	})
}

// After a lost connection a request is sent again as it was: nothing was wrong with its token.
func TestLostConnectionIsNoRejection(t *testing.T) {
	var up *fickle
	s := start(t, func(c *Config) {
		ca := newAuthority(t)
		up = newFickle(t, ca, refuseFirst)
		c.UpstreamCA, c.Routes[0].ConnectTo = ca.pem, up.address
	}, nil)
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
		if r.answered != "" {
			t.Error("the gate was asked again")
		}
		return retrying()
	}
	if a := post(t, s.worker("ann"), "https://"+apiHost+"/"); a.status != http.StatusOK || up.streams.Load() != 2 {
		t.Errorf("got %d %q after %d attempts", a.status, a.body, up.streams.Load())
	}
}

// A credential that comes back in a header or a trailer is no worker's to see, wherever in it and in whichever form.
func TestEchoedCredentialIsMasked(t *testing.T) {
	basic := base64.StdEncoding.EncodeToString([]byte("x-access-token:real+token/0123456789="))
	tests := []struct {
		name, sent string
		noted      map[string]any
		echo       []string // parts of a token that would be seen
	}{
		{"bearer", oldToken, nil, []string{"real-old"}},
		{"bare", "real-key-0123456789", map[string]any{"header": "x-api-key"}, []string{"real-key"}},
		{"basic", "Basic " + basic, map[string]any{"user": false, "password": true}, []string{"real+token", "real%2Btoken", "real%2btoken", basic[:12], "%3D%3D"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := startWith(t, func(w http.ResponseWriter, r *http.Request) {
				value := r.Header.Get("Authorization") + r.Header.Get("X-Api-Key")
				_, credential, found := strings.Cut(value, " ")
				if !found {
					credential = value
				}
				h := w.Header()
				h.Set("Trailer", "Grpc-Message, Kept")
				h.Set("X-Echo", value)
				h.Set("X-Twice", credential+credential)
				h.Set("X-Your-"+credential+"-Is", "good") // a name, where it can be one
				h.Add("Set-Cookie", "a="+credential+"; Path=/")
				h.Add("Set-Cookie", "b=2")
				h.Set("Location", "/?token="+strings.NewReplacer("=", "%3D", "+", "%2B", "/", "%2F").Replace(credential))
				if raw, err := base64.StdEncoding.DecodeString(credential); err == nil {
					h.Set("X-Decoded", string(raw))
					h.Set("X-Lower", strings.NewReplacer("=", "%3d", "+", "%2b", "/", "%2f").Replace(string(raw)))
					h.Set("X-Escaped", strings.NewReplacer("=", "%3D", "+", "%2B", "/", "%2F").Replace(string(raw)))
				}
				h.Set("Etag", `"kept"`)
				w.WriteHeader(http.StatusEarlyHints) // with all of them, before there is an answer
				fmt.Fprint(w, "body")
				h.Set("Grpc-Message", "you sent "+value)
				h.Set("Kept", "trailer")
			})
			s.gate.decide = func(request) *extprocv3.ProcessingResponse {
				fields := verdict("swap").GetFields()[metadataNamespace].GetStructValue().GetFields()
				for k, v := range tt.noted {
					fields[k], _ = structpb.NewValue(v)
				}
				r := forward(fields["header"].GetStringValue(), tt.sent)
				r.DynamicMetadata = &structpb.Struct{Fields: map[string]*structpb.Value{metadataNamespace: structpb.NewStructValue(&structpb.Struct{Fields: fields})}}
				return r
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+apiHost+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			var hints string
			resp, err := s.worker("ann").Do(req.WithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
				Got1xxResponse: func(_ int, header textproto.MIMEHeader) error { hints = fmt.Sprint(header); return nil },
			})))
			if err != nil {
				t.Fatal(err)
			}
			a := read(t, resp)
			all := fmt.Sprint(hints, a.header, resp.Trailer)
			for _, part := range tt.echo {
				if strings.Contains(strings.ToLower(all), strings.ToLower(part)) {
					t.Errorf("the worker sees %q in %s", part, all)
				}
			}
			if a.body != "body" || a.header.Get("Etag") != `"kept"` || resp.Trailer.Get("Kept") != "trailer" || len(a.header.Values("Set-Cookie")) != 2 || !strings.Contains(a.header.Get("X-Twice"), "*****") {
				t.Errorf("got %q %s", a.body, all)
			}
		})
	}
}

// Headers that could not be searched are not shown: here because the gate does not say where the credential is.
func TestUnsearchedHeadersAreDropped(t *testing.T) {
	s, _ := startWith(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Echo", r.Header.Get("Authorization"))
		fmt.Fprint(w, "body")
	})
	s.gate.decide = func(request) *extprocv3.ProcessingResponse {
		r := forward("authorization", oldToken)
		r.DynamicMetadata = verdict("swap")
		delete(r.DynamicMetadata.GetFields()[metadataNamespace].GetStructValue().GetFields(), "header")
		return r
	}
	if a := get(t, s.worker("ann"), "https://"+apiHost+"/"); a.status != 200 || a.body != "body" || a.header.Get("X-Echo") != "" {
		t.Errorf("got %d %v %q", a.status, a.header, a.body)
	}
}

// What an operator withholds, and what would lead clients around the gate, stays here; other routes' answers keep it.
func TestHeadersAreWithheld(t *testing.T) {
	for _, withheld := range [][]string{nil, {"set-cookie", "www-authenticate"}} {
		s, _ := startWith(t, func(w http.ResponseWriter, _ *http.Request) {
			for _, name := range []string{"Set-Cookie", "Www-Authenticate", "Alt-Svc", "Kept"} {
				w.Header().Add(name, "one")
				w.Header().Add(name, "two")
			}
		}, func(c *Config) { c.Routes[0].Withheld = withheld })
		a := get(t, s.worker("ann"), "https://"+apiHost+"/")
		want := map[string]bool{"Set-Cookie": withheld == nil, "Www-Authenticate": withheld == nil, "Alt-Svc": false, "Kept": true}
		for name, there := range want {
			if got := len(a.header.Values(name)) == 2; got != there {
				t.Errorf("withheld %q: %s is there: %v", withheld, name, got)
			}
		}
	}
}

// The gate may take a credential out of the query where the configuration says that it comes there, and nowhere else; one
// that it leaves in goes no further.
func TestPathIsRewrittenOnlyWhereConfigured(t *testing.T) {
	for _, configured := range []bool{true, false} {
		s := start(t, func(c *Config) { c.RewritesPaths = configured }, nil)
		s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
			var a *extprocv3.ProcessingResponse
			if r.header.Get(":path") == "/kept?key="+testMarker {
				a = forward()
			} else {
				a = forward("authorization", oldToken, ":path", "/models?alt=sse")
			}
			a.DynamicMetadata = verdict("swap")
			return a
		}
		a := get(t, s.worker("ann"), "https://"+apiHost+"/models?key="+testMarker+"&alt=sse")
		if configured {
			if got := s.upstream.last.Load(); a.status != 200 || got.URL.RequestURI() != "/models?alt=sse" || got.Host != apiHost {
				t.Errorf("got %d %q, the upstream %v", a.status, a.body, got)
			}
		} else {
			replied(t, a, 503, "gate_unavailable")
		}
		before := s.upstream.requests.Load()
		replied(t, get(t, s.worker("ann"), "https://"+apiHost+"/kept?key="+testMarker), 403, "barrier")
		if s.upstream.requests.Load() != before {
			t.Error("the placeholder went on")
		}
	}
}
