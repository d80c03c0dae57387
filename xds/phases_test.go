package xds

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"

	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	extprocconfig "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"wayleave/extproc"
	"wayleave/grant"
	hidden "wayleave/secret"
	"wayleave/vault/vaulttest"
	"wayleave/worker"
)

// The real gate behind an Envoy whose ext_proc sends more, or less, than we configure it to send.

const (
	realToken   = "real-token-0123456789"
	tokenPrefix = "test-"
)

// realTokens gives out one token.
type realTokens struct{}

func (realTokens) Token(context.Context, string, string, []string) (grant.Token, error) {
	return grant.Token{Access: hidden.New(realToken), Version: "1"}, nil
}

func (r realTokens) Replace(ctx context.Context, name, worker, _ string, required []string) (grant.Token, error) {
	return r.Token(ctx, name, worker, required)
}

func (realTokens) Reject(string, string, string) {}

// phaseStack is a stack with the real gate, and a session of it.
type phaseStack struct {
	*stack
	*provider
	session     worker.Session
	token       hidden.Text
	placeholder string
	sessions    *worker.Sessions
	policy      extproc.Config
}

// startPhases runs the real gate with a route that masks bodies or does not. modify, if any, changes how Envoy's ext_proc is
// configured for the route.
func startPhases(t *testing.T, mask bool, modify func(*extprocconfig.ExternalProcessor), configure ...func(*extproc.Config)) *phaseStack {
	t.Helper()
	sessions, err := worker.OpenSessions(t.Context(), vaulttest.NewMemory(), worker.LedgerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := &phaseStack{sessions: sessions}
	if p.session, p.token, err = sessions.Issue("ci", "default", time.Hour, time.Now()); err != nil {
		t.Fatal(err)
	}
	p.placeholder = sessions.Placeholder(p.session, "credential", tokenPrefix)
	mutate := func(r *Resources) {
		if modify == nil {
			return
		}
		e := &extprocconfig.ExternalProcessor{}
		if err := r.Extensions[0].GetTypedConfig().UnmarshalTo(e); err != nil {
			t.Fatal(err)
		}
		modify(e)
		r.Extensions[0].TypedConfig = pack(e)
		for _, routes := range r.Routes {
			for _, vh := range routes.GetVirtualHosts() {
				for _, route := range vh.GetRoutes() {
					if mask && route.GetTypedPerFilterConfig() != nil {
						route.TypedPerFilterConfig = map[string]*anypb.Any{filterExtProc: pack(&extprocconfig.ExtProcPerRoute{
							Override: &extprocconfig.ExtProcPerRoute_Overrides{Overrides: &extprocconfig.ExtProcOverrides{ProcessingMode: e.GetProcessingMode()}},
						})}
					}
				}
			}
		}
	}
	p.stack, p.provider = startChanged(t, phaseUpstream, mutate, func(c *Config) { c.Marker, c.Routes[0].Bodies = worker.Marker, mask })
	cfg := extproc.Config{
		Routes:   []extproc.Route{{Name: "provider", Hosts: []string{apiHost}, Credential: "credential", PlaceholderPrefix: tokenPrefix, MaskBody: mask}},
		Profiles: map[string]extproc.Profile{"default": {Grants: []string{"credential"}}},
		Workers:  map[string]string{"ci": "default"},
	}
	for _, more := range configure {
		more(&cfg)
	}
	p.policy = cfg
	p.gate.real = extproc.New(cfg, sessions, realTokens{}, extproc.Options{Log: slog.New(slog.NewTextHandler(p.logged, nil))})
	return p
}

// phaseUpstream says in X-Swapped whether the real token came, and answers with what it was sent.
func phaseUpstream(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") == "Bearer "+realToken {
		w.Header().Set("X-Swapped", "yes")
	}
	switch r.URL.Path {
	case "/ws":
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Swapped: yes\r\n\r\n")
		_, _ = io.Copy(c, rw)
		return
	case "/bye": // is gone before anybody could have looked at what it said
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nbye\n")
			c.Close()
		}
		return
	case "/refused":
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, "you sent ", r.Header.Get("Authorization"))
		return
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "data: 1\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done() // whoever has read the first event leaves
		return
	case "/talk": // answers each piece before the next one
		for b := make([]byte, 1<<10); ; {
			n, err := r.Body.Read(b)
			_, _ = w.Write(b[:n])
			w.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	case "/download":
		for range 40 {
			_, _ = w.Write(bytes.Repeat([]byte("y"), 20_000))
			w.(http.Flusher).Flush()
		}
		return
	case "/broken":
		panic(http.ErrAbortHandler)
	case "/broken-off":
		fmt.Fprint(w, "the first half, ")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	case "/fails":
		w.WriteHeader(http.StatusInternalServerError)
		return
	case "/silent": // until whoever asks leaves
		<-r.Context().Done()
		return
	case "/empty":
		w.WriteHeader(http.StatusNoContent)
		return
	case "/unchanged":
		w.Header().Set("Etag", `"x"`)
		w.WriteHeader(http.StatusNotModified)
		return
	case "/part":
		w.Header().Set("Content-Range", "bytes 0-4/10")
		w.WriteHeader(http.StatusPartialContent)
		fmt.Fprint(w, "01234")
		return
	case "/hints":
		w.Header().Set("Link", "</a>")
		w.WriteHeader(http.StatusEarlyHints)
		fmt.Fprint(w, "after hints")
		return
	case "/token":
		fmt.Fprint(w, "you sent ", r.Header.Get("Authorization"))
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if r.URL.Path == "/rpc" {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		defer w.Header().Set("Grpc-Status", "0")
	}
	_, _ = w.Write(body)
}

