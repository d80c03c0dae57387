package worker

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Environment is the environment of a worker's process: base, without what would lead around the gate or be preferred
// to a placeholder, and with what leads through the gate, unless the network does that. The report says which variables of base were removed or
// replaced, by name and never by value, one line for each reason, and has the notes of the credentials. It reads nothing
// but its arguments.
//
// Variables for a proxy come in both cases because clients differ in which they read. Variables for certificates come
// in two kinds: those that replace the program's own store get the bundle (the system's roots and ours), those that add
// to it get our CA alone.
func Environment(e Enrolment, base []string, f Files) (env, report []string) {
	set := map[string]string{}
	if !e.Transparent {
		maps.Copy(set, proxyVariables(e))
	}
	maps.Copy(set, certificateVariables(f))
	vars, order := index(base)
	for _, name := range furtherStores {
		if vars[name] != "" {
			set[name] = f.Bundle
		}
	}
	java := map[string]string{"JAVA_TOOL_OPTIONS": javaOptions(e, f.TrustStore)}
	if f.JavaArguments != "" && !e.Transparent && !e.Relay.IsValid() {
		java["JDK_JAVA_OPTIONS"] = javaWord("-XX:VMOptionsFile=" + f.JavaArguments)
	}
	for name, ours := range java {
		options, _ := withoutJavaOptions(vars[name], ours)
		set[name] = strings.TrimSpace(options + " " + ours)
	}

	why := map[string]string{}
	for _, c := range e.Credentials {
		for _, name := range c.Unset {
			why[name] = "programs would otherwise not use the placeholder for " + c.Grant
		}
	}
	for _, name := range order {
		for _, c := range e.Credentials {
			if host := npmHost(name); host != "" && c.Env[npmFile] != "" && c.at(host) {
				why[name] = "programs would otherwise not use the placeholder for " + c.Grant
			}
		}
	}
	owner := map[string]string{}
	settings := []gitSetting{{"http.proxy", set["HTTPS_PROXY"]}} // git prefers one in its files to the variables; with an empty one it knows none
	for _, c := range e.Credentials {
		git, env := splitGit(c.Env)
		for _, s := range git {
			if _, rule := s.rule(); rule { // is in the file
				if set[gitSystem] = f.GitConfig; !gitFalse(vars[gitNoSystem]) {
					why[gitNoSystem] = "programs would otherwise not use the placeholder for " + c.Grant
				}
				continue
			}
			dir := f.Credentials[c.Grant]
			if strings.HasPrefix(s.value, "!") { // is for a shell
				dir = shellWord(dir)
			}
			settings = append(settings, gitSetting{s.key, inFiles(s.value, dir)})
		}
		for _, name := range slices.Sorted(maps.Keys(env)) {
			if other := owner[name]; other != "" {
				report = append(report, fmt.Sprintf("%s is wanted for %s and for %s: it is set for %s", name, other, c.Grant, c.Grant))
			}
			set[name] = inFiles(env[name], f.Credentials[c.Grant])
			why[name] = "the placeholder for " + c.Grant + " goes there"
			owner[name] = c.Grant
		}
	}
	added := addGit(settings, vars)
	maps.Copy(set, added)

	var changes []string // "removed %s: why", in order
	changed := map[string][]string{}
	beside := false // whether there were hosts to go to without a proxy
	change := func(how, name string) {
		if changed[how] == nil {
			changes = append(changes, how)
		}
		changed[how] = append(changed[how], name)
	}
	for _, name := range order {
		old := vars[name]
		if javaVariable.MatchString(name) {
			var taken []string
			old, taken = withoutJavaOptions(old, java[name])
			for _, option := range taken {
				change("removed %s from "+name+": programs would go around the gate, or not trust it", option)
				beside = beside || strings.HasSuffix(option, "nonProxyHosts")
			}
			if old == "" && old != vars[name] && java[name] == "" {
				continue
			}
		}
		value, ours := set[name]
		reason, unset := why[name]
		beside = beside || ours && strings.EqualFold(name, "no_proxy") && old != value && !loopbackOnly(old)
		_, further := added[name]
		switch {
		case ownVariable(name):
			// The gate's own: the worker token is not for the programs it starts.
		case slices.Contains(e.Proofs, name):
			change("removed %s: programs could prove with it that they are this worker", name)
		case further, ours && (java[name] != "" || name == gitSystem):
			// Added to, not replaced.
		case name == gitCount && gitRefuses(vars):
			// With what is left of it git would not work at all.
		case ours && (old == value || old == ""):
		case ours && unset:
			change("replaced %s: "+reason, name)
		case ours:
			change("replaced %s: programs would go around the gate, or not trust it", name)
		case unset:
			change("removed %s: "+reason, name)
		case leadsAround(name), e.Transparent && commonProxy(name):
			change("removed %s: programs would go around the gate", name)
		case strings.EqualFold(name, "npm_config_ca"): // which npm prefers to a file
			change("removed %s: programs would not trust the gate", name)
		default:
			env = append(env, name+"="+old)
		}
	}
	for _, how := range changes {
		report = append(report, strings.Replace(how, "%s", strings.Join(changed[how], ", "), 1))
	}
	if beside && !e.Transparent && !e.Relay.IsValid() && len(e.Direct) == 0 { // else there is no other way, or they were named
		report = append(report, "hosts that programs went to without a proxy are asked for through the gate: name what is beside this worker with --no-proxy")
	}
	if f.Alone { // programs with roots of their own went there before
		report = append(report, "there are no root certificates here: programs trust the gate's certificates and no others, so that they refuse hosts whose own certificates they see (tunnel); install ca-certificates, or name a file with SSL_CERT_FILE")
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		env = append(env, name+"="+set[name])
	}
	for _, c := range e.Credentials {
		if c.Note != "" {
			report = append(report, oneLine(c.Note))
		}
	}
	return env, report
}

