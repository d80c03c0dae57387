package policy

import "time"

// Judged is what was decided about one request, and what was known of it.
type Judged struct {
	Time time.Time `json:"time"`
	// Revision of the configuration that decided, as it is shown; empty: its gate knew of none.
	Revision string `json:"revision,omitempty"`
	Facts    Facts  `json:"facts"`
	Verdict  Action `json:"verdict"`
	// Rule is the name of the one that decided; empty: none did.
	Rule string `json:"rule,omitempty"`
	// Reason is that of the refusal, when something else than a rule may have refused the request; see docs/refusals.md.
	Reason string `json:"reason,omitempty"`
	// DryRun says that the verdict was noted and not carried out.
	DryRun bool `json:"dry_run,omitempty"`
}

// Step is what was found of one rule.
type Step struct {
	Rule  string
	Found string // "holds", "does not hold" and so on
	Err   error  // why its condition failed
}

// Steps says of one reading of a request how its verdict came about: what was found of each rule that was looked at.
func (s *Set) Steps(f *Facts, r Reading) (Verdict, []Step) {
	if s == nil {
		return Verdict{Action: Allow}, nil
	}
	steps := []Step{}
	v, _ := s.decide(f, r, &steps)
	return v, steps
}
