// Package grant owns operators' consents (grants) and keeps them usable: it stores them, refreshes them ahead of expiry
// exactly once across all replicas, and says for every grant what state it is in and what to do next. The OAuth protocol
// is left to oauth, the store to whoever implements [Documents] (vault), and who may use a grant to worker and extproc.
//
//	request ──▶ Keeper.Token ──▶ view (immutable, one per grant) ◀── publishes ── minder (one goroutine per grant)
//	                                                                                │  read, lease, spend, save
//	operator ── Connect ──▶ grants/<name> ◀── check-and-set ────────────────────────┘
//	                        status/<name> ◀── summary without secrets
//
// A grant is one document, grants/<name>, written only with check-and-set. A replica that wants to refresh first writes
// a lease into it, then presents the refresh token, then writes the answer over the lease; whoever loses the lease
// waits for the answer to appear. Everything decided on the way (policy.go, record.go, view.go) is a pure function with
// the clock passed in; everything that waits (minder.go, refresh.go) runs in the grant's one goroutine and not in a
// request's.
package grant

import (
	"context"
	"maps"
	"slices"
	"time"

	"wayleave/oauth"
	"wayleave/secret"
)

// Spec is what the configuration says about one grant.
type Spec struct {
	Name     string   // as in `wayleave grant connect <name>`; the last part of both document paths
	Provider string   // a grant connected at another provider is never used
	Scopes   []string // requested: what a connect asks for, and what the state is judged by
	// Implied are scopes that come with another one ([oauth.Config.ImpliedScopes]). What is stored is what the provider listed.
	Implied map[string][]string
	Kind    Kind
	OAuth   Issuer // nil for Static
}

// granted are the scopes that the provider listed, and those that come with them.
func (s Spec) granted(listed []string) []string { return oauth.WithImplied(listed, s.Implied) }

// held are the scopes that a grant has, sorted, and those that the provider listed of them, if there are more.
func (s Spec) held(listed []string) (all, fewer []string) {
	all = s.granted(listed)
	if len(all) == len(listed) {
		return sorted(all), nil
	}
	return sorted(all), sorted(listed)
}

// same reports whether a grant is kept in the same way by both.
func (s Spec) same(o Spec) bool {
	return s.Name == o.Name && s.Provider == o.Provider && s.Kind == o.Kind && s.OAuth == o.OAuth && slices.Equal(s.Scopes, o.Scopes) &&
		maps.EqualFunc(s.Implied, o.Implied, slices.Equal)
}

// Kind says where a grant's tokens come from.
type Kind string

// Kinds of grants.
const (
	Consent Kind = ""        // an operator's consent, kept by its refresh token (RFC 6749 section 6)
	Machine Kind = "machine" // the gateway's own client credentials or assertion (RFC 6749 section 4.4, RFC 7523): nobody connects it
	Static  Kind = "static"  // a value that an operator imported, such as an API key
)

// Issuer gives out and revokes tokens at a provider; it is an [oauth.Client]. Its methods must obey ctx, and fail with an
// *[oauth.Error] whose Outcome says whether the refresh token may have been spent: any other error counts as
// [oauth.Unknown].
type Issuer interface {
	// Refresh presents a refresh token (RFC 6749 section 6); for a Machine grant there is none. granted are the scopes held,
	// requested those of the Spec.
	Refresh(ctx context.Context, refresh secret.Text, granted, requested []string) (oauth.Token, error)
	// Revoke ends a token (RFC 7009); without a revocation endpoint, or a token, it does nothing.
	Revoke(ctx context.Context, token secret.Text) error
}

// Token is an access token that may be sent now.
type Token struct {
	Access  secret.Text
	Scopes  []string          // granted; shared, so not to be changed
	Facts   map[string]string // what token responses said about the account (oauth.Config.Facts); shared too
	Expires time.Time         // zero: the provider named no end
	// Version tells the tokens of a grant apart. It is no secret.
	Version string
	// Fingerprint is Options.Fingerprint of Access, which is no secret either; empty where there is none.
	Fingerprint string
	// Replaceable reports whether Replace is likely to get another token, should the provider reject this one, or to say that the
	// grant has to be connected again.
	Replaceable bool
}
