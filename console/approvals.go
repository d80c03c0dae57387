package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"wayleave/api"
	"wayleave/approval"
	"wayleave/operate"
	"wayleave/vault"
)

func (s *Server) listApprovals(c *call) (any, error) { return s.approvals(c.Context()) }

func (s *Server) approvals(ctx context.Context) (api.Approvals, error) {
	held, err := s.Desk().Approvals(ctx)
	if errors.Is(err, vault.ErrUnavailable) {
		return api.Approvals{Approvals: []approval.Approval{}, Kept: []approval.Kept{}, Warning: fmt.Sprintf("Vault does not answer, so what waits is not known: %v", err)}, nil
	}
	return api.Approvals{Approvals: held.Approvals, Kept: held.Kept}, err
}

func (s *Server) showApproval(c *call) (any, error) {
	return s.Desk().Approval(c.Context(), c.PathValue("id"))
}

func (s *Server) decideApproval(c *call) (any, error) {
	return s.decide(c.Context(), c.PathValue("id"), *c.in.(*api.DecisionRequest), c.who, c.from())
}

// decide writes a decision down and waits until a gate has acted on it.
func (s *Server) decide(ctx context.Context, id string, in api.DecisionRequest, who actor, from string) (approval.Approval, error) {
	r := operate.Ruling{Verdict: in.Verdict, Note: in.Note, By: who.Name, From: from}
	if in.Verdict != approval.Allow && in.Verdict != approval.Deny {
		return approval.Approval{}, fmt.Errorf("%w: the verdict is neither allow nor deny", errBadRequest)
	}
	if in.For != "" {
		var err error
		if r.For, err = time.ParseDuration(in.For); err != nil {
			return approval.Approval{}, fmt.Errorf("%w: for is no time such as 1h", errBadRequest)
		}
	}
	return s.Desk().Rule(ctx, id, r)
}

func (s *Server) forgetApproval(c *call) (any, error) {
	return s.Desk().Forget(c.Context(), c.PathValue("id"))
}

type approvalsView struct {
	Waiting, Over []approval.Approval
	Kept          []approval.Kept
	MoreKept      int // that are not shown
	Warning       string
	May           bool
	Spans         []spanChoice
}

// spanChoice is how long a decision may hold for later requests.
type spanChoice struct{ Value, Label string }

// shownKept is how many decisions for later requests fit the page, those that end first in front. Of requests the document itself has few.
const shownKept = 100

var spans = []spanChoice{{"", "only this request"}, {"15m", "15 minutes"}, {"1h", "an hour"}, {"8h", "8 hours"}, {"24h", "a day"}}

func (s *Server) approvalsPage(r *http.Request, who actor) (string, string, any, error) {
	all, err := s.approvals(r.Context())
	v := approvalsView{Warning: all.Warning, May: who.Role.may(Operator), Spans: spans}
	v.Kept, v.MoreKept = cut(all.Kept, shownKept)
	for _, a := range all.Approvals {
		if waits(a) {
			v.Waiting = append(v.Waiting, a)
		} else {
			v.Over = append(v.Over, a)
		}
	}
	return "Approvals", "approvals", v, err
}

// waits reports whether nobody has decided yet.
func waits(a approval.Approval) bool { return a.State == approval.Waiting && a.Decision == nil }

func (s *Server) decideForm(r *http.Request, who actor) (string, notice, error) {
	in := api.DecisionRequest{Verdict: approval.Verdict(r.PostFormValue("verdict")), For: r.PostFormValue("for"), Note: r.PostFormValue("note")}
	a, err := s.decide(r.Context(), r.PathValue("id"), in, who, from(r))
	words := map[approval.Verdict]string{approval.Allow: "is allowed, and goes on.", approval.Deny: "is denied."}[in.Verdict]
	return "/approvals", notice{Text: fmt.Sprintf("The request of %s %s", a.Worker, words)}, err
}

func (s *Server) forgetForm(r *http.Request, _ actor) (string, notice, error) {
	k, err := s.Desk().Forget(r.Context(), r.PathValue("id"))
	return "/approvals", notice{Text: fmt.Sprintf("Taken back: what rule %s holds of %s waits for an operator again.", k.Rule, k.Worker)}, err
}
