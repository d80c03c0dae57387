package worker

import (
	"maps"
	"slices"
	"strconv"
)

// git reads settings from GIT_CONFIG_KEY_0 and GIT_CONFIG_VALUE_0 on, as many as GIT_CONFIG_COUNT says, after those of its files. Containers and
// CI have some of their own there (safe.directory), and several credentials may have, so ours come behind those.
const (
	gitCount = "GIT_CONFIG_COUNT"
	gitKey   = "GIT_CONFIG_KEY_"
	gitValue = "GIT_CONFIG_VALUE_"
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
