package xds

import (
	"regexp"
	"slices"
	"strings"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// replyHeaders are what ext_proc may set on an answer of its own; its mutation rules apply to those too.
var replyHeaders = []string{
	"cache-control", "content-type", "proxy-authenticate", "retry-after", "www-authenticate", "x-request-id", "x-should-retry", "x-wayleave-reason",
}

// extProc is the filter's settings, delivered by ECDS so that changing them changes no listener.
func extProc(p plan) *corev3.TypedExtensionConfig {
	if slices.ContainsFunc(p.routes, func(r plannedRoute) bool { return r.lane != nil }) {
		return extension(filterExtProc, unlessSet(p))
	}
	return extension(filterExtProc, extProcSettings(p))
}

// extProcSettings asks the gate about the headers of each request, and about nothing else: bodies of any size and
// event streams pass by. Whatever goes wrong refuses the request.
func extProcSettings(p plan) *extprocv3.ExternalProcessor {
	changes := slices.Concat(bodyHeaders, p.credentialHeaders, p.ensureHeaders, socketHeaders, retryHeaders, replyHeaders)
	if p.rewritesPaths {
		changes = append(changes, ":path")
	}
	out := &extprocv3.ExternalProcessor{
		GrpcService:      gateService(len(p.apiSockets), 0), // a time limit here would be one for the whole request
		FailureModeAllow: false,
		StatusOnError:    &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		MessageTimeout:   seconds(p.messageTimeout),
		ProcessingMode: &extprocv3.ProcessingMode{
			RequestHeaderMode:   extprocv3.ProcessingMode_SEND,
			ResponseHeaderMode:  extprocv3.ProcessingMode_SKIP,
			RequestBodyMode:     extprocv3.ProcessingMode_NONE,
			ResponseBodyMode:    extprocv3.ProcessingMode_NONE,
			RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
			ResponseTrailerMode: extprocv3.ProcessingMode_SKIP,
		},
		// The gate counts a request as under way for as long as the stream about it lives, which is until Envoy has no more to ask.
		AllowModeOverride: true,
		AllowedOverrideModes: []*extprocv3.ProcessingMode{{
			ResponseHeaderMode: extprocv3.ProcessingMode_SKIP, ResponseTrailerMode: extprocv3.ProcessingMode_SEND, RequestTrailerMode: extprocv3.ProcessingMode_SKIP,
		}},
		RequestAttributes: []string{
			"connection.requested_server_name",
			"source.address",
			"xds.node.id",
			"filter_state['" + stateIdentity + "']",
			"filter_state['" + stateAuthority + "']",
		},
		RouteCacheAction: extprocv3.ExternalProcessor_RETAIN,
		MutationRules:    onlyHeaders(changes),
		MetadataOptions: &extprocv3.MetadataOptions{
			// What the gate decided at first, and whether it was of use, for when it is asked about a retry.
			ForwardingNamespaces: &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{metadataNamespace}},
			ReceivingNamespaces:  &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{metadataNamespace}},
		},
	}
	if p.maxHold > 0 {
		out.MaxMessageTimeout = seconds(p.maxHold)
	}
	return out
}

// answersToo sends the gate the answer to a request as well, its body in the pieces in which it arrives.
func answersToo() *extprocv3.ExtProcPerRoute {
	return &extprocv3.ExtProcPerRoute{Override: &extprocv3.ExtProcPerRoute_Overrides{Overrides: &extprocv3.ExtProcOverrides{
		ProcessingMode: &extprocv3.ProcessingMode{
			RequestHeaderMode:   extprocv3.ProcessingMode_SEND,
			ResponseHeaderMode:  extprocv3.ProcessingMode_SEND,
			RequestBodyMode:     extprocv3.ProcessingMode_NONE,
			ResponseBodyMode:    extprocv3.ProcessingMode_STREAMED,
			RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
			ResponseTrailerMode: extprocv3.ProcessingMode_SEND,
		},
	}}}
}

// socketHeaders are what ext_proc may complete when a request opens a WebSocket.
var socketHeaders = []string{"sec-websocket-key"}

// bodyHeaders are what ext_proc sets or removes to be able to search an answer.
var bodyHeaders = []string{"accept-encoding", "if-range", "range"}

// retryHeaders tell the router to try a swapped request once more after a 401 (upstreamTo). They go no further than the router.
var retryHeaders = []string{"x-envoy-retry-on"}

// onlyHeaders allows changes of these headers. Any other makes the request fail: by default Envoy would let a
// processor set :path, content-length and transfer-encoding.
//
// The expression grows with the list and passes Envoy's default limit on regular expressions (a program of 100
// instructions); the bootstrap raises it.
func onlyHeaders(names []string) *mutationv3.HeaderMutationRules {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = regexp.QuoteMeta(n)
	}
	slices.Sort(quoted)
	quoted = slices.Compact(quoted)
	return &mutationv3.HeaderMutationRules{
		DisallowAll:     yes(),
		DisallowIsError: yes(),
		AllowExpression: &matcherv3.RegexMatcher{Regex: "^(" + strings.Join(quoted, "|") + ")$"},
	}
}
