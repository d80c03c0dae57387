package worker

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// What coding agents give to the MCP servers that they start.

// servers are MCP servers in a file of an agent's, by name.
type servers map[string]struct {
	Env         map[string]any `json:"env"`
	Environment map[string]any `json:"environment"` // opencode's word for it
}

// add adds the variables that the servers are given, but for those whose value is that of a variable of the agent's, by where they stand.
func (s servers) add(set map[string]string, below string) {
	for name, server := range s {
		for key, variables := range map[string]map[string]any{"env": server.Env, "environment": server.Environment} {
			for variable, value := range variables {
				if text, is := value.(string); is && text != "" && !strings.Contains(text, "${") && !strings.Contains(text, "{env:") {
					set[strings.Join([]string{below, name, key, variable}, ".")] = text
				}
			}
		}
	}
}

var (
	codexInlineEnv = regexp.MustCompile(`(?m)^[ \t]*env[ \t]*=[ \t]*\{(.*)\}`)
	codexVariable  = regexp.MustCompile(`(?:^|[\n,{])[ \t]*["']?([A-Za-z_][A-Za-z0-9_]*)["']?[ \t]*=[ \t]*(?:"([^"\n]+)"|'([^'\n]+)')`)
)

// addCodexServers adds the same of a config.toml of Codex's.
func addCodexServers(set map[string]string, text string) {
	for table := range strings.SplitSeq("\n"+text, "\n[") {
		title, body, _ := strings.Cut(table, "]")
		title = strings.TrimSpace(title)
		if !strings.HasPrefix(title, "mcp_servers.") {
			continue
		}
		if !strings.HasSuffix(title, ".env") {
			title += ".env"
			if inline := codexInlineEnv.FindStringSubmatch(body); inline != nil {
				body = inline[1]
			} else {
				body = ""
			}
		}
		for _, variable := range codexVariable.FindAllStringSubmatch(body, -1) {
			set[title+"."+variable[1]] = variable[2] + variable[3]
		}
	}
}

var (
	variableAlone = regexp.MustCompile(`^\$[A-Za-z_][A-Za-z0-9_]*$`)
	credentialOf  = regexp.MustCompile(`TOKEN|KEY|CREDENTIAL|_URL$|_HOST$`)
)

// ofCredentials are the variables that hold credential, or lead to where it is used: not those that only have to do with it.
func ofCredentials(c Credential) []string {
	return slices.DeleteFunc(c.concerns(), func(name string) bool {
		return !strings.Contains(c.Env[name], Marker) && !credentialOf.MatchString(name)
	})
}

// mcpServers are the variables that agents give to MCP servers of theirs, and that count before those the agents have.
func (m Machine) mcpServers(vars map[string]string, credentials []Credential) (found []Preference) {
	home, opencode := vars["HOME"], opencodeHome(vars)
	account, _, _ := m.claudeCodeFiles(vars)
	paths := []string{
		"/etc/claude-code/managed-mcp.json", account, filepath.Join(home, ".copilot/mcp-config.json"),
		filepath.Join(home, ".gemini/settings.json"), filepath.Join(home, ".cursor/mcp.json"), filepath.Join(opencode, "opencode.json"), filepath.Join(opencode, "opencode.jsonc"),
		"/etc/codex/config.toml", filepath.Join(codexHome(vars), "config.toml"),
	}
	for _, dir := range m.project() {
		for _, name := range []string{".codex/config.toml", ".mcp.json", ".gemini/settings.json", ".cursor/mcp.json", "opencode.json", "opencode.jsonc"} {
			paths = append(paths, filepath.Join(dir, name))
		}
	}
	gate := gateVariables()
	for i, path := range paths {
		if slices.Contains(paths[:i], path) {
			continue
		}
		var file struct {
			Servers  servers `json:"mcpServers"`
			OpenCode servers `json:"mcp"`
			Projects map[string]struct {
				Servers servers `json:"mcpServers"`
			} `json:"projects"`
		}
		set := map[string]string{}
		if text := m.read(path); filepath.Ext(path) == ".toml" {
			addCodexServers(set, string(text))
		} else {
			_ = json.Unmarshal(plainJSON(text), &file)
		}
		file.Servers.add(set, "mcpServers")
		file.OpenCode.add(set, "mcp")
		for _, dir := range m.project() {
			file.Projects[dir].Servers.add(set, "projects.….mcpServers")
		}
		if strings.HasSuffix(path, ".gemini/settings.json") { // Gemini reads $NAME as others read ${NAME}
			maps.DeleteFunc(set, func(_, value string) bool { return variableAlone.MatchString(value) })
		}
		has := func(counts func(name, value string) bool) string {
			at := slices.DeleteFunc(slices.Sorted(maps.Keys(set)), func(at string) bool { return !counts(afterLast(at, "."), set[at]) })
			return strings.Join(at, ", ")
		}
		if around := has(func(name, value string) bool { return slices.Contains(gate, name) && elsewhere(vars, name, value) }); around != "" {
			found = append(found, Preference{File: path, Has: around, Means: "MCP servers prefer to the way to the gate"})
		}
		for _, c := range credentials {
			concerns := ofCredentials(c)
			if names := has(func(name, value string) bool {
				return slices.Contains(concerns, name) && !strings.Contains(value, Marker) && value != vars[name]
			}); names != "" {
				found = append(found, Preference{File: path, Has: names, Means: "MCP servers prefer to the placeholder for " + c.Grant})
			}
		}
	}
	return found
}