func (p *phaseStack) client(http2 bool) *http.Client {
	c := p.workerAs(p.session.ID, p.token.Reveal())
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = http2
	c.Timeout = 0 // it would hide a WebSocket
	return c
}

// send makes a request with the session's placeholder; size is what is known of the body's.
func (p *phaseStack) send(c *http.Client, method, path string, body io.Reader, size int64, headers ...string) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	p.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, "https://"+apiHost+path, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = size
	req.Header.Set("Authorization", "Bearer "+p.placeholder)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return c.Do(req)
}

// echoes sends a body and reads it back.
func (p *phaseStack) echoes(c *http.Client, path string, body []byte, size int64, headers ...string) (*http.Response, error) {
	resp, err := p.send(c, http.MethodPost, path, bytes.NewReader(body), size, headers...)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("X-Swapped") != "yes" || sha256.Sum256(got) != sha256.Sum256(body) {
		return nil, fmt.Errorf("%d %q, %d bytes of %d came back, %w", resp.StatusCode, resp.Header.Get(reasonHeader), len(got), len(body), err)
	}
	return resp, nil
}

func upgradeHeaders() []string {
	return []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-Websocket-Version", "13", "Sec-Websocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}
}

// socket opens a WebSocket and sends over it.
func (p *phaseStack) socket() error {
	resp, err := p.send(p.client(false), http.MethodGet, "/ws", nil, 0, upgradeHeaders()...)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("%d %s", resp.StatusCode, resp.Header.Get(reasonHeader))
	}
	r, w := bufio.NewReader(resp.Body), resp.Body.(io.Writer)
	for _, line := range []string{"hello\n", strings.Repeat("x", 100_000) + "\n"} {
		go io.WriteString(w, line)
		if got, err := r.ReadString('\n'); err != nil || got != line {
			return fmt.Errorf("%d bytes of %d came back, %w", len(got), len(line), err)
		}
	}
	return nil
}

// talk sends the pieces of a body one by one, each when the one before has come back.
func (p *phaseStack) talk(c *http.Client) error {
	in, out := io.Pipe()
	defer out.Close()
	go fmt.Fprint(out, "0\n")
	resp, err := p.send(c, http.MethodPost, "/talk", in, -1)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	for i := range 20 {
		line, err := r.ReadString('\n')
		if err != nil || line != fmt.Sprintln(i) {
			return fmt.Errorf("piece %d: %q, %w", i, line, err)
		}
		go fmt.Fprintln(out, i+1)
	}
	return nil
}

func allPhases(body extprocconfig.ProcessingMode_BodySendMode, eager bool) func(*extprocconfig.ExternalProcessor) {
	return func(e *extprocconfig.ExternalProcessor) {
		const send = extprocconfig.ProcessingMode_SEND
		e.ProcessingMode = &extprocconfig.ProcessingMode{
			RequestHeaderMode: send, ResponseHeaderMode: send, RequestBodyMode: body, ResponseBodyMode: body, RequestTrailerMode: send, ResponseTrailerMode: send,
		}
		e.AllowModeOverride, e.SendBodyWithoutWaitingForHeaderResponse = eager, eager
	}
}

