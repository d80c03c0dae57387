package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"wayleave/approval"
	"wayleave/config"
	"wayleave/secret"
)

// The webhook for approvals decides what it says clearly, and leaves everything else to operators.
func TestApprovalHook(t *testing.T) {
	key := secret.New("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=")
	verifier, err := standardwebhooks.NewWebhook(key.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	held := approval.Approval{ID: "abc", Request: approval.Request{Worker: "ci", Rule: "deletes", Method: "DELETE", Path: "/x"}, Since: time.Unix(1, 0).UTC(), State: approval.Waiting}
	for name, c := range map[string]struct {
		status  int
		body    string
		verdict approval.Verdict
		note    string
		calls   int64
		warns   bool
	}{
		"allow":                {200, `{"verdict": "allow", "note": "by the calendar"}`, approval.Allow, "by the calendar", 1, false},
		"deny":                 {200, `{"verdict": "deny"}`, approval.Deny, "", 1, false},
		"nothing":              {204, "", "", "", 1, false},
		"no verdict":           {200, `{"seen": true}`, "", "", 1, false},
		"another verdict":      {200, `{"verdict": "Allow"}`, "", "", 1, true},
		"no JSON":              {200, "allow", "", "", 1, true},
		"a note of many lines": {200, `{"verdict": "deny", "note": "a\nb"}`, approval.Deny, "", 1, false},
		"refused":              {403, `{"verdict": "allow"}`, "", "", 1, true},
		"moved":                {307, `{"verdict": "allow"}`, "", "", 1, true},
		"failing":              {500, `{"verdict": "allow"}`, "", "", 3, true},
		"busy":                 {429, "", "", "", 3, true},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				body, _ := io.ReadAll(r.Body)
				var message struct {
					Type string
					Data approval.Approval
				}
				if err := json.Unmarshal(body, &message); err != nil || verifier.Verify(body, r.Header) != nil || message.Type != "wayleave.approval" || !cmp.Equal(message.Data, held) || r.Header.Get("Webhook-Id") != "approval_abc" {
					t.Errorf("%v %s", r.Header, body)
				}
				w.Header().Set("Location", "/again")
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.body)
			}))
			defer srv.Close()
			cfg := &config.Config{}
			cfg.Approvals.Webhook = config.ApprovalWebhook{URL: srv.URL + "/in-secret", Key: key}
			var log strings.Builder
			h, err := newApprovalHook(cfg, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			h.pauses = []time.Duration{0, 0}
			got := h.ask(t.Context(), held)
			switch {
			case c.verdict == "" && got != nil:
				t.Errorf("decided: %+v", got)
			case c.verdict != "" && (got == nil || got.Verdict != c.verdict || got.Note != c.note || got.From != strings.TrimPrefix(srv.URL, "http://")):
				t.Errorf("%+v", got)
			}
			if calls.Load() != c.calls || (log.Len() > 0) != c.warns || strings.Contains(log.String(), "in-secret") {
				t.Errorf("%d calls, log: %s", calls.Load(), log.String())
			}
		})
	}
}

// Nobody is asked where there is no webhook, and one that cannot be called starts no gate.
func TestApprovalHookConfigured(t *testing.T) {
	cfg := &config.Config{}
	if ask, err := asking(cfg, nil); ask != nil || err != nil {
		t.Errorf("%v", err)
	}
	cfg.Approvals.Webhook = config.ApprovalWebhook{URL: "https://hooks.test", Key: secret.New("short")}
	if _, err := asking(cfg, nil); err == nil || !strings.Contains(err.Error(), "approvals.webhook.secret_file: is no key") || strings.Contains(err.Error(), "short,") {
		t.Errorf("%v", err)
	}
}
