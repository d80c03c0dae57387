package console

import (
	"fmt"
	"html/template"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"wayleave/grant"
	"wayleave/oauth"
)

// This file is how things are said on pages.

var templateFuncs = template.FuncMap{
	"asset":    asset,
	"span":     span,
	"ago":      func(now, t time.Time) string { return span(now.Sub(t)) + " ago" },
	"ends":     ends,
	"clock":    func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") + " UTC" },
	"stamp":    func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"took":     func(d time.Duration) string { return roughly(d) },
	"state":    stateWords,
	"tone":     tone,
	"mark":     func(st grant.State) string { return marks[tone(st)] },
	"event":    eventWords,
	"reason":   func(s string) string { return strings.ReplaceAll(s, "_", " ") },
	"kind":     func(k oauth.Kind) string { return strings.ReplaceAll(string(k), "_", " ") },
	"join":     strings.Join,
	"few":      func(all []string) []string { few, _ := cut(all, namedAtMost); return few },
	"more":     func(all []string) int { _, more := cut(all, namedAtMost); return more },
	"names":    names,
	"plural":   plural,
	"sentence": sentence,
	"host":     func(s string) string { return strings.TrimSuffix(s, ":443") },
	"held":     func(g grant.Summary) int { return len(g.Requested) - len(g.Missing) },
	"code":     code,
	"entry":    func(here, name, href, label string) entry { return entry{href, label, here == name} },
	"list":     func(all ...string) []string { return all },
	"choice": func(name, label string, values []string, value string) choice {
		return choice{name, label, values, value}
	},
}

// namedAtMost is how many names a line has of a list that may be long.
const namedAtMost = 20

// names are those of a list in a line, "none" for none.
func names(all []string) string {
	few, more := cut(all, namedAtMost)
	switch line := strings.Join(few, ", "); {
	case len(few) == 0:
		return "none"
	case more > 0:
		return fmt.Sprintf("%s and %d more", line, more)
	default:
		return line
	}
}

// entry is one of the menu.
type entry struct {
	Href, Label string
	Here        bool
}

// choice is a field in which one of some values is chosen.
type choice struct {
	Name, Label string
	Values      []string
	Value       string
}

// Many says that it is written instead: nobody finds anything in so long a list.
func (c choice) Many() bool { return len(c.Values) > 200 }

// span is how long something takes, in its two largest units.
func span(d time.Duration) string {
	d = max(0, d).Truncate(time.Second)
	days, hours, minutes, seconds := d/(24*time.Hour), d/time.Hour%24, d/time.Minute%60, d/time.Second%60
	switch {
	case days > 0:
		return fmt.Sprintf("%d d %d h", days, hours)
	case d >= time.Hour:
		return fmt.Sprintf("%d h %d min", hours, minutes)
	case d >= 10*time.Minute:
		return fmt.Sprintf("%d min", minutes)
	case d >= time.Minute:
		return fmt.Sprintf("%d min %d s", minutes, seconds)
	}
	return fmt.Sprintf("%d s", seconds)
}

// ends says when something ends or has.
func ends(now, t time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case t.After(now):
		return "in " + span(t.Sub(now))
	}
	return span(now.Sub(t)) + " ago"
}

// roughly is a duration with about three digits.
func roughly(d time.Duration) string {
	if d >= time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

// stateWords is a state as people read it.
func stateWords(st grant.State) string { return strings.ReplaceAll(string(st), "_", " ") }

// tone is how bad a state is.
func tone(st grant.State) string {
	switch st {
	case grant.Healthy, grant.Refreshing:
		return "good"
	case grant.Degraded, grant.Ambiguous, grant.ScopeMissing:
		return "warn"
	case grant.NeverConnected:
		return "none"
	default:
		return "bad"
	}
}

// marks are shapes, so that nobody has to tell colours apart.
var marks = map[string]string{"good": "●", "warn": "▲", "bad": "■", "none": "○"}

// eventWords is what happened to a grant.
func eventWords(e grant.Event) string {
	switch e.What {
	case grant.Failed:
		return "refresh failed"
	case grant.Ended:
		return "cannot be refreshed any more"
	case grant.GivenUp:
		return "given up: the refresh token may be spent"
	case grant.RevokeFails:
		return "not revoked at the provider"
	case grant.Declined:
		return "refresh declined"
	case grant.Refreshed:
		if e.Rejected {
			return "refreshed, after the provider rejected the token"
		}
	default:
	}
	return string(e.What)
}

// sentence makes a message, which begins in lower case and has no final stop, a sentence.
func sentence(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return s
	}
	s = string(unicode.ToUpper(r)) + s[n:]
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}

// code is a message whose parts in `these` are code.
func code(s string) template.HTML {
	var b strings.Builder
	for i, part := range strings.Split(s, "`") {
		part = template.HTMLEscapeString(part)
		if i%2 == 1 {
			part = "<code>" + part + "</code>"
		}
		b.WriteString(part)
	}
	return template.HTML(b.String()) //nolint:gosec // every part is escaped above
}
