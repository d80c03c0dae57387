// Package xds owns what Envoy is told: it turns one Config into Envoy's resources and serves them to a fleet of
// Envoys over one delta ADS stream each. It decides no request and holds no credential: the CONNECT check and
// the swap are gRPC services behind the cluster "gate", and leaf certificates come from a Minter.
//
//	Config ──Build──▶ Resources ──Serve──▶ Server ◀──delta ADS── Envoy
//	                                           ▲
//	                     Minter ──leaf by SNI──┘
//
// Build is pure: equal configurations give equal bytes, so every replica of the control plane sends the same
// versions. Several revisions are served at once, and each node is told one of them. There is one file for each Envoy
// feature; each constructor in it returns one message.
//
// Frequent changes must not cut connections. Envoy closes the connections of every filter chain that changes, so
// host lists live in the listener's filter_chain_matcher, the ext_proc settings in ECDS, and all else in RDS, VHDS,
// CDS and SDS.
package xds

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// Config is everything the resources depend on.
type Config struct {
	// Revision names the configuration to the gate, with every question that Envoy asks. Empty: it does not.
	Revision string
	// ProxyAddress is the ip:port where workers reach the proxy.
	ProxyAddress string
	// ProxyTLS offers the same proxy over TLS too. Nil: nowhere.
	ProxyTLS *ProxyTLS
	// Transparent also takes redirected connections. Nil: none.
	Transparent *Transparent
	// Routes are the intercepted hosts: TLS ends here and every request goes through ext_proc.
	Routes []Route
	// Tunnel lists hosts whose TLS bytes pass untouched: a lower-case DNS name or "*.suffix" (any depth), with an
	// optional ":port" (443).
	Tunnel []string
	// Plain lists hosts that are forwarded without TLS, and so without a credential: as Tunnel, but each with its ":port".
	Plain []string
	// Deny lists hosts, as Tunnel does, that are not tunnelled although a name in Tunnel matches them: the most specific
	// decides, and for the same name Deny. About hosts of routes the gate decides.
	Deny []string
	// UpstreamCA is the whole PEM bundle upstream certificates are verified against.
	UpstreamCA []byte
	// DNSResolvers are ip:port of the resolvers to ask. Empty: those of the system.
	DNSResolvers []string
	// AllowPrivate are the private, loopback or link-local ranges a host name may resolve to. Everything else of
	// that kind is refused after resolution; a route's ConnectTo is not affected.
	AllowPrivate []netip.Prefix
	// APISockets are the unix sockets of the worker API, one for each gate, served to workers below /.wayleave/. At least one.
	APISockets []string
	// GateSockets are the unix sockets of the gates' gRPC services by the names of the gates: each is told of the ends of what it
	// decided. A gate that is alone has none, "".
	GateSockets map[string]string
	// CredentialHeaders are all the headers a credential comes in or goes out by, beside authorization,
	// proxy-authorization and x-api-key, which are always among them. ext_proc may change them, and no request
	// leaves while one of them holds Marker.
	CredentialHeaders []string
	// EnsureHeaders are the further headers ext_proc may set on a request, such as anthropic-beta.
	EnsureHeaders []string
	// RewritesPaths lets ext_proc change the path of a request, which it must to take a credential out of the query.
	RewritesPaths bool
	// Marker is the text that every placeholder contains.
	Marker string
	// MessageTimeout is how long Envoy waits for ext_proc's answer before it gives up with a 504. It must be longer
	// than ext_proc's own deadline, so that the worker sees ext_proc's reasons. Zero: 60 seconds.
	MessageTimeout time.Duration
	// MaxHold is how long ext_proc may make a request wait when it says so, in place of MessageTimeout. Zero: it may not.
	MaxHold time.Duration
	// AccessLogPath is the file Envoy appends one JSON object per tunnel, request and connection to. Empty: none.
	AccessLogPath string
	// HelpURL is where the pages about refusals are, with {reason} for the reason: each refusal has a Link header to its own. Empty: none.
	HelpURL string
	// Tracing has Envoy tell the gate of some requests how long their parts took. Nil: of none.
	Tracing *Tracing
}

