package worker

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// ClaudeSettings names what the settings of Claude Code have that it would use in place of a placeholder: it prefers them to its environment, and
// says nothing of it. env is the environment that it would get in dir. The lines name variables and files and hold no value.
func ClaudeSettings(env []string, dir string, credentials []Credential, read func(path string) ([]byte, error)) (report []string) {
	vars, _ := index(env)
	own := vars["CLAUDE_CONFIG_DIR"]
	if own == "" {
		own = filepath.Join(vars["HOME"], ".claude")
	}
	for _, path := range []string{
		"/etc/claude-code/managed-settings.json",
		filepath.Join(own, "settings.json"),
		filepath.Join(dir, ".claude", "settings.json"),
		filepath.Join(dir, ".claude", "settings.local.json"),
	} {
		var settings struct {
			Env          map[string]any `json:"env"`
			APIKeyHelper string         `json:"apiKeyHelper"`
		}
		text, err := read(path)
		if err != nil || json.Unmarshal(text, &settings) != nil { // the client has its own words for that
			continue
		}
		for _, c := range credentials {
			concerns := slices.Concat(slices.Collect(maps.Keys(c.Env)), c.Unset)
			var names []string
			for _, name := range slices.Sorted(slices.Values(concerns)) {
				if value, text := settings.Env[name].(string); text && value != "" && !strings.Contains(value, Marker) {
					names = append(names, "env."+name)
				}
			}
			if settings.APIKeyHelper != "" && slices.Contains(concerns, "ANTHROPIC_API_KEY") {
				names = append(names, "apiKeyHelper")
			}
			if len(names) > 0 {
				report = append(report, fmt.Sprintf("%s has %s, which Claude Code prefers to the placeholder for %s: take that out of the file", path, strings.Join(names, ", "), c.Grant))
			}
		}
	}
	return report
}
