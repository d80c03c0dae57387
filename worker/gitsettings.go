package worker

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// git reads settings from GIT_CONFIG_PARAMETERS, where its option -c leaves them for what it starts, behind those of its files and of GIT_CONFIG_COUNT. The
// latter, which containers and CI have settings of their own in (safe.directory), would be as good but for two things: git before 2.31 does not know of it, and
// agents that keep what is called like a key from the commands they run keep GIT_CONFIG_KEY_0 from them, without which git refuses to work at all.
//
// Rules for addresses (url.<base>.insteadOf) are an exception: of two that are equally long the first counts, so ours have to come before those of
// every file, which is what the file that GIT_CONFIG_SYSTEM names does (git 2.32).
//
// What a provider has for git is written as GIT_CONFIG_COUNT is.
const (
	gitCount      = "GIT_CONFIG_COUNT"
	gitKey        = "GIT_CONFIG_KEY_"
	gitValue      = "GIT_CONFIG_VALUE_"
	gitParameters = "GIT_CONFIG_PARAMETERS"
	gitSystem     = "GIT_CONFIG_SYSTEM"
	gitNoSystem   = "GIT_CONFIG_NOSYSTEM"
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

// gitRefuses reports whether git refuses to work for what GIT_CONFIG_COUNT says.
func gitRefuses(vars map[string]string) bool {
	n, err := strconv.Atoi(vars[gitCount])
	return vars[gitCount] != "" && (err != nil || n != len(gitSettings(vars)))
}

// addGit is the variable that has settings behind those of an environment, each once: what an earlier session left there goes, its proxy (with
// a password of its own) too.
func addGit(settings []gitSetting, vars map[string]string) map[string]string {
	if len(settings) == 0 {
		return nil
	}
	proxy := slices.ContainsFunc(settings, gitSetting.proxy)
	words := slices.DeleteFunc(gitWords.FindAllString(vars[gitParameters], -1), func(word string) bool {
		text := gitUnquoted(word)
		key, _, _ := strings.Cut(text, "=")
		return slices.ContainsFunc(settings, func(s gitSetting) bool { return s.String() == text }) || proxy && gitSetting{key: key}.proxy() // of a setting with one value the last counts
	})
	for _, s := range settings {
		words = append(words, s.word())
	}
	return map[string]string{gitParameters: strings.Join(words, " ")}
}

// hasGit reports whether GIT_CONFIG_PARAMETERS has a setting.
func hasGit(vars map[string]string, s gitSetting) bool {
	return slices.ContainsFunc(gitWords.FindAllString(vars[gitParameters], -1), func(word string) bool { return gitUnquoted(word) == s.String() })
}

// gitWords are the settings in GIT_CONFIG_PARAMETERS, 'key=value' or, since 2.31, 'key'='value', quoted as for a shell.
var gitWords = regexp.MustCompile(`(?:'[^']*'|\\['!]|=)+`)

func gitUnquoted(word string) string {
	return strings.NewReplacer(`'\''`, `'`, `'\!'`, `!`, `'`, ``).Replace(word)
}

func (s gitSetting) String() string { return s.key + "=" + s.value }

// word is a setting in GIT_CONFIG_PARAMETERS, in the form that every git knows if there is no doubt where the key ends.
func (s gitSetting) word() string {
	if strings.Contains(s.key, "=") {
		return ShellQuoted(s.key) + "=" + ShellQuoted(s.value)
	}
	return ShellQuoted(s.String())
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

// GitSystem is the file of git's that holds for the whole machine, if there is anything in it: that of a git of Homebrew's or Nix's is not /etc/gitconfig.
// Empty: git does not say.
func (m Machine) GitSystem(env []string) string {
	listed, err := m.Git(env, "config", "--system", "--show-origin", "--null", "--list")
	if err != nil { // there is no git, or no file
		return ""
	}
	origin, _, _ := strings.Cut(string(listed), "\x00")
	path, _ := strings.CutPrefix(origin, "file:")
	return path
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
