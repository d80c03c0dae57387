package grant

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"wayleave/oauth"
	"wayleave/secret"
)

// record is a grant as stored in grants/<name>. It is a value: each step below returns the next one. The zero record
// means that nothing is stored.
type record struct {
	details
	Access, Refresh secret.Text

	local local // ours, not stored
}

// details is all of a record that is no secret. Times are wall-clock, because other replicas judge by them too.
type details struct {
	Provider  string            `json:"provider"`
	Kind      Kind              `json:"kind,omitempty"`
	Account   string            `json:"account,omitempty"`
	Facts     map[string]string `json:"facts,omitempty"`  // what the token responses said about the account
	Requested []string          `json:"requested_scopes"` // at the connect
	Consented []string          `json:"consented_scopes"` // of these, what the provider granted then
	Granted   []string          `json:"granted_scopes"`   // by the last token response that named any

	Epoch      string `json:"epoch"`            // new at each connect
	Origin     string `json:"origin,omitempty"` // tells apart the refresh tokens that consents began with; see standing
	Generation int    `json:"generation"`       // token responses since the connect

	Issued         time.Time `json:"issued_at"`
	Expires        time.Time `json:"expires_at,omitzero"`            // zero: never
	RefreshExpires time.Time `json:"refresh_expires_at,omitzero"`    // of the refresh token; zero: the provider does not say
	RefreshFixed   bool      `json:"refresh_expiry_fixed,omitempty"` // a refresh does not move that: it is the end of the consent

	Lease      *lease     `json:"lease,omitempty"`
	Unanswered int        `json:"unanswered,omitempty"`      // times the refresh token was presented without an answer
	Failures   int        `json:"failures,omitempty"`        // refreshes failed since the last one that worked
	NotBefore  time.Time  `json:"not_before,omitzero"`       // no replica refreshes earlier: back-off
	Dead       bool       `json:"needs_reconnect,omitempty"` // the refresh token is of no more use
	Revoked    bool       `json:"revoked,omitempty"`         // at an operator's request; the tokens are gone
	LastError  string     `json:"last_error,omitempty"`      // why the last refresh failed
	ErrorKind  oauth.Kind `json:"error_kind,omitempty"`      // with LastError
	Rejected   int        `json:"rejected,omitempty"`        // tokens in a row that were replaced because the provider rejected them
	RejectedAt time.Time  `json:"rejected_at,omitzero"`      // when the last of them was
	Reused     bool       `json:"reused,omitempty"`          // the refresh token before this one was presented again: the provider may take that for a theft
	Operation  string     `json:"operation"`                 // of the last writer: finds out own writes whose answer got lost
	Handled    string     `json:"handled,omitempty"`         // the last request that was carried out
	Done       []string   `json:"done,omitempty"`            // some before it, the last first: a gate may know of one of them only yet
	Updated    time.Time  `json:"updated_at"`                // last connect, or outcome of a refresh
	Last       *Event     `json:"last,omitempty"`            // what happened last; the history is in the status document
}

// lease announces that Holder is about to present the refresh token of this generation.
type lease struct {
	ID       string    `json:"id"`
	Holder   string    `json:"holder"`
	Deadline time.Time `json:"deadline"`         // the holder renews it well before
	Attempt  int       `json:"attempt"`          // 1, or how many times the token will then have been presented
	Marked   bool      `json:"marked,omitempty"` // the holder's spool says when the token is presented; until then it was not
}

func (r record) connected() bool { return r.Epoch != "" && !r.Revoked }

// version tells the tokens of a grant apart; it is empty when there are none.
func (r record) version() string {
	if r.Access.IsZero() {
		return ""
	}
	return r.Epoch + "." + strconv.Itoa(r.Generation)
}

// foreign reports whether r was connected at another provider than spec names, or is of another kind: its tokens must not
// go to this one.
func (r record) foreign(spec Spec) bool {
	return r.Provider != "" && (r.Provider != spec.Provider || r.Kind != spec.Kind)
}

// begun is a grant of spec that has no token yet.
func begun(spec Spec, epoch string) record {
	return record{details: details{Provider: spec.Provider, Kind: spec.Kind, Requested: sorted(spec.Scopes), Granted: sorted(spec.Scopes), Epoch: epoch}}
}

// newRecord is what a connect stores. A response without scopes granted what was asked for (RFC 6749 section 5.1).
func newRecord(spec Spec, t oauth.Token, op string, now time.Time) record {
	r := begun(spec, op).answered(t, op, now, now)
	r.Generation, r.Consented, r.Origin = 0, r.Granted, originOf(t.Refresh)
	if spec.Kind == Consent && r.Refresh.IsZero() && !r.Expires.IsZero() {
		r.LastError = "the provider gave no refresh token, so the grant ends when its token expires: " + askOffline
	}
	return r
}

