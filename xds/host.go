package xds

import (
	"cmp"
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

// String is h as parseHost reads it.
func (h host) String() string {
	if h.port == 443 {
		return h.name
	}
	return h.name + ":" + strconv.Itoa(int(h.port))
}

// unread is what is no host, and why.
type unread struct {
	text string
	err  error
}

// parseHosts parses hosts as Config.Tunnel describes them and returns them sorted, each once.
func parseHosts(list []string) ([]host, []unread) {
	var out []host
	var not []unread
	for _, s := range list {
		h, err := parseHost(s)
		if err != nil {
			not = append(not, unread{s, err})
			continue
		}
		out = append(out, h)
	}
	return unique(out), not
}

// unique sorts hosts and keeps each once.
func unique(hosts []host) []host {
	slices.SortFunc(hosts, func(a, b host) int { return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.port, b.port)) })
	return slices.Compact(hosts)
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

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
