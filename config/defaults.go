package config

import (
	"maps"
	"slices"
	"strings"
	"time"

	"wayleave/provider"
)

// What a provider starts from when it names no preset and is not called like one.
const (
	genericPreset = "oauth2"
	staticPreset  = "static" // with kind: static
)

// seed makes a provider start from its preset. An unknown preset is left for the checks to report.
func (p *Provider) seed(name string, get func(key string) string) {
	p.Preset = get("preset")
	if p.Preset == "" {
		p.Preset = genericPreset
		if get("kind") == string(provider.Static) {
			p.Preset = staticPreset
		}
		if slices.Contains(provider.Presets(), name) {
			p.Preset = name
		}
	}
	p.Provider, _ = provider.Preset(p.Preset)
}

// applyDefaults fills in everything the file leaves open, so that what is written out and what is left to a default
// cannot be told apart afterwards. given reports whether the file has a value at a key path.
func (c *Config) applyDefaults(given func(path string) bool) {
	fill(&c.Vault.Mount, "wayleave")
	fill(&c.Vault.PKIMount, "wayleave-pki")
	fill(&c.Vault.Auth.Method, "token")
	c.Vault.Auth.applyDefaults()
	fill(&c.Listen.Proxy, "127.0.0.1:3128")
	fill(&c.Envoy.LogLevel, "warning")
	c.Console.applyDefaults(given)
	c.Telemetry.applyDefaults(given)
	c.Notify.applyDefaults(given)
	c.Rollout.applyDefaults(given)
	c.Audit.applyDefaults(given)
	if c.Record.MaxMB == 0 && !given("record.max_mb") {
		c.Record.MaxMB = 100
	}

	c.applyProviderDefaults()
	for i := range c.Routes {
		c.applyRouteDefaults(&c.Routes[i], item("routes", i), given)
	}
	canonicalHosts(c.Tunnel)
	withPlainPort(c.Plain)
	canonicalHosts(c.Deny)
	for name, p := range c.Profiles {
		if p.SessionTTL == 0 && !given(join(join("profiles", name), "session_ttl")) {
			p.SessionTTL = 24 * time.Hour
		}
		if p.MaxSession == 0 && !given(join(join("profiles", name), "max_session")) {
			p.MaxSession = 720 * time.Hour
		}
		fill(&p.ClaudeCode, "auth_token")
		fill(&p.TokenEndpoint, Refuse)
		fill(&p.Default, Allow)
		for i := range p.Rules {
			if hold := item(join(join("profiles", name), "rules"), i) + ".hold"; given(hold) && !given(hold+".for") {
				p.Rules[i].Hold.For = 5 * time.Minute
			}
		}
		p.Limits.applyDefaults()
		c.Profiles[name] = p
	}
	for name, i := range c.Issuers {
		i.applyDefaults()
		c.Issuers[name] = i
	}
	for name, w := range c.Workers {
		w.TokenDigest = w.TokenSHA256
		c.Workers[name] = w
	}
}

// applyProviderDefaults makes an entry of every preset a grant names, and gives grants the scopes of their providers.
func (c *Config) applyProviderDefaults() {
	used := map[string]Provider{}
	for name, g := range c.Grants {
		p, declared := c.Providers[g.Provider]
		if preset, ok := provider.Preset(g.Provider); ok && !declared {
			p = Provider{Preset: g.Provider, Provider: preset}
			used[g.Provider] = p
		}
		if len(g.Scopes) == 0 {
			g.Scopes = slices.Clone(p.Scopes)
		}
		if g.Exchange.Wanted() {
			fill(&g.Exchange.Actor, ActorNone)
		}
		g.Limits.applyDefaults()
		c.Grants[name] = g
	}
	if c.Providers == nil {
		c.Providers = map[string]Provider{}
	}
	maps.Copy(c.Providers, used)
	for name, p := range c.Providers {
		p.Name = name
		c.Providers[name] = p
	}
}

func (c *Console) applyDefaults(given func(string) bool) {
	if !given("console.session_idle") {
		c.SessionIdle = 30 * time.Minute
	}
	if !given("console.session_life") {
		c.SessionLife = 12 * time.Hour
	}
	fill(&c.OIDC.RolesClaim, "groups")
	if len(c.OIDC.Scopes) == 0 && c.OIDC.Issuer != "" {
		c.OIDC.Scopes = []string{"openid", "email", "profile"}
	}
}

func (c *Config) applyRouteDefaults(r *Route, path string, given func(string) bool) {
	canonicalHosts(r.Hosts)
	if r.Name == "" && len(r.Hosts) > 0 {
		r.Name = strings.NewReplacer("*", "any", ":", "-").Replace(r.Hosts[0])
	}
	fill(&r.ForeignBearer, Pass)
	fill(&r.NoCredential, Pass)
	fill(&r.Lane, LaneAuto)
	fill(&r.Response.SetCookie, Remove)
	fill(&r.Response.Challenges, Pass)

	// Each default is the provider's own where the header is the provider's own.
	h, own := &r.Header, c.Providers[c.Grants[r.Grant].Provider].Header
	fill(&own.In, "authorization")
	fill(&own.Out, own.In)
	fill(&h.In, own.In)
	if h.In == own.In && h.AlsoIn == "" {
		h.AlsoIn = own.AlsoIn
	}
	if h.Out == "" && own.Out != own.In {
		h.Out = own.Out
	}
	fill(&h.Out, h.In)
	if !given(path + ".header.in_scheme") {
		h.InScheme = scheme(h.In)
		if h.In == own.In && own.InScheme != "" {
			h.InScheme = own.InScheme
		}
	}
	if !given(path + ".header.out_scheme") {
		switch {
		case h.Out == own.Out && own.OutScheme != "":
			h.OutScheme = own.OutScheme
		case h.Out == h.In:
			h.OutScheme = h.InScheme
		default:
			h.OutScheme = scheme(h.Out)
		}
	}

	if len(r.ALPN) == 0 {
		r.ALPN = slices.Clone(c.Providers[c.Grants[r.Grant].Provider].ALPN)
	}
	if len(r.ALPN) == 0 {
		r.ALPN = []string{"h2", "http/1.1"}
	}
}

// scheme is the usual word before a credential in a header.
func scheme(header string) string {
	if header == "authorization" {
		return "Bearer"
	}
	return ""
}

func fill(s *string, value string) {
	if *s == "" {
		*s = value
	}
}
