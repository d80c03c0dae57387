package demo

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
)

func start(t *testing.T) *Demo {
	t.Helper()
	d, err := Start(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// client trusts the demo's authority; h2 chooses the protocol.
func (d *Demo) client(t *testing.T, h2 bool) *http.Client {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: d.CA.Pool()}, ForceAttemptHTTP2: h2}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// do sends one request and returns the answer's status and its JSON body.
func (d *Demo) do(t *testing.T, method, path, authorization, body string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, d.APIURL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := d.client(t, true).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var m map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		t.Fatalf("%s %s: status %d: %v", method, path, resp.StatusCode, err)
	}
	return resp.StatusCode, m
}

const prompt = `{"model":"demo-1","max_tokens":10,"messages":[{"role":"user","content":"hello there"}]}`

// Who may call what, and how refusals look.
func TestScopesOfThePaths(t *testing.T) {
	d := start(t)
	inference, _ := d.Provider.Issue(ScopeInference)
	sessions, refresh := d.Provider.Issue(ScopeSessions)
	expired, _ := d.Provider.Issue(ScopeInference)
	d.Provider.mu.Lock()
	delete(d.Provider.ledger.access, expired)
	d.Provider.mu.Unlock()
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+inference))
	for _, tt := range []struct {
		method, path, auth string
		status             int
		kind, says         string
	}{
		{"POST", "/v1/messages", "Bearer " + inference, 200, "", ""},
		{"POST", "/v1/messages?beta=true", "bearer " + inference, 200, "", ""},
		{"POST", "/v1/messages", basic, 200, "", ""},
		{"POST", "/v1/messages", "Bearer " + sessions, 403, "permission_error", ScopeInference},
		{"POST", "/v1/messages", "", 401, "authentication_error", ""},
		{"POST", "/v1/messages", "Bearer nothing", 401, "authentication_error", ""},
		{"POST", "/v1/messages", "Bearer " + expired, 401, "authentication_error", ""},
		{"POST", "/v1/messages", "Bearer " + refresh, 401, "authentication_error", ""},
		{"POST", "/v1/code/sessions", "Bearer " + sessions, 200, "", ""},
		{"POST", "/v1/code/sessions", "Bearer " + inference, 403, "permission_error", ScopeSessions},
		{"GET", "/echo", "Bearer " + sessions, 200, "", ""},
		{"GET", "/echo", "", 401, "authentication_error", ""},
		{"GET", "/public", "", 200, "", ""},
		{"GET", "/nothing", "", 404, "not_found_error", ""},
	} {
		status, got := d.do(t, tt.method, tt.path, tt.auth, prompt)
		if status != tt.status {
			t.Errorf("%s %s: status %d, want %d", tt.method, tt.path, status, tt.status)
			continue
		}
		if tt.kind == "" {
			continue
		}
		e, _ := got["error"].(map[string]any)
		if got["type"] != "error" || e["type"] != tt.kind || !strings.Contains(e["message"].(string), tt.says) || got["request_id"] == "" {
			t.Errorf("%s %s: %v", tt.method, tt.path, got)
		}
	}
}

func TestMessages(t *testing.T) {
	d := start(t)
	at, _ := d.Provider.Issue(ScopeInference)
	_, got := d.do(t, "POST", "/v1/messages", "Bearer "+at, prompt)
	delete(got, "id")
	want := map[string]any{
		"type": "message", "role": "assistant", "model": "demo-1", "stop_reason": "end_turn", "stop_sequence": nil,
		"content": []any{map[string]any{"type": "text", "text": "The demo API received: hello there"}},
		"usage":   map[string]any{"input_tokens": 3.0, "output_tokens": 6.0},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	blocks := `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"text","text":"in"},{"type":"image"},{"type":"text","text":"blocks"}]}]}`
	if _, got := d.do(t, "POST", "/v1/messages", "Bearer "+at, blocks); !strings.Contains(got["content"].([]any)[0].(map[string]any)["text"].(string), "in blocks") {
		t.Errorf("%v", got["content"])
	}
	for _, bad := range []string{`{`, `{}`, `{"model":"m","max_tokens":1,"messages":[]}`} {
		if status, got := d.do(t, "POST", "/v1/messages", "Bearer "+at, bad); status != 400 || got["type"] != "error" {
			t.Errorf("%s: %d", bad, status)
		}
	}
}

// readEvents reads a server-sent event stream to its end.
func readEvents(t *testing.T, r io.Reader) (names []string, data []map[string]any) {
	t.Helper()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			names = append(names, name)
		}
		if d, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var m map[string]any
			if err := json.Unmarshal([]byte(d), &m); err != nil {
				t.Fatal(err)
			}
			data = append(data, m)
		}
	}
	return names, data
}