var directName = regexp.MustCompile(`^\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// CheckDirect says what is wrong with Direct; nil when nothing is.
func (e Enrolment) CheckDirect() error {
	for _, entry := range e.Direct {
		if _, err := netip.ParseAddr(entry); err != nil && !directName.MatchString(entry) {
			return fmt.Errorf("%q is no host to reach without the gate: write a name, a suffix of names, or an address, as elasticsearch, .svc.cluster.local or 10.1.2.3", entry)
		}
		name := strings.ToLower(strings.TrimPrefix(entry, "."))
		for _, c := range e.Credentials {
			for _, h := range c.Hosts {
				if host := hostOnly(h); c.at(name) || strings.HasSuffix(host, name) { // Python's requests (2.32) do not look for a dot
					return fmt.Errorf("%s cannot be reached without the gate: programs would go around it for %s, which wants the placeholder for %s", entry, host, c.Grant)
				}
			}
		}
	}
	return nil
}

// proxy is where the worker's programs send their requests, without the session that a gate wants to know of.
func (e Enrolment) proxy() *url.URL {
	if e.Relay.IsValid() {
		return &url.URL{Scheme: "http", Host: e.Relay.String()}
	}
	return &url.URL{Scheme: e.Gate.Scheme, Host: e.Gate.Host}
}

// ProxyURL is the proxy with the session's user and password in it.
func (e Enrolment) ProxyURL() string {
	proxy := e.proxy()
	if !e.Relay.IsValid() {
		proxy.User = url.UserPassword(e.Session.ID, e.Password.Reveal())
	}
	return proxy.String()
}

func proxyVariables(e Enrolment) map[string]string {
	proxy := e.ProxyURL()
	// Plain host names and addresses, separated by commas: the only form that every client reads alike. Servers say that they listen at 0.0.0.0, and are asked there.
	direct := strings.Join(append([]string{"localhost,127.0.0.1,::1,0.0.0.0"}, e.Direct...), ",")
	set := map[string]string{
		"NO_PROXY": direct, "no_proxy": direct,
		"NODE_USE_ENV_PROXY": "1", // Node 22.21, 24 and later read proxy variables only with it
	}
	for _, name := range []string{"HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"} {
		set[name], set[strings.ToLower(name)] = proxy, proxy
	}
	// These programs prefer what their files say to the common variables, and their own variables to that.
	set["npm_config_proxy"], set["npm_config_https_proxy"], set["npm_config_noproxy"] = proxy, proxy, direct
	set["CARGO_HTTP_PROXY"] = proxy
	set["YARN_HTTP_PROXY"], set["YARN_HTTPS_PROXY"] = proxy, proxy // Yarn 2 and later reads no others
	set["GIT_HTTP_PROXY_AUTHMETHOD"] = "basic"                     // not the NTLM or Negotiate of another proxy
	return set
}

// Variables that name a file of certificates.
var (
	// Whoever has one of these knows nothing but the file.
	replacingStores = []string{
		"SSL_CERT_FILE", // OpenSSL, Go, curl, and Rust programs
		"CURL_CA_BUNDLE",
		"REQUESTS_CA_BUNDLE",
		"PIP_CERT",
		"GIT_SSL_CAINFO",
		"GIT_PROXY_SSL_CAINFO", // of a gate over TLS
		"CARGO_HTTP_CAINFO",
		"npm_config_cafile",
		"CODEX_CA_CERTIFICATE", // its WebSockets do not read SSL_CERT_FILE
		"AWS_CA_BUNDLE",
		"NIX_SSL_CERT_FILE", // programs of Nix prefer it to SSL_CERT_FILE
		"HTTPLIB2_CA_CERTS", // of Google's older Python client, which reads no other
		"CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
		"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
	}
	// Whoever has one of these adds the file to a store of its own.
	addingStores = []string{"NODE_EXTRA_CA_CERTS", "DENO_CERT"}
	// Programs that read one of these go without it by those above, or by what the machine trusts: it is replaced where somebody has set it.
	furtherStores = []string{
		"NPM_CONFIG_CAFILE",  // which is npm_config_cafile to npm
		"BUNDLE_SSL_CA_CERT", // Ruby's Bundler
		"COMPOSER_CAFILE",
		"HEX_CACERTS_PATH",        // Elixir's Hex
		"JULIA_SSL_CA_ROOTS_PATH", // Julia's Pkg
		"PERL_LWP_SSL_CA_FILE",
		"HTTPS_CA_FILE",              // the same, earlier
		"WEBSOCKET_CLIENT_CA_BUNDLE", // Python's websocket-client
		"YARN_HTTPS_CA_FILE_PATH",
		"YARN_CA_FILE_PATH", // the same, Yarn 2
		"CONDA_SSL_VERIFY",
	}
)

func certificateVariables(f Files) map[string]string {
	set := map[string]string{
		"WGETRC":              f.WgetRC,
		"GIT_TERMINAL_PROMPT": "0", // git asks a person for a password when a placeholder is refused
	}
	for _, name := range replacingStores {
		set[name] = f.Bundle
	}
	for _, name := range addingStores {
		set[name] = f.CA
	}
	return set
}

// javaArguments is a file of options that Java's machine reads (Java 9), by JDK_JAVA_OPTIONS: java prints that variable as it begins, and JAVA_TOOL_OPTIONS too,
// so that a password may stand in neither; nor in a file of arguments, since where java starts itself anew (musl) these are its command line then. No
// property has java itself log in at a proxy, but build tools and HTTP clients read those that stand there.
const javaArguments = "java-proxy.options"

// javaOptions are those that lead Java to the gate, and have it trust it.
func javaOptions(e Enrolment, trustStore string) string {
	proxy := e.proxy()
	port := proxy.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[proxy.Scheme]
	}
	var options []string
	if !e.Transparent && !e.Relay.IsValid() {
		options = []string{"-Djdk.http.auth.tunneling.disabledSchemes="} // else Java gives no proxy a password on the way to a TLS host
	}
	if !e.Transparent {
		options = append(options,
			"-Dhttps.proxyHost="+proxy.Hostname(), "-Dhttps.proxyPort="+port,
			"-Dhttp.proxyHost="+proxy.Hostname(), "-Dhttp.proxyPort="+port,
		)
		if len(e.Direct) > 0 { // which replaces what Java knows of this machine
			hosts := []string{"localhost", "127.*", "[::1]", "0.0.0.0", "[::0]"}
			for _, h := range e.Direct {
				switch {
				case strings.HasPrefix(h, "."):
					h = "*" + h
				case strings.Contains(h, ":"):
					h = "[" + h + "]"
				}
				hosts = append(hosts, h)
			}
			options = append(options, "-Dhttp.nonProxyHosts="+strings.Join(hosts, "|"))
		}
	}
	options = append(options,
		"-Djavax.net.ssl.trustStore="+trustStore,
		"-Djavax.net.ssl.trustStoreType=PKCS12",
		"-Djavax.net.ssl.trustStorePassword="+trustStorePassword,
	)
	for i, o := range options {
		options[i] = javaWord(o)
	}
	return strings.Join(options, " ")
}

// javaWord is s as one word of JAVA_TOOL_OPTIONS, which the JVM splits at white space outside of quotes of either kind.
func javaWord(s string) string {
	if !strings.ContainsAny(s, " \t\n\"'") {
		return s
	}
	return `"` + strings.ReplaceAll(s, `"`, `"'"'"`) + `"`
}