// Route is a set of hosts that share one treatment.
type Route struct {
	// Name is unique, and made of a-z, 0-9, '.', '_' and '-'.
	Name string
	// Hosts are as Config.Tunnel's.
	Hosts []string
	// ALPN are the HTTP versions offered to workers: "h2", "http/1.1" or, when empty, both.
	ALPN []string
	// ConnectTo is the host:port dialled in place of the host's own address. The name that is asked for and
	// verified stays that of the host.
	ConnectTo string
	// Answered says that the gate answers every request by itself: none is forwarded.
	Answered bool
	// Bodies sends the bodies of answers to ext_proc as they stream by, but those of WebSockets.
	Bodies bool
	// Lane lets Envoy set the credential by itself where the gate leases that to a connection. Nil: it asks about every request.
	Lane *Lane
	// Withheld are headers, in lower case, that are taken from the upstream's answers.
	Withheld []string
}

// Resources is what a Config builds: one configuration revision of the fleet.
type Resources struct {
	Listeners  []*listenerv3.Listener
	Routes     []*routev3.RouteConfiguration
	Clusters   []*clusterv3.Cluster
	Extensions []*corev3.TypedExtensionConfig // filters delivered by ECDS
	Secrets    []*tlsv3.Secret                // named static/…; leaf certificates are made on demand
	Hosts      []string                       // whose TLS ends at Envoy, wildcards with their "*."

	Quarantined []Quarantined // what the rest is served without
	Refused     []string      // for that: names in the form of Hosts, for which no certificate is made
	Served      int           // how many hosts are reached
}

// Names that other parts of the product know.
const (
	clusterGate       = "gate" // in Envoy's bootstrap: ADS, ext_proc and ext_authz
	clusterAPI        = "gate_api"
	clusterIntercept  = "intercept"
	clusterUpstream   = "upstream"
	clusterUpstreamH1 = "upstream_h1"
	clusterTunnel     = "tunnel"
	clusterPlain      = "plain"

	listenerProxy       = "proxy"
	listenerProxyTLS    = "proxy_tls"
	listenerTransparent = "transparent"
	listenerIntercept   = "intercept"
	routesProxy         = "proxy"
	routesIntercept     = "intercept"
	filterExtProc       = "wayleave.ext_proc"
	filterTunnelAuthz   = "wayleave.tunnel_authz"
	secretUpstreamCA    = staticPrefix + "upstream_ca" // and a hash of it
	secretProxyCert     = staticPrefix + "proxy_certificate"
	secretClientCA      = staticPrefix + "client_ca"

	// The filter state that crosses from a CONNECT to the connection inside it.
	stateIdentity  = "wayleave.identity"
	stateAuthority = "wayleave.connect_authority"
	stateTunnel    = "wayleave.tunnel"
	// And what a request inside is called.
	stateRequestID = "wayleave.request_id"
	// And the Envoy itself.
	stateNode = "wayleave.node"

	// ext_proc's verdict on a request, as dynamic metadata.
	metadataNamespace = "wayleave"
	metadataVerdict   = "verdict"
)

