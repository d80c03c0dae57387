package worker

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"wayleave/secret"
)

var testFiles = Files{CA: "/f/ca.pem", Bundle: "/f/bundle.pem", WgetRC: "/f/wgetrc", TrustStore: "/f/truststore.p12", JavaArguments: "/f/java-proxy.options", Credentials: map[string]string{"claude": "/f/credentials/claude"}}

func testEnrolment(gate string, credentials ...Credential) Enrolment {
	u, err := url.Parse(gate)
	if err != nil {
		panic(err)
	}
	return Enrolment{Gate: u, Session: Session{ID: "abcdefghijklmnopqrstuvwx"}, Password: secret.New("wls1.x.y"), Credentials: credentials}
}

func environ(env []string) map[string]string {
	m := map[string]string{}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		m[name] = value
	}
	return m
}

const javaExpected = "-Djdk.http.auth.tunneling.disabledSchemes= -Dhttps.proxyHost=gate -Dhttps.proxyPort=3128 -Dhttp.proxyHost=gate -Dhttp.proxyPort=3128" +
	" -Djavax.net.ssl.trustStore=/f/truststore.p12 -Djavax.net.ssl.trustStoreType=PKCS12 -Djavax.net.ssl.trustStorePassword=changeit"

func TestEnvironment(t *testing.T) {
	env, report := Environment(testEnrolment("http://gate:3128"), []string{"PATH=/bin", "LANG=C"}, testFiles)
	const proxy = "http://abcdefghijklmnopqrstuvwx:wls1.x.y@gate:3128"
	want := map[string]string{
		"PATH": "/bin", "LANG": "C",
		"HTTPS_PROXY": proxy, "https_proxy": proxy, "HTTP_PROXY": proxy, "http_proxy": proxy, "ALL_PROXY": proxy, "all_proxy": proxy,
		"NO_PROXY": "localhost,127.0.0.1,::1,0.0.0.0", "no_proxy": "localhost,127.0.0.1,::1,0.0.0.0",
		"SSL_CERT_FILE": "/f/bundle.pem", "CURL_CA_BUNDLE": "/f/bundle.pem", "REQUESTS_CA_BUNDLE": "/f/bundle.pem", "PIP_CERT": "/f/bundle.pem",
		"GIT_SSL_CAINFO": "/f/bundle.pem", "GIT_PROXY_SSL_CAINFO": "/f/bundle.pem", "CARGO_HTTP_CAINFO": "/f/bundle.pem", "npm_config_cafile": "/f/bundle.pem",
		"CODEX_CA_CERTIFICATE": "/f/bundle.pem", "AWS_CA_BUNDLE": "/f/bundle.pem", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE": "/f/bundle.pem",
		"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": "/f/bundle.pem", "NIX_SSL_CERT_FILE": "/f/bundle.pem", "HTTPLIB2_CA_CERTS": "/f/bundle.pem",
		"NODE_EXTRA_CA_CERTS": "/f/ca.pem", "DENO_CERT": "/f/ca.pem",
		"NODE_USE_ENV_PROXY": "1", "WGETRC": "/f/wgetrc", "GIT_TERMINAL_PROMPT": "0",
		"npm_config_proxy": proxy, "npm_config_https_proxy": proxy, "npm_config_noproxy": "localhost,127.0.0.1,::1,0.0.0.0", "CARGO_HTTP_PROXY": proxy, "GIT_HTTP_PROXY_AUTHMETHOD": "basic", "YARN_HTTP_PROXY": proxy, "YARN_HTTPS_PROXY": proxy,
		"GIT_CONFIG_PARAMETERS": "'http.proxy=" + proxy + "'",
		"JAVA_TOOL_OPTIONS":     javaExpected,
		"JDK_JAVA_OPTIONS":      "-XX:VMOptionsFile=/f/java-proxy.options",
	}
	if diff := cmp.Diff(want, environ(env)); diff != "" {
		t.Error(diff)
	}
	if len(env) != len(want) {
		t.Errorf("%d variables for %d names", len(env), len(want))
	}
	if len(report) != 0 {
		t.Errorf("report: %q", report)
	}
}

