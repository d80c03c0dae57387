package config

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"wayleave/oauth"
	"wayleave/provider"
)

// This file checks who may use what: grants, profiles, workers, and what nobody uses.

func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (k *checker) grants() {
	declared := slices.Concat(keys(k.Providers), provider.Presets())
	slices.Sort(declared)
	declared = slices.Compact(declared)
	for _, name := range keys(k.Grants) {
		g, path := k.Grants[name], join("grants", name)
		k.name(path, name)
		k.reference(path+".provider", "provider", g.Provider, "providers", declared)
		k.limits(path+".limits", g.Limits)
		of := k.Providers[g.Provider]
		if of.Kind == provider.Static {
			k.ofStatic(path, g)
			continue
		}
		k.scopes(path+".scopes", g.Scopes, of.ScopeSeparator)
		k.exchange(path+".exchange", g, of)
	}
}

// ofStatic checks a grant whose value is imported: nothing of OAuth has a meaning for it.
func (k *checker) ofStatic(path string, g Grant) {
	if len(g.Scopes) > 0 && k.doc.given(path+".scopes") {
		k.fault(path+".scopes", fmt.Sprintf("provider %s is static, and an imported value has no scopes", quote(g.Provider)), "remove it; what the value may do is decided where it was issued")
	}
	if k.doc.given(path + ".exchange") {
		k.fault(path+".exchange", fmt.Sprintf("provider %s is static, and an imported value cannot be exchanged", quote(g.Provider)), "remove it")
	}
}

// exchange checks a token exchange (RFC 8693).
func (k *checker) exchange(path string, g Grant, of Provider) {
	x := g.Exchange
	if !x.Wanted() {
		if k.doc.given(path) && !k.doc.isBrokenWithin(path) {
			k.fault(path, "does not say what the new token is for", "write audience, resource or scopes, as the provider's documentation has it, or remove it")
		}
		return
	}
	k.scopes(path+".scopes", x.Scopes, of.ScopeSeparator)
	for _, s := range oauth.MissingScopes(g.Scopes, x.Scopes) {
		k.fault(item(path+".scopes", slices.Index(x.Scopes, s)), fmt.Sprintf("the grant does not ask for the scope %s, so no exchange can keep it", quote(s)), "add it to the grant's scopes, or remove it here")
	}
	if x.Resource != "" {
		if u, err := url.Parse(x.Resource); err != nil || u.Scheme == "" || u.Host == "" || u.Fragment != "" {
			k.fault(path+".resource", quote(x.Resource)+" is not an absolute address", "write one such as https://api.example.com (RFC 8707 section 2)")
		}
	}
	if x.Actor == ActorWorker && of.ClientKeyFile == "" {
		k.fault(path+".actor", "is worker, and nothing signs who acts", "set "+join("providers", g.Provider)+".client_key_file, or write actor: none")
	}
}

// scopeToken is a scope of RFC 6749 section 3.3.
var scopeToken = regexp.MustCompile(`^[\x21\x23-\x5B\x5D-\x7E]+$`)

// scopes checks a list of scopes; separator is what the provider writes between them, "" for a space.
func (k *checker) scopes(path string, scopes []string, separator string) {
	k.unique(path, scopes)
	for i, s := range scopes {
		switch at := item(path, i); {
		case strings.ContainsAny(s, " ,") && (separator == "" || separator == " "), separator != "" && strings.Contains(s, separator):
			k.fault(at, quote(s)+" is more than one scope", "write each as an item of its own: "+strings.Join(strings.FieldsFunc(s, isScopeSeparator), ", "))
		case !scopeToken.MatchString(s):
			k.fault(at, quote(s)+" is not a scope", "a scope is printable ASCII without space, quote and backslash")
		}
	}
}

func isScopeSeparator(r rune) bool { return r == ' ' || r == ',' }

func (k *checker) profiles() {
	for _, name := range keys(k.Profiles) {
		p, path := k.Profiles[name], join("profiles", name)
		k.name(path, name)
		k.unique(path+".grants", p.Grants)
		for i, g := range p.Grants {
			k.reference(item(path+".grants", i), "grant", g, "grants", keys(k.Grants))
		}
		if p.SessionTTL < time.Minute || p.SessionTTL > 720*time.Hour {
			k.fault(path+".session_ttl", fmt.Sprintf("%s is out of range", p.SessionTTL), "write a duration from 1m to 720h")
		} else if p.MaxSession < p.SessionTTL || p.MaxSession > 2160*time.Hour {
			k.fault(path+".max_session", fmt.Sprintf("%s is out of range", p.MaxSession), "write a duration from session_ttl to 2160h")
		}
		for _, g := range keys(p.Modes) {
			at := join(path+".modes", g)
			switch modes := keys(k.Providers[k.Grants[g].Provider].EnvModes); {
			case !slices.Contains(p.Grants, g):
				k.fault(at, "is of no grant of the profile", "remove it, or add the grant to "+path+".grants")
			case !slices.Contains(modes, p.Modes[g]):
				k.fault(at, fmt.Sprintf("%s is no mode of the grant's provider", quote(p.Modes[g])), "write one of: "+strings.Join(modes, ", "))
			}
		}
		k.answers(name, path, p)
		k.rules(path, p)
		k.limits(path+".limits", p.Limits)
	}
}