func originOf(refresh secret.Text) string {
	if refresh.IsZero() {
		return ""
	}
	sum := sha256.Sum256([]byte(refresh.Reveal()))
	return hex.EncodeToString(sum[:16])
}

// standing is what a stored record means to whoever knows another one of the same grant.
type standing int

const (
	newer      standing = iota // a further step, or another consent: it holds
	older                      // a step before: from a standby that lags, or a store that was set back to a backup
	spentAgain                 // tokens imported once more, as by a script that sets machines up, and spent since: to present them would cost the consent at many a provider
	sameAgain                  // imported once more over the lease of who presents them
)

// standing says what r, read as version ver, means to who knows another as version knownVer. A disconnect lets versions begin anew: what is
// imported after it is meant, however old it is.
func (r record) standing(ver int, known record, knownVer int) standing {
	switch {
	case r.Epoch == known.Epoch:
		if r.connected() && (r.Generation < known.Generation || r.Generation == known.Generation && ver < knownVer) {
			return older
		}
	case ver > knownVer && r.Origin != "" && r.Origin == known.Origin && r.Provider == known.Provider && r.Generation < known.Generation &&
		!r.Refresh.Equal(known.Refresh) && known.connected() && known.refreshable():
		return spentAgain
	case known.Lease != nil && r.Lease == nil && !r.Dead && !r.Refresh.IsZero() && r.Refresh.Equal(known.Refresh):
		return sameAgain
	}
	return newer
}

// keeping is r, whose tokens are spent, with those that known has in their place.
func (r record) keeping(known record) record {
	known.Epoch, known.Origin, known.Requested, known.Consented = r.Epoch, r.Origin, r.Requested, r.Consented
	return known
}

// askOffline is how a refresh token is had.
const askOffline = "ask for one as the provider wants it, by a scope such as offline_access, or by authorize_params such as access_type: offline and prompt: consent, and connect again"

// refreshable reports whether a call to the token endpoint can give a token in place of the one r holds.
func (r record) refreshable() bool {
	return r.Kind == Machine || r.Kind == Consent && !r.Refresh.IsZero() && !r.Dead
}

// askable reports whether an operator may have r refreshed. That includes one whose refresh token the provider has called invalid: some say
// so while they fail themselves, or of a client that is configured wrongly, and to hear it once more costs nothing. One that was presented
// without an answer before is left alone: it is most likely spent.
func (r record) askable() bool {
	return r.refreshable() || r.Kind == Consent && !r.Refresh.IsZero() && r.Unanswered == 0
}

// leased is r with l in place of the lease it has. A lease that was left behind counts as presented without an answer,
// except our own (mine), which we know was not used.
func (r record) leased(l lease, mine string) record {
	if r.Lease != nil && r.Lease.ID != mine {
		r.Unanswered = max(r.Unanswered, r.Lease.Attempt)
	}
	l.Attempt = r.Unanswered + 1
	r.Lease, r.Operation = &l, l.ID
	return r
}

// answered is r after the token response t, which came at now, to a request made at sent. An absent refresh token or
// scope is unchanged (RFC 6749 sections 6 and 5.1).
func (r record) answered(t oauth.Token, op string, sent, now time.Time) record {
	since := r.Issued
	r.Generation++
	r.Access, r.Issued, r.Expires = t.Access, wall(sent), wall(t.Expiry)
	// Counted from the request, a short life may be over when the answer comes. The provider counted from later on, and
	// whoever waited for this token will get no better one.
	if least := wall(now.Add(shortestUse)); !r.Expires.IsZero() && r.Expires.Before(least) {
		r.Expires = least
	}
	if !t.Refresh.IsZero() {
		r.Refresh = t.Refresh
	}
	if ends := wall(t.RefreshExpiry); !ends.IsZero() || !t.Refresh.IsZero() {
		r.RefreshFixed = !ends.IsZero() && !r.RefreshExpires.IsZero() && ends.Sub(r.RefreshExpires) <= wall(sent).Sub(since)/2
		r.RefreshExpires = ends
	}
	if t.Scopes != nil {
		r.Granted = sorted(t.Scopes)
	}
	if t.Account != "" {
		r.Account = t.Account
	}
	if len(t.Facts) > 0 {
		r.Facts = maps.Clone(r.Facts) // records are values
		if r.Facts == nil {
			r.Facts = map[string]string{}
		}
		maps.Copy(r.Facts, t.Facts)
	}
	r.Lease, r.Unanswered, r.Failures, r.NotBefore, r.LastError, r.ErrorKind = nil, 0, 0, time.Time{}, "", ""
	r.Reused, r.Operation, r.Updated = false, op, wall(sent)
	return r
}