var bodyModes = []extprocconfig.ProcessingMode_BodySendMode{
	extprocconfig.ProcessingMode_NONE, extprocconfig.ProcessingMode_STREAMED, extprocconfig.ProcessingMode_BUFFERED,
	extprocconfig.ProcessingMode_BUFFERED_PARTIAL, extprocconfig.ProcessingMode_FULL_DUPLEX_STREAMED,
}

func buffered(m extprocconfig.ProcessingMode_BodySendMode) bool {
	return m == extprocconfig.ProcessingMode_BUFFERED || m == extprocconfig.ProcessingMode_BUFFERED_PARTIAL
}

// With every phase switched on, each message gets an answer that Envoy takes: requests are swapped or refused as ever, and
// bodies arrive as they were sent.
func TestEveryPhase(t *testing.T) {
	for _, mode := range bodyModes {
		for _, eager := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s eager %v", mode, eager), func(t *testing.T) {
				p := startPhases(t, false, allPhases(mode, eager))
				for _, http2 := range []bool{true, false} {
					t.Run(fmt.Sprintf("http2 %v", http2), func(t *testing.T) { p.everything(t, mode, http2) })
				}
				if err := p.socket(); err != nil {
					t.Errorf("WebSocket: %v", err)
				}
				for _, h := range p.requests() {
					if strings.Contains(fmt.Sprint(h), worker.Marker) {
						t.Error("a placeholder arrived")
					}
				}
				if warned := strings.Count(p.logged.String(), "Envoy sends bodies"); (warned == 1) != (mode != extprocconfig.ProcessingMode_NONE) {
					t.Errorf("%d warnings:\n%s", warned, p.logged)
				}
				if n := p.spurious(t); n != "0" {
					t.Errorf("Envoy counts %s spurious messages", n)
				}
			})
		}
	}
}

// everything sends requests of each kind. Requests with trailers are answered too, but Envoy 1.40 repeats the bodies of some.
func (p *phaseStack) everything(t *testing.T, mode extprocconfig.ProcessingMode_BodySendMode, http2 bool) {
	c := p.client(http2)
	long := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	get := func(path string, headers ...string) *http.Response {
		t.Helper()
		resp, err := p.send(c, http.MethodGet, path, nil, 0, headers...)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}

	for path, want := range map[string]int{"/": 0, "/empty": 0, "/download": 800_000} {
		resp := get(path)
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode >= 300 || resp.Header.Get("X-Swapped") != "yes" || len(b) != want {
			t.Errorf("%s: %d, %d bytes, %v", path, resp.StatusCode, len(b), err)
		}
	}
	resp := get("/", "X-Other", p.placeholder)
	var refusal struct{ Error string }
	_ = json.NewDecoder(resp.Body).Decode(&refusal)
	if resp.StatusCode != http.StatusBadRequest || resp.Header.Get(reasonHeader) != "misplaced_placeholder" || refusal.Error == "" {
		t.Errorf("a misplaced placeholder: %d %v %+v", resp.StatusCode, resp.Header, refusal)
	}
	if line, err := bufio.NewReader(get("/events").Body).ReadString('\n'); err != nil || line != "data: 1\n" {
		t.Errorf("events: %q, %v", line, err)
	}

	for name, body := range map[string]struct {
		bytes []byte
		size  int64
	}{"short": {[]byte("hello"), 5}, "chunked": {long, -1}, "long": {long, int64(len(long))}} {
		if _, err := p.echoes(c, "/", body.bytes, body.size); err != nil {
			t.Errorf("%s body: %v", name, err)
		}
	}
	resp, err := p.echoes(c, "/rpc", []byte("hello"), -1, "Content-Type", "application/grpc", "Te", "trailers")
	if err != nil || http2 && resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("gRPC: %v", err)
	}
	switch _, err := p.echoes(c, "/", bytes.Repeat(long, 10), -1); {
	case err == nil:
	case mode != extprocconfig.ProcessingMode_BUFFERED || !strings.HasPrefix(err.Error(), "413 \"malformed\""): // more than Envoy buffers
		t.Errorf("large body: %v", err)
	}
	if http2 && !buffered(mode) {
		if err := p.talk(c); err != nil {
			t.Errorf("both ways at once: %v", err)
		}
	}
}

// spurious is how many messages of the gate's Envoy did not expect.
func (p *phaseStack) spurious(t *testing.T) string {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", p.bootstrap().AdminSocket)
	}}}
	defer c.CloseIdleConnections()
	a := get(t, c, "http://envoy/stats?filter=ext_proc.*spurious")
	var total string
	for line := range strings.Lines(a.body) {
		_, total, _ = strings.Cut(strings.TrimSpace(line), ": ")
		if total != "0" {
			return total
		}
	}
	return total
}

