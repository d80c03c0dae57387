package console

import (
	"fmt"
	"strings"

	"wayleave/grant"
	"wayleave/notify"
)

// advice is what to do about a grant, for somebody who has this page and no terminal.
type advice struct {
	Text   string
	Action string // connect or import; empty: nothing that can be done here
	Label  string // of its button
}

// advise says what a grant needs. Nothing is the zero advice.
func (s *Server) advise(g grant.Summary) advice {
	_, configured := s.Desk().Config.Grants[g.Name]
	reconnect := func(format string, args ...any) advice {
		return advice{Text: fmt.Sprintf(format, args...), Action: "connect", Label: "Reconnect"}
	}
	switch {
	case !configured:
		return advice{Text: "The configuration does not have it any more. Add it there, or disconnect it."}
	case g.Kind == grant.Static && (g.State == grant.NeverConnected || g.State == grant.NeedsReconnect):
		return advice{Text: "It is a key that somebody imports, and there is none.", Action: "import", Label: "Import a key"}
	case g.Kind != grant.Consent:
	case g.State == grant.NeverConnected:
		return advice{Text: "Nobody has connected it yet.", Action: "connect", Label: "Connect"}
	case g.State == grant.NeedsReconnect && !g.Expires.IsZero() && g.Expires.After(s.now()):
		return reconnect("It cannot be refreshed any more. Requests work until its token ends, in %s.", span(g.Expires.Sub(s.now())))
	case g.State == grant.NeedsReconnect:
		return reconnect("It cannot be refreshed any more, and requests are refused.")
	case g.State == grant.ScopeMissing && len(g.NotGranted)+len(g.Withdrawn) == 0:
		return reconnect("It needs one reconnect: the configuration asks for %s since the last one. What it has goes on working.", strings.Join(g.NotRequested, ", "))
	case g.State == grant.ScopeMissing:
		return reconnect("It lacks %s. Connect it again and allow that; if that does not help, ask the provider whether this account and client may have it.", strings.Join(g.Missing, ", "))
	case g.State == grant.Healthy || g.State == grant.Refreshing:
		if a, ends := notify.OfGrant(g, s.now(), nil); ends {
			return reconnect("%s. %s", a.Title, a.Text)
		}
	case g.State == grant.Ambiguous:
		return reconnect("Its last refresh got no answer. It is tried once more by itself; if that fails, reconnect it.")
	}
	if g.Next == "" {
		return advice{}
	}
	return advice{Text: sentence(g.Next)}
}

// scopeRow is one scope of a grant.
type scopeRow struct {
	Scope           string
	Held, Requested bool
	Why             string // it is missing
}

func scopeRows(g grant.Summary) []scopeRow {
	var rows []scopeRow
	has := func(list []string, s string) bool {
		for _, x := range list {
			if x == s {
				return true
			}
		}
		return false
	}
	for _, s := range g.Requested {
		row := scopeRow{Scope: s, Requested: true, Held: has(g.Granted, s)}
		switch {
		case has(g.NotRequested, s):
			row.Why = "the last connect did not ask for it"
		case has(g.NotGranted, s):
			row.Why = "asked for and not granted"
		case has(g.Withdrawn, s):
			row.Why = "granted once and withdrawn since"
		}
		rows = append(rows, row)
	}
	for _, s := range g.Granted {
		if !has(g.Requested, s) {
			rows = append(rows, scopeRow{Scope: s, Held: true})
		}
	}
	return rows
}
