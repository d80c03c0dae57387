package xds

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
)

// A fault of one host, or of one route, takes out that host or the hosts of that route, and the rest is served. What is taken
// out is fenced: its name is refused, or a wildcard for another treatment would take it in. So a host is taken out only
// when its name can be told; every other fault refuses the whole.

// Quarantined is a fault and what it took out.
type Quarantined struct {
	// Hosts are refused, as Config.Tunnel has them: also where another route, tunnel or wildcard has them too.
	Hosts []string
	// Fault says what is wrong, and with which route.
	Fault error
}

// quarantine is what has been taken out so far.
type quarantine struct {
	list   []Quarantined
	fenced map[host]bool
	whole  []error // faults of hosts that cannot be fenced
}

func (q *quarantine) add(fault error, hosts []host) {
	one := Quarantined{Fault: fault}
	for _, h := range hosts {
		q.fenced[h] = true
		one.Hosts = append(one.Hosts, h.String())
	}
	q.list = append(q.list, one)
}

// parse reads the hosts of a list, without those it takes out.
func (q *quarantine) parse(list []string, where string) []host {
	hosts, unread := parseHosts(list)
	for _, u := range unread {
		fault := fmt.Errorf("%s: %w", where, u.err)
		if meant, ok := intended(u.text); ok {
			q.add(fault, []host{meant})
		} else {
			q.whole = append(q.whole, fault)
		}
	}
	return hosts
}

// intended is the host that somebody who wrote s would connect to, if that can be told.
func intended(s string) (host, bool) {
	name, port, _ := strings.Cut(strings.ToLower(s), ":")
	name = strings.TrimSuffix(name, ".")
	h, err := parseHost(name + ":" + port)
	if err != nil {
		h, err = parseHost(name)
	}
	return h, err == nil
}

// routes plans the routes that have no fault of their own, by name. Of routes that share a name there is none: nobody can
// know which of them is meant.
func (q *quarantine) routes(list []Route, dns dnsSettings) []plannedRoute {
	times := map[string]int{}
	for _, r := range list {
		times[r.Name]++
	}
	var out []plannedRoute
	for _, r := range list {
		where := fmt.Sprintf("route %q", r.Name)
		p, err := r.plan()
		p.hosts = q.parse(r.Hosts, where)
		switch {
		case err == nil && times[r.Name] > 1:
			err = errors.New("the name is used twice: name one of them differently")
		case err == nil && len(r.Hosts) == 0:
			err = errors.New("it has no hosts: list them")
		case err == nil && len(p.hosts) > 0:
			err = valid(appendMessages([]proto.Message{p.virtualHost()}, p.clusters(dns, secretUpstreamCA, nil)))
		}
		if err != nil {
			q.add(fmt.Errorf("%s: %w", where, err), p.hosts)
			continue
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b plannedRoute) int { return strings.Compare(a.name, b.name) })
	return out
}

// valid checks what Envoy's API says of its messages. Envoy refuses all routes together for a fault in one.
func valid(messages []proto.Message) error {
	for _, m := range messages {
		if v, ok := m.(interface{ ValidateAll() error }); ok {
			if err := v.ValidateAll(); err != nil {
				return fmt.Errorf("Envoy would refuse it: %w", err) //nolint:staticcheck,revive // a name
			}
		}
	}
	return nil
}

// shared takes out the hosts that more than one treatment claims: nobody can know which of them is meant.
func (q *quarantine) shared(routes []plannedRoute, tunnel []host) {
	type claim struct {
		chain, where string
		host         host
	}
	claims := map[string][]claim{} // by name: a connection is told apart by its server name alone, which has no port
	for _, r := range routes {
		for _, h := range r.hosts {
			claims[h.name] = append(claims[h.name], claim{interceptChainName(r.alpn), fmt.Sprintf("route %q", r.name), h})
		}
	}
	for _, h := range tunnel {
		claims[h.name] = append(claims[h.name], claim{tunnelChainName(h.port), fmt.Sprintf("the tunnel of port %d", h.port), h})
	}
	for name, of := range claims {
		first := of[0]
		if i := slices.IndexFunc(of, func(c claim) bool { return c.chain != first.chain }); i > 0 {
			var hosts []host
			for _, c := range of {
				hosts = append(hosts, c.host)
			}
			q.add(fmt.Errorf("host %q is in %s and in %s, which treat its TLS differently: a connection is told apart by its name only, so keep one", name, first.where, of[i].where), unique(hosts))
			continue
		}
		for i, c := range of {
			if j := slices.IndexFunc(of[:i], func(d claim) bool { return d.host == c.host }); j >= 0 {
				q.add(fmt.Errorf("host %q port %d is in %s and in %s: keep one", name, c.host.port, of[j].where, c.where), []host{c.host})
			}
		}
	}
}

// without returns the hosts that are not fenced.
func (q *quarantine) without(hosts []host) []host {
	return slices.DeleteFunc(hosts, func(h host) bool { return q.fenced[h] })
}

// seal takes what is fenced out of p.
func (q *quarantine) seal(p *plan) {
	for i := range p.routes {
		p.routes[i].hosts = q.without(p.routes[i].hosts)
	}
	p.routes = slices.DeleteFunc(p.routes, func(r plannedRoute) bool { return len(r.hosts) == 0 })
	p.tunnel, p.plain = q.without(p.tunnel), q.without(p.plain)

	for h := range q.fenced {
		p.fenced = append(p.fenced, h)
	}
	p.fenced = unique(p.fenced)
	p.quarantined = q.list
	slices.SortFunc(p.quarantined, func(a, b Quarantined) int {
		return cmp.Or(slices.Compare(a.Hosts, b.Hosts), strings.Compare(a.Fault.Error(), b.Fault.Error()))
	})
}

// served counts the hosts that are reached.
func (p plan) served() int {
	n := len(p.tunnel) + len(p.plain)
	for _, r := range p.routes {
		if !r.answered {
			n += len(r.hosts)
		}
	}
	return n
}

// fencedNames are the names whose TLS ends nowhere: those of fenced hosts that are not served at another port.
func fencedNames(p plan) []string {
	served := map[string]bool{}
	for _, name := range slices.Concat(p.serverNames()) {
		served[name] = true
	}
	var names []string
	for _, h := range p.fenced {
		if !served[h.name] {
			names = append(names, h.name)
		}
	}
	return slices.Compact(names)
}
