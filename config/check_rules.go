package config

import (
	"fmt"
	"strings"
	"time"

	"wayleave/policy"
)

// rules checks the rules of a profile, and what follows from them all.
func (k *checker) rules(path string, p Profile) {
	names := map[string]int{}
	list := path + ".rules"
	for i, r := range p.Rules {
		at := item(list, i)
		k.ruleName(at+".name", r.Name, i, names, list)
		k.condition(at+".when", r.When)
		k.action(at, r)
		if r.When == "" && i+1 < len(p.Rules) {
			k.warn(item(list, i+1), fmt.Sprintf("never reached: %s holds for every request", at), "put it first, or give the other a condition")
		}
	}
	if p.DryRun && len(p.Rules) == 0 && p.Default == Allow && p.Limits == (Limits{}) {
		k.warn(path+".dry_run", "has no effect: nothing of the profile refuses a request", "remove it")
	}
}

func (k *checker) ruleName(path, name string, i int, names map[string]int, list string) {
	switch first, twice := names[name]; {
	case name == "":
		k.fault(path, "is missing", "give the rule a name, for logs and messages")
	case twice:
		k.fault(path, quote(name)+" is the name of "+item(list, first)+" too", "name one of them differently")
	default:
		k.name(path, name)
		names[name] = i
	}
}

// condition reports each fault of a condition where it is.
func (k *checker) condition(path, when string) {
	if when == "" {
		if k.doc.given(path) {
			k.fault(path, "has no condition", "write one, or remove the key for a rule that always holds")
		}
		return
	}
	if k.doc.isBroken(path) {
		return
	}
	for _, f := range policy.Check(when) {
		k.doc.fault(path, k.doc.inside(path, when, f.Line, f.Column), f.Problem, "see docs/policy.md for what a condition can use")
	}
}

// action checks that a rule does one thing.
func (k *checker) action(path string, r PolicyRule) {
	const actions = `write allow: true, deny: "the reason", or hold: {words: "the question"}`
	switch allow, deny, hold := k.doc.given(path+".allow"), k.doc.given(path+".deny"), k.doc.given(path+".hold"); {
	case k.doc.isBrokenWithin(path):
	case !allow && !deny && !hold:
		k.fault(path, "does nothing", actions)
	case allow && deny:
		k.fault(path+".deny", "written beside allow", "keep one of the two")
	case hold && (allow || deny):
		k.fault(path+".hold", "written beside allow or deny", "keep one of the two")
	case allow && !r.Allow:
		k.fault(path+".allow", "is false, which does nothing", actions)
	case deny:
		k.words(path+".deny", r.Deny)
	case hold:
		k.hold(path+".hold", r.Hold)
	}
}

// hold checks how requests wait.
func (k *checker) hold(path string, h Hold) {
	if h.Words == "" && !k.doc.given(path+".words") {
		k.fault(path+".words", "is missing", "say what the operator is to decide")
	}
	k.words(path+".words", h.Words)
	if h.For < time.Second || h.For > LongestHold {
		k.fault(path+".for", fmt.Sprintf("%s is out of range", h.For), "write a duration from 1s to 30m")
	}
}

// words checks a text that workers or operators are shown.
func (k *checker) words(path, text string) {
	if text == "" && k.doc.given(path) {
		k.fault(path, "has no text", "write the reason workers are shown, or remove the key")
	}
	if strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c == 0x7f }) || len(text) > 500 {
		k.fault(path, "is not one line of at most 500 bytes", "shorten it")
	}
}
