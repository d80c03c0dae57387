package provider

import (
	"fmt"
	"maps"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"wayleave/oauth"
)

var (
	variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	template = regexp.MustCompile(`\{[a-z_]+\}`)
)

// Validate returns every fault of p, those of its OAuth part included.
func (p Provider) Validate() []oauth.FieldError {
	faults := p.Config.Validate()
	fault := func(key, format string, args ...any) {
		faults = append(faults, oauth.FieldError{Key: key, Problem: fmt.Sprintf(format, args...)})
	}
	names := func(key string, list []string) {
		for _, name := range list {
			if !variable.MatchString(name) {
				fault(key, "has %q, which is not the name of an environment variable", name)
			}
		}
	}
	templates := func(key string, m map[string]string) {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			for _, t := range template.FindAllString(m[name], -1) {
				if !slices.Contains([]string{"{placeholder}", "{scopes}", "{scopes_json}", "{files}"}, t) {
					fault(key+"."+name, "has %s: known are {placeholder}, {scopes}, {scopes_json} and {files}", t)
				}
			}
		}
	}

	if !isPlain(p.PlaceholderPrefix) {
		fault("placeholder_prefix", "may hold letters, digits and . _ ~ - only")
	}
	names("env", slices.Sorted(maps.Keys(p.Env)))
	templates("env", p.Env)
	names("unset", p.Unset)
	if _, ok := p.EnvModes[p.DefaultMode]; !ok && p.DefaultMode != "" {
		fault("default_mode", "is %q: it must be one of env_modes", p.DefaultMode)
	}
	for _, name := range slices.Sorted(maps.Keys(p.EnvModes)) {
		m, key := p.EnvModes[name], "env_modes."+name
		names(key+".env", slices.Sorted(maps.Keys(m.Env)))
		templates(key+".env", m.Env)
		names(key+".unset", m.Unset)
		templates(key+".files", m.Files)
		for _, file := range slices.Sorted(maps.Keys(m.Files)) {
			if file == "" || path.IsAbs(file) || path.Clean(file) != file || file == ".." || strings.HasPrefix(file, "../") {
				fault(key+".files", "has %q: paths are relative and stay inside", file)
			}
		}
		if strings.ContainsAny(m.Note, "\r\n") {
			fault(key+".note", "must be one line")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.EnsureHeaders)) {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(p.EnsureHeaders[name]) {
			fault("ensure_headers."+name, "is not a valid header")
		}
	}
	for _, prefix := range p.EnsurePaths {
		if !strings.HasPrefix(prefix, "/") {
			fault("ensure_paths", "has %q: a path begins with /", prefix)
		}
	}
	if f := p.ErrorFormat; f != "" && !slices.Contains([]ErrorFormat{FormatAnthropic, FormatOpenAI, FormatGitHub, FormatGeneric}, f) {
		fault("error_format", "is %q: it must be one of anthropic, openai, github, generic", f)
	}
	for _, reason := range slices.Sorted(maps.Keys(p.RefusalStatus)) {
		if s := p.RefusalStatus[reason]; s < 400 || s > 599 {
			fault("refusal_status."+reason, "is %d: a refusal has a status from 400 to 599", s)
		}
	}
	for _, h := range p.RefusedHosts {
		if u, err := url.Parse("https://" + h); err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.ToLower(u.Host) != u.Host || strings.Contains(h, "://") {
			fault("refused_hosts", "has %q: write a lower-case host, or host/path", h)
		}
	}
	for _, proto := range p.ALPN {
		if proto != "h2" && proto != "http/1.1" {
			fault("alpn", "has %q: known are h2 and http/1.1", proto)
		}
	}
	if strings.ContainsFunc(p.BasicUser, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }) {
		fault("basic_user", "may hold visible ASCII without colon only")
	}
	return faults
}

// Refused returns the endpoints that workers never reach through us, as host or host/path: RefusedHosts and the
// provider's own token and revocation endpoints. Sorted, each once.
func (p Provider) Refused() []string {
	list := slices.Clone(p.RefusedHosts)
	for _, endpoint := range []string{p.TokenURL, p.RevokeURL} {
		if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
			list = append(list, strings.ToLower(u.Hostname())+u.EscapedPath())
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
