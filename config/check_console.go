package config

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/net/idna"
)

// This file checks where operators' pages are, and who may use them.

func (k *checker) console() {
	c := k.Console
	if c.Listen == "" || c.Listen == ListenNone {
		if c.Listen == ListenNone && (c.PublicURL != "" || c.OIDC.Issuer != "") {
			k.fault("console.listen", "is none, and the rest of console has no effect", "write console.listen: 127.0.0.1:3180, or remove the rest")
		}
	} else if a, err := netip.ParseAddrPort(c.Listen); err != nil {
		k.fault("console.listen", quote(c.Listen)+" is not an IP address and a port", "write 127.0.0.1:3180 for this machine, 0.0.0.0:3180 for every address, or none")
	} else {
		if slices.Contains(k.Listen.Addresses(), c.Listen) {
			k.fault("console.listen", "is an address of listen too", "give it a port of its own: workers must not reach it")
		}
		if !a.Addr().IsLoopback() {
			k.beyondLoopback()
		}
	}
	if c.PublicURL != "" {
		u, err := url.Parse(c.PublicURL)
		if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" || u.Scheme != "https" {
			k.fault("console.public_url", quote(c.PublicURL)+" is not an https address without a path", "write https://gate.example.com")
		} else if strings.ContainsFunc(u.Host, func(c rune) bool { return c > unicode.MaxASCII }) {
			written := "as the browser's address has it, beginning with xn--"
			if name, err := idna.Lookup.ToASCII(u.Hostname()); err == nil {
				written = "https://" + strings.Replace(u.Host, u.Hostname(), name, 1)
			}
			k.fault("console.public_url", quote(c.PublicURL)+" is not how browsers write that name when they ask for it", "write "+written)
		}
	}
	for i, p := range c.TrustedProxies {
		if p.Bits() == 0 {
			k.fault(item("console.trusted_proxies", i), "is everybody, who could then call themselves any address", "write the network of the reverse proxies")
		}
	}
	if c.PublicURL != "" && c.TLSCertFile == "" && len(c.TrustedProxies) == 0 {
		k.warn("console.public_url", "is that of a reverse proxy, and everybody seems to come from it: wrong log-ins of one make all wait, and the audit has its address", "write console.trusted_proxies: its network, such as [127.0.0.1/32] for one on this machine")
	}
	switch files := c.TLSCertFile != "" || c.TLSKeyFile != ""; {
	case files && c.TLSKeyFile == "":
		k.fault("console.tls_cert_file", "is of no use without its key", "write tls_key_file too")
	case files && c.TLSCertFile == "":
		k.fault("console.tls_key_file", "is of no use without its certificate", "write tls_cert_file too")
	}
	k.within("console.session_idle", c.SessionIdle, time.Minute, 24*time.Hour)
	k.within("console.session_life", c.SessionLife, 5*time.Minute, 168*time.Hour)
	k.oidc()
}

// beyondLoopback checks a console that others than this machine reach.
func (k *checker) beyondLoopback() {
	c := k.Console
	if c.OIDC.Issuer == "" {
		k.fault("console.listen", "is not on loopback, and nobody could log in there", "write console.oidc, or listen on 127.0.0.1")
	}
	if c.PublicURL == "" {
		k.fault("console.listen", "is not on loopback, and where operators reach it is not said", "write console.public_url: https://gate.example.com, and tls_cert_file and tls_key_file unless a reverse proxy has TLS")
	}
}

func (k *checker) within(path string, d, low, high time.Duration) {
	if d < low || d > high {
		k.fault(path, d.String()+" is out of range", "write one from "+low.String()+" to "+high.String())
	}
}

func (k *checker) oidc() {
	o := k.Console.OIDC
	if o.Issuer == "" {
		if o.ClientID != "" || o.ClientSecretFile != "" || o.ClientSecretEnv != "" || len(o.Roles.Viewer)+len(o.Roles.Operator)+len(o.Roles.Admin) > 0 {
			k.fault("console.oidc", "has no issuer", "write console.oidc.issuer: https://login.example.com")
		}
		return
	}
	u, err := url.Parse(o.Issuer)
	loopback := false
	if err == nil {
		a, aerr := netip.ParseAddr(u.Hostname())
		loopback = aerr == nil && a.IsLoopback()
	}
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		k.fault("console.oidc.issuer", quote(o.Issuer)+" is not an https address", "write it as the identity provider does, such as https://login.example.com")
	}
	if o.ClientID == "" {
		k.fault("console.oidc", "has no client_id", "register a client at the identity provider and write its id")
	}
	if o.ClientSecretFile != "" && o.ClientSecretEnv != "" {
		k.fault("console.oidc.client_secret_env", "written beside client_secret_file", "keep one of the two")
	}
	if !slices.Contains(o.Scopes, "openid") {
		k.fault("console.oidc.scopes", "openid is not among them, so there would be no identity token", "add openid")
	}
	if len(o.Roles.Viewer)+len(o.Roles.Operator)+len(o.Roles.Admin) == 0 {
		k.fault("console.oidc", "has no roles, so nobody could come in", "write console.oidc.roles: {admin: [wayleave-admins]}")
	}
	for role, values := range map[string][]string{"viewer": o.Roles.Viewer, "operator": o.Roles.Operator, "admin": o.Roles.Admin} {
		k.unique("console.oidc.roles."+role, values)
		if slices.Contains(values, "") {
			k.fault("console.oidc.roles."+role, "has an empty value", "remove it")
		}
	}
}
