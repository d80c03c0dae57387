package xds

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// host is one configured destination: a name or wildcard, and a port.
type host struct {
	name string // lower-case DNS name, or "*." and one
	port uint16
}

// domains are the values of the Host header and :authority that mean h, in Envoy's virtual host syntax.
func (h host) domains() []string {
	withPort := h.name + ":" + strconv.Itoa(int(h.port))
	if h.port == 443 {
		return []string{h.name, withPort}
	}
	return []string{withPort}
}

// parseHosts parses hosts as Config.Tunnel describes them and returns them sorted, each once.
func parseHosts(list []string) ([]host, error) {
	var out []host
	var faults []error
	for _, s := range list {
		h, err := parseHost(s)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b host) int {
		return compare(strings.Compare(a.name, b.name), int(a.port)-int(b.port))
	})
	return slices.Compact(out), errors.Join(faults...)
}

func compare(first, second int) int {
	if first != 0 {
		return first
	}
	return second
}

func parseHost(s string) (host, error) {
	h := host{name: s, port: 443}
	if name, port, ok := strings.Cut(s, ":"); ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return host{}, fmt.Errorf("host %q has no port from 1 to 65535 after the colon", s)
		}
		h = host{name: name, port: uint16(n)}
	}
	if _, err := netip.ParseAddr(h.name); err == nil {
		return host{}, fmt.Errorf("host %q is an address: TLS chooses by name", s)
	}
	if !isHostName(strings.TrimPrefix(h.name, "*.")) {
		return host{}, fmt.Errorf("host %q is neither a lower-case DNS name nor *.suffix", s)
	}
	return h, nil
}

// isHostName reports whether s is a lower-case host name: letters, digits, hyphens and (because such names exist)
// underscores, in dot-separated labels (RFC 1123 section 2.1). A name whose last label is a number is an address.
func isHostName(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
		last = label
	}
	_, err := strconv.ParseUint(last, 0, 64)
	return err != nil
}

// oneChainPerName reports the names that more than one filter chain would have to serve. The chain is chosen by
// the server name in the ClientHello alone, which has no port.
func oneChainPerName(routes []plannedRoute, tunnel []host) error {
	var faults []error
	type owner struct{ chain, what string }
	chains := map[string]owner{}
	claim := func(name, chain, what string) {
		first, taken := chains[name]
		if !taken {
			chains[name] = owner{chain, what}
		} else if first.chain != chain {
			faults = append(faults, fmt.Errorf("host %q is in %s and in %s, which treat its TLS differently: a connection is told apart by its name only", name, first.what, what))
		}
	}
	destinations := map[host]string{}
	for _, r := range routes {
		for _, h := range r.hosts {
			claim(h.name, interceptChainName(r.alpn), fmt.Sprintf("route %q", r.name))
			if other, taken := destinations[h]; taken {
				faults = append(faults, fmt.Errorf("host %q port %d is in route %q and in route %q", h.name, h.port, other, r.name))
			}
			destinations[h] = r.name
		}
	}
	for _, h := range tunnel {
		claim(h.name, tunnelChainName(h.port), fmt.Sprintf("the tunnel of port %d", h.port))
	}
	return errors.Join(faults...)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
