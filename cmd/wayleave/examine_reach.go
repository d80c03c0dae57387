package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"wayleave/config"
	"wayleave/oauth"
	"wayleave/vault"
	"wayleave/worker"
)

// How long doctor waits for others. It asks them at the same time.
const (
	examineTime = 10 * time.Second
	askAtOnce   = 16
)

// around is what doctor finds around it.
type around struct {
	environ []string
	lookup  func(ctx context.Context, cfg *config.Config, host string) ([]netip.Addr, error)
	http    *http.Client // fit for token endpoints
	now     func() time.Time
	machine worker.Machine
}

func newAround(environ []string) around {
	return around{environ: environ, lookup: lookup, http: oauth.NewHTTPClient(nil), now: time.Now, machine: thisMachine()}
}

// getenv is the last value of a variable, as programs see it.
func (a around) getenv(name string) string {
	for _, kv := range slices.Backward(a.environ) {
		if v, is := strings.CutPrefix(kv, name+"="); is {
			return v
		}
	}
	return ""
}

// lookup asks whom Envoy asks.
func lookup(ctx context.Context, cfg *config.Config, host string) ([]netip.Addr, error) {
	r := &net.Resolver{PreferGo: true}
	if servers := cfg.Upstream.DNSResolvers; len(servers) > 0 {
		r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, servers[0].String())
		}
	}
	return r.LookupNetIP(ctx, "ip", host)
}

// together calls f for each name, some at once, and returns what is found in the order of the names.
func together(names []string, f func(name string) []finding) (out []finding) {
	found := make([][]finding, len(names))
	var all sync.WaitGroup
	places := make(chan struct{}, askAtOnce)
	for i, name := range names {
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			found[i] = f(name)
		})
	}
	all.Wait()
	return slices.Concat(found...)
}

// names are the hosts of the configuration that have a name of their own and are looked up for their address; true: Envoy asks for it, and
// takes no private one. Token endpoints are the gate's to ask.
func names(cfg *config.Config) map[string]bool {
	all := map[string]bool{}
	add := func(host string, envoy bool) {
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		if _, err := netip.ParseAddr(host); err != nil && !strings.HasPrefix(host, "*.") && host != "localhost" && host != "" {
			all[host] = all[host] || envoy
		}
	}
	for _, r := range cfg.Routes {
		if r.ConnectTo != "" {
			add(r.ConnectTo, false) // which may be private: an operator wrote it
			continue
		}
		for _, h := range r.Hosts {
			add(h, true)
		}
	}
	for _, h := range slices.Concat(cfg.Tunnel, cfg.Plain) {
		add(h, true)
	}
	for _, e := range tokenEndpoints(cfg) {
		if u, err := url.Parse(e); err == nil {
			add(u.Host, false)
		}
	}
	return all
}

// examineNames looks names up.
func examineNames(ctx context.Context, cfg *config.Config, a around) []finding {
	const what = "dns"
	hosts := names(cfg)
	if len(hosts) == 0 {
		return nil
	}
	found := together(slices.Sorted(maps.Keys(hosts)), func(host string) []finding {
		addresses, err := a.lookup(ctx, cfg, host)
		var not *net.DNSError
		switch {
		case errors.As(err, &not) && not.IsNotFound:
			return []finding{warn(what, host+" has no address", "correct the name, or remove the host")}
		case err != nil:
			return []finding{warn(what, fmt.Sprintf("%s: %v", host, err), "mend this machine's resolver, or name others in upstream.dns_resolvers")}
		}
		for _, address := range addresses {
			address = address.Unmap()
			inside := address.IsPrivate() || address.IsLoopback() || address.IsLinkLocalUnicast()
			if hosts[host] && inside && !slices.ContainsFunc(cfg.Upstream.AllowPrivate, func(p netip.Prefix) bool { return p.Contains(address) }) {
				return []finding{warn(what, fmt.Sprintf("%s has the private address %v, and requests for it are refused", host, address), "if that is meant, add the address to upstream.allow_private")}
			}
		}
		return nil
	})
	if len(found) == 0 {
		return []finding{good(what, fmt.Sprintf("all %d names of the configuration have an address", len(hosts)))}
	}
	return found
}

// tokenEndpoints are those of the grants.
func tokenEndpoints(cfg *config.Config) []string {
	all := map[string]bool{}
	for name := range cfg.Grants {
		p, _ := cfg.ProviderOf(name)
		for _, endpoint := range []string{p.TokenURL, p.RefreshURL} {
			if endpoint != "" {
				all[endpoint] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// examineEndpoints asks token endpoints anything, without a credential: that they answer is enough.
func examineEndpoints(ctx context.Context, cfg *config.Config, a around) []finding {
	const what = "token endpoint"
	return together(tokenEndpoints(cfg), func(endpoint string) []finding {
		const fix = "open the way there from the gate's machine, past which no proxy leads; until then no grant of it is refreshed"
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, endpoint, nil)
		if err != nil {
			return []finding{fail(what, endpoint+" is no address", "correct token_url")}
		}
		host := req.URL.Host
		req.Header.Set("User-Agent", "wayleave/"+version())
		asked := a.now()
		resp, err := a.http.Do(req)
		var unknown x509.UnknownAuthorityError
		var wrong x509.HostnameError
		switch {
		case errors.As(err, &unknown):
			return []finding{warn(what, host+" has a certificate of an authority that this machine does not know: something on the way answers in its place", "install that authority on this machine if it is yours, or mend the way there")}
		case errors.As(err, &wrong):
			return []finding{warn(what, host+" has a certificate for other names: something on the way answers in its place", "mend the way there, or correct token_url")}
		case err != nil:
			if u, is := errors.AsType[*url.Error](err); is {
				err = u.Err
			}
			return []finding{warn(what, fmt.Sprintf("%s: %v", host, err), fix)}
		}
		_ = resp.Body.Close()
		var out []finding
		if resp.StatusCode >= http.StatusInternalServerError {
			out = append(out, warn(what, fmt.Sprintf("%s answers with status %d", host, resp.StatusCode), "look at the provider's own page on how it is; refreshes are tried again"))
		} else {
			out = append(out, good(what, host+" answers"))
		}
		return append(out, examineClock(host, vault.Skew(resp.Header.Get("Date"), asked, a.now()))...)
	})
}
