package worker

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// What other coding agents than Claude Code have in files of their own and prefer to their environment.

// gateVariables are those that lead programs to the gate, and have them trust it.
func gateVariables() []string {
	names := slices.Concat(slices.Collect(maps.Keys(proxyVariables(Enrolment{Gate: &url.URL{}}))), replacingStores, addingStores)
	slices.Sort(names)
	return names
}

// elsewhere reports whether a value that a file has for one of them leads elsewhere than the environment does.
func elsewhere(vars map[string]string, name, value string) bool {
	return vars[name] != "" && value != vars[name] && (!strings.EqualFold(name, "NO_PROXY") || !loopbackOnly(value))
}

// concerns are the variables that the credential is given in, or that programs would prefer to it.
func (c Credential) concerns() []string {
	return slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Keys(c.Env)), c.Unset)))
}

// loopbackOnly reports whether a NO_PROXY is about this machine alone.
func loopbackOnly(noProxy string) bool {
	for entry := range strings.SplitSeq(noProxy, ",") {
		switch strings.Trim(strings.TrimSpace(entry), "[]") {
		case "", "localhost", ".localhost", "127.0.0.1", "127.0.0.0/8", "::1", "0.0.0.0":
		default:
			return false
		}
	}
	return true
}

var (
	codexElsewhere = regexp.MustCompile(`(?m)^[ \t]*(openai_base_url|chatgpt_base_url|model_provider)[ \t]*=[ \t]*(.*)$`)
	codexCommand   = regexp.MustCompile(`(?m)^[ \t]*command[ \t]*=`)
	codexNetwork   = regexp.MustCompile(`(?m)^[ \t]*(?:\[features\.network_proxy\]|(?:features\.)?network_proxy(?:\.enabled)?[ \t]*=[ \t]*(?:true|\{))`)
	codexNoNetwork = regexp.MustCompile(`(?m)^[ \t]*(?:\[features\.network_proxy\][^\[]*\n[ \t]*|(?:features\.)?network_proxy[ \t]*=[ \t]*\{[^}\n]*)enabled[ \t]*=[ \t]*false`)
	codexForced    = regexp.MustCompile(`(?m)^[ \t]*forced_login_method[ \t]*=[ \t]*["'](api|chatgpt)["']`)
)

// codexHome is the directory of Codex's own files.
func codexHome(vars map[string]string) string {
	return cmp.Or(vars["CODEX_HOME"], filepath.Join(vars["HOME"], ".codex"))
}

// codex are the files of Codex.
func (m Machine) codex(vars map[string]string, credentials []Credential) (found []Preference) {
	own := codexHome(vars)
	if daemon := filepath.Join(own, "app-server-control", "app-server-control.sock"); m.Listens != nil && m.Listens(daemon) {
		for _, c := range credentials {
			if c.codex() {
				found = append(found, Preference{
					File: daemon, Has: "a Codex that runs already", Means: "takes over what an interactive Codex is told, with the credential and the way out that it was started with",
					Fix: "stop it with `codex app-server daemon stop`, and start Codex with --disable daemon_auto_start",
				})
				break
			}
		}
	}
	logIn := filepath.Join(own, "auth.json")
	var stored struct {
		Key    string `json:"OPENAI_API_KEY"`
		Tokens struct {
			Access string `json:"access_token"`
		} `json:"tokens"`
	}
	_ = json.Unmarshal(m.read(logIn), &stored)
	if key := stored.Key + stored.Tokens.Access; key != "" && !strings.Contains(key, Marker) {
		for _, c := range credentials {
			if c.Env["CODEX_API_KEY"] != "" {
				found = append(found, Preference{
					File: logIn, Has: "a log-in", Means: "Codex at a terminal prefers to the placeholder for " + c.Grant,
					Fix: "write modes: {" + c.Grant + ": codex_home} into the profile, or log out (`codex logout`)",
				})
			}
		}
	}
	paths := []string{"/etc/codex/managed_config.toml", "/etc/codex/config.toml", filepath.Join(own, "config.toml")}
	if m.Dir != "" {
		paths = append(paths, filepath.Join(m.Dir, ".codex", "config.toml"))
	}
	for _, path := range paths {
		text := m.read(path)
		var names []string
		for _, line := range codexElsewhere.FindAllSubmatch(text, -1) {
			if value := strings.TrimSpace(string(line[2])); !strings.HasPrefix(value, `"openai"`) && !strings.HasPrefix(value, `'openai'`) { // which is the default
				names = append(names, string(line[1]))
			}
		}
		keeps := codexKeeps(string(text))
		var servers []string
		network := false
		if strings.Contains(vars["HTTPS_PROXY"], "@") { // else they are led to the gate without
			servers = codexServers(string(text))
			network = codexNetwork.Match(text) && !codexNoNetwork.Match(text)
		}
		for _, c := range credentials {
			if !c.codex() {
				continue
			}
			logIn := "api"
			if c.Env["CODEX_ACCESS_TOKEN"] != "" {
				logIn = "chatgpt"
			}
			if len(names) > 0 {
				found = append(found, Preference{File: path, Has: strings.Join(names, ", "), Means: "leads Codex elsewhere than the placeholder for " + c.Grant + " is for"})
			}
			if forced := codexForced.FindSubmatch(text); forced != nil && string(forced[1]) != logIn {
				found = append(found, Preference{File: path, Has: "forced_login_method", Means: "has Codex refuse the placeholder for " + c.Grant})
			}
			if len(servers) > 0 {
				found = append(found, Preference{
					File: path, Has: strings.Join(servers, ", "), Means: "Codex starts without the variables that lead to the gate",
					Fix: `add env_vars = ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "NODE_USE_ENV_PROXY", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"] there`,
				})
				servers = nil
			}
			if network {
				found = append(found, Preference{File: path, Has: "features.network_proxy", Means: "has the commands that Codex runs go out by a proxy of its own, which logs in at no other, so that the gate does not know them"})
				network = false
			}
			if len(keeps) > 0 {
				found = append(found, Preference{File: path, Has: strings.Join(keeps, ", "), Means: "keeps from the commands that Codex runs variables that lead them to the gate or are their placeholder"})
				keeps = nil
			}
		}
	}
	return found
}

