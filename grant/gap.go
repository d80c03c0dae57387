package grant

import (
	"fmt"
	"slices"
	"strings"

	"wayleave/oauth"
)

// missing are the requested scopes that are not granted. Left out is what providers do not list. Where a route needs one of
// these, it is missed.
func missing(granted, requested []string) []string {
	return slices.DeleteFunc(oauth.MissingScopes(granted, requested), func(s string) bool {
		return oauth.Unlisted(s) && (len(granted) > 0 || !strings.HasSuffix(s, "/.default"))
	})
}

// Gap is why scopes are missing: each has another remedy.
type Gap struct {
	NotRequested []string `json:"not_requested,omitempty"` // the last connect did not ask for them; the configuration does now
	NotGranted   []string `json:"not_granted,omitempty"`   // it asked, and the provider or the operator did not grant them
	Withdrawn    []string `json:"withdrawn,omitempty"`     // granted then, and dropped by a later answer
}

// why sorts missing scopes.
func (r record) why(missing []string, spec Spec) Gap {
	var g Gap
	consented := spec.granted(r.Consented)
	for _, s := range missing {
		switch {
		case !slices.Contains(r.Requested, s):
			g.NotRequested = append(g.NotRequested, s)
		case slices.Contains(consented, s):
			g.Withdrawn = append(g.Withdrawn, s)
		default:
			g.NotGranted = append(g.NotGranted, s)
		}
	}
	return g
}

// remedy is what to do; connect is what that is where there is nothing special to say.
func (g Gap) remedy(name, connect string) string {
	if len(g.NotGranted) == 0 && len(g.Withdrawn) == 0 {
		return connect
	}
	var said []string
	if len(g.NotGranted) > 0 {
		said = append(said, fmt.Sprintf("%s was asked for and not granted", strings.Join(g.NotGranted, ", ")))
	}
	if len(g.Withdrawn) > 0 {
		said = append(said, fmt.Sprintf("%s was granted and later withdrawn", strings.Join(g.Withdrawn, ", ")))
	}
	return fmt.Sprintf("%s: run `wayleave grant connect %s` and allow it; if that does not help, ask the provider whether this account and client may have it",
		strings.Join(said, "; "), name)
}
