package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"wayleave/ca"
	"wayleave/config"
	"wayleave/envoy"
	"wayleave/extproc"
	"wayleave/grant"
	"wayleave/identity"
	"wayleave/limit"
	"wayleave/policy"
	"wayleave/provider"
	"wayleave/secret"
	"wayleave/worker"
	"wayleave/xds"
)

// This file turns the one configuration into what each part takes. Every function is pure but for reading files the
// configuration names; a fact that two parts need is written once here.

// Envoy waits longer for our answer than we wait for a token, so that the worker reads our words and not Envoy's.
const (
	swapDeadline   = 20 * time.Second
	messageTimeout = 25 * time.Second
)

// exchanges says for which grants each worker gets a token of its own, at the clients of specs.
func exchanges(cfg *config.Config, specs []grant.Spec) map[string]grant.Exchange {
	rules := map[string]grant.Exchange{}
	for _, spec := range specs {
		client, can := spec.OAuth.(grant.TokenExchanger)
		if x := cfg.Grants[spec.Name].Exchange; x.Wanted() && can {
			rules[spec.Name] = grant.Exchange{
				OAuth: client, Audience: x.Audience, Resource: x.Resource, Scopes: x.Scopes,
				Actor: x.Actor == config.ActorWorker,
			}
		}
	}
	return rules
}

// issuers are those who vouch for workers.
func issuers(cfg *config.Config, log *slog.Logger) (*identity.Verifier, error) {
	var all []identity.Issuer
	for _, name := range slices.Sorted(maps.Keys(cfg.Issuers)) {
		i := cfg.Issuers[name]
		client, err := trustingClient(func() (*x509.CertPool, error) {
			if i.CAFile == "" {
				return nil, nil
			}
			text, err := cfg.ReadFile(i.CAFile)
			if err != nil {
				return nil, err
			}
			roots := x509.NewCertPool()
			if !roots.AppendCertsFromPEM(text) {
				return nil, fmt.Errorf("%s holds no PEM certificate; name the file of the authority", i.CAFile)
			}
			return roots, nil
		})
		if err != nil {
			return nil, fmt.Errorf("issuers.%s.ca_file: %w", name, err)
		}
		tokenFile := cfg.Path(i.TokenFile)
		all = append(all, identity.Issuer{
			Name: name, Issuer: i.Issuer, Audience: i.Audience, HTTP: client, JWKSURL: i.JWKSURL,
			API: i.API, APIToken: func() (secret.Text, error) { return readSecretFile(tokenFile) },
		})
	}
	return identity.NewVerifier(all, identity.Options{Log: log}), nil
}

// credentials renders what a session holds: a placeholder for each grant of its profile, in the provider's way.
func credentials(cfg *config.Config, sessions *worker.Sessions, grants *grant.Keeper) func(context.Context, worker.Session) ([]worker.Credential, error) {
	return func(ctx context.Context, s worker.Session) ([]worker.Credential, error) {
		profile := cfg.Profiles[s.Profile]
		var out []worker.Credential
		for _, name := range profile.Grants {
			p, _ := cfg.ProviderOf(name)
			placeholder := sessions.Placeholder(s, name, p.PlaceholderPrefix)
			r, err := p.Render(cfg.EnvMode(s.Profile, name), placeholder, granted(ctx, grants, name), cfg.HostOf(name))
			if err != nil {
				return nil, fmt.Errorf("rendering %s for a worker: %w", name, err)
			}
			out = append(out, worker.Credential{
				Grant: name, Provider: p.Name, Hosts: cfg.HostsOf(name), Placeholder: placeholder,
				Env: r.Env, Unset: r.Unset, Files: r.Files, Note: r.Note,
			})
		}
		return out, nil
	}
}

// ports are those of the hosts that workers may reach.
func ports(cfg *config.Config) worker.Ports {
	tls, plain := cfg.Ports()
	return worker.Ports{TLS: tls, Plain: plain}
}

