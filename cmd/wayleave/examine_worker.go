package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"wayleave/config"
	"wayleave/worker"
)

// examineLeaf opens a TLS connection through the gate as a worker does, and sends nothing in it: the gate makes a certificate for the
// name. Doctor is such a worker inside `wayleave run`, or where a worker's token is; else there is nothing to tell.
func examineLeaf(ctx context.Context, cfg *config.Config, st state, a around) []finding {
	const what = "leaf"
	way, end, err := a.way(ctx, st)
	switch {
	case errors.Is(err, errNoWay):
		return nil
	case err != nil:
		return []finding{warn(what, err.Error(), "see whether the gate runs, and whether the worker is in its configuration")}
	}
	defer end()
	host := routedHost(cfg, way.worker)
	if host == "" {
		return nil
	}
	leaf, err := way.handshake(ctx, host)
	if err != nil {
		return []finding{fail(what, fmt.Sprintf("no worker gets a connection to %s: %v", host, err), "see what doctor says of the ca, and the gate's log")}
	}
	if left := leaf.NotAfter.Sub(a.now()); left < time.Minute {
		return []finding{warn(what, fmt.Sprintf("the certificate for %s ends at %s", host, when(leaf.NotAfter)), "it should have been replaced before: look at the gate's log")}
	}
	return []finding{good(what, fmt.Sprintf("workers are shown one for %s, of %s, until %s", host, leaf.Issuer.CommonName, when(leaf.NotAfter)))}
}

// way is how a worker goes out.
type way struct {
	proxy  *url.URL // with the session's user and password
	gate   *x509.CertPool
	roots  *x509.CertPool // nil: the system's
	worker string         // empty: not known
}

var errNoWay = errors.New("no worker is here")

// way finds one; end lets go of it.
func (a around) way(ctx context.Context, st state) (w way, end func(), err error) {
	if a.isWorkers() {
		w.proxy, err = url.Parse(a.getenv("HTTPS_PROXY"))
		if err != nil || w.proxy.Host == "" {
			return w, nil, errNoWay
		}
		w.roots = x509.NewCertPool()
		file, err := os.ReadFile(a.getenv("NODE_EXTRA_CA_CERTS"))
		if err != nil || !w.roots.AppendCertsFromPEM(file) {
			return w, nil, errors.New("NODE_EXTRA_CA_CERTS names no file with the gate's CA")
		}
		return w, func() {}, nil
	}
	me := enrolFlags{state: &st, gateURL: a.getenv("WAYLEAVE_GATE"), gateCA: a.getenv("WAYLEAVE_GATE_CA"), sources: worker.Sources{Getenv: a.getenv}, say: func(string, ...any) {}}
	if tokens := st.workersWithToken(); me.gateURL == "" && len(tokens) > 0 {
		me.worker = tokens[0]
	} else if me.gateURL == "" {
		return w, nil, errNoWay
	}
	e, err := me.enrol(ctx)
	if err != nil {
		if me.gateURL != "" && a.getenv("WAYLEAVE_TOKEN")+a.getenv("WAYLEAVE_TOKEN_FILE")+a.getenv("WAYLEAVE_CERT")+a.getenv("WAYLEAVE_ID_TOKEN") == "" {
			err = errNoWay
		}
		return w, nil, err
	}
	w = way{proxy: &url.URL{Scheme: e.Gate.Scheme, Host: e.Gate.Host, User: url.UserPassword(e.Session.ID, e.Password.Reveal())}, gate: me.roots.pool, roots: x509.NewCertPool(), worker: e.Session.Worker}
	w.roots.AppendCertsFromPEM(e.CA)
	return w, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = e.End(ctx, me.roots.pool) // it ends by itself
	}, nil
}

// routedHost is one that a worker may connect to and that the gate looks into.
func routedHost(cfg *config.Config, name string) string {
	grants, known := cfg.Profiles[cfg.Workers[name].Profile]
	for _, r := range cfg.Routes {
		for _, h := range r.Hosts {
			if !strings.HasPrefix(h, "*.") && (!known || slices.Contains(grants.Grants, r.Grant)) {
				return h
			}
		}
	}
	return ""
}