// codex reports whether the credential is given to Codex.
func (c Credential) codex() bool { return c.Env["CODEX_ACCESS_TOKEN"]+c.Env["CODEX_API_KEY"] != "" }

// codexInline is what keeps variables in a table that is written in one line.
var codexInline = regexp.MustCompile(`inherit[ \t]*=[ \t]*["'](?:core|none)|\b(?:exclude|include_only|filters)\b|ignore_default_excludes[ \t]*=[ \t]*false`)

// codexKeeps are the settings of a config.toml of Codex's by which it keeps variables from the commands that it runs.
func codexKeeps(text string) (names []string) {
	const policy = "shell_environment_policy"
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section, _, _ = strings.Cut(strings.Trim(line, "["), "]")
			if section = strings.TrimSpace(section); section == policy+".filters" {
				names = append(names, section)
			}
			continue
		}
		key, value, set := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.Trim(strings.TrimSpace(value), `"'`)
		if section != "" {
			key = section + "." + key
		}
		switch {
		case !set:
		case key == policy+".inherit" && !strings.HasPrefix(value, "all"),
			key == policy+".ignore_default_excludes" && strings.HasPrefix(value, "false"),
			key == policy+".exclude", key == policy+".include_only",
			key == policy && codexInline.MatchString(value):
			names = append(names, key)
		}
	}
	return names
}

// codexServers are the MCP servers in a config.toml that Codex starts, with a few variables of its environment and those that are named there, and are not
// given the proxy.
func codexServers(text string) (names []string) {
	led := map[string]bool{}
	for table := range strings.SplitSeq("\n"+text, "\n[") {
		title, body, _ := strings.Cut(table, "]")
		name, is := strings.CutPrefix(strings.TrimSpace(title), "mcp_servers.")
		name, _, _ = strings.Cut(name, ".")
		switch {
		case !is:
		case strings.Contains(strings.ToLower(body), "https_proxy"):
			led["mcp_servers."+name] = true
		case codexCommand.MatchString(body):
			names = append(names, "mcp_servers."+name)
		}
	}
	return slices.DeleteFunc(names, func(name string) bool { return led[name] })
}

// gemini are the settings of Gemini's command line, which say what it logs in with whatever its environment has.
func (m Machine) gemini(vars map[string]string, credentials []Credential) (found []Preference) {
	paths := []string{"/etc/gemini-cli/settings.json", filepath.Join(vars["HOME"], ".gemini/settings.json")}
	for _, dir := range m.project() {
		paths = append(paths, filepath.Join(dir, ".gemini/settings.json"))
	}
	for _, path := range paths {
		var settings struct {
			Security struct {
				Auth struct{ SelectedType, EnforcedType string }
			}
			Earlier string `json:"selectedAuthType"`
		}
		_ = json.Unmarshal(plainJSON(m.read(path)), &settings)
		var has []string
		for name, value := range map[string]string{"security.auth.selectedType": settings.Security.Auth.SelectedType, "security.auth.enforcedType": settings.Security.Auth.EnforcedType, "selectedAuthType": settings.Earlier} {
			if value != "" && value != "gemini-api-key" {
				has = append(has, name)
			}
		}
		slices.Sort(has)
		for _, c := range credentials {
			if len(has) > 0 && c.Env["GEMINI_API_KEY"] != "" {
				found = append(found, Preference{File: path, Has: strings.Join(has, ", "), Means: "has Gemini use something else than the placeholder for " + c.Grant, Fix: "write gemini-api-key there"})
			}
		}
	}
	return found
}

