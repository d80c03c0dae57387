package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	matcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// The proxy over TLS is the proxy listener's chain inside TLS:
//
//	worker ── TLS for a name of the gate's ── CONNECT … ──▶ as on the proxy listener
//
// The certificates are leaves of our own authority, made on demand, or a certificate of the operator's.

// ProxyTLS says where the proxy is offered over TLS, and with which certificate: Names, or CertFile and KeyFile.
type ProxyTLS struct {
	// Address is the ip:port.
	Address string
	// Names are the DNS names workers may know the gate by. The Minter makes the certificates; a client that sends no
	// server name gets that of the first, and one that sends another name a TLS alert.
	Names []string
	// CertFile and KeyFile are absolute names of PEM files, which Envoy reads by itself. Their certificate is shown
	// whatever name a client sends.
	CertFile, KeyFile string
	// ClientCAFile is the absolute name of a PEM file, which Envoy reads by itself: the authorities of certificates that workers may
	// show. Empty: none is asked for. A connection without one is taken all the same, and one with another is not. The worker API
	// is told of it in x-forwarded-client-cert, which is Envoy's own on every listener.
	ClientCAFile string
}

type plannedTLS struct {
	address           netip.AddrPort
	names             []string // nil: the files
	certFile, keyFile string
	clientCAFile      string // empty: clients are not asked for certificates
}

func (t ProxyTLS) plan() (*plannedTLS, error) {
	address, err := parseListen(t.Address)
	p := &plannedTLS{address: address, certFile: t.CertFile, keyFile: t.KeyFile, clientCAFile: t.ClientCAFile}
	switch {
	case err != nil:
		return nil, fmt.Errorf("address %w", err)
	case (t.CertFile == "") != (t.KeyFile == ""), (t.CertFile == "") == (len(t.Names) == 0):
		return nil, errors.New("give it names, or the files of a certificate and its key")
	}
	for _, n := range t.Names {
		if !isHostName(n) {
			return nil, fmt.Errorf("%q is not a lower-case DNS name", n)
		}
	}
	for _, f := range []string{t.CertFile, t.KeyFile, t.ClientCAFile} {
		if f != "" && (!strings.HasPrefix(f, "/") || !utf8.ValidString(f)) {
			return nil, fmt.Errorf("%q is not an absolute file name", f)
		}
	}
	p.names = slices.Clone(t.Names)
	return p, nil
}

func proxyTLSListener(p plan) *listenerv3.Listener {
	proxy := proxyChain(p, p.proxyTLS.clientCAFile != "")
	proxy.TransportSocketConnectTimeout = seconds(handshakeTimeout)
	proxy.TransportSocket = transportSocket(transportTLS, p.proxyTLS.context())
	tls := chainOf(proxyChainName)
	if p.proxyTLS.names != nil {
		tls = then(unnamedOr(proxyChainName, byServerName(map[string][]string{proxyChainName: slices.Clone(p.proxyTLS.names)})))
	}
	return &listenerv3.Listener{
		Name:                             listenerProxyTLS,
		Address:                          listenAddress(p.proxyTLS.address),
		PerConnectionBufferLimitBytes:    number(bufferLimit),
		TcpKeepalive:                     tcpKeepalive(),
		ListenerFiltersTimeout:           seconds(inspectTimeout),
		ContinueOnListenerFiltersTimeout: false,
		ListenerFilters:                  []*listenerv3.ListenerFilter{tlsInspector()},
		AccessLog:                        refusedConnectionLog(p.accessLog),
		FilterChains: []*listenerv3.FilterChain{
			proxy,
			plainChain(reasonUseTLS, "this port of wayleave speaks TLS: write https:// in the URL of the proxy"),
		},
		FilterChainMatcher: byTransport(tls, chainOf(plainChainName)),
		DefaultFilterChain: denyChain("deny"),
	}
}

// unnamedOr picks chain for a client that sends no server name, and asks m about the others, whatever bytes they are.
func unnamedOr(chain string, m *matcher.Matcher) *matcher.Matcher {
	either := when(not(serverNameIs(`\C+`)), chainOf(chain))
	either.OnNoMatch = then(m)
	return either
}

func not(p *matcher.Matcher_MatcherList_Predicate) *matcher.Matcher_MatcherList_Predicate {
	return &matcher.Matcher_MatcherList_Predicate{MatchType: &matcher.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: p}}
}

// proxyALPN prefers HTTP/1.1: Go's clients offer HTTP/2 to a proxy as to any server, and when it is taken go on in
// HTTP/1.1 all the same. Who offers h2 alone gets it.
var proxyALPN = []string{"http/1.1", "h2"}

// context is the proxy's side of TLS.
func (t *plannedTLS) context() *tlsv3.DownstreamTlsContext {
	c := &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		AlpnProtocols:                  proxyALPN,
		TlsParams:                      tlsParameters(),
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{secretSource(secretProxyCert)},
	}}
	if t.names != nil {
		c = leafTLS(proxyALPN, t.names[0])
	}
	if t.clientCAFile != "" {
		c.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
			ValidationContextSdsSecretConfig: secretSource(secretClientCA),
		}
		// A session that is resumed is not verified again.
		c.SessionTicketKeysType = &tlsv3.DownstreamTlsContext_DisableStatelessSessionResumption{DisableStatelessSessionResumption: true}
		c.DisableStatefulSessionResumption = true
	}
	return c
}