// replaced is r, whose token was refreshed at now because the provider had rejected the one before.
func (r record) replaced(now time.Time) record {
	if now.Sub(r.RejectedAt) > 2*cooldown(r.Rejected) {
		r.Rejected = 0
	}
	r.Rejected, r.RejectedAt = r.Rejected+1, wall(now)
	return r
}

// minted is r, of a Machine grant, after the token response t to a request for the scopes of spec: all that was granted
// before is of no more interest.
func (r record) minted(spec Spec, t oauth.Token, op string, sent, now time.Time) record {
	r.Requested, r.Granted = sorted(spec.Scopes), sorted(spec.Scopes)
	r = r.answered(t, op, sent, now)
	r.Consented = r.Granted
	return r
}

// failed is r, which holds our lease, after the refresh ended with err.
func (r record) failed(err error, op string, now time.Time, jitter float64) record {
	attempt := r.Lease.Attempt
	r.Lease, r.Operation, r.Updated = nil, op, wall(now)
	r.Failures++

	var answer oauth.Error // of an error that is none of oauth's: nothing known
	answer.Outcome = oauth.Unknown
	if e, ok := errors.AsType[*oauth.Error](err); ok {
		answer = *e
	}
	r.LastError, r.ErrorKind = r.scrub(err.Error()), answer.Kind()
	if !answer.Rotated.IsZero() {
		r.Refresh, r.Unanswered = answer.Rotated, 0
		r.Generation++
	}
	pause := max(backoff(r.Failures, jitter), answer.RetryAfter)
	switch {
	case r.Kind == Machine: // presents nothing that could be spent, and ends only with the configuration
	case answer.Outcome == oauth.InvalidGrant:
		r.Dead = true
		if r.Unanswered > 0 {
			r.LastError += "; an earlier refresh got no answer, so the provider may have taken this one for a reuse"
		} else if r.Reused {
			r.LastError += "; the refresh token before it was presented twice, the second time while the gateway that held the answer was stopped or cut off, and the provider may have taken that for a theft"
		}
	case answer.Outcome == oauth.Unknown && answer.Status == 0:
		// A server error, or a page in place of a token, is an answer too: it leaves doubt, but presenting the token again
		// after it costs nothing that giving up would save, and a provider's bad hour must not cost an operator every consent.
		r.Unanswered = attempt
		if attempt >= maxPresented {
			return r.abandoned(op, now)
		}
		// One more presentation is left: give the fault as long as the present token allows to go away.
		pause = max(pause, minUnansweredPause, min(r.Expires.Sub(now)/2, maxBackoff))
	}
	if !r.Dead {
		r.NotBefore = wall(now.Add(pause))
	}
	return r
}

// abandoned is r given up because its refresh token may be spent and must not be presented again.
func (r record) abandoned(op string, now time.Time) record {
	if r.Lease != nil {
		r.Unanswered = max(r.Unanswered, r.Lease.Attempt)
	}
	last := ""
	if r.LastError != "" {
		last = ": " + r.LastError
	}
	r.LastError = fmt.Sprintf("the refresh token was presented %d times without an answer, so it may be spent and its successor lost%s", r.Unanswered, last)
	r.Dead, r.Lease, r.NotBefore = true, nil, time.Time{}
	r.Operation, r.Updated = op, wall(now)
	return r
}

// revoked is r after its tokens were revoked, or at least forgotten: err is what the provider did not take.
func (r record) revoked(err error, op string, now time.Time) record {
	if err != nil {
		r.LastError = notRevoked + r.scrub(err.Error())
		if e, ok := errors.AsType[*oauth.Error](err); ok {
			r.ErrorKind = e.Kind()
		}
	} else {
		r.LastError, r.ErrorKind = "", ""
	}
	r.Access, r.Refresh, r.Expires, r.NotBefore = secret.Text{}, secret.Text{}, time.Time{}, time.Time{}
	r.Revoked, r.Dead, r.Lease, r.Unanswered, r.Failures = true, false, nil, 0, 0
	r.Operation, r.Updated = op, wall(now)
	return r
}

// scrub removes r's tokens from text that comes from an Issuer and goes to logs, status documents and workers.
func (r record) scrub(text string) string {
	for _, t := range []secret.Text{r.Access, r.Refresh} {
		if !t.IsZero() {
			text = strings.ReplaceAll(text, t.Reveal(), "[removed]")
		}
	}
	return text
}

// wall drops the monotonic reading, which stops while a machine is suspended and means nothing to other replicas.
func wall(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.Round(0).UTC()
}

func sorted(scopes []string) []string {
	s := append([]string{}, scopes...) // never nil: it is shown as []
	slices.Sort(s)
	return slices.Compact(s)
}