// A body that is to be masked is, in every mode in which all of it comes by; in the others the request is refused, with
// the reason in the log.
func TestMaskedInEveryPhase(t *testing.T) {
	for _, mode := range bodyModes {
		t.Run(mode.String(), func(t *testing.T) {
			p := startPhases(t, true, allPhases(mode, false))
			searched := slices.Contains([]extprocconfig.ProcessingMode_BodySendMode{extprocconfig.ProcessingMode_STREAMED, extprocconfig.ProcessingMode_FULL_DUPLEX_STREAMED}, mode)
			for _, http2 := range []bool{true, false} {
				c := p.client(http2)
				resp, err := p.send(c, http.MethodGet, "/token", nil, 0)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				switch {
				case err != nil || strings.Contains(string(body), realToken):
					t.Errorf("%d, %d bytes with the real token, %v", resp.StatusCode, len(body), err)
				case searched && string(body) != "you sent Bearer "+strings.Repeat("*", len(realToken)):
					t.Errorf("%d %q", resp.StatusCode, body)
				case !searched && (resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get(reasonHeader) != reasonGateUnavailable):
					t.Errorf("%d %v %q", resp.StatusCode, resp.Header, body)
				}
				if searched {
					p.everything(t, mode, http2)
				}
			}
			if searched == strings.Contains(p.logged.String(), "does not send its answer to be searched") {
				t.Errorf("the log:\n%s", p.logged)
			}
			if err := p.socket(); err != nil {
				t.Errorf("WebSocket: %v", err)
			}
		})
	}
}

// An answer whose body is to be searched and that has none, or a part, comes as it is but for its length, and at once.
func TestMaskedWithoutBody(t *testing.T) {
	p := startPhases(t, true, nil)
	for _, http2 := range []bool{true, false} {
		c := p.client(http2)
		for range 3 { // over one connection
			for _, a := range []struct {
				method, path string
				status       int
				body         string
			}{
				{http.MethodHead, "/token", 200, ""},
				{http.MethodHead, "/part", 206, ""},
				{http.MethodHead, "/empty", 204, ""},
				{http.MethodGet, "/empty", 204, ""},
				{http.MethodGet, "/unchanged", 304, ""},
				{http.MethodGet, "/part", 206, "01234"},
				{http.MethodGet, "/hints", 200, "after hints"},
				{http.MethodOptions, "/", 200, ""},
				{http.MethodPost, "/refused", 401, "you sent Bearer " + strings.Repeat("*", len(realToken))},
				{http.MethodGet, "/fails", 500, ""},
			} {
				resp, err := p.send(c, a.method, a.path, nil, 0)
				if err != nil {
					t.Fatalf("%s %s, http2 %v: %v", a.method, a.path, http2, err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != a.status || string(body) != a.body || a.status == http.StatusPartialContent && resp.Header.Get("Content-Range") != "bytes 0-4/10" {
					t.Errorf("%s %s, http2 %v: %d %q %v, %v", a.method, a.path, http2, resp.StatusCode, body, resp.Header, err)
				}
			}
		}
	}
}

// Who asks for a WebSocket and gets another answer does not get its body unsearched.
func TestRefusedWebSocketIsMasked(t *testing.T) {
	p := startPhases(t, true, nil)
	c := p.client(false)
	for range 2 { // over one connection
		resp, err := p.send(c, http.MethodGet, "/refused", nil, 0, upgradeHeaders()...)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("X-Swapped") != "yes" || len(body) != 0 {
			t.Errorf("%d, %d bytes, with the real token: %v, %v", resp.StatusCode, len(body), strings.Contains(string(body), realToken), err)
		}
	}
	if err := p.socket(); err != nil {
		t.Errorf("a WebSocket that is not refused: %v", err)
	}
	for range 20 {
		resp, err := p.send(c, http.MethodGet, "/bye", nil, 0, upgradeHeaders()...)
		if err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || line != "bye\n" {
			t.Errorf("a short WebSocket: %d %q, %v", resp.StatusCode, line, err)
		}
		resp.Body.Close()
	}
	p = startPhases(t, false, nil)
	resp, err := p.send(p.client(false), http.MethodGet, "/refused", nil, 0, upgradeHeaders()...)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || !strings.HasPrefix(string(body), "you sent") {
		t.Errorf("where nothing is masked: %d %d bytes, %v", resp.StatusCode, len(body), err)
	}
}
