package oauth

import (
	"slices"
	"strings"
	"unicode"
)

// MissingScopes returns the scopes in want that are not in have: sorted, each once, nil when there are none.
func MissingScopes(have, want []string) []string {
	var missing []string
	for _, s := range want {
		if !slices.Contains(have, s) {
			missing = append(missing, s)
		}
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}

// splitScopes reads a scope list as it stands in an answer: scopes sorted and each once, and how many were dropped
// because RFC 6749 §3.3 does not allow their characters (what we cannot read counts as not granted). An empty list is
// nil and 0.
func splitScopes(list, separator string) (scopes []string, dropped int) {
	if sep := strings.TrimSpace(separator); sep != "" {
		list = strings.ReplaceAll(list, sep, " ")
	}
	for s := range strings.FieldsFuncSeq(list, unicode.IsSpace) {
		if !isScope(s) {
			dropped++
			continue
		}
		scopes = append(scopes, s)
	}
	if scopes == nil && dropped > 0 {
		return []string{}, dropped
	}
	slices.Sort(scopes)
	return slices.Compact(scopes), dropped
}

// ReadScopes returns scopes that somebody else took from an answer as an answer of this provider's would have them. Nil stays nil.
func (c Config) ReadScopes(list []string) []string {
	scopes, _ := splitScopes(strings.Join(list, " "), c.ScopeSeparator)
	return scopes
}

// WithImplied returns scopes, and after them those that come with them by implied, which is [Config.ImpliedScopes].
func WithImplied(scopes []string, implied map[string][]string) []string {
	all := slices.Clip(scopes)
	for i := 0; i < len(all); i++ { // also of those that are added here
		for _, s := range implied[all[i]] {
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
	}
	return all
}

// isScope reports whether s is a scope-token of RFC 6749 §3.3.
func isScope(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || r == '"' || r == '\\'
	})
}

// joinScopes writes a scope list for a request.
func (c Config) joinScopes(scopes []string) string {
	sep := c.ScopeSeparator
	if sep == "" {
		sep = " "
	}
	return strings.Join(scopes, sep)
}

// Unlisted reports whether s is a scope that providers grant under another name, or do not list among those they granted: those
// of OpenID Connect, which ask for an identity token, its claims and a refresh token (Core §5.4 and §11), and Microsoft's
// "/.default", which stands for all that was ever granted.
func Unlisted(s string) bool {
	return slices.Contains(identityScopes, s) || strings.HasSuffix(s, "/.default")
}

var identityScopes = []string{"openid", "profile", "email", "address", "phone", "offline_access"}

// scopeAtRefresh returns the scope parameter of a refresh; empty means none is sent. Scopes that the grant is known not to
// hold are left out (RFC 6749 §6 forbids widening); nil granted means that nobody knows what it holds. Microsoft wants those
// that it does not list at each refresh: without offline_access there comes no new refresh token.
func (c Config) scopeAtRefresh(granted, requested []string) string {
	switch c.RefreshScope {
	case ScopeOmit:
		return ""
	case ScopeGranted:
		return c.joinScopes(granted)
	case ScopeRequested:
		if granted == nil {
			return c.joinScopes(requested)
		}
		var both []string
		for _, s := range requested {
			if slices.Contains(granted, s) || Unlisted(s) {
				both = append(both, s)
			}
		}
		return c.joinScopes(both)
	}
	return ""
}
