package grant

import "strings"

// State is the condition of a grant. The string is what status documents and the x-wayleave-reason header carry.
type State string

const (
	NeverConnected State = "never_connected" // no grant is stored
	Healthy        State = "healthy"         // usable, with all requested scopes
	Refreshing     State = "refreshing"      // as healthy, and some replica is at the token endpoint now
	Degraded       State = "degraded"        // provider or store fails; the last token still serves
	Ambiguous      State = "ambiguous"       // a refresh got no answer: the refresh token may be spent
	ScopeMissing   State = "scope_missing"   // usable, but the operator granted less than was requested
	NeedsReconnect State = "needs_reconnect" // only an operator can help; the last token serves until it expires

	RefreshUnavailable State = "refresh_unavailable" // as degraded, but the last token has expired
	VaultUnavailable   State = "vault_unavailable"   // the store does not answer and memory holds nothing usable
)

// words is the one table of what a state means (it follows `grant "x"`) and what to do about it.
var words = map[State]struct{ means, next string }{
	NeverConnected:     {"has not been connected", "run `wayleave grant connect {name}`"},
	Healthy:            {"is healthy", ""},
	Refreshing:         {"is being refreshed", ""},
	Degraded:           {"serves its last token because a refresh or the vault fails", "nothing yet: it is retried until the token expires"},
	Ambiguous:          {"got no answer to its last refresh", "wait for one more try; if that fails too, run `wayleave grant connect {name}`"},
	ScopeMissing:       {"lacks scopes", "run `wayleave grant connect {name}` and allow them"},
	NeedsReconnect:     {"can no longer be refreshed", "run `wayleave grant connect {name}`"},
	RefreshUnavailable: {"has expired and cannot be refreshed at the moment", "wait: it is retried; if it lasts, check the provider's token endpoint"},
	VaultUnavailable:   {"cannot be used because the vault fails", "wait: it is retried; if it lasts, check that the vault is up, unsealed and lets the gateway in"},
}

// Next returns what to do about grant name in state s, in a few words for people, or "" when there is nothing to do.
func (s State) Next(name string) string { return strings.ReplaceAll(words[s].next, "{name}", name) }

// known reports whether s is one of the states above.
func (s State) known() bool {
	_, ok := words[s]
	return ok
}
