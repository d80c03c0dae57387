package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"wayleave/audit"
	"wayleave/config"
	"wayleave/console"
	"wayleave/extproc"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/webhook"
)

const hookKey = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

// The webhook gets signed batches, the same id with the same records, and says which it does not want.
func TestAuditHook(t *testing.T) {
	var ids []string
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		check, err := standardwebhooks.NewWebhook(hookKey)
		if err == nil {
			err = check.Verify(body, r.Header)
		}
		if err != nil {
			t.Error(err)
		}
		var m struct {
			Type string
			Data []audit.Record
		}
		if err := json.Unmarshal(body, &m); err != nil || m.Type != "wayleave.audit" || len(m.Data) != 2 || m.Data[1].Request != "b" {
			t.Errorf("%s: %v", body, err)
		}
		ids = append(ids, r.Header.Get("Webhook-Id"))
		w.WriteHeader(status)
	}))
	defer server.Close()
	key, err := webhook.ParseKey(secret.New(hookKey))
	if err != nil {
		t.Fatal(err)
	}
	hook := auditHook{webhook.New(secret.New(server.URL), key, server.Client(), nil), time.Now}
	records := []audit.Record{{Kind: audit.Request, Request: "a", Run: "r", Seq: 7}, {Kind: audit.Request, Request: "b", Run: "r", Seq: 8}}
	var lines [][]byte
	for _, r := range records {
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	for code, unwanted := range map[int]bool{200: false, 400: true, 422: true, 403: false, 500: false} {
		status = code
		err := hook.Write(t.Context(), lines, records)
		if u, is := errors.AsType[*audit.Unwanted](err); (err != nil) != (code != 200) || is != unwanted || is && u.Count != len(records) {
			t.Errorf("%d: %v", code, err)
		}
	}
	for _, id := range ids {
		if id != "audit_r_7_2" {
			t.Errorf("id %s", id)
		}
	}
}

// A batch that is too large for whatever is on the way gets there in parts, and only what is too large by itself does not.
func TestAuditHookOfLittleRoom(t *testing.T) {
	var got, ids []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m struct{ Data []audit.Record }
		body, _ := io.ReadAll(r.Body)
		if len(body) > 1000 {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		if err := json.Unmarshal(body, &m); err != nil {
			t.Error(err)
		}
		for _, d := range m.Data {
			got = append(got, d.Request)
		}
		ids = append(ids, r.Header.Get("Webhook-Id"))
	}))
	defer server.Close()
	key, err := webhook.ParseKey(secret.New(hookKey))
	if err != nil {
		t.Fatal(err)
	}
	hook := auditHook{webhook.New(secret.New(server.URL), key, server.Client(), nil), time.Now}
	var lines [][]byte
	var records []audit.Record
	for i, path := range []string{"/", strings.Repeat("x", 300), "/", strings.Repeat("x", 2000), "/", "/", strings.Repeat("x", 400)} {
		r := audit.Record{Kind: audit.Request, Request: strconv.Itoa(i), Path: path, Run: "r", Seq: uint64(i)}
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		lines, records = append(lines, line), append(records, r)
	}
	err = hook.Write(t.Context(), lines, records)
	if u, is := errors.AsType[*audit.Unwanted](err); !is || u.Count != 1 || strings.Join(got, " ") != "0 1 2 4 5 6" {
		t.Errorf("%v; got %q", err, got)
	}
	if slices.Sort(ids); len(slices.Compact(ids)) < 3 {
		t.Errorf("ids %q", ids)
	}
}

func testGate(t *testing.T, a config.Audit) gate {
	t.Helper()
	cfg := &config.Config{Audit: a}
	cfg.Audit.MaxMB, cfg.Audit.Keep, cfg.Audit.Grace = 10, 1, time.Minute
	return gate{cfg: cfg, audit: a.File, log: slog.New(slog.DiscardHandler)}
}

func TestOpenAudit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	for want, a := range map[string]config.Audit{
		"audit.chain needs a file":         {Chain: true},
		"audit.on_failure needs a file":    {OnFailure: config.AuditRefuse},
		"audit.webhook.secret_file: is no": {File: file, Webhook: config.AuditWebhook{URL: "https://audit.example.com/"}},
		"audit.file: ":                     {File: filepath.Join(t.TempDir(), "none", "audit.jsonl")},
	} {
		if _, err := testGate(t, a).openAudit(t.Context(), newMeasured()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	none, err := testGate(t, config.Audit{}).openAudit(t.Context(), newMeasured())
	if err != nil || none.ended() != nil || none.operators() != nil || none.search(gate{}) != nil || none.request(extproc.Decided{}) != nil {
		t.Errorf("none: %v", err)
	}
	none.run(t.Context(), nil)
}

// A decision and its end, as ext_proc tells of them, are one record.
func TestAccount(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	synctest.Test(t, func(t *testing.T) {
		g := testGate(t, config.Audit{File: file, Chain: true})
		a, err := g.openAudit(t.Context(), newMeasured())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		operators := make(chan struct{})
		go func() { a.run(ctx, operators); close(done) }()
		d := extproc.Decided{At: time.Now(), Swapped: true, Worker: "w", Host: "api.example.com:443", Method: "GET", RequestID: "a", Token: "1", Fingerprint: "f", Rule: "r"}
		if err := a.request(d); err != nil {
			t.Fatal(err)
		}
		a.ended()(extproc.Ended{Decided: extproc.Decided{RequestID: "a", Swapped: true, Token: "1"}, Status: 201, BytesReceived: 3, BytesSent: 4, Duration: 1500 * time.Microsecond, Attempts: 1})
		cancel()
		synctest.Wait() // the gate is told to stop, and a consent of an operator's is just being stored
		a.operators()(console.Event{At: time.Now(), Actor: "o", Action: "grant.connect", Target: "acme"})
		close(operators)
		<-done
		if done, err := a.search(g)(t.Context(), audit.Filter{Kind: audit.Operator}, 10); err != nil || len(done.Records) != 1 || done.Records[0].Target != "acme" {
			t.Errorf("of operators: %+v, %v", done, err)
		}
		found, err := a.search(g)(t.Context(), audit.Filter{Kind: audit.Request}, 10)
		if err != nil || len(found.Records) != 1 {
			t.Fatalf("%+v, %v", found, err)
		}
		r := found.Records[0]
		if r.Worker != "w" || r.Host != "api.example.com" || r.Status != 201 || r.Received != 3 || r.Sent != 4 || r.DurationMS != 1.5 || r.Fingerprint != "f" || r.Rule != "r" || r.Open || r.AfterOpen || r.Hash == "" {
			t.Errorf("%+v", r)
		}
	})
	if left, err := filepath.Glob(file + ".run-*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A fingerprint is of the key and the token, and tells nothing of either.
func TestFingerprints(t *testing.T) {
	one, other := fingerprints(vault.SharedKey{1}), fingerprints(vault.SharedKey{2})
	a := one(secret.New("token"))
	if a != one(secret.New("token")) || a == one(secret.New("token2")) || a == other(secret.New("token")) || len(a) != 16 {
		t.Errorf("%s", a)
	}
}
