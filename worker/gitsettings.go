package worker

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// git reads settings from GIT_CONFIG_KEY_0 and GIT_CONFIG_VALUE_0 on, as many as GIT_CONFIG_COUNT says, after those of its files. Containers and
// CI have some of their own there (safe.directory), and several credentials may have, so ours come behind those.
//
// Rules for addresses (url.<base>.insteadOf) are an exception: of two that are equally long the first counts, so ours have to come before those of
// every file, which is what the file that GIT_CONFIG_SYSTEM names does (git 2.32).
const (
	gitCount    = "GIT_CONFIG_COUNT"
	gitKey      = "GIT_CONFIG_KEY_"
	gitValue    = "GIT_CONFIG_VALUE_"
	gitSystem   = "GIT_CONFIG_SYSTEM"
	gitNoSystem = "GIT_CONFIG_NOSYSTEM"
)

type gitSetting struct{ key, value string }

// splitGit takes git's settings out of an environment.
func splitGit(env map[string]string) ([]gitSetting, map[string]string) {
	settings := gitSettings(env)
	rest := maps.Clone(env)
	if len(settings) > 0 {
		delete(rest, gitCount)
	}
	for i := range settings {
		delete(rest, gitKey+strconv.Itoa(i))
		delete(rest, gitValue+strconv.Itoa(i))
	}
	return settings, rest
}

func gitSettings(env map[string]string) (settings []gitSetting) {
	n, err := strconv.Atoi(env[gitCount])
	for i := 0; err == nil && i < n; i++ {
		key, has := env[gitKey+strconv.Itoa(i)]
		if !has { // git refuses to work with such
			return nil
		}
		settings = append(settings, gitSetting{key, env[gitValue+strconv.Itoa(i)]})
	}
	return settings
}

// addGit are the variables that add settings to those that an environment has, unless they are its last already.
func addGit(settings []gitSetting, vars map[string]string) map[string]string {
	if len(settings) == 0 {
		return nil
	}
	before := gitSettings(vars)
	if from := len(before) - len(settings); from >= 0 && slices.Equal(before[from:], settings) {
		before = before[:from]
	}
	set := map[string]string{gitCount: strconv.Itoa(len(before) + len(settings))}
	for i, s := range settings {
		n := strconv.Itoa(len(before) + i)
		set[gitKey+n], set[gitValue+n] = s.key, s.value
	}
	return set
}

// rule splits the key of a rule for addresses.
func (s gitSetting) rule() (base string, is bool) {
	base, url := strings.CutPrefix(s.key, "url.")
	base, instead := strings.CutSuffix(base, ".insteadOf")
	return base, url && instead
}

// gitRules are the addresses that are led to each base.
func gitRules(settings []gitSetting) map[string][]string {
	rules := map[string][]string{}
	for _, s := range settings {
		if base, is := s.rule(); is {
			rules[base] = append(rules[base], s.value)
		}
	}
	return rules
}

// gitBases are the addresses at which git is given a placeholder.
func gitBases(settings []gitSetting) []string { return slices.Sorted(maps.Keys(gitRules(settings))) }

// gitSystemFile is the content of a file of git's with the rules of credentials, each for pushing too and each base for itself, so that no other
// rule leads away from it, and with what the machine's file has behind them. Empty: there are no rules.
func gitSystemFile(credentials []Credential, getenv func(string) string) string {
	var b strings.Builder
	for _, c := range credentials {
		rules := gitRules(gitSettings(c.Env))
		for _, base := range slices.Sorted(maps.Keys(rules)) {
			fmt.Fprintf(&b, "[url %s]\n", gitQuoted(base))
			for _, from := range append([]string{base}, rules[base]...) {
				fmt.Fprintf(&b, "\tinsteadOf = %[1]s\n\tpushInsteadOf = %[1]s\n", gitQuoted(from))
			}
		}
	}
	if b.Len() == 0 {
		return ""
	}
	system := getenv(gitSystem)
	if system == "" {
		system = "/etc/gitconfig"
	}
	if none := getenv(gitNoSystem); none == "" || none == "0" || none == "false" {
		fmt.Fprintf(&b, "[include]\n\tpath = %s\n", gitQuoted(system)) // git takes no offence at one that is not there
	}
	return b.String()
}

func gitQuoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}
