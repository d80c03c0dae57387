package xds

import (
	"net/http"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	apiPrefix  = "/.wayleave/"
	apiTimeout = 30 * time.Second
)

// proxyRoutes: CONNECT goes to the internal listener, the worker API to the gate, plain hosts are forwarded, and anything
// else is told what to do instead. The API authenticates by itself, and the advice is for everybody; about the others
// the gate is asked.
func proxyRoutes(p plan) *routev3.RouteConfiguration {
	unasked := map[string]*anypb.Any{filterAuthz: pack(&authzv3.ExtAuthzPerRoute{
		Override: &authzv3.ExtAuthzPerRoute_Disabled{Disabled: true},
	})}
	api := routeTo(clusterAPI)
	api.Timeout = seconds(apiTimeout)
	if len(p.apiSockets) > 1 {
		// Any gate enrols a worker, and one that does so twice has done no harm.
		api.RetryPolicy = &routev3.RetryPolicy{
			RetryOn:       "connect-failure,refused-stream,reset",
			NumRetries:    number(uint32(len(p.apiSockets))),
			PerTryTimeout: seconds(apiTimeout / 6),
			RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
				Name: previousHosts, ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: pack(&previoushostsv3.PreviousHostsPredicate{})},
			}},
			HostSelectionRetryMaxAttempts: 10,
		}
	}
	toAPI := &routev3.Route{
		Name:                 "api",
		Match:                prefix(apiPrefix),
		Action:               &routev3.Route_Route{Route: api},
		TypedPerFilterConfig: unasked,
	}
	tagAPI(p.revision, toAPI)
	advice := reply(403, streamID, reasonUseConnect, useConnect)
	advice.TypedPerFilterConfig = unasked
	connect := &routev3.Route{
		Name:   "connect",
		Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{}}},
		Action: &routev3.Route_Route{Route: connectTo(clusterIntercept)},
	}
	c := &routev3.RouteConfiguration{
		Name:                 routesProxy,
		TypedPerFilterConfig: tagChecks(p.revision),
		VirtualHosts: []*routev3.VirtualHost{{
			Name:    "all",
			Domains: []string{"*"},
			Routes: []*routev3.Route{
				connect,
				toAPI,
				advice,
			},
		}},
	}
	if len(p.plain) > 0 {
		c.VirtualHosts = append(c.VirtualHosts, plainHosts(p.plain, connect, advice))
	}
	if len(p.fenced) > 0 {
		c.VirtualHosts = append(c.VirtualHosts, fencedHosts(p.fenced, connect))
	}
	return c
}

// interceptRoutes: each route's hosts to its upstream, and any other host nowhere. The fenced ones are named, so that no
// wildcard has them.
func interceptRoutes(p plan) *routev3.RouteConfiguration {
	c := &routev3.RouteConfiguration{Name: routesIntercept, RequestHeadersToRemove: []string{sentName}, TypedPerFilterConfig: tagProcessing(p.revision)}
	for _, r := range p.routes {
		c.VirtualHosts = append(c.VirtualHosts, r.virtualHost())
	}
	nowhere := []*routev3.Route{
		reply(421, requestID, reasonMisdirected, "wayleave does not serve this host on this connection: open a connection of its own for each host"),
	}
	if len(p.fenced) > 0 {
		fenced := &routev3.VirtualHost{Name: "*fenced", Routes: nowhere} // no route has such a name
		for _, h := range p.fenced {
			fenced.Domains = append(fenced.Domains, h.domains()...)
		}
		c.VirtualHosts = append(c.VirtualHosts, fenced)
	}
	c.VirtualHosts = append(c.VirtualHosts, &routev3.VirtualHost{Name: "*", Domains: []string{"*"}, Routes: nowhere})
	return c
}

