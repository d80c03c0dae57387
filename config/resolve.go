package config

import (
	"maps"
	"net/http"
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

// A LocalAnswer is one that the gate gives by itself, and the grant whose placeholder may be in it.
type LocalAnswer struct {
	Grant string
	provider.Answer
}

// Answers returns what the gate answers by itself for workers of a profile: what clients of its grants ask before they begin, and, where
// the profile wants that, their refreshes.
func (c *Config) Answers(profile string) []LocalAnswer {
	p := c.Profiles[profile]
	var list []LocalAnswer
	for _, g := range p.Grants {
		of := c.Providers[c.Grants[g].Provider]
		for _, a := range of.Answers(c.EnvMode(profile, g)) {
			list = append(list, LocalAnswer{g, a})
		}
		if p.TokenEndpoint != StandIn {
			continue
		}
		for _, e := range of.TokenEndpoints() {
			host, path, _ := strings.Cut(e, "/")
			list = append(list, LocalAnswer{g, provider.Answer{Host: host, Path: "/" + path, Method: http.MethodPost, Token: true}})
		}
	}
	return list
}

// AnsweredHosts returns the names for which the gate answers by itself and which no route has: sorted, each once.
func (c *Config) AnsweredHosts() []string {
	intercepted := c.InterceptHosts()
	routed := func(name string) bool {
		return slices.ContainsFunc(intercepted, func(pattern string) bool { return Covers(pattern, name) })
	}
	names := map[string]bool{}
	for name := range c.Profiles {
		for _, a := range c.Answers(name) {
			if what, _ := hostProblem(a.Host, 2); what == "" && !routed(a.Host) {
				names[a.Host] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// HostsOf returns the hosts of the routes of a grant as they are written there: sorted, each once.
func (c *Config) HostsOf(grant string) []string {
	var hosts []string
	for _, r := range c.Routes {
		if r.Grant == grant {
			hosts = append(hosts, r.Hosts...)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// HostOf returns the first host of the routes of a grant that is a name and no pattern, with its port unless that is 443; "" when there is none.
func (c *Config) HostOf(grant string) string {
	for _, r := range c.Routes {
		for _, h := range r.Hosts {
			if r.Grant == grant && !strings.HasPrefix(h, "*.") {
				return strings.TrimSuffix(h, ":443")
			}
		}
	}
	return ""
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
// It is that of the profile's modes, else its claude_code where the grant's provider has that mode, and else the provider's own default.
func (c *Config) EnvMode(profile, grant string) string {
	if mode := c.Profiles[profile].Modes[grant]; mode != "" {
		return mode
	}
	p, mode := c.Providers[c.Grants[grant].Provider], c.Profiles[profile].ClaudeCode
	if _, ok := p.EnvModes[mode]; ok {
		return mode
	}
	return p.DefaultMode
}

// HostFault is what others find wrong with a host of the configuration, as a fault of the file.
func (c *Config) HostFault(host, what, fix string) Fault {
	return c.faultAt(c.pathOf(host), what, fix)
}

// faultAt is a fault of what the file has at path.
func (c *Config) faultAt(path, what, fix string) Fault {
	at := c.doc.find(path)
	return Fault{File: c.doc.of(path).file, Line: at.line, Column: at.column, Key: path, What: what, Fix: fix}
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