// answers checks that the gate can answer by itself where a profile says so: in a tunnel it sees no request.
func (k *checker) answers(name, path string, p Profile) {
	tokens := false
	for _, a := range k.Answers(name) {
		at, remedy := path+".grants", "write answers: [] for its provider"
		if a.Token && p.TokenEndpoint == StandIn {
			at, remedy, tokens = path+".token_endpoint", "write token_endpoint: refuse", true
		}
		for i, pattern := range k.Tunnel {
			if tunnelled, _ := SplitHost(pattern); tunnelled == a.Host {
				k.fault(at, fmt.Sprintf("%s, where the gate answers %s for clients of grant %s, is tunnelled by %s", quote(a.Host), a.Path, quote(a.Grant), item("tunnel", i)), "remove it from tunnel, or "+remedy)
			}
		}
	}
	if p.TokenEndpoint == StandIn && !tokens && len(p.Grants) > 0 && !k.doc.isBrokenWithin(path) {
		k.warn(path+".token_endpoint", "has no effect: no grant of the profile is refreshed by clients", "remove it")
	}
}

// modes warns about placeholders that a profile's workers cannot use as it says.
func (k *checker) modes() {
	for _, name := range keys(k.Profiles) {
		p, path := k.Profiles[name], join("profiles", name)
		owner := map[string]string{} // environment variable to grant
		usesMode := false
		for i, g := range p.Grants {
			of, at := k.Providers[k.Grants[g].Provider], item(path+".grants", i)
			mode := k.EnvMode(name, g)
			usesMode = usesMode || mode == p.ClaudeCode
			if missing := oauth.MissingScopes(k.Grants[g].Scopes, of.EnvModes[mode].NeedsScopes); len(missing) > 0 {
				k.warn(at, fmt.Sprintf("grant %s does not ask for %s, without which clients in mode %s do not work fully", quote(g), strings.Join(missing, ", "), mode),
					"add it to "+join("grants", g)+".scopes")
			}
			for _, variable := range slices.Concat(keys(of.Env), keys(of.EnvModes[mode].Env)) {
				if other := owner[variable]; other != "" && other != g {
					k.warn(at, fmt.Sprintf("grant %s sets %s as grant %s does, and the last one wins", quote(g), variable, quote(other)), "put them in two profiles, or give one of them a provider with other env")
					break
				}
				owner[variable] = g
			}
		}
		if k.doc.given(path+".claude_code") && !usesMode {
			k.warn(path+".claude_code", "has no effect: no grant of the profile is of a provider with such a mode", "remove it, or add the grant")
		}
	}
}

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (k *checker) workers() {
	holder := map[string]string{}
	for _, name := range keys(k.Workers) {
		w, path := k.Workers[name], join("workers", name)
		k.name(path, name)
		k.reference(path+".profile", "profile", w.Profile, "profiles", keys(k.Profiles))
		switch digest := w.TokenSHA256; {
		case digest == "":
		case !hexDigest.MatchString(digest):
			// The value is not shown: it may be the token itself.
			k.fault(path+".token_sha256", "is not 64 lower-case hexadecimal digits", `write what this prints: printf %s "$token" | sha256sum`)
		case w.TokenFile != "":
			k.fault(path+".token_file", "written beside token_sha256", "keep one of the two")
		case holder[digest] != "":
			k.fault(path+".token_sha256", "is the token of worker "+quote(holder[digest])+" too", "give each worker a token of its own")
		default:
			holder[digest] = name
		}
	}
}

// unused warns about what is declared and cannot have an effect.
func (k *checker) unused() {
	routed, allowed := map[string]bool{}, map[string]bool{}
	for _, r := range k.Routes {
		routed[r.Grant] = true
	}
	for _, p := range k.Profiles {
		for _, g := range p.Grants {
			allowed[g] = true
		}
	}
	for _, name := range keys(k.Grants) {
		switch path := join("grants", name); {
		case !routed[name]:
			k.warn(path, "used by no route", "add a route with grant: "+name+", or remove it")
		case !allowed[name]:
			k.warn(path, "in no profile, so that no worker may use it", "add it to profiles.<name>.grants, or remove it")
		}
	}
	for _, name := range keys(k.Providers) {
		path := join("providers", name)
		if k.Providers[name].ClientKeyFile != "" && !k.signs(name) {
			k.warn(path+".client_key_file", "nothing signs with it", "set auth_style: private_key_jwt, grant_type: jwt_bearer or exchange.actor: worker of a grant, or remove it")
		}
		if k.doc.given(path) && !slices.ContainsFunc(slices.Collect(maps.Values(k.Grants)), func(g Grant) bool { return g.Provider == name }) {
			k.warn(path, "used by no grant", "remove it")
		}
	}
	for _, name := range keys(k.Issuers) {
		if !slices.ContainsFunc(slices.Collect(maps.Values(k.Workers)), func(w Worker) bool { return w.From.Issuer == name }) {
			k.warn(join("issuers", name), "vouches for no worker", "name it in workers.<name>.from, or remove it")
		}
	}
	if k.Listen.ClientCAFile != "" && !slices.ContainsFunc(slices.Collect(maps.Values(k.Workers)), func(w Worker) bool { return w.SPIFFEID != "" }) {
		k.warn("listen.client_ca_file", "no worker has a certificate", "write workers.<name>.spiffe_id, or remove it")
	}
	if len(k.Routes) == 0 {
		k.warn("routes", "there are none, so that no request gets a credential", "add a route")
	}
	if len(k.Workers) == 0 {
		k.warn("workers", "there are none, so that nobody can connect", "add a worker")
	}
}

// signs reports whether anything needs the key of a provider's client.
func (k *checker) signs(name string) bool {
	p := k.Providers[name]
	if p.AuthStyle == oauth.AuthPrivateKeyJWT || p.GrantType == oauth.GrantJWT {
		return true
	}
	return slices.ContainsFunc(slices.Collect(maps.Values(k.Grants)), func(g Grant) bool {
		return g.Provider == name && g.Exchange.Actor == ActorWorker
	})
}
