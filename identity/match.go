package identity

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Subject is the claim that names the caller.
const Subject = "sub"

// A Match says which proofs are a worker's: those of one issuer whose claims fit a pattern each. A pattern is the whole text,
// or its beginning and "*".
type Match struct {
	// Issuer is the issuer's name; empty for certificates.
	Issuer string
	// Claims are the patterns, by claim. There is at least one.
	Claims map[string]string
}

// IsZero reports whether it matches nothing, because there is no condition.
func (m Match) IsZero() bool { return len(m.Claims) == 0 }

// Accepts reports whether a proof fits. Of a claim that is a list one item has to.
func (m Match) Accepts(p Proof) bool {
	if m.IsZero() || m.Issuer != p.Issuer {
		return false
	}
	for claim, pattern := range m.Claims {
		value := p.Claims[claim]
		if claim == Subject {
			value = p.Subject
		}
		if !fitsAny(pattern, value) {
			return false
		}
	}
	return true
}

func fitsAny(pattern string, value any) bool {
	switch v := value.(type) {
	case string:
		return covers(pattern, v)
	case bool:
		return covers(pattern, strconv.FormatBool(v))
	case float64:
		return covers(pattern, strconv.FormatFloat(v, 'f', -1, 64))
	case json.Number:
		return covers(pattern, v.String())
	case []any:
		for _, item := range v {
			if _, nested := item.([]any); !nested && fitsAny(pattern, item) {
				return true
			}
		}
	}
	return false
}

// covers reports whether whatever fits narrow fits wide. A text is the pattern of itself: a "*" in one that is not a pattern
// does no harm, since wide then ends before it.
func covers(wide, narrow string) bool {
	if beginning, open := strings.CutSuffix(wide, "*"); open {
		return strings.HasPrefix(strings.TrimSuffix(narrow, "*"), beginning)
	}
	return wide == narrow
}

// Narrower reports whether what m accepts is a part of what o accepts, and not all of it.
func (m Match) Narrower(o Match) bool { return m.within(o) && !o.within(m) }

func (m Match) within(o Match) bool {
	if m.Issuer != o.Issuer {
		return false
	}
	for claim, wide := range o.Claims {
		if narrow, ok := m.Claims[claim]; !ok || !covers(wide, narrow) {
			return false
		}
	}
	return true
}

// Disjoint reports whether no caller with one value for each claim fits both.
func (m Match) Disjoint(o Match) bool {
	if m.Issuer != o.Issuer {
		return true
	}
	for claim, a := range m.Claims {
		if b, ok := o.Claims[claim]; ok && !covers(a, b) && !covers(b, a) {
			return true
		}
	}
	return false
}

// Ambiguous reports whether a caller may fit both with nothing to say which is meant. The configuration is refused then.
func (m Match) Ambiguous(o Match) bool { return !m.Disjoint(o) && !m.Narrower(o) && !o.Narrower(m) }

// Choose returns the index of the match that accepts p and is narrower than every other that does; -1 where none does, or
// where there are several of which none is: then their indices are returned.
func Choose(p Proof, matches []Match) (chosen int, several []int) {
	for i, m := range matches {
		if m.Accepts(p) {
			several = append(several, i)
		}
	}
	for _, i := range several {
		best := true
		for _, j := range several {
			best = best && (i == j || matches[i].Narrower(matches[j]))
		}
		if best {
			return i, nil
		}
	}
	return -1, several
}

// PatternFault says what is wrong with a pattern, and what to write; both are empty when nothing is.
func PatternFault(pattern string) (what, fix string) {
	switch beginning, open := strings.CutSuffix(pattern, "*"); {
	case pattern == "":
		return "is empty", "write the value, or its beginning and *"
	case beginning == "":
		return fmt.Sprintf("%q fits everybody the issuer knows", pattern), "write the value, or its beginning and *"
	case open && strings.Contains(beginning, "*"), !open && strings.Contains(pattern, "*"):
		return fmt.Sprintf("%q has a * that is not its end", pattern), "a * stands for the rest of the value: write the beginning alone before it"
	}
	return "", ""
}
