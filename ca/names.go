package ca

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// names is the set of host names leaves are minted for.
type names struct {
	exact map[string]bool
	below map[string]bool // "example.com": every name that ends in ".example.com"
}

func parseDomains(domains []string) (names, error) {
	if len(domains) == 0 {
		return names{}, errors.New("no domains to make certificates for: configure a route")
	}
	n := names{exact: map[string]bool{}, below: map[string]bool{}}
	for _, d := range domains {
		suffix, wildcard := strings.CutPrefix(d, "*.")
		if !isHostName(suffix) {
			return names{}, fmt.Errorf("%q is not a domain: use a lower-case host name or *.suffix", d)
		}
		if wildcard {
			n.below[suffix] = true
		} else {
			n.exact[suffix] = true
		}
	}
	return n, nil
}

// allow reports whether host, which anybody may have sent, is a host name in the set.
func (n names) allow(host string) bool {
	if !isHostName(host) {
		return false
	}
	if n.exact[host] {
		return true
	}
	for {
		_, parent, ok := strings.Cut(host, ".")
		if !ok {
			return false
		}
		if n.below[parent] {
			return true
		}
		host = parent
	}
}

// constraints returns the fewest domains that cover the set, sorted. A name constraint covers a name and all below it, so
// it is wider than the set; allow is what decides.
func (n names) constraints() []string {
	all := map[string]bool{}
	for d := range n.exact {
		all[d] = true
	}
	for d := range n.below {
		all[d] = true
	}
	var fewest []string
	for d := range all {
		covered := false
		for parent, ok := d, true; ok && !covered; {
			_, parent, ok = strings.Cut(parent, ".")
			covered = ok && all[parent]
		}
		if !covered {
			fewest = append(fewest, d)
		}
	}
	slices.Sort(fewest)
	return fewest
}

// isHostName reports whether s is a DNS host name as TLS carries it: lower case, labels of letters, digits, hyphens inside,
// and underscores, which some hosts have; no final dot, no address (RFC 6066 §3), no wildcard.
func isHostName(s string) bool {
	const longest, longestLabel = 253, 63 // RFC 1035 §2.3.4
	if s == "" || len(s) > longest {
		return false
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > longestLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
		last = label
	}
	// A last label of digits is (part of) an IPv4 address to some resolver.
	return strings.Trim(last, "0123456789") != ""
}