// Build makes the resources of c. A host with a fault is refused by them, and listed in Quarantined; any other fault refuses
// the whole, and the error joins all of those.
func Build(c Config) (*Resources, error) {
	p, err := c.plan()
	if err != nil {
		return nil, err
	}
	r := &Resources{
		Listeners:  []*listenerv3.Listener{proxyListener(p), interceptListener(p)},
		Routes:     []*routev3.RouteConfiguration{proxyRoutes(p), interceptRoutes(p)},
		Clusters:   clusters(p),
		Extensions: []*corev3.TypedExtensionConfig{extProc(p)},
		Secrets:    []*tlsv3.Secret{upstreamCA(p)},

		Quarantined: p.quarantined,
		Refused:     fencedNames(p),
		Served:      p.served(),
	}
	if p.proxyTLS != nil {
		r.Hosts = slices.Clone(p.proxyTLS.names)
		r.Listeners = append(r.Listeners, proxyTLSListener(p))
		if p.proxyTLS.names == nil {
			r.Secrets = append(r.Secrets, fileSecret(secretProxyCert, p.proxyTLS.certFile, p.proxyTLS.keyFile))
		}
	}
	if p.proxyTLS != nil && p.proxyTLS.clientCAFile != "" {
		r.Secrets = append(r.Secrets, fileCASecret(secretClientCA, p.proxyTLS.clientCAFile))
	}
	if p.transparent != nil {
		r.Listeners = append(r.Listeners, transparentListener(p))
		r.Extensions = append(r.Extensions, extension(filterTunnelAuthz, tunnelAuthz(p)))
	}
	for _, route := range p.routes {
		for _, h := range route.hosts {
			r.Hosts = append(r.Hosts, h.name)
		}
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	return r, nil
}

// plan is a Config that has been checked, normalised and sorted.
type plan struct {
	revision          string
	proxy             netip.AddrPort
	proxyTLS          *plannedTLS         // nil: none
	transparent       *plannedTransparent // nil: none
	routes            []plannedRoute      // by name
	tunnel            []host
	plain             []host
	deny              []host
	fenced            []host // refused, whatever wildcard matches them
	quarantined       []Quarantined
	upstreamCA        []byte
	dns               dnsSettings
	apiSockets        []string
	gateSockets       map[string]string
	credentialHeaders []string
	ensureHeaders     []string
	rewritesPaths     bool
	marker            string
	messageTimeout    time.Duration
	maxHold           time.Duration
	accessLog         string
	tracing           *Tracing
	helpURL           string
}

type plannedRoute struct {
	name     string
	hosts    []host
	alpn     []string
	withheld []string
	answered bool
	bodies   bool
	lane     *Lane
	dial     *dialTarget // nil: wherever the host's name resolves to
}

// dialTarget is a ConnectTo, split.
type dialTarget struct {
	host string // name or address
	port uint16
	isIP bool
}

var (
	alwaysCredential = []string{"authorization", "proxy-authorization", "x-api-key"}
	alpnBoth         = []string{"h2", "http/1.1"}

	routeName    = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`)
	revisionName = regexp.MustCompile(`^[A-Za-z0-9._-]*$`)
	replicaName  = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`)
	headerName   = regexp.MustCompile("^[a-z0-9!#$%&'*+.^_|~-]+$")
	marker       = regexp.MustCompile(`^[A-Za-z0-9._~-]{8,}$`)

	// framing headers belong to the connection: a filter that sets one of them breaks the message or the route.
	framing = []string{"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive"}
)

func (c Config) plan() (plan, error) {
	var faults []error
	fault := func(format string, a ...any) { faults = append(faults, fmt.Errorf(format, a...)) }

	p := plan{revision: c.Revision, upstreamCA: c.UpstreamCA, apiSockets: c.APISockets, gateSockets: c.GateSockets, rewritesPaths: c.RewritesPaths, marker: c.Marker, messageTimeout: c.MessageTimeout, maxHold: c.MaxHold, accessLog: c.AccessLogPath, tracing: c.Tracing, helpURL: c.HelpURL}
	if p.messageTimeout == 0 {
		p.messageTimeout = 60 * time.Second
	}
	if p.messageTimeout < time.Millisecond {
		fault("message timeout %s is too short: give a millisecond or more", p.messageTimeout)
	}
	if !revisionName.MatchString(c.Revision) {
		fault("revision %q is not made of a-z, A-Z, 0-9, '.', '_' and '-'", c.Revision)
	}
	var err error
	if p.proxy, err = parseListen(c.ProxyAddress); err != nil {
		fault("proxy address %w", err)
	}
	if c.ProxyTLS != nil {
		if p.proxyTLS, err = c.ProxyTLS.plan(); err != nil {
			fault("proxy over TLS: %w", err)
		}
	}
	if c.Transparent != nil {
		if p.transparent, err = c.Transparent.plan(); err != nil {
			fault("transparent: %w", err)
		}
	}
	if len(c.APISockets) == 0 {
		fault("there is no API socket")
	}
	for _, s := range c.APISockets {
		if !strings.HasPrefix(s, "/") || !utf8.ValidString(s) {
			fault("API socket %q is not an absolute path", s)
		}
	}
	if len(c.GateSockets) == 0 {
		fault("there is no gate socket")
	}
	for gate, s := range c.GateSockets {
		if !replicaName.MatchString(gate) && len(c.GateSockets) > 1 || !strings.HasPrefix(s, "/") || !utf8.ValidString(s) {
			fault("gate %q with socket %q: a gate is named with a-z, 0-9, '_' and '-', and its socket by an absolute path", gate, s)
		}
	}
	if !utf8.ValidString(c.AccessLogPath) {
		fault("access log path %q is not UTF-8", c.AccessLogPath)
	}
	if !marker.MatchString(c.Marker) {
		fault("placeholder marker %q must be 8 or more of A-Z a-z 0-9 . _ ~ -", c.Marker)
	}
	if !strings.Contains(string(c.UpstreamCA), "-----BEGIN CERTIFICATE-----") {
		fault("upstream CA holds no PEM certificate: give the system's bundle, or your own")
	}
	if p.credentialHeaders, err = headers(append(slices.Clone(alwaysCredential), c.CredentialHeaders...)); err != nil {
		fault("credential headers: %w", err)
	}
	if p.ensureHeaders, err = headers(c.EnsureHeaders); err != nil {
		fault("ensured headers: %w", err)
	}
	if p.dns, err = planDNS(c.DNSResolvers, c.AllowPrivate); err != nil {
		faults = append(faults, err)
	}

	q := quarantine{fenced: map[host]bool{}}
	p.routes = q.routes(c.Routes, p.dns)
	p.tunnel = q.parse(c.Tunnel, "tunnel")
	p.plain = q.parse(c.Plain, "plain")
	q.shared(p.routes, p.tunnel)
	faults = append(faults, q.whole...)
	denied, not := parseHosts(c.Deny)
	p.deny = denied
	for _, n := range not {
		fault("deny: %w", n.err)
	}
	q.seal(&p)
	return p, errors.Join(faults...)
}

