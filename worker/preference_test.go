package worker

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

func noGit([]string, ...string) ([]byte, error) { return nil, exec.ErrNotFound }

func TestPreferences(t *testing.T) {
	claude := Credential{Grant: "claude", Hosts: []string{"api.anthropic.com"}, Env: map[string]string{"ANTHROPIC_AUTH_TOKEN": "ph"}, Unset: []string{"ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"}}
	login := Credential{Grant: "claude", Env: map[string]string{"CLAUDE_CODE_OAUTH_TOKEN": "ph"}, Unset: []string{"ANTHROPIC_API_KEY"}}
	github := Credential{Grant: "hub", Hosts: []string{"github.com:443", "*.github.com"}, Env: map[string]string{"GH_TOKEN": "ph"}}
	const user, project = "/home/me/.claude/settings.json", "/work/.claude/settings.json"
	const netrc = "machine api.github.com login me password value-1\n"
	const toTheGate = "NETRC is /dev/null for the worker, so that programs find no entry of that file, for whatever host"
	for name, c := range map[string]struct {
		env         []string
		credentials []Credential
		files       map[string]string
		want        []string
		set         map[string]string
		unset       []string
	}{
		"no files": {credentials: []Credential{claude}},
		"nothing of ours": {credentials: []Credential{claude, github}, files: map[string]string{
			user: `{"env":{"ANTHROPIC_MODEL":"value-1","ANTHROPIC_API_KEY":"","ANTHROPIC_AUTH_TOKEN":"` + Marker + `"},"theme":"dark","primaryApiKey":"value-2"}`, project: "no JSON",
			"/home/me/.netrc": "machine example.com login default password machine\nmacdef init\nmachine github.com\n\n# machine github.com\n", "/home/me/.curlrc": "silent\n# proxy = value-1\n",
		}},
		"the user's": {credentials: []Credential{claude, github}, files: map[string]string{user: `{"env":{"MAX":1,"ANTHROPIC_BASE_URL":"value-1","ANTHROPIC_AUTH_TOKEN":"value-2","GH_TOKEN":"value-3"}}`}, want: []string{
			user + " has env.ANTHROPIC_AUTH_TOKEN, env.ANTHROPIC_BASE_URL, which Claude Code prefers to the placeholder for claude: take that out of the file",
			user + " has env.GH_TOKEN, which Claude Code prefers to the placeholder for hub: take that out of the file",
		}},
		"a helper": {credentials: []Credential{github, claude}, files: map[string]string{project: `{"apiKeyHelper":"value-1"}`}, want: []string{
			project + " has apiKeyHelper, which Claude Code prefers to the placeholder for claude: take that out of the file",
		}},
		"a key of a log-in at the console": {credentials: []Credential{claude}, files: map[string]string{"/home/me/.claude.json": `{"primaryApiKey":"value-1","apiKeyHelper":"value-2"}`}, want: []string{
			"/home/me/.claude.json has primaryApiKey, which Claude Code prefers to the placeholder for claude: take that out of the file",
		}},
		"the same where it does not count": {credentials: []Credential{login}, files: map[string]string{"/home/me/.claude.json": `{"primaryApiKey":"value-1"}`}},
		"a directory of its own":           {env: []string{"CLAUDE_CONFIG_DIR=/own"}, credentials: []Credential{claude}, files: map[string]string{user: `{"apiKeyHelper":"value-1"}`}},
		"an organization's and a person's in the project": {credentials: []Credential{claude}, files: map[string]string{
			"/etc/claude-code/managed-settings.json": `{"apiKeyHelper":"value-1"}`, "/etc/claude-code/managed-settings.d/10.json": `{"apiKeyHelper":"value-1"}`,
			"/.claude/settings.local.json": `{"env":{"ANTHROPIC_API_KEY":"value-2"}}`, "/.claude/settings.json": `{"apiKeyHelper":"value-3"}`, "/.git/HEAD": "",
			"/work/.claude/settings.local.json": `{"env":{"ANTHROPIC_API_KEY":"value-2"}}`,
		}, want: []string{
			"/etc/claude-code/managed-settings.json has apiKeyHelper, which Claude Code prefers to the placeholder for claude: take that out of the file",
			"/etc/claude-code/managed-settings.d/10.json has apiKeyHelper, which Claude Code prefers to the placeholder for claude: take that out of the file",
			"/work/.claude/settings.local.json has env.ANTHROPIC_API_KEY, which Claude Code prefers to the placeholder for claude: take that out of the file",
			"/.claude/settings.local.json has env.ANTHROPIC_API_KEY, which Claude Code prefers to the placeholder for claude: take that out of the file",
		}},
		"ways around in settings": {env: []string{"HTTPS_PROXY=http://gate", "https_proxy=http://gate", "NO_PROXY=localhost", "no_proxy=localhost", "SSL_CERT_FILE=/f/bundle.pem"}, credentials: []Credential{github, claude}, files: map[string]string{
			user: `{"env":{"HTTPS_PROXY":"value-1","https_proxy":"","no_proxy":"127.0.0.1, value-2","NO_PROXY":"localhost,[::1]","SSL_CERT_FILE":"value-3","ALL_PROXY":"value-4"}}`, project: `{"env":{"HTTPS_PROXY":"http://gate"}}`,
		}, want: []string{
			user + " has env.HTTPS_PROXY, env.SSL_CERT_FILE, env.https_proxy, env.no_proxy, which Claude Code, and what it runs, prefer to the way to the gate: take that out of the file",
		}},
		"an organization's log-in": {credentials: []Credential{claude}, files: map[string]string{
			"/etc/claude-code/managed-settings.json": `{"forceLoginMethod":"value-1","forceLoginOrgUUID":["value-2"]}`, "/etc/claude-code/managed-settings.d/10.json": `{"forceLoginOrgUUID":"value-2"}`, user: `{"forceLoginMethod":"value-1"}`,
		}, want: []string{
			"/etc/claude-code/managed-settings.json has forceLoginMethod, which has Claude Code refuse the placeholder for claude, which is no log-in to it as one is with claude_code: oauth_env in the profile: take that out of the file",
			"/etc/claude-code/managed-settings.d/10.json has forceLoginOrgUUID, which has Claude Code refuse the placeholder for claude, which is no log-in to it as one is with claude_code: oauth_env in the profile: take that out of the file",
		}},
		"an organization's log-in that is one": {credentials: []Credential{login}, files: map[string]string{"/etc/claude-code/managed-settings.json": `{"forceLoginMethod":"claudeai"}`}},
		"a log-in of Claude Code's": {credentials: []Credential{claude, {Grant: "console", Env: map[string]string{"ANTHROPIC_API_KEY": "ph"}}, login, github}, files: map[string]string{
			"/home/me/.claude/.credentials.json": `{"claudeAiOauth":{"accessToken":"value-1","refreshToken":"value-2"}}`,
		}, want: []string{
			"/home/me/.claude/.credentials.json has a log-in, which Claude Code sends beside the placeholder for claude: write claude_code: oauth_env into the profile, or log out (`claude auth logout`)",
			"/home/me/.claude/.credentials.json has a log-in, which Claude Code sends beside the placeholder for console, and at a terminal in place of it: write modes: {console: claude_home} into the profile, or log out (`claude auth logout`)",
		}},
		"no log-in of Claude Code's": {credentials: []Credential{claude}, files: map[string]string{"/home/me/.claude/.credentials.json": `{"claudeAiOauth":{"accessToken":"` + Marker + `"},"mcpOAuth":{"x":{"accessToken":"value-1"}}}`}},
		"a log-in of Codex's": {credentials: []Credential{{Grant: "codex", Env: map[string]string{"CODEX_ACCESS_TOKEN": "ph"}}, {Grant: "key", Env: map[string]string{"CODEX_API_KEY": "ph"}}}, files: map[string]string{
			"/home/me/.codex/auth.json": `{"auth_mode":"chatgpt","OPENAI_API_KEY":null,"tokens":{"id_token":"value-1","access_token":"value-2"}}`,
		}, want: []string{
			"/home/me/.codex/auth.json has a log-in, which Codex at a terminal prefers to the placeholder for key: write modes: {key: codex_home} into the profile, or log out (`codex logout`)",
		}},
		"a placeholder of Codex's": {env: []string{"CODEX_HOME=/own"}, credentials: []Credential{{Grant: "key", Env: map[string]string{"CODEX_API_KEY": "ph"}}}, files: map[string]string{
			"/own/auth.json": `{"OPENAI_API_KEY":"sk-` + Marker + `"}`, "/home/me/.codex/auth.json": `{"OPENAI_API_KEY":"value-1"}`,
		}},
		"what Codex keeps from commands": {credentials: []Credential{{Grant: "codex", Env: map[string]string{"CODEX_ACCESS_TOKEN": "ph"}}}, files: map[string]string{
			"/home/me/.codex/config.toml":    "forced_login_method = \"api\"\nshell_environment_policy.exclude = [\"value-1\"]\n[shell_environment_policy] # ours\ninherit = 'core'\nignore_default_excludes = false\n[shell_environment_policy.filters]\nX = \"exclude\"\n",
			"/work/.codex/config.toml":       "forced_login_method = \"chatgpt\"\nshell_environment_policy = { inherit = \"core\", set = { A = \"value-1\" } }\n",
			"/etc/codex/managed_config.toml": "shell_environment_policy = { inherit = \"all\", set = { A = \"value-1\" } }\n",
			"/etc/codex/config.toml":         "[shell_environment_policy]\ninherit = \"all\"\nignore_default_excludes = true\n[profiles.x]\ninherit = \"none\"\nexclude = []\n",
		}, want: []string{
			"/home/me/.codex/config.toml has forced_login_method, which has Codex refuse the placeholder for codex: take that out of the file",
			"/home/me/.codex/config.toml has shell_environment_policy.exclude, shell_environment_policy.inherit, shell_environment_policy.ignore_default_excludes, shell_environment_policy.filters, which keeps from the commands that Codex runs variables that lead them to the gate or are their placeholder: take that out of the file",
			"/work/.codex/config.toml has shell_environment_policy, which keeps from the commands that Codex runs variables that lead them to the gate or are their placeholder: take that out of the file",
		}},
		"MCP servers of Codex's": {env: []string{"HTTPS_PROXY=http://session:token@gate"}, credentials: []Credential{{Grant: "codex", Env: map[string]string{"CODEX_API_KEY": "ph"}}}, files: map[string]string{
			"/home/me/.codex/config.toml": "[mcp_servers.memory]\ncommand = \"npx\"\nargs = [\"-y\"]\n\n[mcp_servers.remote]\nurl = \"value-1\"\n[mcp_servers.led]\ncommand = \"npx\"\nenv_vars = [\n \"HTTPS_PROXY\",\n]\n[mcp_servers.set]\ncommand = \"npx\"\n[mcp_servers.set.env]\nhttps_proxy = \"value-2\"\n",
		}, want: []string{
			"/home/me/.codex/config.toml has mcp_servers.memory, which Codex starts without the variables that lead to the gate: add env_vars = [\"HTTPS_PROXY\", \"HTTP_PROXY\", \"NO_PROXY\", \"NODE_USE_ENV_PROXY\", \"NODE_EXTRA_CA_CERTS\", \"SSL_CERT_FILE\"] there",
		}},
		"a proxy of Codex's": {env: []string{"HTTPS_PROXY=http://session:token@gate"}, credentials: []Credential{github, {Grant: "codex", Env: map[string]string{"CODEX_API_KEY": "ph"}}}, files: map[string]string{
			"/home/me/.codex/config.toml": "[features]\nnetwork_proxy = true\n", "/work/.codex/config.toml": "[features.network_proxy]\nenabled = true\n", "/etc/codex/config.toml": "[features]\nnetwork_proxy = false\n",
		}, want: []string{
			"/home/me/.codex/config.toml has features.network_proxy, which has the commands that Codex runs go out by a proxy of its own, which logs in at no other, so that the gate does not know them: take that out of the file",
			"/work/.codex/config.toml has features.network_proxy, which has the commands that Codex runs go out by a proxy of its own, which logs in at no other, so that the gate does not know them: take that out of the file",
		}},
		"a Codex of before": {env: []string{"CODEX_HOME=/own"}, credentials: []Credential{claude, {Grant: "codex", Env: map[string]string{"CODEX_ACCESS_TOKEN": "ph"}}}, files: map[string]string{
			"/own/app-server-control/app-server-control.sock": "", "/home/me/.codex/app-server-control/app-server-control.sock": "",
		}, want: []string{
			"/own/app-server-control/app-server-control.sock has a Codex that runs already, which takes over what an interactive Codex is told, with the credential and the way out that it was started with: stop it with `codex app-server daemon stop`, and start Codex with --disable daemon_auto_start",
		}},
		"a Codex of before for others": {credentials: []Credential{claude}, files: map[string]string{"/home/me/.codex/app-server-control/app-server-control.sock": ""}},
		"a project's registry": {credentials: []Credential{github, {Grant: "packages", Hosts: []string{"npm.example.com"}, Env: map[string]string{"NPM_CONFIG_USERCONFIG": "npmrc"}}}, files: map[string]string{
			"/package.json": "{}", "/.npmrc": "registry=https://npm.example.com/\n//npm.example.com/:_authToken=${value-1}\n//npm.example.com:8443/a/:_password = value-2\n//npm.example.com/:email=value-3\n//other.example.com/:_authToken=value-4\n//npm.example.com/b/:_authToken=" + Marker + "\n",
			"/home/me/.npmrc": "//npm.example.com/:_authToken=value-5\n",
		}, want: []string{
			"/.npmrc has _authToken for npm.example.com, which npm prefers to the placeholder for packages: take that out of the file",
			"/.npmrc has _password for npm.example.com, which npm prefers to the placeholder for packages: take that out of the file",
		}},
		"Codex's": {credentials: []Credential{claude, {Grant: "codex", Env: map[string]string{"CODEX_API_KEY": "ph"}}}, files: map[string]string{
			"/home/me/.codex/config.toml": "model_provider = \"value-1\"\nopenai_base_url='value-2'\n[model_providers.x]\nbase_url=\"value-3\"\n", "/work/.codex/config.toml": "model = \"m\"\n# chatgpt_base_url = \"value-4\"\nmodel_provider = \"openai\"\n",
		}, want: []string{
			"/home/me/.codex/config.toml has model_provider, openai_base_url, which leads Codex elsewhere than the placeholder for codex is for: take that out of the file",
		}},
		"log-ins": {credentials: []Credential{claude, github}, files: map[string]string{"/home/me/.netrc": netrc}, set: map[string]string{"NETRC": "/dev/null"}, want: []string{
			"/home/me/.netrc has an entry for api.github.com, which programs prefer to the placeholder for hub: " + toTheGate,
		}},
		"log-ins in another file": {env: []string{"NETRC=netrc"}, credentials: []Credential{github}, files: map[string]string{"/work/netrc": "machine\n\"github.com\"", "/home/me/.netrc": ""}, set: map[string]string{"NETRC": "/dev/null"}, want: []string{
			"/work/netrc has an entry for github.com, which programs prefer to the placeholder for hub: " + toTheGate,
		}},
		"log-ins for any host": {credentials: []Credential{claude}, files: map[string]string{"/home/me/_netrc": "default login me password value-1"}, set: map[string]string{"NETRC": "/dev/null"}, want: []string{
			"/home/me/_netrc has a default entry, which programs prefer to the placeholder for claude: " + toTheGate,
		}},
		"log-ins that nothing reads": {env: []string{"NETRC=/dev/null"}, credentials: []Credential{github}, files: map[string]string{"/home/me/.netrc": netrc}},
		"proxies": {env: []string{"HTTPS_PROXY=http://gate", "XDG_CONFIG_HOME=/conf"}, files: map[string]string{"/conf/pip/pip.conf": "[global]\n proxy: value-1", "/home/me/.curlrc": "-s\nproxy=value-1"}, set: map[string]string{"PIP_PROXY": "http://gate"}, want: []string{
			"/conf/pip/pip.conf has proxy, which leads pip around the gate: PIP_PROXY is the gate",
			"/home/me/.curlrc has proxy, which curl prefers to the way to the gate: take that out of the file",
		}},
		"uv's": {env: []string{"HTTPS_PROXY=http://gate"}, files: map[string]string{
			"/home/me/.config/uv/uv.toml": "native-tls = true\nhttps-proxy = \"value-1\"\nno-proxy = [\"value-2\"]\n", "/work/uv.toml": "# http-proxy = x\nhttp-proxy=\"value-3\"\n",
			"/.git/HEAD": "", "/pyproject.toml": "[tool.uv]\nhttps-proxy = \"value-4\"\n",
		}, want: []string{
			"/home/me/.config/uv/uv.toml has https-proxy, no-proxy, which uv prefers to the way to the gate: take that out of the file",
			"/pyproject.toml has https-proxy, which uv prefers to the way to the gate: take that out of the file",
			"/work/uv.toml has http-proxy, which uv prefers to the way to the gate: take that out of the file",
		}},
		"uv's elsewhere": {env: []string{"HTTPS_PROXY=http://gate", "UV_CONFIG_FILE=/own.toml"}, files: map[string]string{"/work/uv.toml": "http-proxy=\"value-1\"", "/own.toml": "offline = true"}},
		"curl's log-ins and authorities": {env: []string{"HTTPS_PROXY=http://gate"}, files: map[string]string{"/home/me/.curlrc": "--proxy-ntlm\ncacert = value-1\n-U value-2\n-u value-3\nuser-agent = \"proxy = x\"\nsocks5-hostname value-4"}, want: []string{
			"/home/me/.curlrc has proxy-ntlm, cacert, -U, socks5-hostname, which curl prefers to the way to the gate: take that out of the file",
		}},
		"variables in files": {
			env:         []string{"HTTPS_PROXY=http://gate", "NO_PROXY=localhost", "SSL_CERT_FILE=/f/bundle.pem"},
			credentials: []Credential{claude, {Grant: "codex", Env: map[string]string{"CODEX_API_KEY": "ph", "OPENAI_API_KEY": "ph"}, Unset: []string{"OPENAI_BASE_URL"}}},
			files: map[string]string{
				"/home/me/.codex/.env":           "# OPENAI_BASE_URL=value-1\nCODEX_API_KEY=value-2\nexport OPENAI_API_KEY = \"value-3\"\nhttps_proxy=value-4\nHTTPS_PROXY=value-5\nNO_PROXY='localhost, ::1'\nSSL_CERT_FILE=/f/bundle.pem",
				"/home/me/.env":                  "OPENAI_API_KEY=\nANTHROPIC_AUTH_TOKEN=" + Marker + "\nOTHER=value-6\n",
				"/home/me/.aider/oauth-keys.env": "OPENROUTER_API_KEY=value-7",
				"/work/.env":                     "ANTHROPIC_API_KEY=value-8\nANTHROPIC_BASE_URL='value-9' # ours",
				"/.git/HEAD":                     "",
				"/.env":                          "HTTPS_PROXY=value-10",
				"/elsewhere/.env":                "ANTHROPIC_API_KEY=value-11",
			}, want: []string{
				"/home/me/.codex/.env has HTTPS_PROXY, which Codex, and what it runs, prefer to the way to the gate: take that out of the file",
				"/home/me/.codex/.env has OPENAI_API_KEY, which Codex, and what it runs, prefer to the placeholder for codex: take that out of the file",
				"/.env has HTTPS_PROXY, which aider and others that let a .env replace their environment prefer to the way to the gate: take that out of the file",
				"/work/.env has ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL, which aider and others that let a .env replace their environment prefer to the placeholder for claude: take that out of the file",
			}},
		"opencode's": {
			env:         []string{"XDG_DATA_HOME=/data"},
			credentials: []Credential{{Grant: "keys", Env: map[string]string{"ANTHROPIC_API_KEY": "ph"}}, {Grant: "codex", Env: map[string]string{"CODEX_ACCESS_TOKEN": "ph"}, Unset: []string{"OPENAI_API_KEY"}}, github},
			files: map[string]string{
				"/data/opencode/auth.json":                 `{"anthropic":{"type":"api","key":"value-1"},"openai":{"type":"oauth","refresh":"value-2","access":"value-3","expires":1},"opencode":{"type":"api","key":"value-4"}}`,
				"/home/me/.config/opencode/config.json":    `{"provider":{"anthropic":{"options":{"apiKey":"{env:ANTHROPIC_API_KEY}"}},"local":{"options":{"baseURL":"value-5"}}}}`,
				"/work/opencode.json":                      `{"model":"m","provider":{"anthropic":{"options":{"baseURL":"value-6","apiKey":"value-7"}}}}`,
				"/home/me/.local/share/opencode/auth.json": `{"anthropic":{"type":"api","key":"value-8"}}`,
			}, want: []string{
				"/data/opencode/auth.json has anthropic, which opencode prefers to the placeholder for keys: take that out of the file",
				"/data/opencode/auth.json has openai, which opencode prefers to the placeholder for codex: take that out of the file",
				"/work/opencode.json has provider.anthropic.options.apiKey, provider.anthropic.options.baseURL, which opencode prefers to the placeholder for keys: take that out of the file",
			}},
		"a placeholder of opencode's": {credentials: []Credential{{Grant: "keys", Env: map[string]string{"ANTHROPIC_API_KEY": "ph"}}}, files: map[string]string{
			"/home/me/.local/share/opencode/auth.json": `{"anthropic":{"type":"api","key":"sk-` + Marker + `"}}`, "/work/opencode.json": "// a comment\n{}",
		}},
		"opencode's, with comments": {env: []string{"OPENCODE_CONFIG=/own.json"}, credentials: []Credential{{Grant: "keys", Env: map[string]string{"OPENAI_API_KEY": "ph"}}}, files: map[string]string{
			"/work/opencode.json":            "{\n// \"a comment\"\n\"provider\": {\"openai\": {\"options\": {\"baseURL\": \"https://value-1//x\", /* , } */ }, // ,\n }, },\n}",
			"/work/.opencode/opencode.jsonc": `{"provider":{"openai":{"options":{"apiKey":"value-2\\",}}}}`,
			"/own.json":                      `{"provider":{"openai":{"options":{"apiKey":"value-3"}}}}`,
		}, want: []string{
			"/own.json has provider.openai.options.apiKey, which opencode prefers to the placeholder for keys: take that out of the file",
			"/work/opencode.json has provider.openai.options.baseURL, which opencode prefers to the placeholder for keys: take that out of the file",
			"/work/.opencode/opencode.jsonc has provider.openai.options.apiKey, which opencode prefers to the placeholder for keys: take that out of the file",
		}},
		"MCP servers'": {env: []string{"HTTPS_PROXY=http://gate", "NO_PROXY=localhost"}, credentials: []Credential{github, claude}, files: map[string]string{
			"/home/me/.claude.json":             `{"mcpServers":{"hub":{"command":"x","env":{"GH_TOKEN":"value-1","OTHER":"value-2"}}},"projects":{"/work":{"mcpServers":{"local":{"env":{"HTTPS_PROXY":"value-3"}}}},"/elsewhere":{"mcpServers":{"x":{"env":{"GH_TOKEN":"value-4"}}}}}}`,
			"/work/.mcp.json":                   `{"mcpServers":{"hub":{"env":{"GH_TOKEN":"${GH_TOKEN}","NO_PROXY":"localhost, 127.0.0.1"}},"b":{"env":{"GH_TOKEN":"value-5","ANTHROPIC_API_KEY":"value-6"}},"remote":{"url":"value-7"},"n":{"env":{"PORT":1}}}}`,
			"/home/me/.gemini/settings.json":    "{ // a comment\n\"mcpServers\":{\"hub\":{\"env\":{\"GH_TOKEN\":\"value-8\"}}}}",
			"/home/me/.copilot/mcp-config.json": `{"mcpServers":{"hub":{"env":{"GH_TOKEN":"` + Marker + `"}}}}`,
			"/home/me/.codex/config.toml":       "model = \"m\"\n[mcp_servers.hub]\nurl = \"value-10\"\nenv = { \"GH_TOKEN\" = \"value-11\", OTHER = 'value-12' }\n[mcp_servers.b.env]\nOTHER = \"value-13\"\nGH_TOKEN = 'value-14'\n[mcp_servers.c]\nenv_vars = [\"GH_TOKEN\"]\n[tools.env]\nGH_TOKEN = \"value-15\"\n",
			"/work/opencode.json":               `{"mcp":{"hub":{"environment":{"GH_TOKEN":"{env:GH_TOKEN}"}},"other":{"environment":{"GH_TOKEN":"value-9"}}}}`,
		}, want: []string{
			"/home/me/.claude.json has projects.….mcpServers.local.env.HTTPS_PROXY, which MCP servers prefer to the way to the gate: take that out of the file",
			"/home/me/.claude.json has mcpServers.hub.env.GH_TOKEN, which MCP servers prefer to the placeholder for hub: take that out of the file",
			"/home/me/.gemini/settings.json has mcpServers.hub.env.GH_TOKEN, which MCP servers prefer to the placeholder for hub: take that out of the file",
			"/home/me/.codex/config.toml has mcp_servers.b.env.GH_TOKEN, mcp_servers.hub.env.GH_TOKEN, which MCP servers prefer to the placeholder for hub: take that out of the file",
			"/work/.mcp.json has mcpServers.b.env.GH_TOKEN, which MCP servers prefer to the placeholder for hub: take that out of the file",
			"/work/.mcp.json has mcpServers.b.env.ANTHROPIC_API_KEY, which MCP servers prefer to the placeholder for claude: take that out of the file",
			"/work/opencode.json has mcp.other.environment.GH_TOKEN, which MCP servers prefer to the placeholder for hub: take that out of the file",
		}},
		"MCP servers' that are none of the credential's": {env: []string{"GIT_X=1"}, credentials: []Credential{github, {Grant: "claude", Env: map[string]string{"ANTHROPIC_API_KEY": "ph", "GIT_X": "1"}, Unset: []string{"DISABLE_TELEMETRY"}}}, files: map[string]string{
			"/work/.mcp.json":             `{"mcpServers":{"hub":{"env":{"DISABLE_TELEMETRY":"1","GIT_X":"2"}}}}`,
			"/work/.gemini/settings.json": `{"mcpServers":{"hub":{"env":{"GH_TOKEN":"$GH_TOKEN"}}}}`,
		}},
		"names that are commands": {credentials: []Credential{github}, files: map[string]string{
			"/work/.mcp.json": `{"mcpServers":{"x\n::stop-commands::y\u001b[2J":{"env":{"GH_TOKEN":"value-1"}}}}`,
		}, want: []string{"/work/.mcp.json has mcpServers.x?::stop-commands::y?[2J.env.GH_TOKEN, which MCP servers prefer to the placeholder for hub: take that out of the file"}},
		"Codex's proxy, turned off": {env: []string{"HTTPS_PROXY=http://u:p@gate"}, credentials: []Credential{{Grant: "codex", Env: map[string]string{"CODEX_API_KEY": "ph"}}}, files: map[string]string{
			"/home/me/.codex/config.toml": "[features.network_proxy]\n# not now\nenabled = false\n[other]\nx = 1\n", "/work/.codex/config.toml": "[features]\nnetwork_proxy = { enabled = false }\n",
		}},
		"a sandbox": {env: []string{"HTTPS_PROXY=http://gate", "npm_config_proxy=http://gate", "npm_config_https_proxy=http://gate", "CARGO_HTTP_PROXY=http://gate"}, credentials: []Credential{claude}, files: map[string]string{
			user: `{"sandbox":{"enabled":true}}`, project: `{"sandbox":{"enabled":false}}`, "/home/me/.npmrc": "registry=https://x\n", "/work/.cargo/config.toml": "[http]\nproxy-x = 1\n",
		}, unset: []string{"npm_config_proxy", "npm_config_https_proxy", "CARGO_HTTP_PROXY"}, want: []string{
			user + " has sandbox.enabled, which has commands go to the gate by way of Claude Code alone: programs find that way without npm_config_proxy, npm_config_https_proxy, CARGO_HTTP_PROXY; Yarn 2 and later, and Java, find none there",
		}},
		"a sandbox beside other proxies": {env: []string{"HTTPS_PROXY=http://gate", "npm_config_proxy=http://gate", "CARGO_HTTP_PROXY=http://gate"}, credentials: []Credential{claude}, files: map[string]string{
			user: `{"sandbox":{"enabled":true}}`, "/home/me/.npmrc": "https-proxy = value-1\n", "/home/me/.cargo/config.toml": "[http]\nproxy = \"value-2\"\n",
		}},
		"a sandbox of nobody": {env: []string{"npm_config_proxy=http://gate"}, credentials: []Credential{github}, files: map[string]string{user: `{"sandbox":{"enabled":true}}`}},
		"Gemini's": {credentials: []Credential{claude, {Grant: "gemini", Env: map[string]string{"GEMINI_API_KEY": "ph"}}}, files: map[string]string{
			"/home/me/.gemini/settings.json": "{\n// value-1\n\"security\": {\"auth\": {\"selectedType\": \"oauth-personal\"}}, \"selectedAuthType\": \"vertex-ai\"}",
			"/work/.gemini/settings.json":    `{"security":{"auth":{"selectedType":"gemini-api-key"}}}`,
		}, want: []string{
			"/home/me/.gemini/settings.json has security.auth.selectedType, selectedAuthType, which has Gemini use something else than the placeholder for gemini: write gemini-api-key there",
		}},
		"a log-in in the keychain": {credentials: []Credential{claude, login}, files: map[string]string{
			"/home/me/.claude.json": `{"oauthAccount":{"emailAddress":"value-1"}}`, "/keychain/Claude Code-credentials": "",
		}, want: []string{
			"the keychain (Claude Code-credentials) has a log-in, which Claude Code sends beside the placeholder for claude: write claude_code: oauth_env into the profile, or log out (`claude auth logout`)",
		}},
		"log-ins of servers in the keychain": {credentials: []Credential{claude}, files: map[string]string{"/home/me/.claude.json": `{}`, "/keychain/Claude Code-credentials": ""}},
		"an account without a keychain":      {credentials: []Credential{claude}, files: map[string]string{"/home/me/.claude.json": `{"oauthAccount":{"emailAddress":"value-1"}}`}},
		"Java's": {env: []string{"HTTPS_PROXY=http://gate"}, files: map[string]string{
			"/home/me/.m2/settings.xml":          "<settings><proxies><!-- <proxy><host>x</host></proxy> --><proxy>\n<active> false</active><host>value-1</host></proxy><proxy><host>value-2</host></proxy></proxies></settings>",
			"/home/me/.gradle/gradle.properties": "org.gradle.daemon=false\nsystemProp.https.proxyHost=value-3\n# systemProp.http.proxyHost=x\nsystemProp.javax.net.ssl.trustStore : value-4\nsystemProp.https.proxyHost=value-5\n",
			"/work/.mvn/jvm.config":              "-Xmx1g\n-Djavax.net.ssl.trustStore=value-6\n", "/work/.mvn/maven.config": "-T4 -Dmaven.wagon.http.pool=false",
		}, want: []string{
			"/home/me/.m2/settings.xml has a proxy, which Maven prefers to the way to the gate: take that out of the file",
			"/home/me/.gradle/gradle.properties has systemProp.https.proxyHost, systemProp.javax.net.ssl.trustStore, which Gradle prefers to the way to the gate: take that out of the file",
			"/work/.mvn/jvm.config has -Djavax.net.ssl.trustStore, which Maven prefers to the way to the gate: take that out of the file",
		}},
		"proxies where the network leads": {files: map[string]string{"/etc/pip.conf": "[global]\nproxy = value-1"}},
	} {
		files := fstest.MapFS{}
		for path, text := range c.files {
			files[path[1:]] = &fstest.MapFile{Data: []byte(text)}
		}
		env := append(c.env, "HOME=/home/me")
		m := Machine{Dir: "/work", Files: files, Git: noGit, Listens: func(socket string) bool { return files[socket[1:]] != nil }}
		m.Keychain = func(service string) bool { return files["keychain/"+service] != nil }
		now, found := Preferences(env, c.credentials, m)
		var got []string
		for _, p := range found {
			got = append(got, p.String())
		}
		if diff := cmp.Diff(c.want, got); diff != "" || strings.Contains(strings.Join(got, "\n"), "value-") {
			t.Errorf("%s: %s", name, diff)
		}
		want := environ(env)
		maps.Copy(want, c.set)
		for _, name := range c.unset {
			delete(want, name)
		}
		if diff := cmp.Diff(want, environ(now)); diff != "" || len(now) != len(want) {
			t.Errorf("%s: %s", name, diff)
		}
		if _, again := Preferences(now, c.credentials, m); slices.ContainsFunc(again, func(p Preference) bool { return p.Countered != "" }) {
			t.Errorf("%s: countered, and still told: %v", name, again)
		}
	}
}

