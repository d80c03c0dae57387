package worker

import (
	"cmp"
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

// addGit are the variables that have settings behind those of an environment, each once: what an earlier session left there goes, its proxy (with
// a password of its own) too.
func addGit(settings []gitSetting, vars map[string]string) map[string]string {
	if len(settings) == 0 {
		return nil
	}
	proxy := slices.ContainsFunc(settings, gitSetting.proxy)
	all := slices.DeleteFunc(gitSettings(vars), func(s gitSetting) bool {
		return slices.Contains(settings, s) || proxy && s.proxy() // of a setting with one value the last counts
	})
	all = append(all, settings...)
	set := map[string]string{gitCount: strconv.Itoa(len(all))}
	for i, s := range all {
		n := strconv.Itoa(i)
		set[gitKey+n], set[gitValue+n] = s.key, s.value
	}
	return set
}

// proxy reports whether a setting is the proxy for all addresses.
func (s gitSetting) proxy() bool { return strings.EqualFold(s.key, "http.proxy") }

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
// rule leads away from it, and with what the machine's file has behind them, if there is one. Empty: there are no rules.
func gitSystemFile(credentials []Credential, machines string) string {
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
	if b.Len() > 0 && machines != "" {
		b.WriteString(gitInclude + gitQuoted(machines) + "\n") // git takes no offence at one that is not there
	}
	return b.String()
}

const gitInclude = "[include]\n\tpath = "

// gitIncluded is the file behind the rules in one of gitSystemFile's; empty: none.
func gitIncluded(content string) string {
	_, quoted, _ := strings.Cut(content, gitInclude)
	quoted = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(quoted), `"`), `"`)
	return strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\n`, "\n").Replace(quoted)
}

// gitMachines is the machine's file, which comes behind our rules; empty: git is to read none. Path is where git finds ours, and read has the file
// at a path. In the environment of an earlier session the machine's file is that session's, which may be the very one that is written now, or
// have it behind it: then what that one has behind it stays, so that it does not come to include itself, which git refuses.
func gitMachines(path string, getenv func(string) string, read func(string) ([]byte, error)) string {
	const standard = "/etc/gitconfig"
	if !gitFalse(getenv(gitNoSystem)) {
		return ""
	}
	behind := func(path string) (string, bool) {
		content, err := read(path)
		return gitIncluded(string(content)), err == nil
	}
	returns := func(from string) bool {
		for range 10 { // as deep as git goes
			if from == "" || from == path {
				return from == path
			}
			from, _ = behind(from)
		}
		return true
	}
	named := cmp.Or(getenv(gitSystem), standard)
	if !returns(named) {
		return named
	}
	if own, has := behind(path); has && !returns(own) {
		return own
	}
	return standard
}

// gitFalse reports whether a variable of git's is not set or says no.
func gitFalse(value string) bool {
	switch strings.ToLower(value) {
	case "", "0", "false", "no", "off":
		return true
	}
	return false
}

func gitQuoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}
