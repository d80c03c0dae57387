package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"wayleave/audit"
	"wayleave/config"
	"wayleave/console"
	"wayleave/extproc"
	"wayleave/journal"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/webhook"
)

// account is the audit of a gate. The zero account keeps nothing.
type account struct {
	gate     string
	log      *audit.Log
	ledger   *audit.Ledger
	recovery *audit.Recovery // nil: there is no file
}

// openAudit opens the gate's audit: its file, and the other places that get its records.
func (g gate) openAudit(ctx context.Context, figured *measured) (account, error) {
	cfg := g.cfg.Audit
	sinks, err := g.auditSinks()
	if err != nil {
		return account{}, err
	}
	if g.audit == "" {
		for key, set := range map[string]bool{"chain": cfg.Chain, "on_failure": cfg.OnFailure == config.AuditRefuse} {
			if set {
				return account{}, fmt.Errorf("audit.%s needs a file: write audit.file", key)
			}
		}
		if len(sinks) == 0 {
			return account{}, nil
		}
	}
	o := audit.LogOptions{Chain: cfg.Chain, Sinks: sinks, Now: time.Now, Log: g.log, Watch: audit.Watch{
		Written: func(r audit.Record) { figured.AuditWritten(string(r.Kind), r.Open) }, Dropped: figured.AuditDropped, Lost: figured.AuditLost,
	}}
	path := replicaFile(g.audit, g.replica)
	if g.audit != "" {
		if o.File, err = journal.OpenLines("audit.file", path, int64(cfg.MaxMB)<<20, cfg.Keep); err != nil {
			return account{}, err
		}
		if o.Run, err = audit.StartRun(path, time.Now()); err != nil {
			return account{}, err
		}
	}
	refuse := ""
	if cfg.OnFailure == config.AuditRefuse {
		refuse = extproc.AuditUnavailable
	}
	a := account{gate: gateName(g.replica), log: audit.NewLog(o)}
	a.ledger = audit.NewLedger(a.log, refuse, time.Now)
	if g.audit != "" {
		a.recovery = audit.NewRecovery(path, journal.Files(path, cfg.Keep), cfg.Grace, a.ledger, a.log, time.Now, g.log)
		a.recovery.Look(ctx) // before an Envoy tells ends of what a killed gate decided
	}
	return a, nil
}

// run keeps the account until ctx ends and operators is closed, who may do something until then, and then writes what there still is.
func (a account) run(ctx context.Context, operators <-chan struct{}) {
	if a.log == nil {
		return
	}
	writing, stop := context.WithCancel(context.WithoutCancel(ctx))
	var written sync.WaitGroup
	written.Go(func() { a.log.Run(writing) })
	var deciding sync.WaitGroup
	deciding.Go(func() { a.ledger.Run(ctx) })
	if a.recovery != nil {
		a.recovery.Run(ctx)
	}
	deciding.Wait()
	<-operators
	stop()
	written.Wait()
	if a.recovery != nil {
		a.recovery.Close()
	}
}

// auditSinks are the places beside the file.
func (g gate) auditSinks() (all []audit.Target, err error) {
	cfg := g.cfg.Audit
	var line func(audit.Record) []byte
	if cfg.Format == config.AuditOCSF {
		line = func(r audit.Record) []byte { return audit.OCSF(r, version()) }
	}
	if cfg.Stdout {
		all = append(all, audit.Target{Name: "stdout", Sink: audit.To(os.Stdout), Line: line})
	}
	if h := cfg.Webhook; h.URL != "" {
		client, err := trustingFile(g.cfg.Path(h.CAFile))
		if err != nil {
			return nil, fmt.Errorf("audit.webhook.ca_file: %w", err)
		}
		key, err := webhook.ParseKey(h.Key)
		if err != nil {
			return nil, fmt.Errorf("audit.webhook.secret_file: %w", err)
		}
		all = append(all, audit.Target{Name: "webhook", Sink: auditHook{webhook.New(secret.New(h.URL), key, client, nil), time.Now}, Line: line})
	}
	if cfg.OTLP {
		all = append(all, audit.Target{Name: "otlp", Sink: g.auditLogs, Line: line})
	}
	return all, nil
}

// auditHook sends records to the program of audit.webhook.
type auditHook struct {
	to  *webhook.Client
	now func() time.Time
}

// Write implements audit.Sink. What is too large at once is sent in halves: a proxy on the way may take less than the program behind it.
func (h auditHook) Write(ctx context.Context, lines [][]byte, records []audit.Record) error {
	err := h.send(ctx, lines, records)
	var status *webhook.StatusError
	if !errors.As(err, &status) || status.Code != http.StatusRequestEntityTooLarge || len(records) == 1 {
		return err
	}
	left, half := 0, len(records)/2
	for _, part := range [][2]int{{0, half}, {half, len(records)}} {
		refused := h.Write(ctx, lines[part[0]:part[1]], records[part[0]:part[1]])
		u, unwanted := errors.AsType[*audit.Unwanted](refused)
		switch {
		case unwanted:
			left += u.Count
		case refused != nil:
			return refused // and all is sent again
		}
	}
	if left == 0 {
		return nil
	}
	return &audit.Unwanted{Count: left, Err: err}
}

