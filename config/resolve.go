package config

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"wayleave/provider"
)

// This file answers what the wiring asks of a valid configuration. The routes themselves need no answer: Config.Routes
// has every default filled in.

// ProviderOf returns the provider of a grant: its preset with the overrides of the file, and its client secret after
// LoadSecrets. It reports false for a grant that does not exist.
func (c *Config) ProviderOf(grant string) (provider.Provider, bool) {
	g, ok := c.Grants[grant]
	if !ok {
		return provider.Provider{}, false
	}
	p, ok := c.Providers[g.Provider]
	return p.Provider, ok
}

// RequestedScopes returns the scopes a grant asks for: those written in the file, or those its provider asks for by default.
func (c *Config) RequestedScopes(grant string) []string { return c.Grants[grant].Scopes }

// Addresses returns where Envoy listens, as ip:port.
func (l Listen) Addresses() []string {
	return slices.DeleteFunc([]string{l.Proxy, l.ProxyTLS, l.Transparent}, func(a string) bool { return a == "" })
}

// Sources returns the networks of each worker that has addresses, by name.
func (c *Config) Sources() map[string][]netip.Prefix {
	sources := map[string][]netip.Prefix{}
	for name, w := range c.Workers {
		for _, a := range w.Addresses {
			if p, err := parseSource(a); err == nil {
				sources[name] = append(sources[name], p)
			}
		}
	}
	return sources
}

// InterceptHosts returns the DNS names, without ports, whose TLS the gate terminates: sorted, each once.
// They may start with "*.".
func (c *Config) InterceptHosts() []string {
	names := map[string]bool{}
	for _, r := range c.Routes {
		for _, pattern := range r.Hosts {
			name, _ := SplitHost(pattern)
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// CertifiedHosts returns the names the gate makes certificates for: those it intercepts, those it answers for, and its own.
func (c *Config) CertifiedHosts() []string {
	return slices.Concat(c.InterceptHosts(), c.AnsweredHosts(), c.Listen.TLSNames)
}

// Ports returns the ports that hosts of the configuration have, sorted, each once: those where workers speak TLS or what they
// like, and those where they speak HTTP without it.
func (c *Config) Ports() (tls, plain []uint16) {
	collect := func(patterns []string) (ports []uint16) {
		for _, pattern := range patterns {
			_, port := SplitHost(pattern)
			if p, err := strconv.ParseUint(port, 10, 16); err == nil {
				ports = append(ports, uint16(p))
			}
		}
		return ports
	}
	for _, r := range c.Routes {
		tls = append(tls, collect(r.Hosts)...)
	}
	tls, plain = append(tls, collect(c.Tunnel)...), collect(c.Plain)
	slices.Sort(tls)
	slices.Sort(plain)
	return slices.Compact(tls), slices.Compact(plain)
}

// AnsweredHosts returns the names for which the gate answers by itself, since clients of some profile refresh there, and
// which no route has: sorted, each once.
func (c *Config) AnsweredHosts() []string {
	routed := c.InterceptHosts()
	names := map[string]bool{}
	for _, p := range c.Profiles {
		if p.TokenEndpoint != StandIn {
			continue
		}
		for _, g := range p.Grants {
			for _, e := range c.Providers[c.Grants[g].Provider].TokenEndpoints() {
				host, _, _ := strings.Cut(e, "/")
				if what, _ := hostProblem(host, 2); what == "" && !slices.Contains(routed, host) {
					names[host] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// CredentialHeaders returns the headers any route reads a credential from or writes one to: lower case, sorted, each once.
func (c *Config) CredentialHeaders() []string {
	names := map[string]bool{}
	for _, r := range c.Routes {
		names[r.Header.In], names[r.Header.Out] = true, true
	}
	return slices.Sorted(maps.Keys(names))
}

// RefusedEndpoints returns what workers never reach because the providers in use give out tokens there, as host or
// host/path prefix: sorted, each once.
func (c *Config) RefusedEndpoints() []string {
	endpoints := map[string]bool{}
	for _, g := range c.Grants {
		for _, e := range c.Providers[g.Provider].Refused() {
			endpoints[e] = true
		}
	}
	return slices.Sorted(maps.Keys(endpoints))
}

// EnvMode returns the mode in which workers of a profile get the placeholder of a grant, for provider.Provider.Render.
// It is the profile's claude_code where the grant's provider has that mode, and the provider's own default elsewhere.
func (c *Config) EnvMode(profile, grant string) string {
	p, mode := c.Providers[c.Grants[grant].Provider], c.Profiles[profile].ClaudeCode
	if _, ok := p.EnvModes[mode]; ok {
		return mode
	}
	return p.DefaultMode
}

// HostFault is what others find wrong with a host of the configuration, as a fault of the file.
func (c *Config) HostFault(host, what, fix string) Fault {
	path := c.pathOf(host)
	at := c.doc.find(path)
	return Fault{File: c.doc.file, Line: at.line, Column: at.column, Key: path, What: what, Fix: fix}
}

// pathOf is the key path of a host; "" when the file does not name it.
func (c *Config) pathOf(host string) string {
	for i, r := range c.Routes {
		if j := slices.Index(r.Hosts, host); j >= 0 {
			return item(item("routes", i)+".hosts", j)
		}
	}
	if i := slices.Index(c.Tunnel, host); i >= 0 {
		return item("tunnel", i)
	}
	if i := slices.Index(c.Plain, host); i >= 0 {
		return item("plain", i)
	}
	return ""
}