// Where the network leads to the gate there is no proxy, and none of before either.
func TestDirect(t *testing.T) {
	e := testEnrolment("http://gate:3128", Credential{Grant: "hub", Hosts: []string{"github.com:443", "*.hub.example"}})
	for entry, fault := range map[string]string{
		"elasticsearch": "", ".svc.cluster.local": "", "10.1.2.3": "", "::2": "", "hub.co": "",
		"*": "is no host", "": "is no host", "http://x": "is no host", "10.0.0.0/8": "is no host", "a b": "is no host",
		"GitHub.com": "placeholder for hub", "com": "placeholder for hub", ".example": "placeholder for hub", "a.hub.example": "placeholder for hub",
		"hub.com": "placeholder for hub",
	} {
		e.Direct = []string{entry}
		if err := e.CheckDirect(); (err == nil) != (fault == "") || err != nil && !strings.Contains(err.Error(), fault) {
			t.Errorf("%q: %v", entry, err)
		}
	}
	e.Direct = []string{"minio", ".svc", "fd00::1"}
	env, _ := Environment(e, nil, testFiles)
	got := environ(env)
	for _, name := range []string{"NO_PROXY", "no_proxy", "npm_config_noproxy"} {
		if got[name] != "localhost,127.0.0.1,::1,0.0.0.0,minio,.svc,fd00::1" {
			t.Errorf("%s is %s", name, got[name])
		}
	}
	if java := got["JAVA_TOOL_OPTIONS"]; !strings.Contains(java, " -Dhttp.nonProxyHosts=localhost|127.*|[::1]|0.0.0.0|[::0]|minio|*.svc|[fd00::1] ") {
		t.Errorf("Java's options are %s", java)
	}
}

func TestTransparentEnvironment(t *testing.T) {
	e := testEnrolment("http://gate:3128")
	e.Transparent = true
	env, report := Environment(e, []string{"HTTPS_PROXY=http://value-1", "all_proxy=http://value-2", "PATH=/bin"}, testFiles)
	got := environ(env)
	if got["SSL_CERT_FILE"] != "/f/bundle.pem" || got["PATH"] != "/bin" || !strings.HasPrefix(got["JAVA_TOOL_OPTIONS"], "-Djavax.net.ssl.trustStore=") {
		t.Errorf("got %v", got)
	}
	if all := strings.Join(env, "\n"); strings.Contains(strings.ToLower(all), "_proxy=") || strings.Contains(all, "proxyHost") || strings.Contains(all, "wls1") {
		t.Errorf("a proxy is set: %v", got)
	}
	if got["GIT_CONFIG_PARAMETERS"] != "'http.proxy='" {
		t.Errorf("git may know a proxy: %v", got)
	}
	if diff := cmp.Diff([]string{"removed HTTPS_PROXY, all_proxy: programs would go around the gate"}, report); diff != "" {
		t.Error(diff)
	}
}

