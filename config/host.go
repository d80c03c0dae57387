package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/net/idna"

	"wayleave/loopback"
)

// defaultPort is the port of a host pattern that names none.
const defaultPort = "443"

// SplitHost splits a host pattern of a valid configuration into its name, which may start with "*.", and its port.
func SplitHost(pattern string) (name, port string) {
	name, port, found := strings.Cut(pattern, ":")
	if !found {
		port = defaultPort
	}
	return name, port
}

// Covers reports whether a pattern without a port, which is a name or *.suffix, matches name.
func Covers(pattern, name string) bool {
	suffix, wild := strings.CutPrefix(pattern, "*")
	return pattern == name || wild && strings.HasSuffix(name, suffix)
}

// canonicalHosts drops the port from each pattern that names the default one.
func canonicalHosts(patterns []string) {
	for i, p := range patterns {
		patterns[i] = strings.TrimSuffix(p, ":"+defaultPort)
	}
}

// withPlainPort writes the port of each plain host: what names none means another one elsewhere.
func withPlainPort(patterns []string) {
	for i, p := range patterns {
		if p != "" && !strings.Contains(p, ":") {
			patterns[i] = p + ":80"
		}
	}
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)

// isDNSName reports whether s is a lower-case DNS name without a trailing dot that cannot be read as an address.
// Underscores are allowed because such names exist.
func isDNSName(s string) bool {
	if len(s) > 253 {
		return false
	}
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if !dnsLabel.MatchString(l) {
			return false
		}
	}
	// A last label of digits, or a hexadecimal number, is an address to some resolvers: 127.1, 0x7f.1 (WHATWG URL, IPv4 parser).
	last := labels[len(labels)-1]
	_, err := strconv.ParseUint(last, 0, 64)
	return err != nil && strings.Trim(last, "0123456789") != ""
}

// hostProblem says what is wrong with a host pattern, and the fix; both are empty for a good one.
// minLabels is how many labels must follow "*.".
func hostProblem(pattern string, minLabels int) (what, fix string) {
	name, port := SplitHost(pattern)
	suffix, wild := strings.CutPrefix(name, "*.")
	switch {
	case pattern == "":
		return "an empty host", "remove it"
	case strings.Contains(pattern, "://"):
		return quote(redactURL(pattern)) + " is a URL, not a host", writeHost(pattern)
	case isAddress(pattern):
		return quote(pattern) + " is an address: hosts are matched by their name in TLS", "name the host; connect_to sets the address of a route"
	case strings.ContainsAny(pattern, "/@?# "):
		return quote(redactURL(pattern)) + " is not a host", writeHost(pattern)
	case strings.HasSuffix(name, "."):
		return quote(pattern) + " ends in a dot", writeHost(pattern)
	case strings.ToLower(pattern) != pattern:
		return quote(pattern) + " is not in lower case", writeHost(pattern)
	case !validPort(port):
		return quote(port) + " is not a port", "write a port from 1 to 65535, or none for 443"
	case strings.Contains(suffix, "*") || name == "*":
		return quote(pattern) + ": * can only be the first label", "write *.example.com"
	case !isDNSName(suffix):
		return quote(pattern) + " is not a DNS name", writeHost(pattern)
	case wild && strings.Count(suffix, ".") < minLabels-1:
		return quote(pattern) + " is too wide: it covers names of many owners", "name the domain too: *.example." + suffix
	}
	return "", ""
}

// writeHost phrases the fix for a host that is recognisable in text.
func writeHost(text string) string {
	if u, err := url.Parse(text); err == nil && u.Host != "" {
		text = u.Host
	}
	text, _, _ = strings.Cut(text, "/")
	name, port, hasPort := strings.Cut(strings.TrimSpace(text), ":")
	name = strings.ToLower(strings.TrimRight(name, "."))
	bare, wild := strings.CutPrefix(name, "*.")
	if ascii, err := idna.Lookup.ToASCII(bare); err == nil {
		bare = ascii
	}
	if !isDNSName(bare) || hasPort && !validPort(port) {
		return "write a lower-case DNS name such as api.example.com"
	}
	if wild {
		bare = "*." + bare
	}
	if hasPort {
		bare += ":" + port
	}
	return "write " + bare
}

// parseSource reads an IP address, or a network whose address has no bits beyond its length.
func parseSource(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" && !a.Is4In6() {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return netip.Prefix{}, errors.New("write one such as 10.1.2.3, 10.1.2.0/24 or 2001:db8::/64")
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("write %s for the network, or %s for the one address", p.Masked(), p.Addr())
	}
	return p, nil
}

// isAddress reports whether s is an IP address, with or without brackets and port.
func isAddress(s string) bool {
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	_, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return err == nil
}

func validPort(s string) bool {
	n, err := strconv.Atoi(s)
	return err == nil && n >= 1 && n <= 65535 && strconv.Itoa(n) == s
}

// dialProblem says what is wrong with a host:port to dial, and the fix.
func dialProblem(s string) (what, fix string) {
	host, port, err := net.SplitHostPort(s)
	if err == nil && validPort(port) && (isDNSName(host) || isAddress(host)) {
		return "", ""
	}
	return quote(redactURL(s)) + " is not host:port", "write a name or an address and a port: 10.0.0.7:8443, [2001:db8::7]:8443"
}

// vaultProblem says what is wrong with the address of Vault, and the fix.
func vaultProblem(s string) (what, fix string) {
	const form = "write https://host:8200, http://127.0.0.1:8200 or unix:///path/of/socket"
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return quote(redactURL(s)) + " is not a URL", form
	case u.User != nil:
		return "the URL holds a user name or password", "remove everything between // and @"
	case u.Scheme == "unix" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		return "", ""
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return quote(s) + " is not an address of Vault", form
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return "the URL goes on after the host", "remove the path; mount and namespace have keys of their own"
	case u.Scheme == "http" && !loopback.Host(u.Hostname()):
		return "http to another machine sends every credential in clear text", "write https://" + u.Host
	}
	return "", ""
}

var userinfo = regexp.MustCompile(`[^/\s]*@`)

// redactURL hides what stands before an @, which may be a password.
func redactURL(s string) string { return userinfo.ReplaceAllString(s, "…@") }