func parseListen(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is not ip:port, as 127.0.0.1:3128 is", s)
	}
	return a, nil
}

// plan is without the hosts.
func (r Route) plan() (plannedRoute, error) {
	p := plannedRoute{name: r.Name, answered: r.Answered, bodies: r.Bodies, lane: r.Lane}
	if !routeName.MatchString(r.Name) {
		return p, errors.New("the name must be made of a-z, 0-9, '.', '_' and '-'")
	}
	err := r.Lane.check()
	if err != nil {
		return p, err
	}
	if p.alpn, err = canonicalALPN(r.ALPN); err != nil {
		return p, err
	}
	if p.withheld, err = headers(r.Withheld); err != nil {
		return p, fmt.Errorf("withheld headers: %w", err)
	}
	if r.ConnectTo != "" {
		p.dial, err = parseDial(r.ConnectTo)
	}
	return p, err
}

// canonicalALPN returns the offered protocols in their one order of preference.
func canonicalALPN(offered []string) ([]string, error) {
	if len(offered) == 0 {
		return alpnBoth, nil
	}
	var out []string
	for _, known := range alpnBoth {
		if slices.Contains(offered, known) {
			out = append(out, known)
		}
	}
	for _, o := range offered {
		if !slices.Contains(alpnBoth, o) {
			return nil, fmt.Errorf(`alpn %q is unknown: use "h2" and "http/1.1"`, o)
		}
	}
	return out, nil
}

func parseDial(s string) (*dialTarget, error) {
	name, port, err := net.SplitHostPort(s)
	if err != nil {
		return nil, fmt.Errorf("connect_to %q is not host:port, as 10.0.0.7:443 is", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return nil, fmt.Errorf("connect_to %q has no port from 1 to 65535", s)
	}
	_, err = netip.ParseAddr(name)
	if err != nil && !isHostName(name) {
		return nil, fmt.Errorf("connect_to %q names neither an address nor a lower-case DNS name", s)
	}
	return &dialTarget{host: name, port: uint16(n), isIP: err == nil}, nil
}

// headers checks header names and returns them sorted, each once.
func headers(names []string) ([]string, error) {
	for _, n := range names {
		switch {
		case !headerName.MatchString(n):
			return nil, fmt.Errorf("%q is not a lower-case header name", n)
		case slices.Contains(framing, n):
			return nil, fmt.Errorf("%q frames the message and cannot be changed", n)
		}
	}
	out := slices.Clone(names)
	slices.Sort(out)
	return slices.Compact(out), nil
}