func (r plannedRoute) virtualHost() *routev3.VirtualHost {
	vh := &routev3.VirtualHost{
		Name:                    r.name,
		RequestBodyBufferLimit:  wrapperspb.UInt64(Replayable),
		RequestHeadersToRemove:  notToUpstream,
		RequestHeadersToAdd:     []*corev3.HeaderValueOption{overwrite(requestName, "%REQ("+sentName+")%")}, // if there is one, and before that is removed
		ResponseHeadersToRemove: slices.Concat(notFromUpstream, r.withheld),
		Routes: []*routev3.Route{
			{Name: r.name + "/websocket", Match: websocket(), Action: &routev3.Route_Route{Route: upgradeTo(r.clusterH1())}},
			{Name: r.name + "/read", Match: reading(), Action: &routev3.Route_Route{Route: readFrom(r.cluster())}},
			{Name: r.name, Match: prefix("/"), Action: &routev3.Route_Route{Route: upstreamTo(r.cluster())}},
		},
	}
	if r.lane != nil {
		vh.TypedPerFilterConfig = laneRoute(r.name, *r.lane)
	}
	if r.bodies {
		for _, route := range vh.Routes[1:] {
			route.TypedPerFilterConfig = map[string]*anypb.Any{filterExtProc: pack(answersToo())}
		}
	}
	if r.answered {
		vh.Routes = []*routev3.Route{reply(503, requestID, reasonGateUnavailable, "wayleave answers for this host by itself, and cannot at the moment; nothing was sent. Try again")}
	}
	for _, h := range r.hosts {
		vh.Domains = append(vh.Domains, h.domains()...)
	}
	return vh
}

// cluster is where the route's requests go.
func (r plannedRoute) cluster() string {
	if r.dial == nil {
		return clusterUpstream
	}
	return "to_" + r.name
}

// clusterH1 is the same over HTTP/1.1 only, which is what every server speaks WebSocket on.
func (r plannedRoute) clusterH1() string {
	if r.dial == nil {
		return clusterUpstreamH1
	}
	return "to_" + r.name + "/h1" // no route has such a name
}

// Replayable is how many bytes of a request's body Envoy keeps for sending it again after a 401. A longer one streams by all
// the same, and gets its 401.
const Replayable = 1 << 20

// upstreamTo is routeTo for a provider, with the retries that no provider can notice: those of requests that never
// reached it. What else may have been read is not sent again, since what it did is unknown. To these the gate adds the
// retry after a 401, for a request it has swapped: that says that nothing was done. See upstreamFilters.
func upstreamTo(cluster string) *routev3.RouteAction {
	a := routeTo(cluster)
	a.RetryPolicy = &routev3.RetryPolicy{
		RetryOn:              "connect-failure,refused-stream,reset-before-request",
		RetriableStatusCodes: []uint32{http.StatusUnauthorized}, // where the gate asks for it
		NumRetries:           wrapperspb.UInt32(2),
	}
	return a
}

// readFrom is upstreamTo for requests that do nothing (RFC 9110 section 9.2.1): these are sent again also when the provider may have read them. It often
// has not, but closed a connection that was idle while the request was on its way.
func readFrom(cluster string) *routev3.RouteAction {
	a := upstreamTo(cluster)
	a.RetryPolicy.RetryOn += ",reset"
	return a
}

// routeTo forwards requests without any limit on how long they take or stay silent.
func routeTo(cluster string) *routev3.RouteAction {
	return &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
		Timeout:          durationpb.New(0),
		IdleTimeout:      durationpb.New(0),
	}
}

func connectTo(cluster string) *routev3.RouteAction {
	a := routeTo(cluster)
	a.UpgradeConfigs = []*routev3.RouteAction_UpgradeConfig{{
		UpgradeType:   "CONNECT",
		ConnectConfig: &routev3.RouteAction_UpgradeConfig_ConnectConfig{},
	}}
	return a
}

func upgradeTo(cluster string) *routev3.RouteAction {
	a := upstreamTo(cluster)
	a.UpgradeConfigs = []*routev3.RouteAction_UpgradeConfig{{UpgradeType: "websocket"}}
	return a
}

func prefix(p string) *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: p}}
}

// reading is met by the requests of readFrom.
func reading() *routev3.RouteMatch {
	m := prefix("/")
	m.Headers = []*routev3.HeaderMatcher{{
		Name: ":method",
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: "GET|HEAD"}},
		}},
	}}
	return m
}

func websocket() *routev3.RouteMatch {
	m := prefix("/")
	m.Headers = []*routev3.HeaderMatcher{{
		Name: "upgrade",
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "websocket"},
			IgnoreCase:   true,
		}},
	}}
	return m
}

// reply answers every request that gets here; id is how to name the request.
func reply(status uint32, id, reason, message string) *routev3.Route {
	return &routev3.Route{
		Name:   reason,
		Match:  prefix("/"),
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: status, Body: inlineString(errorBody("invalid_request_error", reason, message))}},
		ResponseHeadersToAdd: []*corev3.HeaderValueOption{
			overwrite("content-type", "application/json"),
			overwrite(reasonHeader, reason),
			overwrite("x-request-id", id),
			overwrite("x-should-retry", "false"),
		},
	}
}
