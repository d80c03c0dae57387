package worker

import (
	"cmp"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Preference is what a program has in a file of its own and prefers to its environment: with it, it goes around the gate or uses something else
// than a placeholder, and says nothing of it.
type Preference struct {
	// File is where it stands, Has what stands there: names of keys and hosts, never a value.
	File, Has string
	// Means is what comes of it; follows "which".
	Means string
	// Countered is what the environment of a worker does about it; empty: nothing can be done there.
	Countered string
	// Fix is what a person does about it; empty: takes it out of the file.
	Fix string
}

func (p Preference) String() string {
	return fmt.Sprintf("%s has %s, which %s: %s", p.File, p.Has, p.Means, cmp.Or(p.Countered, p.ToDo()))
}

// ToDo is what a person does about it.
func (p Preference) ToDo() string { return cmp.Or(p.Fix, "take that out of the file") }

// Machine is where a program starts.
type Machine struct {
	// Dir is its directory, absolute; empty: not known.
	Dir string
	// Files are those of the machine, from / on.
	Files fs.FS
	// Git is what git prints when it starts with an environment in Dir.
	Git func(env []string, args ...string) ([]byte, error)
	// Listens reports whether a program listens at a unix socket; nil: none does.
	Listens func(socket string) bool
	// Keychain reports whether macOS keeps a secret by this name for the user; nil: there is no such thing.
	Keychain func(service string) bool
}

// Preferences looks for what programs would prefer to an environment that [Environment] made. What it can counter it does in the environment that it
// returns.
func Preferences(env []string, credentials []Credential, m Machine) ([]string, []Preference) {
	vars, _ := index(env)
	found := slices.Concat(m.claudeCode(vars, credentials), m.claudeCodeLogIn(vars, credentials), m.codex(vars, credentials))
	more := map[string]string{}
	found = append(found, m.opencode(vars, credentials)...)
	found = append(found, m.gemini(vars, credentials)...)
	found = append(found, m.mcpServers(vars, credentials)...)
	found = append(found, m.npm(credentials)...)
	found = append(found, m.dotenv(vars, credentials)...)
	for _, p := range []func(map[string]string, []Credential, map[string]string) []Preference{m.netrc, m.proxies} {
		found = append(found, p(vars, credentials, more)...)
	}
	found = append(found, m.java(vars)...)
	found = append(found, m.git(env, credentials)...)
	sandboxed, without := m.sandbox(vars, credentials)
	found = append(found, sandboxed...)
	for i := range found {
		found[i].File, found[i].Has, found[i].Means = plainText(found[i].File), plainText(found[i].Has), plainText(found[i].Means)
	}
	if len(more) == 0 && len(without) == 0 {
		return env, found
	}
	env = slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return more[name] != "" || slices.Contains(without, name)
	})
	for _, name := range slices.Sorted(maps.Keys(more)) {
		env = append(env, name+"="+more[name])
	}
	return env, found
}

