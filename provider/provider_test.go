package provider

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"wayleave/oauth"
	"wayleave/secret"
)

// preset returns a preset with what an operator has to add.
func preset(t *testing.T, name string) Provider {
	t.Helper()
	p, ok := Preset(name)
	if !ok {
		t.Fatalf("no preset %s", name)
	}
	switch name {
	case "github", "google":
		p.ClientID, p.ClientSecret = "id", secret.New("s")
	case "oauth2", "oidc":
		p.ClientID, p.AuthorizeURL, p.TokenURL = "id", "https://as.example/a", "https://as.example/t"
	}
	return p
}

// Every preset is complete, apart from what only an operator can know.
func TestPresetsAreValid(t *testing.T) {
	if diff := cmp.Diff([]string{"anthropic", "anthropic-api", "github", "github-token", "google", "npm", "oauth2", "oidc", "openai-api", "openai-codex", "pip", "static"}, Presets()); diff != "" {
		t.Fatal(diff)
	}
	for _, name := range Presets() {
		p := preset(t, name)
		if f := p.Validate(); f != nil {
			t.Errorf("%s: %v", name, f)
		}
		if p.Name != name {
			t.Errorf("%s is called %q", name, p.Name)
		}
	}
	if p, ok := Preset("nobody"); ok || p.Name != "" {
		t.Error("there is a preset that nobody wrote")
	}
}

// A field that there is not would be left out in silence.
func TestPresetsHaveKnownFieldsAlone(t *testing.T) {
	dec := yaml.NewDecoder(bytes.NewReader(presetsYAML))
	dec.KnownFields(true)
	var all map[string]Provider
	if err := dec.Decode(&all); err != nil {
		t.Error(err)
	}
}

func TestPresetIsACopy(t *testing.T) {
	p, _ := Preset("anthropic")
	p.EnvModes["auth_token"].Env["X"] = "y"
	p.EnsureHeaders["x"] = "y"
	p.Unset[0] = "X"
	q, _ := Preset("anthropic")
	fresh, _ := Preset("anthropic")
	if diff := cmp.Diff(fresh, q); diff != "" || q.EnsureHeaders["x"] != "" || q.Unset[0] == "X" {
		t.Error("changing one copy of a preset changes the next")
	}
}

