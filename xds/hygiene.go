package xds

import (
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// hygiene removes the request headers that speak of or to a proxy: those Envoy adds, those a worker's client
// meant for us, and x-envoy-… ones, by which a worker could order retries or timeouts. It runs first, so that no
// other filter sees them.
func hygiene() *hcmv3.HttpFilter {
	var m []*mutationv3.HeaderMutation
	for _, prefix := range []string{"x-forwarded-", "x-envoy-", "x-wayleave-", "proxy-"} {
		m = append(m, removePrefix(prefix))
	}
	return httpFilter("envoy.filters.http.header_mutation", &headermutationv3.HeaderMutation{
		Mutations: &headermutationv3.Mutations{RequestMutations: m},
	})
}

func removePrefix(prefix string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_RemoveOnMatch_{
		RemoveOnMatch: &mutationv3.HeaderMutation_RemoveOnMatch{KeyMatcher: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: prefix},
		}},
	}}
}

// notToUpstream are request headers that the filters still need and that go no further. The request id is Envoy's
// own in place of any the worker sent, so that the worker's answer, the gate and the access log agree on it.
var notToUpstream = []string{"x-request-id"}

// notFromUpstream are response headers that an upstream may not send: they would speak for the proxy or the gate.
var notFromUpstream = []string{
	"proxy-agent", "proxy-authenticate", "proxy-authentication-info", "proxy-connection", "x-wayleave-reason",
}