func TestStreamedMessage(t *testing.T) {
	d := start(t)
	at, _ := d.Provider.Issue(ScopeInference)
	req, _ := http.NewRequest("POST", d.APIURL+"/v1/messages", strings.NewReader(strings.Replace(prompt, "{", `{"stream":true,`, 1)))
	req.Header.Set("Authorization", "Bearer "+at)
	resp, err := d.client(t, false).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/event-stream") {
		t.Errorf("content type %s", ct)
	}
	names, data := readEvents(t, resp.Body)
	want := []string{"message_start", "content_block_start", "ping"}
	for range 6 {
		want = append(want, "content_block_delta")
	}
	want = append(want, "content_block_stop", "message_delta", "message_stop")
	if diff := cmp.Diff(want, names); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	var text strings.Builder
	for i, m := range data {
		if m["type"] != names[i] {
			t.Errorf("event %s has type %v", names[i], m["type"])
		}
		if delta, ok := m["delta"].(map[string]any); ok && delta["text"] != nil {
			text.WriteString(delta["text"].(string))
		}
	}
	if text.String() != "The demo API received: hello there" {
		t.Errorf("text %q", text.String())
	}
}

func TestEventsComeOneByOne(t *testing.T) {
	d := start(t)
	at, _ := d.Provider.Issue("x")
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", d.APIURL+"/sse?n=2&ms=60000", nil)
	req.Header.Set("Authorization", "Bearer "+at)
	resp, err := d.client(t, false).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(resp.Body).ReadString('\n') // although the second is a minute away
	if err != nil || line != "event: tick\n" {
		t.Errorf("%q, %v", line, err)
	}
	cancel()
	resp.Body.Close()

	req, _ = http.NewRequest("GET", d.APIURL+"/sse?n=4", nil)
	req.Header.Set("Authorization", "Bearer "+at)
	resp, err = d.client(t, true).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if names, _ := readEvents(t, resp.Body); len(names) != 4 {
		t.Errorf("%d events", len(names))
	}
}