// granted is what the grant holds. One that an operator has to mend may have been mended a moment ago, so it is looked at
// again: what a worker is told now stays in its environment.
func granted(ctx context.Context, grants *grant.Keeper, name string) []string {
	s := grants.Summary(name)
	if s.State != grant.NeverConnected && s.State != grant.ScopeMissing {
		return s.Granted
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, _ = grants.Token(ctx, name, s.Requested) // which looks before it refuses
	return grants.Summary(name).Granted
}

// swapConfig says who may connect where and what is swapped for what; not where hosts were taken out.
func swapConfig(cfg *config.Config, taken []xds.Quarantined) extproc.Config {
	out := extproc.Config{
		Tunnel: cfg.Tunnel, Plain: cfg.Plain, Deny: cfg.Deny, Refused: cfg.RefusedEndpoints(), Replayable: xds.Replayable,
		Profiles: map[string]extproc.Profile{}, Workers: map[string]string{}, Addresses: cfg.Sources(), Limits: map[string]limit.Limit{},
	}
	for name, g := range cfg.Grants {
		if l := limitOf(cfg, g.Limits); l != (limit.Limit{}) {
			out.Limits[name] = l
		}
	}
	for _, q := range taken {
		out.Quarantined = append(out.Quarantined, q.Hosts...)
	}
	for name, w := range cfg.Workers {
		out.Workers[name] = w.Profile
	}
	for name, p := range cfg.Profiles {
		profile := extproc.Profile{Grants: p.Grants, Rules: policyRules(p), Default: policy.Action(p.Default), Limit: limitOf(cfg, p.Limits), DryRun: p.DryRun}
		for _, a := range cfg.Answers(name) {
			of, _ := cfg.ProviderOf(a.Grant)
			profile.Answers = append(profile.Answers, extproc.Answer{
				Host: a.Host, Path: a.Path, Method: a.Method, Credential: a.Grant, PlaceholderPrefix: of.PlaceholderPrefix,
				Token: a.Token, Status: a.Status, JSON: a.JSON,
			})
		}
		out.Profiles[name] = profile
	}
	lanes := map[string]string{}
	for name, l := range lanesOf(cfg) {
		lanes[name] = l.Key(name)
	}
	for _, r := range cfg.Routes {
		p, _ := cfg.ProviderOf(r.Grant)
		route := extproc.Route{
			Name: r.Name, Credential: r.Grant, Hosts: r.Hosts,
			ParameterIn: r.Header.InQuery, MaskBody: r.Response.MaskBody,
			HeaderIn: r.Header.In, AlsoIn: r.Header.AlsoIn, SchemeIn: r.Header.InScheme, HeaderOut: r.Header.Out, SchemeOut: r.Header.OutScheme,
			EnsureHeaders: p.EnsureHeaders, EnsurePaths: p.EnsurePaths, RewriteHeaders: p.RewriteHeaders,
			Scopes: r.RequiredScopes, Methods: r.Methods, Lane: lanes[r.Name], Foreign: r.ForeignBearer, Absent: r.NoCredential,
			Imported: p.Kind == provider.Static, ErrorFormat: string(p.ErrorFormat), Status: p.RefusalStatus, PlaceholderPrefix: p.PlaceholderPrefix, BasicUser: p.BasicUser,
		}
		for _, rule := range r.Paths {
			route.Rules = append(route.Rules, extproc.Rule{
				PathPrefix: rule.Prefix, PathExact: rule.Exact, Methods: rule.Methods, Scopes: rule.RequiredScopes, Deny: rule.Deny,
			})
		}
		out.Routes = append(out.Routes, route)
	}
	return out
}

// envoyResources are what Envoy is told by a revision; without one, the gate is not told of it. Hosts with a fault are refused, as
// long as others are left.
func envoyResources(cfg *config.Config, revision, sockets, accessLog string) (*xds.Resources, error) {
	roots, err := upstreamRoots(cfg)
	if err != nil {
		return nil, err
	}
	c := envoyConfig(cfg, roots, sockets, accessLog)
	c.Revision = revision
	r, err := xds.Build(c)
	if err != nil {
		return nil, err
	}
	if faults := hostFaults(cfg, r.Quarantined); len(faults) > 0 && r.Served == 0 {
		return nil, fmt.Errorf("every host of the configuration has a fault; nothing was started or changed\n%w", faults)
	}
	return r, nil
}

// hostFaults says where in the file the hosts are that were taken out, and why.
func hostFaults(cfg *config.Config, out []xds.Quarantined) config.Faults {
	var faults config.Faults
	for _, q := range out {
		for _, host := range q.Hosts {
			faults = append(faults, cfg.HostFault(host, fmt.Sprintf("host %q cannot be served: %v", host, q.Fault), ""))
		}
	}
	return faults
}

// latentFaults are those that the file does not show, only what Envoy would be told. They are the same on every machine,
// whatever root certificates it has.
func latentFaults(cfg *config.Config) error {
	r, err := xds.Build(envoyConfig(cfg, []byte("-----BEGIN CERTIFICATE-----"), "/run/wayleave", ""))
	if err != nil {
		return err
	}
	if faults := hostFaults(cfg, r.Quarantined); len(faults) > 0 {
		return faults
	}
	return nil
}

// limitOf is a limit for one of the gates that Envoy asks.
func limitOf(cfg *config.Config, l config.Limits) limit.Limit {
	if l == (config.Limits{}) {
		return limit.Limit{}
	}
	return limit.Limit{PerMinute: l.RequestsPerMinute, Burst: l.Burst, Concurrent: l.Concurrent, Gates: max(len(cfg.Listen.Replicas), 1)}
}

// policyRules are the rules of a profile.
func policyRules(p config.Profile) []policy.Rule {
	var rules []policy.Rule
	for _, r := range p.Rules {
		rule := policy.Rule{Name: r.Name, When: r.When, Action: policy.Allow}
		if r.Deny != "" {
			rule.Action, rule.Words = policy.Deny, r.Deny
		}
		if r.Hold.Words != "" {
			rule.Action, rule.Words, rule.For = policy.Hold, r.Hold.Words, r.Hold.For
		}
		rules = append(rules, rule)
	}
	return rules
}

// envoyConfig says how Envoy listens, intercepts and reaches the providers.
func envoyConfig(cfg *config.Config, roots []byte, sockets, accessLog string) xds.Config {
	out := xds.Config{
		ProxyAddress: cfg.Listen.Proxy, Tunnel: cfg.Tunnel, Plain: cfg.Plain, Deny: slices.Concat(cfg.Deny, swapConfig(cfg, nil).NoTunnels()), UpstreamCA: roots, AllowPrivate: cfg.Upstream.AllowPrivate,
		APISockets: socketPaths(cfg, sockets, apiSocket), CredentialHeaders: credentialHeaders(cfg), Marker: worker.Marker, MessageTimeout: messageTimeout,
		MaxHold:       config.LongestHold + extproc.Headroom,
		AccessLogPath: accessLog, Tracing: envoyTracing(cfg.Telemetry), HelpURL: cfg.Listen.HelpURL,
	}
	out.GateSockets = map[string]string{}
	for i, path := range socketPaths(cfg, sockets, gateSocket) {
		replica := ""
		if len(cfg.Listen.Replicas) > 0 {
			replica = cfg.Listen.Replicas[i]
		}
		out.GateSockets[replica] = path
	}
	if l := cfg.Listen; l.ProxyTLS != "" {
		out.ProxyTLS = &xds.ProxyTLS{Address: l.ProxyTLS, Names: l.TLSNames}
		if l.ClientCAFile != "" {
			out.ProxyTLS.ClientCAFile = absolute(cfg.Path(l.ClientCAFile))
		}
		if l.TLSCertFile != "" {
			out.ProxyTLS.CertFile, out.ProxyTLS.KeyFile = absolute(cfg.Path(l.TLSCertFile)), absolute(cfg.Path(l.TLSKeyFile))
		}
	}
	if cfg.Listen.Transparent != "" {
		out.Transparent = &xds.Transparent{Address: cfg.Listen.Transparent, Sources: slices.Concat(slices.Collect(maps.Values(cfg.Sources()))...)}
		slices.SortFunc(out.Transparent.Sources, netip.Prefix.Compare)
	}
	out.RewritesPaths = slices.ContainsFunc(cfg.Routes, func(r config.Route) bool { return r.Header.InQuery != "" })
	for _, r := range cfg.Upstream.DNSResolvers {
		out.DNSResolvers = append(out.DNSResolvers, r.String())
	}
	for name := range cfg.Grants {
		p, _ := cfg.ProviderOf(name)
		out.EnsureHeaders = slices.AppendSeq(slices.AppendSeq(out.EnsureHeaders, maps.Keys(p.EnsureHeaders)), maps.Keys(p.RewriteHeaders))
	}
	slices.Sort(out.EnsureHeaders)
	out.EnsureHeaders = slices.Compact(out.EnsureHeaders)
	// Routes that share a host differ in whose credential is meant, which is not Envoy's business.
	shared, lanes := map[string]bool{}, lanesOf(cfg)
	for _, r := range cfg.Routes {
		route := xds.Route{Name: r.Name, ALPN: r.ALPN, ConnectTo: r.ConnectTo, Withheld: r.Response.Removed(), Bodies: r.Response.MaskBody}
		if l, ok := lanes[r.Name]; ok {
			route.Lane = &l
		}
		for _, h := range r.Hosts {
			if !shared[h] {
				route.Hosts = append(route.Hosts, h)
			}
			shared[h] = true
		}
		if len(route.Hosts) > 0 {
			out.Routes = append(out.Routes, route)
		}
	}
	if hosts := cfg.AnsweredHosts(); len(hosts) > 0 {
		out.Routes = append(out.Routes, xds.Route{Name: "wayleave.answers", Hosts: hosts, Answered: true})
	}
	return out
}

// credentialHeaders are those that never leave with a placeholder in them: what the routes use, and what APIs commonly use.
func credentialHeaders(cfg *config.Config) []string {
	all := append(cfg.CredentialHeaders(), config.UsualCredentialHeaders...)
	slices.Sort(all)
	return slices.Compact(all)
}

// Names of the sockets in the run directory.
const (
	gateSocket  = "gate.sock"
	apiSocket   = "api.sock"
	adminSocket = "admin.sock"
)

// ofReplica is the name that a replica has for what a gate alone calls name: gate.a.sock for gate.sock.
func ofReplica(replica, name string) string {
	if replica == "" {
		return name
	}
	base, suffix, dotted := strings.Cut(name, ".")
	if dotted {
		suffix = "." + suffix
	}
	return base + "." + replica + suffix
}

// socketPaths are the sockets called name of all gates of one run directory.
func socketPaths(cfg *config.Config, dir, name string) []string {
	if len(cfg.Listen.Replicas) == 0 {
		return []string{filepath.Join(dir, name)}
	}
	var paths []string
	for _, replica := range cfg.Listen.Replicas {
		paths = append(paths, filepath.Join(dir, ofReplica(replica, name)))
	}
	return paths
}

// checkReplica refuses a gate that is none of the configuration's.
func checkReplica(cfg *config.Config, replica string) error {
	names := cfg.Listen.Replicas
	switch {
	case slices.Contains(names, replica) || replica == "" && len(names) == 0:
		return nil
	case len(names) == 0:
		return usageError{errors.New("--replica names one of listen.replicas, and the configuration has none")}
	}
	return usageError{fmt.Errorf("listen.replicas has several gates; say which this one is with --replica: %s", strings.Join(names, ", "))}
}

// bootstrap is what Envoy starts with: where the gate is, and nothing else.
func bootstrap(cfg *config.Config, sockets string) envoy.Bootstrap {
	name := cfg.Envoy.Name
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			name = "wayleave"
		}
	}
	return envoy.Bootstrap{
		NodeID: name, Group: cfg.Envoy.Group, GateSockets: socketPaths(cfg, sockets, gateSocket), AdminSocket: filepath.Join(sockets, adminSocket),
		LogLevel: cfg.Envoy.LogLevel,
	}
}