// The variables, files and notes that each client needs, in full.
func TestRender(t *testing.T) {
	const ph = "sk-ant-oat01-wlplaceholderabc"
	all := []string{"user:inference", "user:profile", "user:sessions:claude_code"}
	remoteControlOff := []string{"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_GROWTHBOOK", "DISABLE_TELEMETRY"}
	for _, tt := range []struct {
		name, provider, mode string
		scopes               []string
		want                 Rendered
		removes              []string // at least these
		keeps                []string // none of these is removed
		says                 []string
	}{
		{
			name: "auth_token is the default and sets exactly one variable", provider: "anthropic", scopes: all,
			want:    Rendered{Env: map[string]string{"ANTHROPIC_AUTH_TOKEN": ph}},
			removes: []string{"ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_BASE", "ANTHROPIC_API_URL", "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_OAUTH_SCOPES"},
			keeps:   remoteControlOff,
			says:    []string{"remote control is off", "oauth_env"},
		},
		{
			name: "oauth_env declares the scopes of the grant", provider: "anthropic", mode: "oauth_env", scopes: all,
			want:    Rendered{Env: map[string]string{"CLAUDE_CODE_OAUTH_TOKEN": ph, "CLAUDE_CODE_OAUTH_SCOPES": "user:inference user:profile user:sessions:claude_code"}},
			removes: append([]string{"ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"}, remoteControlOff...),
		},
		{
			name: "oauth_env never declares more, and says what is missing", provider: "anthropic", mode: "oauth_env", scopes: []string{"user:inference"},
			want: Rendered{Env: map[string]string{"CLAUDE_CODE_OAUTH_TOKEN": ph, "CLAUDE_CODE_OAUTH_SCOPES": "user:inference"}},
			says: []string{"(user:profile user:sessions:claude_code)", "reconnect"},
		},
		{
			name: "login_file", provider: "anthropic", mode: "login_file", scopes: all,
			want: Rendered{
				Env:   map[string]string{"CLAUDE_CONFIG_DIR": "{files}"},
				Files: map[string]string{".credentials.json": `{"claudeAiOauth":{"accessToken":"` + ph + `","expiresAt":4102444800000,"scopes":["user:inference","user:profile","user:sessions:claude_code"]}}` + "\n", ".claude.json": `{"hasCompletedOnboarding":true}` + "\n"},
			},
			removes: append([]string{"ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"}, remoteControlOff...),
			says:    []string{"configuration directory of its own"},
		},
		{
			name: "codex", provider: "openai-codex",
			want:    Rendered{Env: map[string]string{"CODEX_ACCESS_TOKEN": ph}},
			removes: []string{"CODEX_API_KEY", "OPENAI_API_KEY"},
		},
		{
			name: "github", provider: "github",
			want:    Rendered{Env: map[string]string{"GH_TOKEN": ph, "GITHUB_TOKEN": ph}},
			removes: []string{"GH_HOST", "COPILOT_GITHUB_TOKEN"},
		},
		{
			name: "API key of Anthropic", provider: "anthropic-api",
			want:    Rendered{Env: map[string]string{"ANTHROPIC_API_KEY": ph}},
			removes: []string{"ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_BASE", "ANTHROPIC_API_URL"},
		},
		{
			name: "API key of OpenAI", provider: "openai-api",
			want:    Rendered{Env: map[string]string{"OPENAI_API_KEY": ph, "CODEX_API_KEY": ph}},
			removes: []string{"CODEX_ACCESS_TOKEN", "OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_API_TYPE"},
		},
		{
			name: "token of GitHub", provider: "github-token",
			want:    Rendered{Env: map[string]string{"GH_TOKEN": ph, "GITHUB_TOKEN": ph}},
			removes: []string{"GH_HOST", "COPILOT_GITHUB_TOKEN", "MISE_GITHUB_TOKEN"},
		},
		{
			name: "token of GitHub, git", provider: "github-token", mode: "git",
			want: Rendered{Env: map[string]string{
				"GH_TOKEN": ph, "GITHUB_TOKEN": ph, "GIT_CONFIG_COUNT": "9",
				"GIT_CONFIG_KEY_0": "credential.https://github.com.helper", "GIT_CONFIG_VALUE_0": "",
				"GIT_CONFIG_KEY_1":   "credential.https://github.com.helper",
				"GIT_CONFIG_VALUE_1": "!sh {files}/git-credential",
				"GIT_CONFIG_KEY_2":   "http.https://github.com/.extraheader", "GIT_CONFIG_VALUE_2": "",
				"GIT_CONFIG_KEY_3": "url.https://github.com/.insteadOf", "GIT_CONFIG_VALUE_3": "git@github.com:",
				"GIT_CONFIG_KEY_4": "url.https://github.com/.insteadOf", "GIT_CONFIG_VALUE_4": "ssh://git@github.com/",
				"GIT_CONFIG_KEY_5": "url.https://github.com/.insteadOf", "GIT_CONFIG_VALUE_5": "ssh://git@ssh.github.com:443/",
				"GIT_CONFIG_KEY_6": "url.https://github.com/.insteadOf", "GIT_CONFIG_VALUE_6": "git://github.com/",
				"GIT_CONFIG_KEY_7": "url.https://github.com/.insteadOf", "GIT_CONFIG_VALUE_7": "http://github.com/",
				"GIT_CONFIG_KEY_8": "url.https://github.com/.insteadOf", "GIT_CONFIG_VALUE_8": "https://git@github.com/", "CARGO_NET_GIT_FETCH_WITH_CLI": "true",
				"GIT_ASKPASS": "{files}/git-credential",
			}, Files: map[string]string{"git-credential": `#!/bin/sh
case $1 in
get) echo username=x-access-token; echo password=` + ph + ` ;;
"Username for 'https://github.com': " | "Username for 'https://github.com/"*) echo x-access-token ;;
"Password for 'https://"*"@github.com': " | "Password for 'https://x-access-token@github.com/"*) echo ` + ph + ` ;;
*) exit 1 ;;
esac
`}},
		},
		{
			name: "npm", provider: "npm",
			want: Rendered{
				Env:   map[string]string{"NPM_CONFIG_USERCONFIG": "{files}/npmrc"},
				Files: map[string]string{"npmrc": "registry=https://pkg.example.com/\n//pkg.example.com/:_authToken=" + ph + "\n"},
			},
			removes: []string{"npm_config_userconfig"},
		},
		{
			name: "pip", provider: "pip",
			want:    Rendered{Env: map[string]string{"PIP_INDEX_URL": "https://__token__:" + ph + "@pkg.example.com/simple/", "UV_DEFAULT_INDEX": "https://__token__:" + ph + "@pkg.example.com/simple/"}},
			removes: []string{"PIP_EXTRA_INDEX_URL", "UV_INDEX_URL"},
		},
		{
			name: "Google", provider: "google",
			want: Rendered{
				Env: map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": "{files}/adc.json"},
				Files: map[string]string{
					"adc.json": `{"type":"authorized_user","client_id":"wayleave","client_secret":"wayleave","refresh_token":"` + ph + `"}` + "\n",
				},
			},
			removes: []string{"GOOGLE_OAUTH_ACCESS_TOKEN", "GOOGLE_CREDENTIALS", "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE"},
		},
		{
			name: "Google, workload identity federation", provider: "google", mode: "external_account",
			want: Rendered{
				Env: map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": "{files}/external_account.json"},
				Files: map[string]string{
					"external_account.json": `{"type":"external_account","audience":"//wayleave","subject_token_type":"urn:ietf:params:oauth:token-type:jwt","token_url":"https://sts.googleapis.com/v1/token",` +
						`"credential_source":{"file":"{files}/external_account.json","format":{"type":"json","subject_token_field_name":"subject_token"}},"subject_token":"` + ph + `"}` + "\n",
				},
			},
		},
		{name: "generic", provider: "oauth2", want: Rendered{}},
		{name: "generic OpenID Connect", provider: "oidc", want: Rendered{}},
		{name: "generic static", provider: "static", want: Rendered{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := preset(t, tt.provider).Render(tt.mode, ph, tt.scopes, "pkg.example.com")
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range tt.removes {
				if !slices.Contains(got.Unset, name) {
					t.Errorf("%s is not removed", name)
				}
			}
			for _, name := range got.Unset {
				if _, set := got.Env[name]; set || slices.Contains(tt.keeps, name) {
					t.Errorf("%s is removed", name)
				}
			}
			for _, s := range tt.says {
				if !strings.Contains(got.Note, s) {
					t.Errorf("note %q does not say %q", got.Note, s)
				}
			}
			if len(tt.says) == 0 && got.Note != "" || strings.Contains(got.Note, "\n") {
				t.Errorf("note %q", got.Note)
			}
			tt.want.Unset, tt.want.Note = got.Unset, got.Note
			if tt.want.Env == nil {
				tt.want.Env = map[string]string{}
			}
			if tt.want.Files == nil {
				tt.want.Files = map[string]string{}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			for path, content := range got.Files {
				if strings.HasSuffix(path, ".json") && !json.Valid([]byte(content)) {
					t.Errorf("not JSON: %s", content)
				}
			}
		})
	}
}

func TestRenderRefuses(t *testing.T) {
	p := preset(t, "anthropic")
	if _, err := p.Render("nothing", "ph", nil, ""); err == nil || !strings.Contains(err.Error(), "auth_token, login_file, oauth_env") {
		t.Errorf("unknown mode: %v", err)
	}
	for _, ph := range []string{`a"b`, "a b", "a\nb", "{scopes}", "a:b", "ä"} {
		if _, err := p.Render("", ph, nil, ""); err == nil {
			t.Errorf("placeholder %q was accepted", ph)
		}
	}
	// No scopes are an empty list, and a scope cannot smuggle a template in.
	r, err := p.Render("login_file", "ph", nil, "")
	if err != nil || !strings.Contains(r.Files[".credentials.json"], `"scopes":[]`) {
		t.Errorf("no scopes: %v, %s", err, r.Files)
	}
	r, err = p.Render("login_file", "ph", []string{"{placeholder}"}, "")
	if err != nil || !strings.Contains(r.Files[".credentials.json"], `"scopes":["{placeholder}"]`) {
		t.Errorf("a scope that looks like a template: %v, %s", err, r.Files)
	}
}

// What is set is not removed, whichever way the two came together.
func TestSetWinsOverUnset(t *testing.T) {
	p := Provider{Env: map[string]string{"A": "1"}, Unset: []string{"A", "C", "B", "B"}, EnvModes: map[string]Mode{"m": {Env: map[string]string{"B": "{placeholder}", "A": "2"}, Unset: []string{"A"}}}}
	got, err := p.Render("m", "ph", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	want := Rendered{Env: map[string]string{"A": "2", "B": "ph"}, Unset: []string{"C"}, Files: map[string]string{}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRefused(t *testing.T) {
	p := Provider{Config: oauth.Config{TokenURL: "https://AS.example:8443/oauth/token", RevokeURL: "https://as.example/revoke"}, RefusedHosts: []string{"old.example/token", "as.example/revoke"}}
	if diff := cmp.Diff([]string{"as.example/oauth/token", "as.example/revoke", "old.example/token"}, p.Refused()); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"anthropic", "openai-codex", "github"} {
		if p := preset(t, name); len(p.Refused()) == 0 || p.Refused() == nil {
			t.Errorf("%s refuses nothing", name)
		}
	}
	p = Provider{Config: oauth.Config{
		TokenURL: "https://as.example/t", DeviceURL: "https://as.example/d", RegistrationURL: "https://as.example/r", RevokeURL: "https://as.example/v",
		RefreshURL: "https://as.example/again",
	}, RefusedHosts: []string{"old.example/again", "old.example/else"}}
	if diff := cmp.Diff([]string{"as.example/again", "as.example/d", "as.example/r", "as.example/t", "as.example/v", "old.example/again", "old.example/else"}, p.Refused()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"as.example/again", "as.example/t", "old.example/again"}, p.TokenEndpoints()); diff != "" {
		t.Error(diff)
	}
	want := []string{"auth.openai.com/api/accounts/deviceauth/token", "auth.openai.com/api/accounts/deviceauth/usercode", "auth.openai.com/oauth/revoke", "auth.openai.com/oauth/token"}
	if diff := cmp.Diff(want, preset(t, "openai-codex").Refused()); diff != "" {
		t.Error(diff)
	}
}

func TestValidate(t *testing.T) {
	p := preset(t, "oauth2")
	p.PlaceholderPrefix = "a b"
	p.Env = map[string]string{"1A": "x", "B": "{place_holder}"}
	p.Unset = []string{"A=B"}
	p.DefaultMode = "m"
	p.EnvModes = map[string]Mode{"n": {Env: map[string]string{"A": "{token}"}, Files: map[string]string{"../x": "", "/x": "", "a/../b": "", "ok/x.json": "{scope}"}, Note: "a\nb"}}
	p.EnsureHeaders = map[string]string{"bad name": "x"}
	p.EnsurePaths = []string{"v1"}
	p.ErrorFormat = "xml"
	p.RefusalStatus = map[string]int{"needs_reconnect": 200}
	p.RefusedHosts = []string{"https://h/x", "H.example", "h/x?y", "ok.example/x"}
	p.ALPN = []string{"h3"}
	p.BasicUser = "a:b"
	p.Facts = map[string][]string{"Account": {"/x"}, "plan": {"plan", "/refresh_token", "/data/Client_Secret"}}
	p.RewriteHeaders = map[string]string{"X-Account": "plan", "x-org": "org"}
	p.LocalAnswers = []Answer{
		{Host: "h.example", Path: "/ok", JSON: `{"a":"{plan}","b":{scopes_json},"c":{expires_in},"d":"{placeholder}"}`}, {Host: "h.example", Path: "/ok", Token: true},
		{Host: "H.example:1", Path: "x", Method: "get", Status: 100, JSON: "{"}, {Host: "h.example", Path: "/x?y", Token: true, JSON: "{}"}, {Host: "h.example", Path: "/", JSON: `"{org}"`},
		{Host: "h.example", Path: "/", Status: 204}, {Host: "h.example", Path: "/", Status: 204, JSON: "{}"}, {Host: "h.example", Path: "/", Status: 304, Token: true},
	}
	p.TokenURL = "http://as.example"
	var keys []string
	for _, f := range p.Validate() {
		keys = append(keys, f.Key)
	}
	want := []string{
		"token_url", "facts.Account", "facts.plan", "facts.plan", "facts.plan", "placeholder_prefix", "env", "env.B", "unset", "default_mode", "env_modes.n.env.A", "env_modes.n.files.ok/x.json",
		"env_modes.n.files", "env_modes.n.files", "env_modes.n.files", "env_modes.n.note", "ensure_headers.bad name", "ensure_paths", "rewrite_headers.X-Account", "rewrite_headers.x-org",
		"answers[2].host", "answers[2].path", "answers[2].method", "answers[2].status", "answers[2].json", "answers[3].path", "answers[3].json", "answers[4].json", "answers[6].status", "answers[7].status", "error_format",
		"refusal_status.needs_reconnect", "refused_hosts", "refused_hosts", "refused_hosts", "alpn", "basic_user",
	}
	if diff := cmp.Diff(want, keys); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestStaticProvider(t *testing.T) {
	p := preset(t, "static")
	p.Header = Header{In: "x-api-key", InScheme: "Token", Out: "authorization", OutScheme: "Bearer"}
	p.BasicUser = "robot"
	if f := p.Validate(); f != nil {
		t.Errorf("a good one has faults: %v", f)
	}
	p = preset(t, "github")
	p.Kind, p.Header = Static, Header{In: "X-Key", AlsoIn: "X-Also", InScheme: "a b", Out: "x:y", OutScheme: "\n"}
	var keys []string
	for _, f := range p.Validate() {
		keys = append(keys, f.Key)
	}
	want := []string{"authorize_url", "token_url", "device_url", "client_id", "auth_style", "scopes", "header.in", "header.also_in", "header.out", "header.in_scheme", "header.out_scheme"}
	if diff := cmp.Diff(want, keys); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	p = preset(t, "static")
	p.Kind = "saml"
	if f := p.Validate(); len(f) != 1 || f[0].Key != "kind" {
		t.Errorf("%v", f)
	}
}
