package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"wayleave/approval"
	"wayleave/config"
	"wayleave/operate"
	"wayleave/secret"
	"wayleave/webhook"
)

// approvalHook is the configuration's webhook for requests that begin to wait.
type approvalHook struct {
	client *webhook.Client
	host   string
	pauses []time.Duration // before it is called again, when it failed in a way that may mend itself
	log    *slog.Logger
}

// asking asks the webhook for approvals about each request that begins to wait; nil when there is none.
func asking(cfg *config.Config, log *slog.Logger) (func(context.Context, approval.Approval) *approval.Decision, error) {
	if cfg.Approvals.Webhook.URL == "" {
		return nil, nil //nolint:nilnil // nobody is asked
	}
	h, err := newApprovalHook(cfg, log)
	if err != nil {
		return nil, fmt.Errorf("approvals.webhook.%w", err)
	}
	return h.ask, nil
}

func newApprovalHook(cfg *config.Config, log *slog.Logger) (*approvalHook, error) {
	h := cfg.Approvals.Webhook
	asks, err := trustingFile(cfg.Path(h.CAFile))
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	signing, err := webhook.ParseKey(h.Key)
	if err != nil {
		return nil, fmt.Errorf("secret_file: %w", err)
	}
	address, err := url.Parse(h.URL)
	if err != nil {
		return nil, errors.New("url: it is no URL")
	}
	client := webhook.New(secret.New(h.URL), signing, asks, nil)
	return &approvalHook{client: client, host: address.Host, pauses: []time.Duration{time.Second, 5 * time.Second}, log: log}, nil
}

// ask is for an approval.Board.
func (h *approvalHook) ask(ctx context.Context, a approval.Approval) *approval.Decision {
	d := &approval.Decision{By: "the webhook for approvals", From: h.host}
	answer, err := h.call(ctx, a)
	if err == nil {
		d.Verdict, d.Note, err = hookVerdict(answer)
	}
	if err != nil && ctx.Err() == nil {
		h.log.Warn("the webhook for approvals has not decided; the request waits for an operator", "approval", a.ID, "err", err)
	}
	if d.Verdict == "" {
		return nil
	}
	return d
}

// call calls it, again when that may help.
func (h *approvalHook) call(ctx context.Context, a approval.Approval) ([]byte, error) {
	message := struct {
		Type      string            `json:"type"`
		Timestamp time.Time         `json:"timestamp"`
		Data      approval.Approval `json:"data"`
	}{"wayleave.approval", a.Since, a}
	for try := 0; ; try++ {
		answer, err := h.client.Post(ctx, "approval_"+a.ID, message)
		var status *webhook.StatusError
		if err == nil || try == len(h.pauses) || errors.As(err, &status) && status.Code < 500 && status.Code != http.StatusTooManyRequests {
			return answer, err
		}
		select {
		case <-time.After(h.pauses[try]):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// hookVerdict reads an answer; the verdict is empty when it leaves the request to an operator.
func hookVerdict(answer []byte) (approval.Verdict, string, error) {
	if len(bytes.TrimSpace(answer)) == 0 {
		return "", "", nil
	}
	var said struct {
		Verdict approval.Verdict `json:"verdict"`
		Note    string           `json:"note"`
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return "", "", errors.New(`its answer is not {"verdict": "allow" or "deny", "note": "…"}`)
	}
	switch said.Verdict {
	case approval.Allow, approval.Deny:
	case "":
		return "", "", nil
	default:
		return "", "", errors.New(`its answer has a verdict that is neither allow nor deny`)
	}
	if operate.CheckNote(said.Note) != nil {
		said.Note = ""
	}
	return said.Verdict, said.Note, nil
}