// plainText is a text of which a terminal, or whoever reads a job's log for commands, makes nothing else: names in files are anybody's.
func plainText(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

const longestFile = 16 << 20 // of a program's settings

// read returns what an absolute path holds, nil when it cannot be read or is no file of settings.
func (m Machine) read(path string) []byte {
	name := strings.TrimPrefix(filepath.ToSlash(filepath.Clean(path)), "/")
	info, err := fs.Stat(m.Files, name)
	if err != nil || !info.Mode().IsRegular() || info.Size() > longestFile {
		return nil
	}
	text, err := fs.ReadFile(m.Files, name)
	if err != nil {
		return nil
	}
	return text
}

// repository is the directory above ours, or ours, that git has its files in; empty: none has.
func (m Machine) repository() string {
	for dir := filepath.Clean(m.Dir); ; dir = filepath.Dir(dir) {
		if _, err := fs.Stat(m.Files, strings.TrimPrefix(filepath.ToSlash(filepath.Join(dir, ".git")), "/")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
}

// project are the directories of a project that agents look for settings in: that of its repository, if there is one above ours, and ours.
func (m Machine) project() (dirs []string) {
	if m.Dir == "" {
		return nil
	}
	if root := m.repository(); root != m.Dir && root != "" {
		dirs = append(dirs, root)
	}
	return append(dirs, m.Dir)
}

// npmLogIn is a line of an .npmrc that says how to log in at a registry.
var npmLogIn = regexp.MustCompile(`(?m)^[ \t]*//([^/:\s=]+)\S*:(_authToken|_auth|_password)[ \t]*=[ \t]*(\S+)`)

// npm is the project's .npmrc, which npm prefers to the file that NPM_CONFIG_USERCONFIG names.
func (m Machine) npm(credentials []Credential) (found []Preference) {
	for dir := m.Dir; dir != ""; dir = filepath.Dir(dir) {
		if m.read(filepath.Join(dir, "package.json")) == nil && dir != filepath.Dir(dir) {
			continue
		}
		path := filepath.Join(dir, ".npmrc")
		for _, line := range npmLogIn.FindAllStringSubmatch(string(m.read(path)), -1) {
			for _, c := range credentials {
				if c.Env[npmFile] != "" && c.at(line[1]) && !strings.Contains(line[3], Marker) {
					found = append(found, Preference{File: path, Has: line[2] + " for " + line[1], Means: "npm prefers to the placeholder for " + c.Grant})
				}
			}
		}
		break
	}
	return found
}

var (
	xmlComment    = regexp.MustCompile(`(?s)<!--.*?-->`)
	mavenProxy    = regexp.MustCompile(`(?s)<proxy>.*?</proxy>`)
	mavenInactive = regexp.MustCompile(`<active>\s*false\s*</active>`)
	mavenGate     = regexp.MustCompile(`<host>\s*\$\{https?\.proxyHost\}\s*</host>`)
	gradleLead    = regexp.MustCompile(`(?m)^[ \t]*systemProp\.((?:https?\.(?:proxyHost|nonProxyHosts)|socksProxyHost|javax\.net\.ssl\.trustStore))[ \t]*[=:][ \t]*\S`)
)

// java are the files of Maven and Gradle, and those of the project with options for Java, all of which count before JAVA_TOOL_OPTIONS.
func (m Machine) java(vars map[string]string) (found []Preference) {
	add := func(path string, has []string, who string) {
		if len(has) > 0 {
			found = append(found, Preference{File: path, Has: strings.Join(slices.Compact(slices.Sorted(slices.Values(has))), ", "), Means: who + " prefers to the way to the gate"})
		}
	}
	settings := filepath.Join(vars["HOME"], ".m2/settings.xml")
	for _, proxy := range mavenProxy.FindAll(xmlComment.ReplaceAll(m.read(settings), nil), -1) {
		if !mavenInactive.Match(proxy) && (!mavenGate.Match(proxy) || !strings.Contains(vars["JDK_JAVA_OPTIONS"], javaArguments)) { // else it is nowhere
			add(settings, []string{"a proxy"}, "Maven")
			break
		}
	}
	gradle := []string{filepath.Join(cmp.Or(vars["GRADLE_USER_HOME"], filepath.Join(vars["HOME"], ".gradle")), "gradle.properties")}
	options := []string{filepath.Join(vars["HOME"], ".mavenrc")}
	if m.Dir != "" {
		root := cmp.Or(m.repository(), m.Dir)
		gradle = append(gradle, filepath.Join(root, "gradle.properties"))
		options = append(options, filepath.Join(root, ".mvn/jvm.config"), filepath.Join(root, ".mvn/maven.config"))
	}
	for _, path := range gradle {
		var has []string
		for _, line := range gradleLead.FindAllStringSubmatch(string(m.read(path)), -1) {
			has = append(has, "systemProp."+line[1])
		}
		add(path, has, "Gradle")
	}
	for _, path := range options {
		_, has := withoutJavaOptions(string(m.read(path)), "")
		add(path, has, "Maven")
	}
	return found
}

// noEntries is where programs read a .netrc without entries.
const noEntries = "/dev/null"

// netrc is the file of log-ins of ftp, which Python's requests and aiohttp, Go and git read too: the first prefers its entries to a header that a
// program sets, and git to its helpers.
func (m Machine) netrc(vars map[string]string, credentials []Credential, more map[string]string) (found []Preference) {
	homes := []string{filepath.Join(vars["HOME"], ".netrc"), filepath.Join(vars["HOME"], "_netrc")}
	paths := homes
	if named := vars["NETRC"]; named != "" {
		if !filepath.IsAbs(named) {
			named = filepath.Join(m.Dir, named)
		}
		paths = []string{named}
	}
	first := func(paths []string) (string, []string) {
		for _, path := range paths {
			if text := m.read(path); text != nil {
				return path, netrcEntries(string(text))
			}
		}
		return "", nil
	}
	path, entries := first(paths)
	for _, c := range credentials {
		if i := slices.IndexFunc(entries, func(machine string) bool { return machine == "" || c.at(machine) }); i >= 0 {
			found = append(found, Preference{
				File: path, Has: entryFor(entries[i]), Means: "programs prefer to the placeholder for " + c.Grant,
				Countered: "NETRC is " + noEntries + " for the worker, so that programs find no entry of that file, for whatever host",
			})
			more["NETRC"] = noEntries
		}
	}
	// git looks at home, whatever NETRC says, before libcurl 8.16. Where it is to ask with an empty name first, it does not look.
	path, entries = first(homes)
	var asks []gitSetting
	for _, c := range credentials {
		for _, base := range gitBases(gitSettings(c.Env)) {
			ask := gitSetting{"http." + base + ".emptyAuth", "true"}
			i := slices.IndexFunc(entries, func(machine string) bool { return machine == "" || strings.HasSuffix(base, "//"+machine+"/") })
			if i < 0 || hasGit(vars, ask) || slices.Contains(asks, ask) {
				continue
			}
			asks = append(asks, ask)
			found = append(found, Preference{
				File: path, Has: entryFor(entries[i]), Means: "git prefers to the placeholder for " + c.Grant,
				Countered: "git is set to ask for a name there (" + ask.key + ")",
			})
		}
	}
	maps.Copy(more, addGit(asks, vars))
	return found
}

func entryFor(machine string) string {
	if machine == "" {
		return "a default entry"
	}
	return "an entry for " + machine
}

// netrcEntries are the machines that a .netrc has, "" for its default.
func netrcEntries(text string) (machines []string) {
	macro, key := false, "" // the key whose value comes next, on whatever line
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if macro = macro && len(words) > 0; macro { // a macro ends with an empty line
			continue
		}
	words:
		for _, word := range words {
			switch {
			case key == "machine":
				machines, key = append(machines, strings.ToLower(strings.Trim(word, `"`))), ""
				continue
			case key != "":
				key = ""
				continue
			case word == "machine", word == "login", word == "user", word == "password", word == "account":
				key = word
				continue
			case word == "default":
				machines = append(machines, "")
				continue
			}
			macro = word == "macdef"
			break words // or a comment
		}
	}
	return machines
}

// hostOnly is a host of a route without its port.
func hostOnly(h string) string {
	if i := strings.LastIndexByte(h, ':'); i > 0 && !strings.HasSuffix(h, "]") {
		return h[:i]
	}
	return h
}

// Names are the hosts of the credential's routes, patterns among them, without ports.
func (c Credential) Names() []string {
	names := make([]string, len(c.Hosts))
	for i, h := range c.Hosts {
		names[i] = hostOnly(h)
	}
	return names
}

// at reports whether the credential is one for a host.
func (c Credential) at(host string) bool {
	return slices.ContainsFunc(c.Hosts, func(h string) bool {
		h = hostOnly(h)
		suffix, pattern := strings.CutPrefix(h, "*")
		return h == host || pattern && strings.HasSuffix(host, suffix)
	})
}

var (
	uvLeads   = regexp.MustCompile(`(?m)^[ \t]*(https?-proxy|no-proxy)[ \t]*=`)
	pipProxy  = regexp.MustCompile(`(?m)^[ \t]*proxy[ \t]*[=:][ \t]*[^ \t\n]`)
	curlLeads = regexp.MustCompile(`(?m)^[ \t]*(?:--)?((?:no|pre)?proxy|proxy-(?:user|ntlm|negotiate|digest|cacert)|socks(?:4a?|5|5-hostname)|cacert)(?:[ \t=:]|$)|^[ \t]*-([xU])`)
)

// proxies are those that programs have in files of their own and prefer to the common variables, where no variable of theirs is always set to the gate.
func (m Machine) proxies(vars map[string]string, _ []Credential, more map[string]string) (found []Preference) {
	gate := vars["HTTPS_PROXY"]
	if gate == "" { // the network leads to it, whatever proxy a program knows
		return nil
	}
	home, config := vars["HOME"], cmp.Or(vars["XDG_CONFIG_HOME"], filepath.Join(vars["HOME"], ".config"))
	for _, path := range []string{
		"/etc/pip.conf", "/etc/xdg/pip/pip.conf", filepath.Join(home, ".pip/pip.conf"), filepath.Join(config, "pip/pip.conf"),
		filepath.Join(vars["VIRTUAL_ENV"], "pip.conf"), vars["PIP_CONFIG_FILE"],
	} {
		if path != "" && vars["PIP_PROXY"] != gate && pipProxy.Match(m.read(path)) {
			found = append(found, Preference{File: path, Has: "proxy", Means: "leads pip around the gate", Countered: "PIP_PROXY is the gate"})
			more["PIP_PROXY"] = gate
		}
	}
	uv := []string{"/etc/uv/uv.toml", filepath.Join(config, "uv/uv.toml")}
	for _, dir := range m.project() {
		uv = append(uv, filepath.Join(dir, "uv.toml"), filepath.Join(dir, "pyproject.toml"))
	}
	if named := vars["UV_CONFIG_FILE"]; filepath.IsAbs(named) { // in place of those
		uv = []string{named}
	}
	for _, path := range uv {
		var has []string
		for _, key := range uvLeads.FindAllStringSubmatch(string(m.read(path)), -1) {
			has = append(has, key[1])
		}
		if len(has) > 0 {
			found = append(found, Preference{File: path, Has: strings.Join(has, ", "), Means: "uv prefers to the way to the gate"})
		}
	}
	for _, dir := range []string{vars["CURL_HOME"], vars["XDG_CONFIG_HOME"], home} {
		path := filepath.Join(dir, ".curlrc")
		var has []string
		for _, key := range curlLeads.FindAllStringSubmatch(string(m.read(path)), -1) {
			has = append(has, cmp.Or(key[1], "-"+key[2]))
		}
		if dir != "" && len(has) > 0 {
			found = append(found, Preference{File: path, Has: strings.Join(has, ", "), Means: "curl prefers to the way to the gate"})
		}
	}
	return found
}

// git are the rules by which git asks elsewhere, and the proxies of single addresses.
func (m Machine) git(env []string, credentials []Credential) (found []Preference) {
	vars, _ := index(env)
	listed, err := m.Git(env, "config", "--null", "--show-origin", "--get-regexp", `^(url\..*\.(push)?insteadof|(http\..*|remote\..*)\.proxy)$`)
	if err != nil { // without git there is none to lead; without a setting of these names it says so with a status
		return nil
	}
	fields := strings.Split(string(listed), "\x00")
	for i := 0; i+1 < len(fields); i += 2 {
		path, inFile := strings.CutPrefix(fields[i], "file:")
		key, value, _ := strings.Cut(fields[i+1], "\n")
		if !inFile || path == vars["GIT_CONFIG_SYSTEM"] {
			continue // of the environment, which is ours
		}
		if !filepath.IsAbs(path) { // the repository's own
			path = filepath.Join(m.Dir, path)
		}
		if gate := vars["HTTPS_PROXY"]; strings.HasSuffix(key, ".proxy") && !strings.HasPrefix(key, "url.") {
			if gate != "" && value != gate {
				found = append(found, Preference{File: path, Has: withoutUser(key), Means: "leads git around the gate"})
			}
			continue
		}
		target := key[len("url."):strings.LastIndexByte(key, '.')]
		for _, c := range credentials {
			rules := gitRules(gitSettings(c.Env))
			for _, base := range slices.Sorted(maps.Keys(rules)) {
				ours := append(rules[base], base)
				longer := func(o string) bool { return strings.HasPrefix(value, o) && value != o }
				shorter := func(o string) bool { return strings.HasPrefix(o, value) }
				leads := func(o string) bool { return strings.HasPrefix(target, o) }
				here := slices.ContainsFunc(rules[base], leads) || strings.HasPrefix(withoutUser(target), base)
				// A longer rule than ours counts, and one that leads a name of its own to where ours would lead back from: rules are followed once.
				leaves := !leads(base) && (slices.ContainsFunc(ours, longer) || here && !slices.ContainsFunc(ours, shorter))
				if leaves {
					found = append(found, Preference{File: path, Has: "url.….insteadOf for " + withoutUser(value), Means: "leads git past the placeholder for " + c.Grant})
				}
			}
		}
	}
	return found
}

var userInfo = regexp.MustCompile(`//[^/]*@`)

// withoutUser is a key or a value of git's without the user and the password that an address in it may have.
func withoutUser(s string) string { return userInfo.ReplaceAllString(s, "//") }
