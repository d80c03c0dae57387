package grant

import (
	"cmp"
	"slices"
	"time"

	"wayleave/oauth"
)

// Summary is the public side of a grant: what status/<name> holds and lists show. It has no secrets.
type Summary struct {
	Name        string     `json:"name"`
	Provider    string     `json:"provider"`
	Kind        Kind       `json:"kind,omitempty"`
	Account     string     `json:"account,omitempty"` // whose consent, as the provider names it
	State       State      `json:"state"`
	Requested   []string   `json:"requested"` // by the configuration
	Granted     []string   `json:"granted"`
	Listed      []string   `json:"listed,omitempty"`  // by the provider, where they imply more than that
	Missing     []string   `json:"missing,omitempty"` // requested and not granted
	Gap                    // why
	Expires     time.Time  `json:"expires,omitzero"`      // of the access token; zero: never, or none
	ConsentEnds time.Time  `json:"consent_ends,omitzero"` // whatever the gate does; zero: not known, or never
	UpdatedAt   time.Time  `json:"updated_at,omitzero"`
	LastError   string     `json:"last_error,omitempty"`
	ErrorKind   oauth.Kind `json:"error_kind,omitempty"` // of LastError, if a call to the provider failed
	Next        string     `json:"next,omitempty"`       // what to do; empty: nothing
	Generation  int        `json:"generation"`           // refreshes since the connect
	Epoch       string     `json:"epoch,omitempty"`      // changes with each connect
	Request     string     `json:"request,omitempty"`    // id of the last Ask that was carried out
	History     []Event    `json:"history,omitempty"`    // oldest first; of [Keeper.Summary] and [Connect] the last one only
}

func summarize(r record, spec Spec, now moment) Summary {
	s := Summary{
		Name: spec.Name, Provider: spec.Provider, Kind: spec.Kind, Account: r.Account, State: stateOf(r, spec, now),
		Requested: sorted(spec.Scopes), Expires: r.Expires, UpdatedAt: r.Updated,
		LastError: r.LastError, ErrorKind: r.ErrorKind, Generation: r.Generation, Epoch: r.Epoch, Request: r.Handled,
	}
	s.Granted, s.Listed = spec.held(r.Granted)
	switch {
	case r.RefreshFixed:
		s.ConsentEnds = r.RefreshExpires
	case r.Kind == Consent && r.Refresh.IsZero():
		s.ConsentEnds = r.Expires
	}
	if r.Last != nil {
		s.History = []Event{*r.Last}
	}
	if r.connected() {
		s.Missing = missing(s.Granted, spec.Scopes)
		s.Gap = r.why(s.Missing, spec)
		if r.foreign(spec) {
			s.Provider, s.LastError = r.Provider, cmp.Or(s.LastError, errOtherProvider.Error())
		}
	}
	return s.in(s.State)
}

// FromProvider are the scopes that the provider itself listed, without what they imply by the configuration.
func (s Summary) FromProvider() []string {
	if s.Listed != nil {
		return s.Listed
	}
	return s.Granted
}

// in is s in state st, with the next step to match.
func (s Summary) in(st State) Summary {
	s.State, s.Next = st, next(st, s.Kind, s.ErrorKind, s.Name)
	if st == ScopeMissing && s.Kind != Machine {
		s.Next = s.remedy(s.Name, s.Next)
	}
	return s
}

// under is a stored summary as it reads now, under today's configuration: that may request more than when it was written,
// or name another provider, and no gate may have run since.
func (s Summary) under(spec Spec, now time.Time) Summary {
	s.Kind, s.Requested = spec.Kind, sorted(spec.Scopes)
	s.Granted, s.Listed = spec.held(s.FromProvider())
	was := s.Gap
	s.Missing, s.Gap = missing(s.Granted, spec.Scopes), Gap{}
	for _, scope := range s.Missing {
		switch {
		case slices.Contains(was.NotGranted, scope):
			s.NotGranted = append(s.NotGranted, scope)
		case slices.Contains(was.Withdrawn, scope):
			s.Withdrawn = append(s.Withdrawn, scope)
		default:
			s.NotRequested = append(s.NotRequested, scope)
		}
	}
	switch {
	case s.State == NeverConnected:
		s.Missing, s.Gap = nil, Gap{}
		s = s.in(NeverConnected)
	case s.Provider != spec.Provider:
		s.LastError = cmp.Or(s.LastError, errOtherProvider.Error())
		return s.in(NeedsReconnect)
	case s.overdue(now):
		s = s.in(RefreshUnavailable)
		s.LastError, s.Next = cmp.Or(s.LastError, errNotRefreshed.Error()), "start a gate, or look at the log of the one that runs: it refreshes the token"
		return s
	case (s.State == Healthy || s.State == ScopeMissing) && len(s.Missing) > 0:
		return s.in(ScopeMissing)
	case s.State == ScopeMissing && len(s.Missing) == 0:
		return s.in(Healthy)
	}
	return s
}

// overdue reports whether s says that a token serves which has expired. A gate replaces it, or the state, before long.
func (s Summary) overdue(now time.Time) bool {
	serves := s.State == Healthy || s.State == Degraded || s.State == ScopeMissing
	return serves && !s.Expires.IsZero() && now.After(s.Expires.Add(clockSkew))
}
