package grant

import (
	"maps"
	"slices"
	"strings"

	"wayleave/oauth"
)

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

// remedies are what to do about a refresh that fails, where its kind says more than its state.
var remedies = map[oauth.Kind]string{
	oauth.KindInvalidGrant:    "run `wayleave grant connect {name}`: the provider wants the operator to log in again",
	oauth.KindInvalidClient:   "check client_id, auth_style and the client's secret or key, whose files are read again for each request, of the provider in the configuration",
	oauth.KindInvalidScope:    "check scopes of the grant and refresh_scope of its provider in the configuration",
	oauth.KindInvalidRequest:  "check token_format, token_params and refresh_scope of the provider in the configuration",
	oauth.KindProviderChanged: "check token_url, and refresh_url if there is one, of the provider in the configuration: there is no token endpoint at that address any more",
	oauth.KindRateLimited:     "wait: the provider limits this client; if it lasts for hours, ask the provider",
	oauth.KindUnreachable:     "check the network, name resolution and trusted certificates between the gate and the provider's token endpoint",
}

// next is what to do about grant name in state s, in a few words for people, or "" when there is nothing to do. failure is
// that of its last refresh.
func next(s State, kind Kind, failure oauth.Kind, name string) string {
	text := words[s].next
	if remedy := remedies[failure]; remedy != "" && (s == Degraded || s == RefreshUnavailable) {
		text = remedy
	}
	switch {
	case kind == Static:
		text = strings.ReplaceAll(text, "grant connect {name}", "grant import {name}")
	case kind == Machine && failure == oauth.KindInvalidGrant && (s == Degraded || s == RefreshUnavailable):
		text = "check the client's key, or secret, and assertion of the provider in the configuration, and this machine's clock"
	case kind == Machine && s == NeverConnected:
		text = "start a gate: it gets a token by itself"
	case kind == Machine && s == ScopeMissing:
		text = "ask the provider to allow them to this client, or take them out of the configuration"
	case kind == Machine && s == NeedsReconnect: // of another provider, or kind
		text = "run `wayleave grant disconnect {name}`: the gate then gets a token by itself"
	}
	return strings.ReplaceAll(text, "{name}", name)
}

// States are all there are, sorted.
func States() []State { return slices.Sorted(maps.Keys(words)) }

// known reports whether s is one of the states above.
func (s State) known() bool {
	_, ok := words[s]
	return ok
}

// Means says what a state is, in words that follow the grant's name; "" for one that nobody knows.
func (s State) Means() string { return words[s].means }
