package xds

import (
	_ "embed"

	matcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	actionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/matcher/action/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	codecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	inputsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/metadata/v3"
	"google.golang.org/protobuf/proto"
)

// Between the router and an upstream's connection, for each attempt of a request:
//
//	ext_proc, after a 401 only ▶ lua: notes a 401, searches the answer ▶ codec
//
// The router sends a swapped request again when the upstream answers 401, if the gate has said so at the swap. Only
// then does the second ext_proc run, and it replaces the token that was rejected. A retry after a lost connection goes
// by it: nothing is wrong with its token.

// filterAgain asks the gate about a retry.
const filterAgain = "wayleave.ext_proc_again"

// metadataAnswered is the status of the last attempt, where that matters.
const metadataAnswered = "answered"

//go:embed upstream.lua
var upstreamLua string

func upstreamFilters(p plan) []*hcmv3.HttpFilter {
	return []*hcmv3.HttpFilter{
		onlyWhen(filterAgain, metadataAnswered, "401", filterExtProc, extProcSettings(p)),
		httpFilter("envoy.filters.http.lua", &luav3.Lua{DefaultSourceCode: inlineString(upstreamLua), ClearRouteCache: no()}),
		httpFilter("envoy.filters.http.upstream_codec", &codecv3.UpstreamCodec{}),
	}
}

// onlyWhen is a filter called name that is skipped unless the metadata called key has this value when the request comes to it.
func onlyWhen(name, key, value, inner string, settings proto.Message) *hcmv3.HttpFilter {
	other := &matcher.Matcher_MatcherList_Predicate{MatchType: &matcher.Matcher_MatcherList_Predicate_SinglePredicate_{
		SinglePredicate: &matcher.Matcher_MatcherList_Predicate_SinglePredicate{
			Input: matchExtension("metadata", &inputsv3.DynamicMetadataInput{
				Filter: metadataNamespace,
				Path:   []*inputsv3.DynamicMetadataInput_PathSegment{{Segment: &inputsv3.DynamicMetadataInput_PathSegment_Key{Key: key}}},
			}),
			Matcher: &matcher.Matcher_MatcherList_Predicate_SinglePredicate_CustomMatch{
				CustomMatch: matchExtension("metadata", &metadatav3.Metadata{Value: exactly(value), Invert: true}),
			},
		},
	}}
	return httpFilter(name, &matchingv3.ExtensionWithMatcher{
		ExtensionConfig: extension(inner, settings),
		XdsMatcher: &matcher.Matcher{MatcherType: &matcher.Matcher_MatcherList_{MatcherList: &matcher.Matcher_MatcherList{
			Matchers: []*matcher.Matcher_MatcherList_FieldMatcher{{
				Predicate: other,
				OnMatch:   &matcher.Matcher_OnMatch{OnMatch: &matcher.Matcher_OnMatch_Action{Action: matchExtension("skip", &actionv3.SkipFilter{})}},
			}},
		}}},
	})
}
