package main

import (
	"fmt"
	"slices"
	"strings"

	"wayleave/grant"
)

// stateExits are the exit codes of commands that show a grant, from what needs nobody to what needs an operator.
var stateExits = []struct {
	code   exitCode
	states []grant.State
	means  string
}{
	{exitOK, []grant.State{grant.Healthy, grant.Refreshing}, "usable, with every scope that is asked for"},
	{10, []grant.State{grant.ScopeMissing}, "usable, with fewer scopes"},
	{11, []grant.State{grant.Degraded, grant.Ambiguous}, "usable as long as the present token lives; the last refresh failed or got no answer"},
	{12, []grant.State{grant.RefreshUnavailable, grant.VaultUnavailable}, "not usable now; it is tried again"},
	{13, []grant.State{grant.NeedsReconnect}, "not usable for long, or no more: an operator must connect it again"},
	{14, []grant.State{grant.NeverConnected}, "nothing is stored"},
}

// exitOf is the exit code for a grant's state.
func exitOf(s grant.State) exitCode {
	for _, e := range stateExits {
		if slices.Contains(e.states, s) {
			return e.code
		}
	}
	return exitFailure
}

// asError ends a command with the exit code; nil for 0.
func (e exitCode) asError() error {
	if e == exitOK {
		return nil
	}
	return e
}

// exitsByState is for the help of commands.
func exitsByState() string {
	var parts []string
	for _, e := range stateExits {
		var names []string
		for _, s := range e.states {
			names = append(names, string(s))
		}
		parts = append(parts, fmt.Sprintf("%d %s", e.code, strings.Join(names, " or ")))
	}
	return wrap("The exit code tells the state: "+strings.Join(parts, ", ")+".", widest, "")
}
