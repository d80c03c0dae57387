package isolate

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"wayleave/secret"
)

// Who writes on behind a CONNECT, for somebody else, must not have that taken for requests of its own when the gate refuses.
func TestNothingIsReadBehindARefusal(t *testing.T) {
	asked := 0
	gate := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.Header().Set("X-Wayleave-Reason", "host_not_allowed")
		http.Error(w, `{"message":"wayleave: no"}`, http.StatusForbidden)
	}))
	defer gate.Close()
	to, err := url.Parse(gate.URL)
	if err != nil {
		t.Fatal(err)
	}
	relay := httptest.NewServer(http.HandlerFunc(newRelay(Way{Gate: to, User: "u", Password: secret.New("p")}).serveProxy))
	defer relay.Close()
	for _, destination := range []string{"evil.example:443", "127.0.0.1:1"} {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", relay.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\nGET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", destination)
		in := bufio.NewReader(c)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != http.StatusForbidden || resp.Header.Get("X-Wayleave-Reason") != "host_not_allowed" {
			t.Fatalf("%v, %v", resp, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if rest, err := io.ReadAll(in); err != nil || len(rest) != 0 {
			t.Errorf("behind it came %.60q, %v", rest, err)
		}
	}
	if asked != 2 {
		t.Errorf("the gate was asked %d times", asked)
	}
}