func TestEnvironmentCredentials(t *testing.T) {
	claude := Credential{
		Grant: "claude",
		Env:   map[string]string{"ANTHROPIC_AUTH_TOKEN": "ph", "CLAUDE_CONFIG_DIR": "{files}"},
		Unset: []string{"ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "CLAUDE_CODE_OAUTH_TOKEN", "GH_TOKEN"},
		Files: map[string]string{".credentials.json": "{}"},
		Note:  "claude: a note\nof two lines",
	}
	github := Credential{Grant: "github", Env: map[string]string{"GH_TOKEN": "gh", "ANTHROPIC_AUTH_TOKEN": "other"}}
	for _, c := range []struct {
		name        string
		credentials []Credential
		base        []string
		want        map[string]string // "" : must be absent
		report      []string
	}{{
		name:        "conflicting variables go, and are named without their values",
		credentials: []Credential{claude},
		base: []string{"ANTHROPIC_API_KEY=value-1", "ANTHROPIC_AUTH_TOKEN=value-2", "CLAUDE_CODE_OAUTH_TOKEN=value-3", "ANTHROPIC_BASE_URL=value-4",
			"HTTPS_PROXY=http://value-5", "SSL_CERT_FILE=/value-6", "no_proxy=value-7", "npm_config_https_proxy=value-8", "NPM_CONFIG_PROXY=value-9", "PIP_PROXY=value-10", "SOCKS_PROXY=value-11", "wss_proxy=value-12", "KEEP=1"},
		want: map[string]string{"ANTHROPIC_AUTH_TOKEN": "ph", "CLAUDE_CONFIG_DIR": "/f/credentials/claude", "KEEP": "1", "ANTHROPIC_API_KEY": "",
			"CLAUDE_CODE_OAUTH_TOKEN": "", "ANTHROPIC_BASE_URL": "", "npm_config_https_proxy": "http://abcdefghijklmnopqrstuvwx:wls1.x.y@gate:3128",
			"NPM_CONFIG_PROXY": "", "PIP_PROXY": ""},
		report: []string{
			"removed ANTHROPIC_API_KEY, CLAUDE_CODE_OAUTH_TOKEN, ANTHROPIC_BASE_URL: programs would otherwise not use the placeholder for claude",
			"replaced ANTHROPIC_AUTH_TOKEN: the placeholder for claude goes there",
			"replaced HTTPS_PROXY, SSL_CERT_FILE, no_proxy, npm_config_https_proxy: programs would go around the gate, or not trust it",
			"removed NPM_CONFIG_PROXY, PIP_PROXY, SOCKS_PROXY, wss_proxy: programs would go around the gate",
			"hosts that programs went to without a proxy are asked for through the gate: name what is beside this worker with --no-proxy",
			"claude: a note of two lines",
		},
	}, {
		name:        "what one credential sets, another cannot unset",
		credentials: []Credential{{Grant: "github", Env: map[string]string{"GH_TOKEN": "gh"}}, claude},
		want:        map[string]string{"GH_TOKEN": "gh"},
		report:      []string{"claude: a note of two lines"},
	}, {
		name:        "two credentials for one variable",
		credentials: []Credential{claude, github},
		want:        map[string]string{"ANTHROPIC_AUTH_TOKEN": "other"},
		report:      []string{"ANTHROPIC_AUTH_TOKEN is wanted for claude and for github: it is set for github", "claude: a note of two lines"},
	}, {
		name:        "a registry's log-in",
		credentials: []Credential{{Grant: "packages", Hosts: []string{"npm.example.com"}, Env: map[string]string{"NPM_CONFIG_USERCONFIG": "x"}}},
		base:        []string{"npm_config_//npm.example.com/:_authToken=value-1", "NPM_CONFIG_//npm.example.com:443/a/:_authToken=value-2", "npm_config_//other.example.com/:_authToken=3"},
		want:        map[string]string{"npm_config_//npm.example.com/:_authToken": "", "NPM_CONFIG_//npm.example.com:443/a/:_authToken": "", "npm_config_//other.example.com/:_authToken": "3"},
		report:      []string{"removed npm_config_//npm.example.com/:_authToken, NPM_CONFIG_//npm.example.com:443/a/:_authToken: programs would otherwise not use the placeholder for packages"},
	}, {
		name: "the gate's own variables are for us alone",
		base: []string{"WAYLEAVE_TOKEN=value-1", "WAYLEAVE_GATE=http://gate:3128", "XWAYLEAVE=1"},
		want: map[string]string{"WAYLEAVE_TOKEN": "", "WAYLEAVE_GATE": "", "XWAYLEAVE": "1"},
	}, {
		name: "Java's options are added to",
		base: []string{"JAVA_TOOL_OPTIONS=-Xmx1g"},
		want: map[string]string{"JAVA_TOOL_OPTIONS": "-Xmx1g " + javaExpected},
	}, {
		name: "Java's own proxy and trust store",
		base: []string{
			"JAVA_TOOL_OPTIONS=-Dhttp.nonProxyHosts=value-1 -Xmx1g", `MAVEN_OPTS=-Dhttps.proxyHost=value-2 -Dhttps.proxyPort=1 "-Djavax.net.ssl.trustStore=/value-3 x" -Xss1m -Dhttps.proxyHost=value-4`,
			"JDK_JAVA_OPTIONS=-DsocksProxyHost=value-5", "_JAVA_OPTIONS=-Xmx2g", "BUILD_COMMAND=mvn -Dhttps.proxyHost=value-6",
		},
		want: map[string]string{"JAVA_TOOL_OPTIONS": "-Xmx1g " + javaExpected, "MAVEN_OPTS": "-Xss1m", "JDK_JAVA_OPTIONS": "-XX:VMOptionsFile=/f/java-proxy.options", "_JAVA_OPTIONS": "-Xmx2g", "BUILD_COMMAND": "mvn -Dhttps.proxyHost=value-6"},
		report: []string{
			"removed -Dhttp.nonProxyHosts from JAVA_TOOL_OPTIONS: programs would go around the gate, or not trust it",
			"removed -Dhttps.proxyHost, -Dhttps.proxyPort, -Djavax.net.ssl.trustStore from MAVEN_OPTS: programs would go around the gate, or not trust it",
			"removed -DsocksProxyHost from JDK_JAVA_OPTIONS: programs would go around the gate, or not trust it",
			"hosts that programs went to without a proxy are asked for through the gate: name what is beside this worker with --no-proxy",
		},
	}, {
		name: "files of certificates that only some programs read",
		base: []string{"BUNDLE_SSL_CA_CERT=/value-1", "HEX_CACERTS_PATH=", "NPM_CONFIG_CAFILE=/value-2", "NPM_CONFIG_CA=value-3"},
		want: map[string]string{"BUNDLE_SSL_CA_CERT": "/f/bundle.pem", "NPM_CONFIG_CAFILE": "/f/bundle.pem", "NPM_CONFIG_CA": "", "COMPOSER_CAFILE": ""},
		report: []string{
			"replaced BUNDLE_SSL_CA_CERT, NPM_CONFIG_CAFILE: programs would go around the gate, or not trust it",
			"removed NPM_CONFIG_CA: programs would not trust the gate",
		},
	}, {
		name: "of a variable given twice the last counts",
		base: []string{"A=1", "B=2", "A=3", "broken", "=x"},
		want: map[string]string{"A": "3", "B": "2", "broken": ""},
	}, {
		name: "a second run inside the first has nothing to say",
		base: []string{"SSL_CERT_FILE=/f/bundle.pem", "NODE_USE_ENV_PROXY=1", "HTTPS_PROXY="},
		want: map[string]string{"SSL_CERT_FILE": "/f/bundle.pem"},
	}} {
		t.Run(c.name, func(t *testing.T) {
			env, report := Environment(testEnrolment("http://gate:3128", c.credentials...), c.base, testFiles)
			got := environ(env)
			if len(got) != len(env) {
				t.Error("a variable is given twice")
			}
			for name, want := range c.want {
				if value, ok := got[name]; value != want || ok != (want != "") {
					t.Errorf("%s = %q (%v), want %q", name, value, ok, want)
				}
			}
			if diff := cmp.Diff(c.report, report); diff != "" {
				t.Error(diff)
			}
			if strings.Contains(strings.Join(report, "\n"), "value-") {
				t.Error("the report holds a value")
			}
		})
	}
}

// Settings of git come behind those that are there, of the environment and of other credentials, and are there once.
func TestEnvironmentAddsToGitsSettings(t *testing.T) {
	git := func(grant string, settings ...string) Credential {
		c := Credential{Grant: grant, Env: map[string]string{"GIT_CONFIG_COUNT": strconv.Itoa(len(settings) / 2)}}
		for i := 0; i < len(settings); i += 2 {
			c.Env[fmt.Sprintf("GIT_CONFIG_KEY_%d", i/2)], c.Env[fmt.Sprintf("GIT_CONFIG_VALUE_%d", i/2)] = settings[i], settings[i+1]
		}
		return c
	}
	hub, lab := git("hub", "credential.hub.helper", "", "credential.hub.helper", "!hub {files}/it"), git("lab", "credential.lab.helper", "in {files}", "http.https://x?a=b.k", "it's")
	files := testFiles
	files.Credentials = map[string]string{"lab": "/f/lab", "hub": "/f/the hub"}
	const ours = `'http.proxy=http://abcdefghijklmnopqrstuvwx:wls1.x.y@gate:3128' 'credential.hub.helper=' 'credential.hub.helper=!hub '\''/f/the hub'\''/it' 'credential.lab.helper=in /f/lab' 'http.https://x?a=b.k'='it'\''s'`
	for _, c := range []struct {
		name string
		base []string
		want map[string]string // of git's variables
	}{
		{"none", nil, map[string]string{"GIT_CONFIG_PARAMETERS": ours}},
		{"some", []string{"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
			map[string]string{"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*", "GIT_CONFIG_PARAMETERS": ours}},
		{"of git -c", []string{`GIT_CONFIG_PARAMETERS='a.b=it'\''s'  'c.d'='e'`}, map[string]string{"GIT_CONFIG_PARAMETERS": `'a.b=it'\''s' 'c.d'='e' ` + ours}},
		{"of an earlier session", []string{`GIT_CONFIG_PARAMETERS='Http.Proxy=http://old@gate:3128' 'a.b=c' 'credential.hub.helper=' 'http.proxy'='other'`}, map[string]string{"GIT_CONFIG_PARAMETERS": `'a.b=c' ` + ours}},
		{"what an agent left of some", []string{"GIT_CONFIG_COUNT=2", "GIT_CONFIG_KEY_0=a", "GIT_CONFIG_VALUE_0=b"}, map[string]string{"GIT_CONFIG_KEY_0": "a", "GIT_CONFIG_VALUE_0": "b", "GIT_CONFIG_PARAMETERS": ours}},
		{"no number", []string{"GIT_CONFIG_COUNT=x"}, map[string]string{"GIT_CONFIG_PARAMETERS": ours}},
	} {
		e := testEnrolment("http://gate:3128", hub, lab)
		env, report := Environment(e, c.base, files)
		again, _ := Environment(e, env, files)
		for _, env := range [][]string{env, again} {
			got := environ(env)
			maps.DeleteFunc(got, func(name, _ string) bool { return !strings.HasPrefix(name, "GIT_CONFIG_") })
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s: %s", c.name, diff)
			}
		}
		if len(report) > 0 {
			t.Errorf("%s: %q", c.name, report)
		}
	}
}

func TestJavaOptions(t *testing.T) {
	u, _ := url.Parse("https://gate")
	got := javaOptions(Enrolment{Gate: u}, "/with space/t.p12") + " " + javaOptions(Enrolment{Gate: u}, `/it's "odd"/t.p12`)
	for _, want := range []string{"-Dhttps.proxyPort=443", ` "-Djavax.net.ssl.trustStore=/with space/t.p12" `, ` "-Djavax.net.ssl.trustStore=/it's "'"'"odd"'"'"/t.p12" `} {
		if !strings.Contains(got, want) {
			t.Errorf("%s does not hold %s", got, want)
		}
	}
	// What is there goes on, but for what would lead elsewhere, an earlier session's too.
	e := testEnrolment("http://gate:3128")
	spaced := testFiles
	spaced.TrustStore = "/with space/t.p12"
	expected := strings.Replace(javaExpected, "-Djavax.net.ssl.trustStore=/f/truststore.p12", `"-Djavax.net.ssl.trustStore=/with space/t.p12"`, 1)
	const odd = `-Xmx1g  -Dhttps.proxyHost=corp -Dhttp.nonProxyHosts="*.corp|a b" '-Djavax.net.ssl.trustStore=/corp store' "-Da=b c" -Dmy.https.proxyHost=x`
	spaced.JavaArguments = "/with space/java-proxy.options"
	env, _ := Environment(e, []string{"JAVA_TOOL_OPTIONS=" + odd, "JDK_JAVA_OPTIONS='-XX:VMOptionsFile=/an earlier/java-proxy.options' -Dx=y"}, spaced)
	for range 2 {
		if got, want := environ(env)["JDK_JAVA_OPTIONS"], `-Dx=y "-XX:VMOptionsFile=/with space/java-proxy.options"`; got != want {
			t.Errorf("the launcher's options are %s, want %s", got, want)
		}
		if got, want := environ(env)["JAVA_TOOL_OPTIONS"], `-Xmx1g "-Da=b c" -Dmy.https.proxyHost=x `+expected; got != want {
			t.Errorf("the options are\n %s, want\n %s", got, want)
		}
		env, _ = Environment(e, env, spaced)
	}
	// Where a relay logs in, or there is no proxy, no password is of use.
	for _, e := range []Enrolment{{Gate: e.Gate, Relay: netip.MustParseAddrPort("127.0.0.1:40001")}, {Gate: e.Gate, Transparent: true}} {
		env, _ := Environment(e, []string{"JDK_JAVA_OPTIONS=-XX:VMOptionsFile=/earlier/java-proxy.options"}, testFiles)
		if got := environ(env); got["JDK_JAVA_OPTIONS"] != "" || strings.Contains(got["JAVA_TOOL_OPTIONS"], "tunneling") {
			t.Errorf("java is told how to log in: %v", got)
		}
	}
}
