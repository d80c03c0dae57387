package worker

import (
	"cmp"
	"encoding/json"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// What Claude Code has in files of its own and prefers to its environment.

// claudeCodeFiles are the file of Claude Code's with accounts, and its settings: the organization's, which a person cannot change, and others.
func (m Machine) claudeCodeFiles(vars map[string]string) (account string, organizations, settings []string) {
	own, account := vars["CLAUDE_CONFIG_DIR"], filepath.Join(vars["CLAUDE_CONFIG_DIR"], ".claude.json")
	if own == "" {
		own, account = filepath.Join(vars["HOME"], ".claude"), filepath.Join(vars["HOME"], ".claude.json")
	}
	for _, managed := range []string{"/etc/claude-code", "/Library/Application Support/ClaudeCode"} {
		parts, _ := fs.Glob(m.Files, managed[1:]+"/managed-settings.d/*.json")
		organizations = append(organizations, managed+"/managed-settings.json")
		for _, part := range parts {
			organizations = append(organizations, "/"+part)
		}
	}
	settings = append(settings, filepath.Join(own, "settings.json"))
	if m.Dir != "" {
		settings = append(settings, filepath.Join(m.Dir, ".claude", "settings.json"), filepath.Join(m.Dir, ".claude", "settings.local.json"))
		if root := m.repository(); root != m.Dir && root != "" {
			settings = append(settings, filepath.Join(root, ".claude", "settings.local.json"))
		}
	}
	return account, organizations, settings
}

// claudeCode are the files of Claude Code.
func (m Machine) claudeCode(vars map[string]string, credentials []Credential) (found []Preference) {
	account, organizations, others := m.claudeCodeFiles(vars)
	paths := slices.Concat([]string{account}, organizations, others)
	gate := gateVariables()
	for _, path := range paths {
		var settings struct {
			Env          map[string]any `json:"env"`
			APIKeyHelper string         `json:"apiKeyHelper"`
			PrimaryKey   string         `json:"primaryApiKey"`
			ForcedMethod any            `json:"forceLoginMethod"`
			ForcedOrg    any            `json:"forceLoginOrgUUID"`
		}
		if json.Unmarshal(m.read(path), &settings) != nil { // the client has its own words for that
			continue
		}
		var around []string
		for _, name := range gate {
			if value, text := settings.Env[name].(string); text && path != account && elsewhere(vars, name, value) {
				around = append(around, "env."+name)
			}
		}
		for _, c := range credentials {
			concerns := c.concerns()
			var names []string
			for _, name := range concerns {
				if value, text := settings.Env[name].(string); text && value != "" && !strings.Contains(value, Marker) && path != account {
					names = append(names, "env."+name)
				}
			}
			if settings.APIKeyHelper != "" && slices.Contains(concerns, "ANTHROPIC_API_KEY") && path != account {
				names = append(names, "apiKeyHelper")
			}
			if settings.PrimaryKey != "" && c.Env["ANTHROPIC_AUTH_TOKEN"] != "" && path == account {
				names = append(names, "primaryApiKey")
			}
			if len(names) > 0 {
				found = append(found, Preference{File: path, Has: strings.Join(names, ", "), Means: "Claude Code prefers to the placeholder for " + c.Grant})
			}
			if !slices.Contains(concerns, "ANTHROPIC_API_KEY") {
				continue
			}
			if len(around) > 0 {
				found = append(found, Preference{File: path, Has: strings.Join(around, ", "), Means: "Claude Code, and what it runs, prefer to the way to the gate"})
				around = nil
			}
			forced := ""
			if settings.ForcedMethod != nil {
				forced = "forceLoginMethod"
			} else if settings.ForcedOrg != nil {
				forced = "forceLoginOrgUUID"
			}
			if slices.Contains(organizations, path) && forced != "" && c.Env["ANTHROPIC_AUTH_TOKEN"]+c.Env["ANTHROPIC_API_KEY"] != "" {
				found = append(found, Preference{File: path, Has: forced, Means: "has Claude Code refuse the placeholder for " + c.Grant + ", which is no log-in to it as one is with claude_code: oauth_env in the profile"})
			}
		}
	}
	return found
}

var (
	npmLeads   = regexp.MustCompile(`(?m)^[ \t]*(?:https?-proxy|proxy|noproxy)[ \t]*=`)
	cargoLeads = regexp.MustCompile(`(?m)^[ \t]*(?:http\.)?proxy[ \t]*=`)
)

// sandbox is Claude Code's for the commands that it runs: a network of their own, in which nothing but a proxy of the client's can be reached, which goes on to the gate. The
// common variables name that one there, and variables of single programs the gate still, which is out of reach: without returns those that are of no use, as
// their programs have no other proxy.
func (m Machine) sandbox(vars map[string]string, credentials []Credential) (found []Preference, without []string) {
	if !slices.ContainsFunc(credentials, func(c Credential) bool { return slices.Contains(c.concerns(), "ANTHROPIC_API_KEY") }) {
		return nil, nil
	}
	npm, cargo := []string{filepath.Join(vars["HOME"], ".npmrc"), vars[npmFile]}, []string{filepath.Join(vars["HOME"], ".cargo/config.toml")}
	for _, dir := range m.project() {
		npm, cargo = append(npm, filepath.Join(dir, ".npmrc")), append(cargo, filepath.Join(dir, ".cargo/config.toml"))
	}
	led := func(files []string, by *regexp.Regexp) bool {
		return slices.ContainsFunc(files, func(path string) bool { return by.Match(m.read(path)) })
	}
	if !led(npm, npmLeads) {
		without = append(without, "npm_config_proxy", "npm_config_https_proxy", "npm_config_noproxy")
	}
	if !led(cargo, cargoLeads) {
		without = append(without, "CARGO_HTTP_PROXY")
	}
	without = slices.DeleteFunc(without, func(name string) bool { return vars[name] == "" })
	_, organizations, others := m.claudeCodeFiles(vars)
	for _, path := range slices.Concat(organizations, others) {
		var settings struct {
			Sandbox struct{ Enabled bool } `json:"sandbox"`
		}
		if json.Unmarshal(m.read(path), &settings) == nil && settings.Sandbox.Enabled && len(without) > 0 {
			found = append(found, Preference{
				File: path, Has: "sandbox.enabled", Means: "has commands go to the gate by way of Claude Code alone",
				Countered: "programs find that way without " + strings.Join(without, ", ") + "; Yarn 2 and later, and Java, find none there",
				Fix:       "unset " + strings.Join(without, ", "),
			})
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	return found, without
}

// claudeCodeLogIn is the log-in of Claude Code's own, which it sends beside a placeholder that is none to it, with requests that are no message's.
func (m Machine) claudeCodeLogIn(vars map[string]string, credentials []Credential) (found []Preference) {
	path := filepath.Join(cmp.Or(vars["CLAUDE_CONFIG_DIR"], filepath.Join(vars["HOME"], ".claude")), ".credentials.json")
	var own struct {
		LogIn struct{ AccessToken, RefreshToken string } `json:"claudeAiOauth"`
	}
	_ = json.Unmarshal(m.read(path), &own)
	if tokens := own.LogIn.AccessToken + own.LogIn.RefreshToken; tokens == "" || strings.Contains(tokens, Marker) {
		var account struct {
			Whose any `json:"oauthAccount"` // of servers' log-ins there is none
		}
		_ = json.Unmarshal(m.read(filepath.Join(vars["HOME"], ".claude.json")), &account)
		if m.Keychain == nil || vars["CLAUDE_CONFIG_DIR"] != "" || account.Whose == nil || !m.Keychain("Claude Code-credentials") {
			return nil
		}
		path = "the keychain (Claude Code-credentials)"
	}
	for _, c := range credentials {
		p := Preference{File: path, Has: "a log-in"}
		switch {
		case c.Env["ANTHROPIC_AUTH_TOKEN"] != "":
			p.Means = "Claude Code sends beside the placeholder for " + c.Grant
			p.Fix = "write claude_code: oauth_env into the profile, or log out (`claude auth logout`)"
		case c.Env["ANTHROPIC_API_KEY"] != "":
			p.Means = "Claude Code sends beside the placeholder for " + c.Grant + ", and at a terminal in place of it"
			p.Fix = "write modes: {" + c.Grant + ": claude_home} into the profile, or log out (`claude auth logout`)"
		default: // a log-in of ours, which counts before it
			continue
		}
		found = append(found, p)
	}
	return found
}
