package main

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"wayleave/provider"
	"wayleave/secret"
	"wayleave/worker"
)

// aroundTheGate are variables of single programs that name a proxy.
var aroundTheGate = []string{"npm_config_proxy", "npm_config_https_proxy", "NPM_CONFIG_HTTPS_PROXY", "npm_config_noproxy", "PIP_PROXY", "CARGO_HTTP_PROXY", "grpc_proxy", "no_grpc_proxy", "SOCKS_PROXY", "WS_PROXY", "WSS_PROXY", "CLOUDSDK_PROXY_TYPE", "CLOUDSDK_PROXY_ADDRESS", "CLOUDSDK_PROXY_PORT",
	"CONDA_PROXY_SERVERS__HTTP", "CONDA_PROXY_SERVERS__HTTPS", "GLOBAL_AGENT_HTTP_PROXY", "GLOBAL_AGENT_HTTPS_PROXY", "GLOBAL_AGENT_NO_PROXY"}

// whereSet are variables for certificates of programs that go without them.
var whereSet = []string{"BUNDLE_SSL_CA_CERT", "COMPOSER_CAFILE", "CONDA_SSL_VERIFY", "HEX_CACERTS_PATH", "HTTPS_CA_FILE", "JULIA_SSL_CA_ROOTS_PATH", "NPM_CONFIG_CAFILE", "PERL_LWP_SSL_CA_FILE", "WEBSOCKET_CLIENT_CA_BUNDLE", "YARN_CA_FILE_PATH", "YARN_HTTPS_CA_FILE_PATH"}

// ownVariables are those of wayleave itself.
var ownVariables = []string{"WAYLEAVE_GATE", "WAYLEAVE_GATE_CA", "WAYLEAVE_TOKEN", "WAYLEAVE_TOKEN_FILE", "WAYLEAVE_ID_TOKEN", "WAYLEAVE_CERT", "WAYLEAVE_KEY", "WAYLEAVE_AUDIENCE", "WAYLEAVE_STATE", "WAYLEAVE_API", "WAYLEAVE_API_TOKEN", "WAYLEAVE_API_TOKEN_FILE", "WAYLEAVE_API_CA_FILE"}

