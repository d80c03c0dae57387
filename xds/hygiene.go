package xds

import (
	"strings"

	matcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

const filterHygiene = "envoy.filters.http.header_mutation"

// notFromWorker matches the request headers that speak of or to a proxy: those Envoy adds, those a worker's client
// meant for us, and x-envoy-… ones, by which a worker could order retries or timeouts. Servers that hand headers on as
// CGI variables read _ as -, so a name is removed in both spellings; and so are the two that frame a message, which
// HTTP itself only knows with -.
var notFromWorker = []string{
	"proxy([-_].*)?", "forwarded", "x[-_]forwarded[-_].*", "x[-_]envoy[-_].*", "x[-_]wayleave[-_].*", "transfer_encoding", "content_length",
}

// putAway has Envoy not see what a worker calls its request, and its trace. It comes before everything else.
func putAway(t *Tracing) []*corev3.TypedExtensionConfig {
	m := []*mutationv3.HeaderMutation{remove(sentName), copyHeader(requestName, sentName)}
	if t != nil {
		m = append(m, hideTraceparent()...)
	}
	return []*corev3.TypedExtensionConfig{extension("envoy.http.early_header_mutation.header_mutation", &earlyv3.HeaderMutation{Mutations: m})}
}

func remove(header string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Remove{Remove: header}}
}

// copyHeader does nothing when there is no such header.
func copyHeader(from, to string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Append{Append: overwrite(to, "%REQ("+from+")%")}}
}

// hygiene removes those, and all trailers of the request: nothing looks into them, and over HTTP/1.1 Envoy forwards
// none either. It runs first, so that no other filter sees them, after what it is to do first.
func hygiene(first ...*mutationv3.HeaderMutation) *hcmv3.HttpFilter {
	return httpFilter(filterHygiene, &headermutationv3.HeaderMutation{
		Mutations: &headermutationv3.Mutations{
			RequestMutations:         append(first, removeMatching(strings.Join(notFromWorker, "|"))),
			RequestTrailersMutations: []*mutationv3.HeaderMutation{removeMatching(".*")},
		},
	})
}

// lowerAuthority writes the name that a request is for in lower case. DNS has no upper case, but Envoy resolves a name, and keeps connections
// to it, for each of its spellings: a worker could fill the place that it has for names with those of one.
func lowerAuthority() *hcmv3.HttpFilter {
	return httpFilter("wayleave.authority", onlyWhen(single(&matcher.Matcher_MatcherList_Predicate_SinglePredicate{
		Input:   matchExtension("header", &matcherv3.HttpRequestHeaderMatchInput{HeaderName: ":authority"}),
		Matcher: &matcher.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: wholly(".*[A-Z].*")},
	}), "envoy.filters.http.lua", &luav3.Lua{ClearRouteCache: no(), DefaultSourceCode: inlineString(`function envoy_on_request(handle)
  local headers = handle:headers()
  headers:replace(":authority", headers:get(":authority"):lower())
end
`)}))
}

// wholly matches a text that is all of what the expression matches, in the matcher's own types.
func wholly(expression string) *matcher.StringMatcher {
	return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_SafeRegex{SafeRegex: &matcher.RegexMatcher{
		EngineType: &matcher.RegexMatcher_GoogleRe2{GoogleRe2: &matcher.RegexMatcher_GoogleRE2{}}, Regex: expression,
	}}}
}

// removeMatching removes the headers whose whole name the expression matches.
func removeMatching(expression string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_RemoveOnMatch_{
		RemoveOnMatch: &mutationv3.HeaderMutation_RemoveOnMatch{KeyMatcher: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: expression}},
		}},
	}}
}

// What a request is called is Envoy's to say, so that the worker's answer, the gate and the access log agree on it. What the worker calls it itself is
// for the upstream, and waits for that in another header, which the gate looks at as at any other.
const (
	requestName = "x-request-id"
	sentName    = "x-request-id-sent"
)

// notToUpstream are request headers that the filters still need and that go no further.
var notToUpstream = []string{requestName}

// notFromUpstream are response headers that an upstream may not send: they would speak for the proxy or the gate, or, as
// alt-svc (RFC 7838), lead clients around both.
//
// A credential that the upstream repeats in a header is taken out by upstream.lua. Bodies are not searched: an upstream
// that repeats it there shows it to the worker; paths that do so are for a route's rules to deny.
var notFromUpstream = []string{
	"alt-svc", "proxy-agent", "proxy-authenticate", "proxy-authentication-info", "proxy-connection", "x-wayleave-reason",
}