func dialWS(t *testing.T, d *Demo, token string) *websocket.Conn {
	t.Helper()
	conn, _, err := websocket.Dial(t.Context(), "wss://"+d.APIAddr+"/ws", &websocket.DialOptions{
		HTTPClient: d.client(t, false), HTTPHeader: http.Header{"Authorization": {"Bearer " + token}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestWebSocket(t *testing.T) {
	d := start(t)
	at, _ := d.Provider.Issue("x")
	conn := dialWS(t, d, at)
	defer conn.CloseNow()
	for _, text := range []string{"one", "two"} {
		if err := conn.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.Read(t.Context()); err != nil || string(got) != text {
			t.Errorf("%q, %v", got, err)
		}
	}
}

func TestUpload(t *testing.T) {
	d := start(t)
	at, _ := d.Provider.Issue("x")
	body := strings.Repeat("0123456789", 100_000)
	sum := sha256.Sum256([]byte(body))
	_, got := d.do(t, "POST", "/upload", "Bearer "+at, body)
	if diff := cmp.Diff(map[string]any{"bytes": 1e6, "sha256": hex.EncodeToString(sum[:])}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A session has a bearer of its own, which is another secret than the token.
func TestSessionBearer(t *testing.T) {
	d := start(t)
	at, _ := d.Provider.Issue(ScopeSessions)
	_, got := d.do(t, "POST", "/v1/code/sessions", "Bearer "+at, "{}")
	path := "/v1/code/sessions/" + got["session"].(map[string]any)["id"].(string)
	if status, _ := d.do(t, "POST", path+"/worker/events", "Bearer "+at, "{}"); status != 401 {
		t.Errorf("before the bridge call: %d", status)
	}
	_, got = d.do(t, "POST", path+"/bridge", "Bearer "+at, "{}")
	own := got["worker_jwt"].(string)
	if status, _ := d.do(t, "POST", path+"/worker/events/stream", "Bearer "+own, "{}"); status != 200 {
		t.Errorf("its own bearer: %d", status)
	}
	if status, _ := d.do(t, "POST", path+"/worker/events", "Bearer "+at, "{}"); status != 401 {
		t.Errorf("the token: %d", status)
	}
	if status, _ := d.do(t, "POST", "/v1/code/sessions/other/bridge", "Bearer "+at, "{}"); status != 404 {
		t.Errorf("another session: %d", status)
	}
}

// The API can be asked what it received, without showing it.
func TestRecordShowsNoCredential(t *testing.T) {
	d := start(t)
	at, _ := d.Provider.Issue("x")
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("user:hidden-in-basic"))
	_, echoed := d.do(t, "GET", "/echo?q=1", "Bearer "+at, "")
	d.do(t, "GET", "/public", basic, "")

	shown, _ := json.Marshal([]any{echoed, d.API.Requests()})
	if bytes.Contains(shown, []byte(at)) || bytes.Contains(shown, []byte("hidden-in-basic")) {
		t.Error("a credential is shown")
	}
	r := d.API.Requests()
	if len(r) != 2 || r[0].Method != "GET" || r[0].Path != "/echo" || r[0].Host != d.APIAddr || r[0].Proto != "HTTP/2.0" {
		t.Fatalf("%+v", r)
	}
	if want := "Bearer " + at[:10] + "…(40 chars)"; r[0].Authorization != want || r[0].AuthorizationSHA256 != fingerprint("Bearer "+at) {
		t.Errorf("authorization %q, want %q", r[0].Authorization, want)
	}
	if r[1].Authorization != "Basic …(28 chars)" {
		t.Errorf("authorization %q", r[1].Authorization)
	}
	for _, s := range []string{at, at[5:20], "hidden-in-basic", "q=1"} {
		if !d.API.Saw(s) {
			t.Error("a value that arrived was not seen")
		}
	}
	if d.API.Saw("never-sent") || d.Provider.Saw(at) {
		t.Error("something was seen that did not arrive")
	}
}

// Whoever looks for leaks learns of each secret, and before it is out.
func TestIssuedIsTold(t *testing.T) {
	var told []string // handlers tell before they answer
	d, err := Start(Options{Provider: ProviderOptions{Issued: func(s string) { told = append(told, s) }}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	access, refresh := d.Provider.Issue(ScopeSessions)
	_, got := d.do(t, "POST", "/v1/code/sessions", "Bearer "+access, "{}")
	_, got = d.do(t, "POST", "/v1/code/sessions/"+got["session"].(map[string]any)["id"].(string)+"/bridge", "Bearer "+access, "{}")
	if diff := cmp.Diff([]string{refresh, access, got["worker_jwt"].(string)}, told); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Strict verifiers (RFC 5280) want these extensions, critical where marked.
func TestCertificates(t *testing.T) {
	ca, err := NewCA("test CA")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Issue("api.demo.test", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(issued.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"api.demo.test", "127.0.0.1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: ca.Pool(), DNSName: host}); err != nil {
			t.Error(err)
		}
	}
	if err := leaf.VerifyHostname("other.demo.test"); err == nil {
		t.Error("good for any name")
	}
	critical := func(c *x509.Certificate, id asn1.ObjectIdentifier) bool {
		for _, e := range c.Extensions {
			if e.Id.Equal(id) {
				return e.Critical
			}
		}
		return false
	}
	for _, c := range []*x509.Certificate{ca.cert, leaf} {
		if !critical(c, asn1.ObjectIdentifier{2, 5, 29, 19}) || !critical(c, asn1.ObjectIdentifier{2, 5, 29, 15}) {
			t.Errorf("%s: basicConstraints or keyUsage is missing or not critical", c.Subject)
		}
		if len(c.SubjectKeyId) == 0 || !bytes.Equal(c.AuthorityKeyId, ca.cert.SubjectKeyId) {
			t.Errorf("%s: key identifiers", c.Subject)
		}
	}
	if leaf.IsCA || !ca.cert.IsCA {
		t.Error("who is a CA")
	}
}

// Close ends what is open, WebSockets and delays too, and comes back.
func TestCloseEndsEverything(t *testing.T) {
	d, err := Start(Options{})
	if err != nil {
		t.Fatal(err)
	}
	at, _ := d.Provider.Issue("x")
	conn := dialWS(t, d, at)
	defer conn.CloseNow()
	req, _ := http.NewRequest("GET", d.APIURL+"/sse?n=2&ms=60000", nil)
	req.Header.Set("Authorization", "Bearer "+at)
	resp, err := d.client(t, false).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := conn.Read(t.Context()); err == nil {
		t.Error("the WebSocket lives")
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the stream ended as if it were complete")
	}
}