// environmentPage documents what a worker's environment is, by making it: every variable that any part of the product sets or
// removes is set to something else beforehand.
func environmentPage(t *testing.T) string {
	t.Helper()
	files := worker.Files{CA: "{files}/ca.pem", Bundle: "{files}/bundle.pem", WgetRC: "{files}/wgetrc", TrustStore: "{files}/truststore.p12", JavaArguments: "{files}/java-proxy.options", GitConfig: "{files}/gitconfig", Credentials: map[string]string{}}
	gate := &url.URL{Scheme: "http", Host: "gate:3128"}
	enrolment := worker.Enrolment{Gate: gate, Session: worker.Session{ID: "session"}, Password: secret.New("token")}

	// Everything there is to conflict with.
	names := map[string]bool{}
	for _, name := range slices.Concat(aroundTheGate, whereSet, ownVariables, []string{"npm_config_ca"}) {
		names[name] = true
	}
	common, _ := worker.Environment(enrolment, nil, files)
	for _, kv := range common {
		name, _, _ := strings.Cut(kv, "=")
		names[name] = true
	}
	type kind struct {
		title      string
		credential worker.Credential
	}
	var kinds []kind
	for _, preset := range provider.Presets() {
		p, _ := provider.Preset(preset)
		modes := slices.Sorted(maps.Keys(p.EnvModes))
		if p.DefaultMode == "" {
			modes = append([]string{""}, modes...)
		}
		for _, mode := range modes {
			r, err := p.Render(mode, "PLACEHOLDER", p.Scopes, "HOST")
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Env)+len(r.Unset)+len(r.Files) == 0 {
				continue
			}
			title := "`" + preset + "`"
			if mode != "" {
				title += ", " + mode
			}
			kinds = append(kinds, kind{title, worker.Credential{Grant: preset, Placeholder: "PLACEHOLDER", Env: r.Env, Unset: r.Unset, Files: r.Files, Note: r.Note}})
			for _, name := range slices.Concat(slices.Collect(maps.Keys(r.Env)), r.Unset) {
				if !strings.HasPrefix(name, "GIT_CONFIG_") { // which is how a preset writes settings of git
					names[name] = true
				}
			}
			if len(r.Files) > 0 {
				files.Credentials[preset] = "{files}/credentials/" + preset
			}
		}
	}
	base := []string{"HOME=/home/worker", "PATH=/usr/bin"}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		base = append(base, name+"=inherited")
	}

	var b strings.Builder
	b.WriteString("# The environment of a worker\n\n" + generated + `
What ` + "`wayleave run`" + ` and ` + "`wayleave env`" + ` give a program, exactly: the test that makes this page starts from an environment in which every variable below is set to
something else. Whatever is not named here is passed on as it is. ` + "`{files}`" + ` is a directory of this worker's own, readable by its user alone.

## In every case

| variable | value |
|---|---|
`)
	inherits := func(kv string) bool {
		return strings.HasSuffix(kv, "=inherited") || strings.HasPrefix(kv, "HOME=") || strings.HasPrefix(kv, "PATH=")
	}
	env, _ := worker.Environment(enrolment, base, files)
	always := map[string]bool{}
	var gone, replaced []string
	for _, kv := range env {
		if name, value, _ := strings.Cut(kv, "="); !inherits(kv) {
			always[kv] = true
			if slices.Contains(whereSet, name) && value == files.Bundle {
				replaced = append(replaced, "`"+name+"`")
				continue
			}
			fmt.Fprintf(&b, "| `%s` | `%s` |\n", name, cell(value))
		}
	}
	for _, name := range removed(base, env) {
		gone = append(gone, "`"+name+"`")
	}
	fmt.Fprintf(&b, "\n`%s` too, where they are set: %s.\n\nRemoved: %s.\n", files.Bundle, strings.Join(replaced, ", "), strings.Join(gone, ", "))
	if len(replaced) != len(whereSet) {
		t.Errorf("of %q are replaced %q", whereSet, replaced)
	}

	b.WriteString("\n`JAVA_TOOL_OPTIONS` and `JDK_JAVA_OPTIONS` are added to, but for proxies and trust stores, which are taken out there and in other variables with options of Java's (`_JAVA_OPTIONS`, `MAVEN_ARGS`, `ANT_ARGS`, `…_OPTS`), and so is `GIT_CONFIG_PARAMETERS`, which has settings of git. What files of programs' own would lead around the gate is [countered or named](workers.md#what-files-have), with `NETRC` and `PIP_PROXY` among others. With `--isolate` the proxy is one inside the worker's network, without a password:\n\n| variable | value |\n|---|---|\n")
	isolated := enrolment
	isolated.Relay = netip.MustParseAddrPort("127.0.0.1:40001")
	env, _ = worker.Environment(isolated, base, files)
	for _, kv := range env {
		if name, value, _ := strings.Cut(kv, "="); !inherits(kv) && !always[kv] {
			fmt.Fprintf(&b, "| `%s` | `%s` |\n", name, cell(value))
		}
	}
	b.WriteString("\nWith `--transparent` there is none, no variable that names one, and git's `http.proxy` is empty.\n")

	b.WriteString("\n## By credential\n\nA variable that two credentials of a profile want is named on standard error, and the second has it.\n")
	for _, k := range kinds {
		e := enrolment
		e.Credentials = []worker.Credential{k.credential}
		env, report := worker.Environment(e, base, files)
		fmt.Fprintf(&b, "\n### %s\n\n", k.title)
		for _, kv := range env {
			if name, value, _ := strings.Cut(kv, "="); !inherits(kv) && !always[kv] {
				fmt.Fprintf(&b, "- `%s` is `%s`\n", name, value)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(k.credential.Files)) {
			fmt.Fprintf(&b, "- `%s/%s` holds `%s`\n", files.Credentials[k.credential.Grant], name,
				strings.TrimSpace(strings.NewReplacer("\n", " ", "{files}", files.Credentials[k.credential.Grant]).Replace(k.credential.Files[name])))
		}
		for i := 0; k.credential.Env[fmt.Sprintf("GIT_CONFIG_KEY_%d", i)] != ""; i++ {
			if base, rule := strings.CutPrefix(k.credential.Env[fmt.Sprintf("GIT_CONFIG_KEY_%d", i)], "url."); rule {
				fmt.Fprintf(&b, "- `{files}/gitconfig` leads `%s` to `%s`\n", k.credential.Env[fmt.Sprintf("GIT_CONFIG_VALUE_%d", i)], strings.TrimSuffix(base, ".insteadOf"))
			}
		}
		var also []string
		for _, name := range removed(base, env) {
			if !slices.Contains(gone, "`"+name+"`") {
				also = append(also, "`"+name+"`")
			}
		}
		if len(also) > 0 {
			fmt.Fprintf(&b, "- removed: %s\n", strings.Join(also, ", "))
		}
		if k.credential.Note != "" {
			fmt.Fprintf(&b, "- `run` says: %s\n", k.credential.Note)
		}
		for _, line := range report {
			if strings.Contains(line, "inherited") {
				t.Errorf("the report has a value in it: %s", line)
			}
		}
	}
	return b.String()
}