var (
	// javaVariable is a variable with options of Java's. But for JAVA_TOOL_OPTIONS they count before ours.
	javaVariable = regexp.MustCompile(`(?:_OPTS|JAVA(?:_TOOL)?_OPTIONS|^(?:MAVEN|ANT)_ARGS)$`)
	javaWords    = regexp.MustCompile(`(?:[^\s"']|"[^"]*"|'[^']*')+`)
	// javaLeads are those that ours take the place of: a proxy, what goes around it, a trust store.
	javaLeads = regexp.MustCompile(`^["']?-D(https?\.(?:proxy(?:Host|Port|User|Password)|nonProxyHosts)|socksProxy(?:Host|Port)|java\.net\.useSystemProxies|javax\.net\.ssl\.trustStore(?:Type|Password|Provider)?)=`)
)

// javaEarlier names the file of options of some session.
var javaEarlier = regexp.MustCompile(`^["']?-XX:VMOptionsFile=.*/` + regexp.QuoteMeta(javaArguments) + `["']?$`)

// withoutJavaOptions are options without those and without ours, an earlier session's too, and the names of those that were somebody else's.
func withoutJavaOptions(options, ours string) (kept string, taken []string) {
	words, known := javaWords.FindAllString(options, -1), javaWords.FindAllString(ours, -1)
	var rest []string
	for _, word := range words {
		name := javaLeads.FindStringSubmatch(word)
		switch {
		case slices.Contains(known, word), javaEarlier.MatchString(word):
		case name == nil:
			rest = append(rest, word)
		case !slices.Contains(taken, "-D"+name[1]):
			taken = append(taken, "-D"+name[1])
		}
	}
	if len(rest) == len(words) {
		return options, nil
	}
	return strings.Join(rest, " "), taken
}

