package grant

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Unusable is the error of [Keeper.Token]: there is no token for this request now. Its text says what to do next and
// never holds a token, so it may be shown to a worker.
type Unusable struct {
	Grant      string
	State      State         // NeverConnected, NeedsReconnect, ScopeMissing, RefreshUnavailable or VaultUnavailable
	Missing    []string      // with ScopeMissing: the required scopes that are not granted, sorted
	RetryAfter time.Duration // with the two …Unavailable: when trying again makes sense; otherwise 0, it does not
	Err        error         // the cause; nil when the state says it all

	means string // what is wrong, where the state does not say it; follows `grant "x"`
	next  string // what to do, where it depends on more than the state
}

func (u *Unusable) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "grant %q %s", u.Grant, cmp.Or(u.means, words[u.State].means))
	if len(u.Missing) > 0 {
		fmt.Fprintf(&b, ": %s", strings.Join(u.Missing, ", "))
	}
	if u.Err != nil {
		fmt.Fprintf(&b, " (%v)", u.Err)
	}
	if next := cmp.Or(u.next, next(u.State, Consent, "", u.Grant)); next != "" {
		fmt.Fprintf(&b, "; %s", next)
	}
	return b.String()
}

func (u *Unusable) Unwrap() error { return u.Err }

// ErrNotConfigured is the cause in an [Unusable] for a name that no [Spec] has.
var ErrNotConfigured = errors.New("the configuration has no grant of this name")

var (
	errOtherProvider = errors.New("it was connected at another provider than the one configured now")
	errNoRefresh     = errors.New("its token has expired and the provider gave no refresh token: " + askOffline)
	errStillWorking  = errors.New("still waiting for the refresh")
	errNotRead       = errors.New("not read yet")
	errNotLooked     = errors.New("not looked at since the request came")
	errNotRefreshed  = errors.New("its token has expired and no gate has refreshed it")
)
