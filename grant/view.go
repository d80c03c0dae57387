package grant

import (
	"cmp"
	"errors"
	"time"

	"wayleave/oauth"
)

const (
	lookFor = time.Second     // how long a request waits at most for a look at the store by which a usable token would be taken away
	readFor = 2 * time.Second // how long a read takes at most; see [Documents]
	recheck = time.Second     // how often, at most, requests that would be refused make a grant be read again
	soon    = 2 * time.Second // a next try this near is waited for: what failed once, and briefly, is no worker's business
)

// view is what requests see of a grant: an immutable picture, replaced by the grant's minder.
type view struct {
	rec      record // what is served: stored, or an answer not stored yet
	unsaved  bool   // rec is not stored yet
	loaded   bool   // the store has answered at least once
	storeErr error  // why the store fails, nil while it answers
	wish     wish
	// By the running clock:
	readAt     time.Duration // when the last attempt to read began
	storeRetry time.Duration // with storeErr: when it is tried again
	held       time.Duration // the token endpoint is not called before
	calling    bool          // the provider, under our lease: until that is over nobody reads
	superseded chan struct{} // closed when the next view is there

	granted     []string // to rec's token
	fingerprint string   // of rec's token
}

// again is the same picture for another minder to replace, which minds the grant for spec.
func (v *view) again(spec Spec) *view {
	same := *v
	same.superseded, same.granted = make(chan struct{}), spec.granted(v.rec.Granted)
	return &same
}

// answer decides about a request that came at came and requires these scopes: a token, or a refusal. With wait, a better
// answer may be coming: the refusal holds if the caller cannot wait for the next view.
func (v *view) answer(p policy, spec Spec, required []string, came, now moment) (t Token, refusal *Unusable, wait bool) {
	refuse := func(s State, err error) *Unusable {
		return &Unusable{Grant: spec.Name, State: s, Err: err, next: next(s, spec.Kind, v.rec.ErrorKind, spec.Name)}
	}
	retry := func(s State, err error, wait time.Duration) *Unusable {
		u := refuse(s, err)
		u.RetryAfter = max(wait, time.Second)
		return u
	}
	storeWait := v.storeRetry - now.run
	if !v.loaded {
		return Token{}, retry(VaultUnavailable, cmp.Or(v.storeErr, errNotRead), storeWait), storeWait <= soon
	}

	r, ok := v.rec, usable(v.rec, now)
	if r.Dead && v.wish.rejected != "" && v.wish.rejected == r.version() {
		ok = false // nobody says that this token works
	}
	missing := oauth.MissingScopes(v.granted, required)
	switch {
	case r.Epoch == "" && spec.Kind == Machine: // about to get its first token
	case !r.connected() && (v.storeErr != nil || v.readAt < came.run): // it may be by now, and nobody is to be told otherwise who does not know
		return Token{}, retry(VaultUnavailable, cmp.Or(v.storeErr, errNotLooked), storeWait), storeWait <= soon
	case !r.connected():
		refusal = refuse(NeverConnected, nil)
	case r.foreign(spec):
		refusal = refuse(NeedsReconnect, errOtherProvider)
	case r.Dead && !ok:
		refusal = refuse(NeedsReconnect, cause(r.LastError))
	case !r.refreshable() && !ok:
		refusal = refuse(NeedsReconnect, errNoRefresh)
	case len(missing) > 0 && (ok || r.Kind != Machine):
		refusal = refuse(ScopeMissing, nil)
		refusal.Missing = missing
		if spec.Kind != Machine {
			refusal.next = r.why(missing, spec).remedy(spec.Name, refusal.next)
		}
	case ok:
		return Token{Access: r.Access, Scopes: v.granted, Facts: r.Facts, Expires: r.Expires, Version: r.version(), Fingerprint: v.fingerprint, Replaceable: v.replaceable(now) || r.Dead}, nil, false
	}
	if refusal != nil {
		// Only an operator can help, and may have done so a moment ago: what we refuse by must be newer than the request.
		return Token{}, refusal, v.storeErr == nil && v.readAt < came.run
	}

	// The token has expired; a refresh can help.
	if v.storeErr != nil {
		return Token{}, retry(VaultUnavailable, v.storeErr, storeWait), storeWait <= soon
	}
	do, pause := p.plan(r, spec, now, v.wish)
	if pause = max(pause, v.held-now.run); do == refresh && pause > 0 {
		return Token{}, retry(RefreshUnavailable, cause(r.LastError), pause), pause <= soon
	}
	return Token{}, retry(RefreshUnavailable, errStillWorking, pause), true
}

// unseen reports whether the store, which answers as far as we know, has not been looked at for longer than it ever is while tokens are
// asked for.
func (v *view) unseen(now moment, reread time.Duration) bool {
	return v.loaded && v.storeErr == nil && !v.calling && now.run-v.readAt > reread+readFor
}

// replaceable reports whether a refresh may get another token in place of one that the provider rejects.
func (v *view) replaceable(now moment) bool {
	r := v.rec
	return r.refreshable() && r.cooling(now) <= 0 && r.paused(now) <= 0 && v.held-now.run <= soon
}

// summary is what the grant looks like from this replica: as stored, or worse.
func (v *view) summary(spec Spec, now moment) Summary {
	s := summarize(v.rec, spec, now)
	switch {
	case v.storeErr == nil && v.loaded:
		if v.unsaved && s.State == Healthy {
			return s.in(Degraded)
		}
		return s
	case !v.loaded, s.State == NeverConnected, !usable(v.rec, now) && v.rec.connected() && s.State != NeedsReconnect:
		s = s.in(VaultUnavailable)
	case s.State == Healthy || s.State == Refreshing:
		s = s.in(Degraded)
	}
	s.LastError = cmp.Or(v.storeErr, errNotRead).Error()
	return s
}

// cause is a stored text as an error.
func cause(text string) error {
	if text == "" {
		return nil
	}
	return errors.New(text)
}
