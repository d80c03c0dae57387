// Package policy owns the rules that operators write about requests: conditions in CEL over the facts of one request, of
// which the first that holds decides. It knows nothing of HTTP, of credentials or of who asks: facts go in, a verdict
// comes out, and the same facts always give the same verdict.
//
//	rules ──Compile──▶ Set ──Decide(Facts)──▶ allow | deny, in words | hold, for as long
//
// Whatever cannot be decided is denied: a condition that fails on a request, or one that depends on what cannot be seen.
package policy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
)

// Action is what a rule does with a request.
type Action string

// The actions.
const (
	Allow Action = "allow" // it goes on
	Deny  Action = "deny"  // it is refused
	Hold  Action = "hold"  // it waits until an operator allows or denies it

	// CannotTell is a verdict, and never a rule's: it depends on what is not known of a request, see Facts.Known.
	CannotTell Action = "cannot_tell"
)

// Rule is one condition, and what happens to the requests for which it holds.
type Rule struct {
	// Name is for logs, approvals and messages; unique in its Set.
	Name string
	// When is a CEL expression that is true or false, see Facts. Empty: always true.
	When   string
	Action Action
	// Words say why, to the worker that is denied or to the operator who is asked.
	Words string
	// For is how long a request is held at most.
	For time.Duration
}

// Verdict is what the rules say about one request.
type Verdict struct {
	Action Action        `json:"action"`
	Rule   string        `json:"rule,omitempty"` // the name of the rule that decided; empty: none did
	Words  string        `json:"words,omitempty"`
	For    time.Duration `json:"-"`
	// Err is why a condition could not be decided, without what CEL quotes, which may be of the request. The Action is then Deny.
	Err error `json:"-"`
}

// Set is rules in their order, ready to decide. It is never changed, and safe for concurrent use.
type Set struct {
	rules    []compiled
	fallback Action
	looksAt  map[string]bool
}

type compiled struct {
	Rule
	programs // without any: always true
}

// Compile makes rules ready to decide; fallback is Allow or Deny, for requests for which no rule holds. The error names the
// rule; Check finds all that is wrong with a condition.
func Compile(rules []Rule, fallback Action) (*Set, error) {
	s := &Set{fallback: fallback, looksAt: map[string]bool{}}
	for _, r := range rules {
		c := compiled{Rule: r}
		if r.When != "" {
			p, faults := compile(r.When)
			if len(faults) > 0 {
				return nil, fmt.Errorf("rule %s: %w", r.Name, faults[0])
			}
			c.programs = p
			for _, name := range p.looksAt {
				s.looksAt[name] = true
			}
		}
		s.rules = append(s.rules, c)
	}
	return s, nil
}

// LooksAt reports whether some condition depends on the fact, by its name in CEL. A nil Set looks at nothing.
func (s *Set) LooksAt(fact string) bool { return s != nil && s.looksAt[fact] }

// Decide says what becomes of a request. It is denied when the rules would differ for two readings of its path and query:
// nobody then knows which of them the server will follow. A nil Set allows everything.
func (s *Set) Decide(f *Facts) Verdict {
	if s == nil {
		return Verdict{Action: Allow}
	}
	first, at := s.decide(f, f.Reading, nil)
	for _, other := range f.Others {
		switch v, i := s.decide(f, other, nil); {
		case first.Action == CannotTell:
			return first
		case v.Action == CannotTell:
			return v
		case i != at:
			return Verdict{Action: Deny, Words: "its path or query can be read in more than one way, and the rules differ for them; send it in its plain form"}
		}
	}
	return first
}

// decide returns the verdict for one reading, and the index of the rule that gave it; the number of rules when none did.
// Steps, if not nil, gets what was found of each rule.
func (s *Set) decide(f *Facts, r Reading, steps *[]Step) (Verdict, int) {
	a := &activation{facts: f, reading: r}
	for i, rule := range s.rules {
		holds, missing, err := rule.holds(a)
		if steps != nil {
			*steps = append(*steps, Step{rule.Name, holds.String(), err})
		}
		switch {
		case missing != nil:
			return Verdict{Action: CannotTell, Rule: rule.Name,
				Words: fmt.Sprintf("rule %s depends on %s, which is not known of it", rule.Name, strings.Join(missing, " and "))}, i
		case err != nil:
			return Verdict{Action: Deny, Rule: rule.Name, Err: err,
				Words: fmt.Sprintf("rule %s cannot be decided for it; an operator finds the reason in the gate's log", rule.Name)}, i
		case holds == unknown && rule.Action != Allow:
			return Verdict{Action: Deny, Rule: rule.Name,
				Words: fmt.Sprintf("rule %s depends on what is sent inside the tunnel, which the gate does not see", rule.Name)}, i
		case holds == yes:
			return Verdict{Action: rule.Action, Rule: rule.Name, Words: rule.Words, For: rule.For}, i
		}
	}
	v := Verdict{Action: s.fallback}
	if v.Action == Deny {
		v.Words = fmt.Sprintf("no rule of profile %s allows it; an operator writes one", f.Profile)
	}
	return v, len(s.rules)
}

var quoted = regexp.MustCompile("\"[^\"]*\"|'[^']*'|`[^`]*`")

type answer int

const (
	no answer = iota
	yes
	unknown // it depends on a fact that is not known
	failed
)

func (a answer) String() string {
	return [...]string{"does not hold", "holds", "depends on what is not known", "fails"}[a]
}

// holds reports whether the condition holds. Missing are the facts, other than those hidden in a tunnel, without which that
// cannot be told.
func (c *compiled) holds(a *activation) (holds answer, missing []string, err error) {
	if c.whole == nil {
		return yes, nil, nil
	}
	a.whole = c.takes
	holds, missing, err = c.eval(c.whole, a)
	_, unclear := a.facts.Known["path"]
	open := c.Action == Allow && holds == yes || c.Action != Allow && holds == no
	if err != nil || !open || c.folded == nil || unclear || a.facts.Opaque {
		return holds, missing, err
	}
	path := Fold(a.reading.Path)
	if path == a.reading.Path && c.alike {
		return holds, missing, err
	}
	inAnyCase := *a
	inAnyCase.reading.Path = path
	return c.eval(c.folded, &inAnyCase)
}

func (c *compiled) eval(program cel.Program, a *activation) (holds answer, missing []string, err error) {
	input := any(a)
	if a.facts.Opaque {
		partial, err := cel.PartialVars(a, hidden...)
		if err != nil {
			return failed, nil, err
		}
		program, input = c.partial, partial
	}
	out, _, err := program.Eval(input)
	if u, ok := out.(*types.Unknown); ok && err == nil {
		return unknown, missingFrom(u, a.facts), nil
	}
	switch {
	case err != nil:
		return failed, nil, errors.New(quoted.ReplaceAllString(err.Error(), "…"))
	case out == types.True:
		return yes, nil, nil
	}
	return no, nil, nil
}
