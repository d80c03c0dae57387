package webhook

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"wayleave/oauth"
	"wayleave/secret"
)

const testKey = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="

func key(t *testing.T, text string) Key {
	t.Helper()
	k, err := ParseKey(secret.New(text))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestReceiverVerifies(t *testing.T) {
	verifier, err := standardwebhooks.NewWebhook(testKey)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if err := verifier.Verify(body, r.Header); err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		if id := r.Header.Get("Webhook-Id"); id != "msg_1" {
			http.Error(w, id, http.StatusBadRequest)
			return
		}
		_, _ = w.Write(body)
	}))
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	for name, k := range map[string]struct {
		key  string
		code int
	}{
		"the key":         {testKey, 0},
		"without prefix":  {strings.TrimPrefix(testKey, "whsec_"), 0},
		"another key":     {"whsec_" + strings.Repeat("QUFB", 10), http.StatusUnauthorized},
		"none, no header": {"", http.StatusUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			var signing Key
			if k.key != "" {
				signing = key(t, k.key)
			}
			answer, err := New(secret.New(srv.URL), signing, oauth.NewHTTPClient(roots), nil).Post(t.Context(), "msg_1", map[string]string{"a": "<b>"})
			var status *StatusError
			switch {
			case k.code == 0 && (err != nil || string(answer) != `{"a":"\u003cb\u003e"}`):
				t.Errorf("answer %q, %v", answer, err)
			case k.code != 0 && (!errors.As(err, &status) || status.Code != k.code):
				t.Errorf("err %v, want status %d", err, k.code)
			}
		})
	}
}

// What an old message was signed with is of no use later, and a message that is sent again keeps its id.
func TestTimestampIsSigned(t *testing.T) {
	verifier, err := standardwebhooks.NewWebhook(testKey)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if err := verifier.Verify(body, r.Header); err == nil {
			t.Error("a message of yesterday was taken")
		}
		r.Header.Set("Webhook-Timestamp", fmt.Sprint(time.Now().Unix()))
		if err := verifier.Verify(body, r.Header); err == nil {
			t.Error("a message with another time was taken")
		}
	}))
	defer srv.Close()
	yesterday := func() time.Time { return time.Now().Add(-24 * time.Hour) }
	if _, err := New(secret.New(srv.URL), key(t, testKey), oauth.NewHTTPClient(nil), yesterday).Post(t.Context(), "m", 1); err != nil {
		t.Fatal(err)
	}
}

func TestFailuresTellNoAddress(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/secret-moved":
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		case "/secret-busy":
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusTooManyRequests)
		case "/secret-cut":
			panic(http.ErrAbortHandler)
		}
	}))
	defer srv.Close()
	for path, code := range map[string]int{"/secret-moved": http.StatusTemporaryRedirect, "/secret-busy": http.StatusTooManyRequests, "/secret-cut": 0} {
		_, err := New(secret.New(srv.URL+path), Key{}, oauth.NewHTTPClient(nil), nil).Post(t.Context(), "m", 1)
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", path, err)
			continue
		}
		var status *StatusError
		if errors.As(err, &status) != (code != 0) || code != 0 && status.Code != code {
			t.Errorf("%s: %v, want status %d", path, err, code)
		}
		if code == http.StatusTooManyRequests && status.RetryAfter != 7*time.Second {
			t.Errorf("%s: retry after %v", path, status.RetryAfter)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(secret.New(srv.URL+"/secret"), Key{}, oauth.NewHTTPClient(nil), nil).Post(ctx, "m", 1); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "secret") {
		t.Errorf("canceled: %v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-7": 0, "soon": 0, "Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:04:00 GMT": 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

func TestParseKey(t *testing.T) {
	for text, ok := range map[string]bool{
		testKey: true, "": false, "whsec_": false, "whsec_c2hvcnQ=": false, "not base64 at all, but long enough": false,
		"whsec_" + strings.Repeat("QUFB", 22): false,
	} {
		if k, err := ParseKey(secret.New(text)); (err == nil) != ok || text != "" && strings.Contains(fmt.Sprint(err, k, fmt.Sprintf("%+v %#v", k, k)), "MfKQ") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestCheckURL(t *testing.T) {
	for address, ok := range map[string]bool{
		"https://hooks.example.com/a?b=c": true, "http://127.0.0.1:8080/": true, "http://localhost/": true, "http://[::1]/": true,
		"http://hooks.example.com/": false, "ftp://a/": false, "https:///a": false, "https://u:p@a/": false, "https://a/#f": false, "": false,
		"http://10.0.0.1/": false, "http://127.0.0.1.example.com/": false,
	} {
		if err := CheckURL(address); (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
	}
}
