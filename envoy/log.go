package envoy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// LogLevels are what Envoy can log, from all to nothing.
var LogLevels = []string{"trace", "debug", "info", "warning", "error", "critical", "off"}

// harmless are the parts of Envoy that print neither headers nor configuration at any level: connections, names and numbers.
// All others stay at info. Among those http, router, rbac, ext_proc and ext_authz print whole requests, with what the swap put in.
var harmless = []string{"client", "conn_handler", "connection", "dns", "happy_eyeballs", "hc", "init", "io", "main", "pool", "upstream"}

// wordy are the levels at which some parts print requests.
func wordy(level string) bool { return level == "trace" || level == "debug" }

// Components reads what --component-log-level has: part:level, with commas between them.
func Components(text string) (map[string]string, error) {
	levels := map[string]string{}
	for each := range strings.SplitSeq(text, ",") {
		part, level, ok := strings.Cut(strings.TrimSpace(each), ":")
		switch {
		case each == "" && text == "":
			return levels, nil
		case !ok || part == "":
			return nil, fmt.Errorf("%q is not a component of Envoy's and its level; write it as upstream:debug", each)
		case !slices.Contains(LogLevels, level):
			return nil, fmt.Errorf("%q is not a level of Envoy's log; know: %s", level, strings.Join(LogLevels, ", "))
		}
		levels[part] = level
	}
	return levels, nil
}

// checkLog refuses levels that Envoy does not have, and those at which it would print credentials.
func (b Bootstrap) checkLog() error {
	if b.LogLevel != "" && !slices.Contains(LogLevels, b.LogLevel) {
		return fmt.Errorf("log level %q is not one of %s", b.LogLevel, strings.Join(LogLevels, ", "))
	}
	for _, part := range slices.Sorted(maps.Keys(b.Components)) {
		if level := b.Components[part]; wordy(level) && !b.LogCredentials && !slices.Contains(harmless, part) {
			return fmt.Errorf("at %s Envoy's %s may print requests with their real credentials; take another of %s, or say that you want credentials in the log",
				level, part, strings.Join(harmless, ", "))
		}
	}
	return nil
}

// logArgs are the arguments for what Envoy logs. A part of a later Envoy that is not known here is not raised either.
func (b Bootstrap) logArgs() []string {
	level := cmp.Or(b.LogLevel, "warning")
	// misc warns of each use of a field that is "work in progress", which address ranges are: dozens of lines for each configuration.
	parts := map[string]string{"misc": "error"}
	if wordy(level) && !b.LogCredentials {
		for _, part := range harmless {
			parts[part] = level
		}
		level = "info"
	}
	maps.Copy(parts, b.Components)
	var each []string
	for _, part := range slices.Sorted(maps.Keys(parts)) {
		each = append(each, part+":"+parts[part])
	}
	return []string{"--log-level", level, "--component-log-level", strings.Join(each, ",")}
}