// handshake opens a tunnel and TLS in it.
func (w way) handshake(ctx context.Context, host string) (*x509.Certificate, error) {
	name, _, err := net.SplitHostPort(host)
	authority := host
	if err != nil {
		name, authority = host, net.JoinHostPort(host, "443")
	}
	at := w.proxy.Host
	if w.proxy.Port() == "" {
		at = net.JoinHostPort(w.proxy.Hostname(), map[string]string{"http": "80", "https": "443"}[w.proxy.Scheme])
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if w.proxy.Scheme == "https" {
		over := tls.Client(conn, &tls.Config{ServerName: w.proxy.Hostname(), RootCAs: w.gate, MinVersion: tls.VersionTLS12})
		if err := over.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("to the gate itself: %w", err)
		}
		conn = over
	}
	proof := ""
	if w.proxy.User != nil { // a relay of 'wayleave run --isolate' knows the session
		password, _ := w.proxy.User.Password()
		proof = "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(w.proxy.User.Username()+":"+password)) + "\r\n"
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", authority, authority, proof); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it is refused with %d %s", resp.StatusCode, resp.Header.Get("X-Wayleave-Reason"))
	}
	inner := tls.Client(conn, &tls.Config{ServerName: name, RootCAs: w.roots, MinVersion: tls.VersionTLS12})
	if err := inner.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return inner.ConnectionState().PeerCertificates[0], nil
}

// isWorkers reports whether these are the variables that `wayleave run` makes.
func (a around) isWorkers() bool {
	return slices.ContainsFunc(a.environ, func(kv string) bool { return strings.Contains(kv, worker.Marker) || strings.Contains(kv, workerFiles) })
}

// examineEnvironment looks at the variables by which programs here would go around the gate, or not trust it: of a worker's
// environment whether they still are as `wayleave run` made them, and of any other what that would change.
func examineEnvironment(cfg *config.Config, a around) []finding {
	const what = "environment"
	credentials := possibleCredentials(cfg)
	var out []finding
	if a.isWorkers() {
		out = append(a.examineWorkers(what, cfg, credentials), a.examinePreferences(what, a.environ, credentials)...)
		if len(out) == 0 {
			out = append(out, good(what, "is that of a worker, and leads through the gate"))
		}
		return out
	}
	given := slices.DeleteFunc(slices.Clone(a.environ), func(kv string) bool { return strings.HasSuffix(kv, "=") })
	// Only which variables there are matters, not what they would be.
	files := worker.Files{CA: "-", Bundle: "-", WgetRC: "-", TrustStore: "-", Credentials: map[string]string{}}
	for _, c := range credentials {
		files.Credentials[c.Grant] = "-"
	}
	env, report := worker.Environment(worker.Enrolment{Gate: &url.URL{Scheme: "http", Host: "gate"}, Session: worker.Session{ID: "-"}, Credentials: credentials}, given, files)
	for _, line := range report {
		how, rest, _ := strings.Cut(line, " ")
		if names, why, ok := strings.Cut(rest, ": "); ok && (how == "removed" || how == "replaced") {
			out = append(out, warn(what, fmt.Sprintf("%s: %s", names, why), "start programs with 'wayleave run', which has them "+how+"; or unset them where programs start otherwise"))
		}
	}
	out = append(out, a.examinePreferences(what, env, credentials)...)
	if len(out) == 0 && len(cfg.Workers) > 0 {
		out = append(out, good(what, "has nothing that would lead programs around the gate; 'wayleave run -- wayleave doctor' looks at a worker's"))
	}
	return out
}

// examinePreferences looks at what programs with an environment would prefer to it.
func (a around) examinePreferences(what string, env []string, credentials []worker.Credential) (out []finding) {
	_, preferred := worker.Preferences(env, credentials, a.machine)
	for _, p := range preferred {
		fix := p.ToDo()
		if p.Countered != "" && !a.isWorkers() {
			fix = "start programs with 'wayleave run' (" + p.Countered + "), or " + fix
		}
		out = append(out, warn(what, fmt.Sprintf("%s has %s, which %s", p.File, p.Has, p.Means), fix))
	}
	return out
}

