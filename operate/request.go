package operate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"wayleave/grant"
	"wayleave/oauth"
)

// ErrNotInTime is the cause of a wait's end when nothing else ended it.
var ErrNotInTime = errors.New("not in time")

// AnswerTime is how long a gate is given to do what it is asked for: it looks for requests every few seconds, and few providers
// take longer than that to answer.
const AnswerTime = 45 * time.Second

// CanRefresh refuses what no gate would refresh. A grant that lacks an operator is a refusal of kind NotNow, unless its provider has called the
// refresh token invalid: that may have been the provider's own failure.
func (d Desk) CanRefresh(s grant.Summary) error {
	switch {
	case d.index(s.Name) < 0:
		return refuse(NotNow, "%s is not in the configuration any more, so no gate keeps it; add it, or run `wayleave grant disconnect %s`", s.Name, s.Name)
	case s.Kind == grant.Static:
		return refuse(NotNow, "%s is an imported value, which nothing refreshes; replace it with `wayleave grant import %s`", s.Name, s.Name)
	case s.State == grant.NeverConnected && s.Kind == grant.Machine:
		return refuse(NotNow, "no gate has asked for a token of %s yet: it gets one by itself within seconds of its start; look at `wayleave doctor`", s.Name)
	case NeedsOperator(s) && !d.mayBeAlive(s):
		return refuse(NotNow, "%s cannot be refreshed, it is %s: %s", s.Name, s.State, s.Next)
	}
	return nil
}

// mayBeAlive reports whether a grant ended by what its provider answered, which another answer could take back.
func (d Desk) mayBeAlive(s grant.Summary) bool {
	return s.State == grant.NeedsReconnect && s.Kind == grant.Consent && s.Provider == d.Specs[d.index(s.Name)].Provider && s.ErrorKind == oauth.KindInvalidGrant
}

// NeedsOperator reports whether nothing but a connect or an import helps a grant.
func NeedsOperator(s grant.Summary) bool {
	return s.State == grant.NeverConnected || s.State == grant.NeedsReconnect
}

// AskRefresh asks the running gates for a new token of a grant, unless CanRefresh refuses it; Answer waits for it.
func (d Desk) AskRefresh(ctx context.Context, name string) (id string, err error) {
	s, err := d.Find(ctx, name)
	if err == nil {
		err = d.CanRefresh(s)
	}
	if err != nil {
		return "", err
	}
	return grant.Ask(ctx, d.Docs, name, grant.AskRefresh, d.Now())
}

// Answer waits until a gate has carried out the request with the id; ErrNotInTime is that none did.
func (d Desk) Answer(ctx context.Context, name, id string, timeout time.Duration) (grant.Summary, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, ErrNotInTime)
	defer cancel()
	return d.Watch(ctx, name, func(s grant.Summary) bool { return s.Request == id })
}

// Last is the newest of a grant's events that is one of these.
func Last(s grant.Summary, among ...grant.What) grant.Event {
	for _, e := range slices.Backward(s.History) {
		if slices.Contains(among, e.What) {
			return e
		}
	}
	return grant.Event{}
}

// NotAsked is why tokens are not revoked when nobody wanted it.
const NotAsked = "it was not asked for"

// Revocation is what came of the tokens of a grant at its provider.
type Revocation struct {
	Revoked bool   `json:"revoked"`
	Because string `json:"not_revoked_because,omitempty"`
}

// Disconnect has a gate end a grant's tokens at the provider, if revoke is set, and forgets them in any case: also when its
// status says that it was never connected, since the status document may be what is missing. waits is told when a gate was asked.
func (d Desk) Disconnect(ctx context.Context, s grant.Summary, revoke bool, timeout time.Duration, waits func()) (Revocation, error) {
	end := Revocation{Because: NotAsked}
	if revoke {
		var err error
		if end, err = d.revoke(ctx, s, timeout, waits); err != nil {
			return end, err
		}
	}
	return end, grant.Disconnect(ctx, d.Docs, s.Name)
}

// revoke has a gate end a grant's tokens at the provider. What keeps it from doing so is no error: they are forgotten anyway.
func (d Desk) revoke(ctx context.Context, s grant.Summary, timeout time.Duration, waits func()) (Revocation, error) {
	because := func(format string, args ...any) (Revocation, error) {
		return Revocation{Because: fmt.Sprintf(format, args...)}, nil
	}
	const page = "end the access on the provider's own page"
	p, configured := d.Config.ProviderOf(s.Name)
	switch {
	case s.State == grant.NeverConnected:
		return because("there were none")
	case s.Kind == grant.Static:
		return because("only who issued the key can end it")
	case s.Kind == grant.Machine:
		return because("a running gate gets others by itself as long as the configuration has the grant; remove it there")
	case !configured:
		return because("the configuration does not have the grant any more; %s", page)
	case p.RevokeURL == "":
		return because("its configuration has no revocation endpoint (revoke_url); %s", page)
	}
	id, err := grant.Ask(ctx, d.Docs, s.Name, grant.AskRevoke, d.Now())
	if err != nil {
		return Revocation{}, err
	}
	if waits != nil {
		waits()
	}
	s, err = d.Answer(ctx, s.Name, id, timeout)
	if errors.Is(err, ErrNotInTime) {
		return because("no gate answered within %v; %s", timeout, page)
	}
	if err != nil {
		return Revocation{}, err
	}
	if e := Last(s, grant.Revoked, grant.RevokeFails); e.What != grant.Revoked {
		return because("%s; %s", e.Why(), page)
	}
	return Revocation{Revoked: true}, nil
}
