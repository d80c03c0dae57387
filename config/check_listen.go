package config

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// This file checks where workers connect.

func (k *checker) listen() {
	l := k.Listen
	used := map[netip.AddrPort]string{}
	for _, at := range []struct{ key, address string }{{"proxy", l.Proxy}, {"proxy_tls", l.ProxyTLS}, {"transparent", l.Transparent}} {
		path := "listen." + at.key
		a, err := netip.ParseAddrPort(at.address)
		switch {
		case at.address == "" && at.key != "proxy":
		case err != nil || a.Port() == 0:
			k.fault(path, quote(at.address)+" is not an IP address and a port", "write 127.0.0.1:3128 for this machine, 0.0.0.0:3128 for every address")
		case used[a] != "":
			k.fault(path, "is the address of "+used[a]+" too", "give each a port of its own")
		default:
			used[a] = path
		}
	}
	k.proxyTLS()
	k.notEmpty("listen.replicas", len(l.Replicas))
	k.unique("listen.replicas", l.Replicas)
	for i, name := range l.Replicas {
		if !replicaPattern.MatchString(name) {
			k.fault(item("listen.replicas", i), quote(name)+" is not the name of a gate", "use 1 to 16 of a-z 0-9 _ - and start with a letter or digit: it becomes part of the names of sockets")
		}
	}
	if l.HelpURL != "" && !helpPattern.MatchString(l.HelpURL) {
		k.fault("listen.help_url", quote(l.HelpURL)+" is not the address of the pages about refusals", "write https://docs.example.com/wayleave/errors/{reason}.html, with {reason} once where the name goes")
	}
}

// helpPattern has nothing that ends the <…> of a Link header.
var helpPattern = regexp.MustCompile(`^https?://[^/{}"<>\x00-\x20\x7f]+/[^{}"<>\x00-\x20\x7f]*\{reason\}[^{}"<>\x00-\x20\x7f]*$`)

var replicaPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,15}$`)

// proxyTLS checks the certificate of the proxy over TLS.
func (k *checker) proxyTLS() {
	l := k.Listen
	if k.doc.isBroken("listen.proxy_tls") {
		return
	}
	files := l.TLSCertFile != "" || l.TLSKeyFile != ""
	switch {
	case l.ProxyTLS == "":
		for key, given := range map[string]bool{"tls_names": len(l.TLSNames) > 0, "tls_cert_file": l.TLSCertFile != "", "tls_key_file": l.TLSKeyFile != "", "client_ca_file": l.ClientCAFile != ""} {
			if given {
				k.fault("listen."+key, "has no effect without proxy_tls", "write listen.proxy_tls: 0.0.0.0:3129, or remove it")
			}
		}
	case files && len(l.TLSNames) > 0:
		k.fault("listen.tls_names", "written beside tls_cert_file", "keep one of the two")
	case files && l.TLSKeyFile == "":
		k.fault("listen.tls_cert_file", "is of no use without its key", "write tls_key_file too")
	case files && l.TLSCertFile == "":
		k.fault("listen.tls_key_file", "is of no use without its certificate", "write tls_cert_file too")
	case !files && len(l.TLSNames) == 0:
		k.fault("listen.proxy_tls", "has no certificate", "write listen.tls_names: [gate.example.com], or tls_cert_file and tls_key_file")
	}
	k.unique("listen.tls_names", l.TLSNames)
	for i, name := range l.TLSNames {
		k.gateName(item("listen.tls_names", i), name)
	}
}

// addresses checks where workers are known by their address, and that each is one worker's only.
func (k *checker) addresses() {
	type owner struct {
		path, worker string
		prefix       netip.Prefix
	}
	var taken []owner
	for _, name := range keys(k.Workers) {
		for i, text := range k.Workers[name].Addresses {
			path := item(join("workers", name)+".addresses", i)
			if k.doc.isBroken(path) {
				continue
			}
			p, err := parseSource(text)
			if err != nil {
				k.fault(path, quote(text)+" is not an IP address or network", err.Error())
				continue
			}
			if j := slices.IndexFunc(taken, func(o owner) bool { return o.prefix.Overlaps(p) }); j >= 0 {
				k.fault(path, fmt.Sprintf("%s overlaps %s of worker %s (%s)", quote(text), taken[j].prefix, quote(taken[j].worker), taken[j].path), "give each address to one worker, once")
				continue
			}
			taken = append(taken, owner{path, name, p})
		}
	}
	switch {
	case k.Listen.Transparent == "" && len(taken) > 0:
		k.fault(join("workers", taken[0].worker)+".addresses", "has no effect without listen.transparent", "write listen.transparent: 0.0.0.0:3443, or remove it")
	case k.Listen.Transparent != "" && len(taken) == 0 && len(k.doc.faults) == 0:
		k.fault("listen.transparent", "lets nobody in: no worker has addresses", "write workers.<name>.addresses: [10.1.2.3], or remove it")
	}
}

// gateName checks a name of the gate's own, which must not be one that is intercepted or tunnelled.
func (k *checker) gateName(path, name string) {
	what, fix := hostProblem(name, 1)
	switch {
	case what == "" && strings.ContainsAny(name, "*:"):
		k.fault(path, quote(name)+" is not one name", "write a DNS name without * and port, such as gate.example.com")
		return
	case what != "":
		k.fault(path, what, fix)
		return
	}
	claimed := slices.Clone(k.Tunnel)
	for _, r := range k.Routes {
		claimed = append(claimed, r.Hosts...)
	}
	for _, pattern := range claimed {
		if host, _ := SplitHost(pattern); Covers(host, name) {
			k.fault(path, quote(name)+" is the gate's own and matches "+quote(pattern)+" of a route or tunnel", "give the gate another name, or narrow the pattern")
			return
		}
	}
}