// A real git asks where the placeholder is for, whatever the rules of the user, the machine and the repository; and what cannot be countered is told.
func TestPreferencesOfGit(t *testing.T) {
	home := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(home, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	hub := Credential{Grant: "hub", Hosts: []string{"github.com"}, Env: map[string]string{
		"GIT_CONFIG_COUNT": "3", "GIT_CONFIG_KEY_0": "url.https://github.com/.insteadOf", "GIT_CONFIG_VALUE_0": "git@github.com:",
		"GIT_CONFIG_KEY_1": "url.https://github.com/.insteadOf", "GIT_CONFIG_VALUE_1": "ssh://git@github.com/", "GIT_CONFIG_KEY_2": "acme.ours", "GIT_CONFIG_VALUE_2": "yes",
	}}
	e := testEnrolment("http://gate:3128", hub)
	e.CA = testCA(t)
	machines := write("machines", "[url \"http://other.example/\"]\n\tinsteadOf = https://github.com/\n[acme]\n\tsystem = kept\n")
	base := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "GIT_CONFIG_SYSTEM=" + machines}
	files, err := WriteFiles(filepath.Join(home, "files"), "", e, e.CA, func(name string) string { return environ(base)[name] })
	if err != nil {
		t.Fatal(err)
	}
	env, report := Environment(e, base, files)
	if len(report) > 0 {
		t.Error(report)
	}
	repository := filepath.Join(home, "repository")
	git := func(env []string, args ...string) ([]byte, error) {
		c := exec.Command("git", args...)
		c.Dir, c.Env = repository, env
		return c.Output()
	}
	if out, err := exec.Command("git", "init", "-q", repository).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	asks := func(url string, push bool) string {
		if _, err := git(env, "config", "remote.r.url", url); err != nil {
			t.Fatal(err)
		}
		args := []string{"remote", "get-url", "r"}
		if push {
			args = []string{"remote", "get-url", "--push", "r"}
		}
		out, err := git(env, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	preferred := func() (all []string) {
		_, found := Preferences(env, e.Credentials, Machine{Dir: repository, Files: os.DirFS("/"), Git: git})
		for _, p := range found {
			all = append(all, p.String())
		}
		return all
	}

	user := write(".gitconfig", `
[url "git@github.com:"]
	insteadOf = https://github.com/
	pushInsteadOf = https://github.com/
[url "https://secret@github.com/"]
	insteadOf = https://github.com/
	insteadOf = git@github.com:
	pushInsteadOf = ssh://git@github.com/
[url "ssh://git@github.com/"]
	insteadOf = https://
[url "https://github.com/"]
	insteadOf = gh:
[url "https://elsewhere.example/"]
	insteadOf = ex:
[http]
	proxy = http://proxy.example:1
`)
	for _, url := range []string{"https://github.com/a/b", "git@github.com:a/b", "ssh://git@github.com/a/b", "gh:a/b"} {
		for _, push := range []bool{false, true} {
			if got := asks(url, push); got != "https://github.com/a/b" {
				t.Errorf("%s, push %v: git asks %s", url, push, got)
			}
		}
	}
	for name, want := range map[string]string{"acme.system": "kept", "acme.ours": "yes", "http.proxy": e.ProxyURL()} {
		if out, err := git(env, "config", name); err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%s is %q, %v", name, out, err)
		}
	}
	if got := preferred(); len(got) > 0 {
		t.Errorf("told: %q", got)
	}

	// Longer rules than ours, other names for ssh, and proxies of single addresses.
	write(".gitconfig", `
[url "git@github.com:acme/"]
	insteadOf = https://github.com/acme/
[url "https://secret@github.com/"]
	pushInsteadOf = gh:
[url "git@github.com:"]
	insteadOf = hub:
[url "https://secret@github.com/acme/"]
	insteadOf = https://me:sec@ret@acme.example/
[http "https://me:secret@github.com/"]
	proxy = http://secret@proxy.example:1
`)
	if _, err := git(env, "config", "remote.r.proxy", "http://secret@proxy.example:1"); err != nil {
		t.Fatal(err)
	}
	want := []string{
		user + " has url.….insteadOf for https://github.com/acme/, which leads git past the placeholder for hub: take that out of the file",
		user + " has url.….insteadOf for gh:, which leads git past the placeholder for hub: take that out of the file",
		user + " has url.….insteadOf for hub:, which leads git past the placeholder for hub: take that out of the file",
		user + " has url.….insteadOf for https://acme.example/, which leads git past the placeholder for hub: take that out of the file",
		user + " has http.https://github.com/.proxy, which leads git around the gate: take that out of the file",
		filepath.Join(repository, ".git/config") + " has remote.r.proxy, which leads git around the gate: take that out of the file",
	}
	got := preferred()
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