// Some agents take comments in JSON, and commas that nothing follows.
var (
	jsonComments = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|//[^\n]*|/\*(?s:.*?)\*/`)
	jsonCommas   = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|,\s*[}\]]`)
)

// plainJSON is JSON without those. Nobody writes comments by the megabyte, and to look for them there takes long.
func plainJSON(text []byte) []byte {
	if len(text) > 1<<20 || json.Valid(text) {
		return text
	}
	for _, more := range []*regexp.Regexp{jsonComments, jsonCommas} {
		text = more.ReplaceAllFunc(text, func(found []byte) []byte {
			switch found[0] {
			case '"':
				return found
			case ',':
				return found[1:]
			}
			return nil
		})
	}
	return text
}

// opencodeKeys are the variables of the providers that opencode knows by these names.
var opencodeKeys = map[string]string{"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}

// opencodeHome is the directory of a person's settings of opencode.
func opencodeHome(vars map[string]string) string {
	return filepath.Join(cmp.Or(vars["XDG_CONFIG_HOME"], filepath.Join(vars["HOME"], ".config")), "opencode")
}

// opencode are the log-ins and the settings of opencode.
func (m Machine) opencode(vars map[string]string, credentials []Credential) (found []Preference) {
	logIns, config := filepath.Join(cmp.Or(vars["XDG_DATA_HOME"], filepath.Join(vars["HOME"], ".local/share")), "opencode/auth.json"), opencodeHome(vars)
	paths := []string{logIns, filepath.Join(config, "config.json"), filepath.Join(config, "opencode.json"), filepath.Join(config, "opencode.jsonc")}
	if named := vars["OPENCODE_CONFIG"]; filepath.IsAbs(named) {
		paths = append(paths, named)
	}
	for _, dir := range m.project() {
		for _, name := range []string{"opencode.json", "opencode.jsonc", ".opencode/opencode.json", ".opencode/opencode.jsonc"} {
			paths = append(paths, filepath.Join(dir, name))
		}
	}
	for _, path := range paths {
		has := map[string][]string{} // by provider
		if path == logIns {
			var all map[string]struct{ Key, Access, Refresh string }
			_ = json.Unmarshal(m.read(path), &all)
			for provider, l := range all {
				if text := l.Key + l.Access + l.Refresh; text != "" && !strings.Contains(text, Marker) {
					has[provider] = []string{provider}
				}
			}
		} else {
			var settings struct {
				Provider map[string]struct {
					Options struct{ APIKey, BaseURL string }
				}
			}
			_ = json.Unmarshal(plainJSON(m.read(path)), &settings)
			for provider, p := range settings.Provider {
				if key := p.Options.APIKey; key != "" && !strings.Contains(key, "{env:") && !strings.Contains(key, Marker) {
					has[provider] = append(has[provider], "provider."+provider+".options.apiKey")
				}
				if p.Options.BaseURL != "" {
					has[provider] = append(has[provider], "provider."+provider+".options.baseURL")
				}
			}
		}
		for _, c := range credentials {
			for _, provider := range slices.Sorted(maps.Keys(has)) {
				if slices.Contains(c.concerns(), opencodeKeys[provider]) {
					found = append(found, Preference{File: path, Has: strings.Join(has[provider], ", "), Means: "opencode prefers to the placeholder for " + c.Grant})
				}
			}
		}
	}
	return found
}

// dotenvLine is a line of a .env file that sets a variable.
var dotenvLine = regexp.MustCompile(`(?m)^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*("[^"\n]*"|'[^'\n]*'|[^#\s]*)`)

// dotenv are files of variables that a program sets for itself, whatever its environment has. Most programs that read an .env do not.
func (m Machine) dotenv(vars map[string]string, credentials []Credential) (found []Preference) {
	codex := filepath.Join(codexHome(vars), ".env")
	paths := []string{filepath.Join(vars["HOME"], ".aider/oauth-keys.env"), filepath.Join(vars["HOME"], ".env")}
	if slices.ContainsFunc(credentials, Credential.codex) {
		paths = append(paths, codex)
	}
	for _, dir := range m.project() {
		paths = append(paths, filepath.Join(dir, ".env"))
	}
	gate := gateVariables()
	for i, path := range paths {
		if slices.Contains(paths[:i], path) {
			continue
		}
		who := "aider and others that let a .env replace their environment"
		if path == codex {
			who = "Codex, and what it runs,"
		}
		set := map[string]string{}
		for _, line := range dotenvLine.FindAllStringSubmatch(string(m.read(path)), -1) {
			if path != codex || !strings.HasPrefix(line[1], "CODEX_") { // which it does not take from there
				set[line[1]] = strings.Trim(line[2], `"'`)
			}
		}
		var around []string
		for _, name := range gate {
			if value := set[name]; value != "" && elsewhere(vars, name, value) {
				around = append(around, name)
			}
		}
		if len(around) > 0 {
			found = append(found, Preference{File: path, Has: strings.Join(around, ", "), Means: who + " prefer to the way to the gate"})
		}
		for _, c := range credentials {
			var names []string
			for _, name := range c.concerns() {
				if value := set[name]; value != "" && !strings.Contains(value, Marker) {
					names = append(names, name)
				}
			}
			if len(names) > 0 {
				found = append(found, Preference{File: path, Has: strings.Join(names, ", "), Means: who + " prefer to the placeholder for " + c.Grant})
			}
		}
	}
	return found
}