// bootstrapHere is bootstrap for an Envoy that is started on this machine, which has only so much for it.
func bootstrapHere(cfg *config.Config, sockets string) envoy.Bootstrap {
	b := bootstrap(cfg, sockets)
	b.Memory = envoy.Memory()
	b.MaxConnections, b.MaxForClusters = envoy.Connections(xds.HostClusters...)
	return b
}

// upstreamRoots are the authorities that may sign for a provider: the system's, and those of the configuration.
func upstreamRoots(cfg *config.Config) ([]byte, error) {
	roots, _, err := worker.SystemRoots(os.Getenv)
	if err != nil {
		return nil, fmt.Errorf("reading the system's root certificates: %w", err)
	}
	for _, name := range cfg.Upstream.CAFiles {
		more, err := cfg.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("upstream.ca_files: %w", err)
		}
		if err := config.CheckCertificates(more); err != nil {
			return nil, fmt.Errorf("upstream.ca_files: %s: %w", name, err)
		}
		roots = worker.Bundle(roots, more)
	}
	if len(roots) == 0 {
		return nil, errors.New("no root certificates on this system: install ca-certificates, or name files in upstream.ca_files")
	}
	return roots, nil
}

// mint lets Envoy's requests for certificates reach the authority.
func mint(a *ca.Authority) xds.Minter {
	return func(host, root string) (certPEM, keyPEM []byte, notAfter time.Time, err error) {
		leaf, err := a.Leaf(host, root)
		return leaf.CertificatePEM, leaf.KeyPEM, leaf.NotAfter, err
	}
}

// streamWorkers answer one question after the other, where a goroutine for each would make its stack grow each time. Streams that stay, of
// which each Envoy has some, take one each; when none is left it is as if there were none.
const streamWorkers = 128

// grpcOptions suit Envoy: it opens a stream per request and pings its xDS connection.
func grpcOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxConcurrentStreams(1 << 20),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	}
}