// shellWord is s as one word of a shell.
func shellWord(s string) string {
	if s != "" && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-/{}") == "" {
		return s
	}
	return ShellQuoted(s)
}

// ShellQuoted is s as one word of a shell, quoted in any case.
func ShellQuoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// ownVariable reports whether a variable belongs to this program rather than to those it starts.
func ownVariable(name string) bool { return strings.HasPrefix(name, "WAYLEAVE_") }

// npmFile names the .npmrc that holds a placeholder.
const npmFile = "NPM_CONFIG_USERCONFIG"

// npmHost is the registry that a variable says of how to log in there, as npm_config_//npm.example.com/:_authToken; empty: none.
func npmHost(name string) string {
	at, about := strings.CutPrefix(strings.ToLower(name), "npm_config_//")
	if !about {
		return ""
	}
	return at[:strings.IndexAny(at+"/", ":/")]
}

// commonProxy reports whether a variable names a proxy for many programs.
func commonProxy(name string) bool {
	switch strings.ToLower(name) {
	case "https_proxy", "http_proxy", "all_proxy":
		return true
	}
	return false
}

// leadsAround reports whether a variable names a proxy for one program that it prefers to the common variables.
func leadsAround(name string) bool {
	switch strings.ToLower(name) {
	case "npm_config_proxy", "npm_config_https_proxy", "npm_config_noproxy", "npm_config_https-proxy",
		"socks_proxy", "ws_proxy", "wss_proxy", // of Python's websockets
		"pip_proxy", "cargo_http_proxy", "grpc_proxy", "no_grpc_proxy",
		"openai_proxy", "anthropic_proxy", // of LangChain
		"yarn_http_proxy", "yarn_https_proxy", "cloudsdk_proxy_type", "cloudsdk_proxy_address", "cloudsdk_proxy_port",
		"conda_proxy_servers__http", "conda_proxy_servers__https",
		"global_agent_http_proxy", "global_agent_https_proxy", "global_agent_no_proxy": // of Node's global-agent
		return true
	}
	return false
}

// index splits an environment. Of a variable given twice the last counts, as os/exec has it; order is that of the first.
func index(env []string) (vars map[string]string, order []string) {
	vars = map[string]string{}
	for _, kv := range env {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			continue
		}
		if _, seen := vars[name]; !seen {
			order = append(order, name)
		}
		vars[name] = value
	}
	return vars, order
}
