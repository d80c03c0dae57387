package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// hookCmd starts a server of the operators'. Messages at /program must be signed with the key in hook.key; those at /secret-path,
// whose address is in hook.url, need not be. Each is a line of hook.jsonl. Nobody listens at the address in gone.url.
func (s *stage) hookCmd(ts *testscript.TestScript, _ []string) error {
	const key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
	handedOut.add("a key of messages", key)
	verifier, err := standardwebhooks.NewWebhook(key)
	if err != nil {
		return err
	}
	got, err := os.OpenFile(s.saved("hook.jsonl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != "/secret-path" {
			if err := verifier.Verify(body, r.Header); err != nil {
				http.Error(w, err.Error(), http.StatusUnauthorized)
				return
			}
		}
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(got, "%s\n", body)
	}))
	ts.Defer(func() { srv.Close(); _ = got.Close() })
	s.env = append(s.env, "HOOK="+srv.URL)
	write := func(name, text string) error { return os.WriteFile(s.saved(name), []byte(text+"\n"), 0o600) }
	return errors.Join(write("hook.key", key), write("hook.url", srv.URL+"/secret-path"), write("gone.url", "http://127.0.0.1:1/secret-path"))
}