// send makes one call. The id is the same when the same lines are sent again.
func (h auditHook) send(ctx context.Context, lines [][]byte, records []audit.Record) error {
	message := struct {
		Type      string            `json:"type"`
		Timestamp time.Time         `json:"timestamp"`
		Data      []json.RawMessage `json:"data"`
	}{Type: "wayleave.audit", Timestamp: h.now().UTC()}
	for _, l := range lines {
		message.Data = append(message.Data, l)
	}
	_, err := h.to.Post(ctx, fmt.Sprintf("audit_%s_%d_%d", records[0].Run, records[0].Seq, len(records)), message)
	var status *webhook.StatusError
	if errors.As(err, &status) && status.Code < 500 && unwanted(status.Code) {
		return &audit.Unwanted{Count: len(records), Err: err}
	}
	return err
}

// unwanted reports whether an answer means these records. Others, such as of a lost permission, may be mended by an operator.
func unwanted(code int) bool {
	return code == http.StatusBadRequest || code == http.StatusRequestEntityTooLarge || code == http.StatusUnprocessableEntity
}

// Close implements audit.Sink.
func (auditHook) Close() error { return nil }

// became is what became of a request.
func became(d extproc.Decided) audit.Outcome {
	switch {
	case d.Reason != "":
		return audit.Refused
	case d.Swapped:
		return audit.Swapped
	case d.Answered:
		return audit.Answered
	}
	return audit.Passed
}

// record is what is kept of a decision.
func (a account) record(d extproc.Decided) audit.Record {
	r := audit.Record{
		Time: d.At.UTC(), Kind: audit.Request, Gate: a.gate, Outcome: became(d), Reason: d.Reason, Worker: d.Worker, Session: d.Session, Grant: d.Grant,
		Route: d.Route, Host: strings.TrimSuffix(d.Host, ":443"), Method: d.Method, Path: d.Path, Request: d.RequestID, Source: d.Source, Revision: d.Revision,
		Token: d.Token, Fingerprint: d.Fingerprint, Rule: d.Rule, Trace: d.Trace, Cause: d.Cause, PlaceholderOf: d.PlaceholderOf,
	}
	if d.Leased {
		r.Lane = audit.FastLane
	}
	if d.Method == http.MethodConnect {
		r.Kind = audit.Tunnel
	}
	return r
}

// request keeps what was decided of a request. With an error the request is to be refused.
func (a account) request(d extproc.Decided) error {
	if a.ledger == nil {
		return nil
	}
	return a.ledger.Decided(a.record(d))
}

// ended keeps how a request ended; nil when there is no audit.
func (a account) ended() func(extproc.Ended) {
	if a.ledger == nil {
		return nil
	}
	return func(e extproc.Ended) {
		r := a.record(e.Decided)
		r.Status, r.Received, r.Sent = e.Status, e.BytesReceived, e.BytesSent
		r.DurationMS = float64(e.Duration.Microseconds()) / 1000
		r.Attempts, r.Upstream, r.Protocol, r.Flags, r.Details = e.Attempts, e.Upstream, e.Protocol, e.Flags, e.Details
		a.ledger.Ended(r)
	}
}

// operators keeps what operators do; nil when there is no audit.
func (a account) operators() func(console.Event) {
	if a.log == nil {
		return nil
	}
	return func(e console.Event) {
		r := audit.Record{
			Time: e.At.UTC(), Kind: audit.Operator, Gate: a.gate, Outcome: audit.Done, Actor: e.Actor, Role: string(e.Role), Via: e.Via, From: e.From, Action: e.Action, Target: e.Target,
		}
		if e.Err != nil {
			r.Outcome, r.Reason = audit.Failed, e.Err.Error()
		}
		a.log.Add(r)
	}
}

// search looks through the audit of all gates of this machine; nil when there is no file.
func (a account) search(g gate) func(context.Context, audit.Filter, int) (audit.Found, error) {
	if a.recovery == nil {
		return nil
	}
	files := auditFiles(g.cfg, g.audit)
	return func(ctx context.Context, f audit.Filter, limit int) (audit.Found, error) {
		return audit.SearchAll(ctx, files, f, limit)
	}
}

// auditKey is the document in Vault with the key of fingerprints. Operators may read it.
const auditKey = "keys/audit"

// fingerprints tells tokens apart for who may not see them: a keyed hash, so that nobody without the key can try out tokens.
func fingerprints(key vault.SharedKey) func(secret.Text) string {
	return func(token secret.Text) string {
		mac := hmac.New(sha256.New, key[:])
		mac.Write([]byte(token.Reveal()))
		return hex.EncodeToString(mac.Sum(nil)[:8])
	}
}