// possibleCredentials are those that some worker has, with what its environment gets of them.
func possibleCredentials(cfg *config.Config) (all []worker.Credential) {
	for _, name := range slices.Sorted(maps.Keys(cfg.Profiles)) {
		for _, g := range cfg.Profiles[name].Grants {
			p, _ := cfg.ProviderOf(g)
			r, err := p.Render(cfg.EnvMode(name, g), worker.Marker, cfg.RequestedScopes(g), cfg.HostOf(g))
			if err == nil && !slices.ContainsFunc(all, func(c worker.Credential) bool { return c.Grant == g }) {
				all = append(all, worker.Credential{Grant: g, Provider: p.Name, Hosts: cfg.HostsOf(g), Env: r.Env, Unset: r.Unset})
			}
		}
	}
	return all
}

// examineWorkers looks for what has been changed since `wayleave run` made it.
func (a around) examineWorkers(what string, cfg *config.Config, credentials []worker.Credential) (out []finding) {
	const again = "start it with 'wayleave run' again, and see what sets it: a shell's profile, a Makefile, a container's file"
	proxy := a.getenv("HTTPS_PROXY")
	for _, name := range []string{"https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"} {
		if value := a.getenv(name); value != proxy { // of which neither is shown: there is a password in it
			out = append(out, warn(what, name+" is not what HTTPS_PROXY is, and programs differ in which they read", again))
		}
	}
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		for _, host := range reached(cfg) {
			if entry := exempts(a.getenv(name), host); entry != "" {
				out = append(out, warn(what, fmt.Sprintf("%s has %s, so programs go around the gate for %s", name, entry, host), again))
				break
			}
		}
	}
	if proxy != "" && a.getenv("NODE_USE_ENV_PROXY") != "1" {
		out = append(out, warn(what, "NODE_USE_ENV_PROXY is not 1, and Node.js goes around the gate", again))
	}
	bundle := a.getenv("SSL_CERT_FILE")
	for _, name := range []string{"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO"} {
		value := a.getenv(name)
		if _, err := os.Stat(value); err != nil {
			out = append(out, warn(what, name+" names no file with the gate's CA, so programs refuse its certificates", again))
		} else if value != bundle && name != "NODE_EXTRA_CA_CERTS" {
			out = append(out, warn(what, name+" names another file than SSL_CERT_FILE", again))
		}
	}
	if value := a.getenv("NODE_TLS_REJECT_UNAUTHORIZED"); value == "0" {
		out = append(out, warn(what, "NODE_TLS_REJECT_UNAUTHORIZED is 0: Node.js trusts whoever answers", "unset it; NODE_EXTRA_CA_CERTS is what it needs"))
	}
	for _, c := range credentials {
		for _, name := range slices.Sorted(maps.Keys(c.Env)) {
			value := a.getenv(name)
			if strings.Contains(c.Env[name], worker.Marker) && value != "" && !strings.Contains(value, worker.Marker) {
				out = append(out, warn(what, fmt.Sprintf("%s is not the placeholder for %s: something real in it leaves as it is", name, c.Grant), again))
			}
		}
		for _, name := range c.Unset {
			if a.getenv(name) != "" && !slices.ContainsFunc(credentials, func(o worker.Credential) bool { return o.Env[name] != "" }) {
				out = append(out, warn(what, fmt.Sprintf("%s is set, and programs prefer it to the placeholder for %s", name, c.Grant), again))
			}
		}
	}
	return out
}

// reached are the names that workers may connect to, without ports.
func reached(cfg *config.Config) (all []string) {
	hosts := slices.Concat(cfg.Tunnel, cfg.Plain)
	for _, r := range cfg.Routes {
		hosts = append(hosts, r.Hosts...)
	}
	for _, h := range hosts {
		if name, _, err := net.SplitHostPort(h); err == nil {
			h = name
		}
		all = append(all, strings.TrimPrefix(h, "*."))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// exempts is what in a NO_PROXY makes programs connect to a host directly; empty: nothing.
func exempts(noProxy, host string) string {
	for entry := range strings.SplitSeq(noProxy, ",") {
		entry = strings.TrimSpace(entry)
		name := strings.TrimPrefix(strings.TrimPrefix(entry, "*"), ".")
		if _, err := netip.ParseAddr(name); entry == "" || err == nil {
			continue
		}
		if entry == "*" || host == name || name != "" && strings.HasSuffix(host, "."+name) {
			return entry
		}
	}
	return ""
}
