package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// repeats is an API that shows what it was sent in the body of its answer.
func repeats(w http.ResponseWriter, r *http.Request) {
	_, credential, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	flush := w.(http.Flusher).Flush
	switch r.URL.Path {
	case "/json":
		fmt.Fprintf(w, `{"encoding":%q,"you sent":%q,"again":%q}`, r.Header.Get("Accept-Encoding"), r.Header.Get("Authorization"), credential)
	case "/pieces": // one byte at a time
		for _, b := range []byte("before " + credential + " after") {
			_, _ = w.Write([]byte{b})
			flush()
		}
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "data: first\n\n")
		flush()
		<-r.Context().Done() // whoever has read the first event leaves
	case "/trailers":
		w.Header().Set("Trailer", "Checksum")
		fmt.Fprint(w, "body ", credential, credential[:4])
		w.Header().Set("Checksum", "of "+credential)
	case "/part":
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(credential))
	case "/large":
		for range 64 {
			_, _ = w.Write(make([]byte, 1<<20-len(credential)))
			_, _ = io.WriteString(w, credential)
		}
	case "/ws":
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = conn.CloseNow() }()
		_ = conn.Write(r.Context(), websocket.MessageText, []byte("hello"))
	}
}

// Where a route says so, a credential that comes back in a body is masked as the body streams by, whatever the pieces it
// comes in, and nothing else of the body is changed or held back.
func TestBodiesAreMasked(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	up := newUpstream(t, made.CA, "*.mask.demo.test", repeats)
	g := startIn(t, made, base(fmt.Sprintf(`
  - {hosts: [masked.mask.demo.test], grant: claude, connect_to: "%[1]s", response: {mask_body: true}}
  - {hosts: [seen.mask.demo.test], grant: claude, connect_to: "%[1]s"}
`, up.address), "", ""), "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")

	for _, http2 := range []bool{false, true} {
		client := w.client(t, http2)
		get := func(path string) *http.Response {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			t.Cleanup(cancel)
			resp, err := client.Do(w.request(http.MethodGet, "https://masked.mask.demo.test"+path, nil).WithContext(ctx))
			if err != nil {
				t.Fatal(path, err)
			}
			t.Cleanup(func() { resp.Body.Close() })
			return resp
		}
		body := func(path string) string {
			t.Helper()
			b, err := io.ReadAll(get(path).Body)
			if err != nil {
				t.Fatal(path, err)
			}
			return string(b)
		}
		real := realToken(t, w, client)
		stars := strings.Repeat("*", len(real))
		if got, want := body("/json"), fmt.Sprintf(`{"encoding":"identity","you sent":"Bearer %[1]s","again":"%[1]s"}`, stars); got != want {
			t.Errorf("http2 %v: got %s", http2, strings.ReplaceAll(got, real, "THE REAL TOKEN"))
		}
		if got := body("/pieces"); got != "before "+stars+" after" {
			t.Errorf("http2 %v: in pieces: got %s", http2, strings.ReplaceAll(got, real, "THE REAL TOKEN"))
		}
		if got := body("/large"); len(got) != 64<<20 || strings.Contains(got, real) || strings.Count(got, "*") != 64*len(real) {
			t.Errorf("http2 %v: %d bytes, %d asterisks", http2, len(got), strings.Count(got, "*"))
		}
		part := w.request(http.MethodGet, "https://masked.mask.demo.test/part", nil)
		part.Header.Set("Range", "bytes=0-9")
		if a, err := do(client, part); err != nil || a.status != http.StatusOK || a.body != stars {
			t.Errorf("http2 %v: a part of it: %d, %d bytes of %d, %v", http2, a.status, len(a.body), len(real), err)
		}
		resp := get("/trailers")
		if b, err := io.ReadAll(resp.Body); err != nil || strings.Contains(string(b), real) || !strings.HasSuffix(string(b), stars+real[:4]) || http2 && resp.Trailer.Get("Checksum") != "of "+stars {
			t.Errorf("http2 %v: with trailers: %d bytes, %v, %d trailers", http2, len(b), err, len(resp.Trailer))
		}
		events := get("/events") // the second one never comes: reading the first proves that nothing waits
		if line, err := bufio.NewReader(events.Body).ReadString('\n'); err != nil || line != "data: first\n" {
			t.Errorf("http2 %v: events: %q, %v", http2, line, err)
		}
		events.Body.Close()
	}

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, "wss://masked.mask.demo.test/ws", &websocket.DialOptions{HTTPClient: w.client(t, false), HTTPHeader: http.Header{"Authorization": {"Bearer " + w.placeholder}}})
	if err != nil {
		t.Fatal(resp, err)
	}
	defer func() { _ = conn.CloseNow() }()
	if _, got, err := conn.Read(ctx); err != nil || string(got) != "hello" {
		t.Errorf("websocket: %q, %v", got, err)
	}
	if up.sawText(placeholderMarker) {
		t.Error("a placeholder arrived")
	}
}

// realToken asks the route whose bodies are not searched.
func realToken(t *testing.T, w worker, client *http.Client) string {
	t.Helper()
	a, err := do(client, w.request(http.MethodGet, "https://seen.mask.demo.test/json", nil))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(a.body, `"again":"`)
	token, _, ok := strings.Cut(after, `"`)
	if !ok || strings.Contains(token, placeholderMarker) || len(token) < 8 {
		t.Fatal("no token in the answer")
	}
	return token
}
