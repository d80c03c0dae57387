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
	var faults []oauth.FieldError
	switch p.Kind {
	case Static:
		faults = p.oauthPart()
	case OAuth, "":
		faults = p.Config.Validate()
	default:
		faults = []oauth.FieldError{{Key: "kind", Problem: fmt.Sprintf("is %q: it must be oauth or static", p.Kind)}}
	}
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
				if !slices.Contains([]string{"{placeholder}", "{placeholder_end}", "{scopes}", "{scopes_json}", "{host}", "{files}"}, t) {
					fault(key+"."+name, "has %s: known are {placeholder}, {placeholder_end}, {scopes}, {scopes_json}, {host} and {files}", t)
				}
			}
		}
	}

	if !isPlain(p.PlaceholderPrefix) {
		fault("placeholder_prefix", "may hold letters, digits and . _ ~ - only")
	}
	for _, h := range []struct{ key, name string }{{"header.in", p.Header.In}, {"header.also_in", p.Header.AlsoIn}, {"header.out", p.Header.Out}} {
		if h.name != "" && (!httpguts.ValidHeaderFieldName(h.name) || strings.ToLower(h.name) != h.name) {
			fault(h.key, "is not the name of a header in lower case")
		}
	}
	for _, h := range []struct{ key, word string }{{"header.in_scheme", p.Header.InScheme}, {"header.out_scheme", p.Header.OutScheme}} {
		if h.word != "" && !httpguts.ValidHeaderFieldName(h.word) { // a token, as a header's name is (RFC 9110 §11.1)
			fault(h.key, "is not one word")
		}
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
		faults = append(faults, p.answerFaults(key+".answers", m.LocalAnswers)...)
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
	for _, name := range slices.Sorted(maps.Keys(p.RewriteHeaders)) {
		if !httpguts.ValidHeaderFieldName(name) || strings.ToLower(name) != name {
			fault("rewrite_headers."+name, "is not the name of a header in lower case")
		}
		if _, ok := p.Facts[p.RewriteHeaders[name]]; !ok {
			fault("rewrite_headers."+name, "is %q: it must be one of facts", p.RewriteHeaders[name])
		}
	}
	faults = append(faults, p.answerFaults("answers", p.LocalAnswers)...)
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

// oauthPart returns a fault for what a static provider has of an OAuth provider.
func (p Provider) oauthPart() []oauth.FieldError {
	var faults []oauth.FieldError
	for _, f := range []struct {
		key string
		set bool
	}{
		{"grant_type", p.GrantType != ""},
		{"authorize_url", p.AuthorizeURL != ""},
		{"token_url", p.TokenURL != ""},
		{"refresh_url", p.RefreshURL != ""},
		{"revoke_url", p.RevokeURL != ""},
		{"device_url", p.DeviceURL != ""},
		{"issuer", p.Issuer != ""},
		{"client_id", p.ClientID != ""},
		{"auth_style", p.AuthStyle != "" || !p.ClientSecret.IsZero() || p.ClientKey != nil},
		{"scopes", len(p.Scopes) > 0},
	} {
		if f.set {
			faults = append(faults, oauth.FieldError{Key: f.key, Problem: "is of no use with kind static, which has no OAuth part: remove it, or start from preset static"})
		}
	}
	return faults
}

// TokenEndpoints returns those of Refused, as host/path, where clients refresh their tokens: TokenURL, RefreshURL, and those of
// RefusedHosts that have the path of one.
func (p Provider) TokenEndpoints() []string {
	var paths []string
	for _, endpoint := range []string{p.TokenURL, p.RefreshURL} {
		if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
			paths = append(paths, u.EscapedPath())
		}
	}
	return slices.DeleteFunc(p.Refused(), func(e string) bool {
		_, path, _ := strings.Cut(e, "/")
		return !slices.Contains(paths, "/"+path)
	})
}

// Refused returns the endpoints that workers never reach through us, as host or host/path: RefusedHosts and the endpoints
// of the provider where tokens, codes or clients are made or ended. Sorted, each once.
func (p Provider) Refused() []string {
	list := slices.Clone(p.RefusedHosts)
	endpoints := []string{p.TokenURL, p.RefreshURL, p.RevokeURL, p.DeviceURL, p.RegistrationURL}
	if p.DeviceFlow == oauth.DeviceCodex {
		endpoints = append(endpoints, oauth.CodexPollURL(p.DeviceURL))
	}
	for _, endpoint := range endpoints {
		if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
			list = append(list, strings.ToLower(u.Hostname())+u.EscapedPath())
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
