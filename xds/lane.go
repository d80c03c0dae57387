package xds

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"

	matcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/generic_secret/v3"
	inputsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/metadata/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	envoymatcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	secrettext "wayleave/secret"
)

// The fast lane: where the gate leases its answer to a connection, Envoy gives that answer to the connection's next requests by
// itself, for as long as the lease lasts, which is about a second.
//
//	lua: has a lease, gives the request a lane ▶ the credential, in a lane only ▶ ext_proc, unless that is done ▶ lua: notes a lease
//
// A request with a lane that still holds a placeholder, because Envoy has no credential for it, goes to the gate as any other does.

// A Lane is how Envoy sets a route's credential by itself.
type Lane struct {
	// Credential is the name under which SetCredentials knows the header's value.
	Credential string
	// Header, in lower case, that holds the placeholder and gets the credential.
	Header string
}

// Key names the lane: a lease is for one, and no other route's credential is ever sent by it.
func (l Lane) Key(route string) string { return route + " " + l.Header + " " + l.Credential }

const (
	filterLane       = "wayleave.lane"
	filterCredential = "wayleave.credential"
	filterLease      = "wayleave.lease"

	metadataLane  = "lane"  // that a request has
	metadataLease = "lease" // that the gate gives
	contextLane   = "lane"

	laneVM = "wayleave.lane" // whose state both filters share
)

//go:embed lane.lua
var laneLua string

// laneScript is lane.lua with what it knows of all routes.
func laneScript(p plan) string {
	return strings.NewReplacer(
		"{marker}", strings.ToLower(p.marker),
		"{encoded}", luaStrings(base64Cores(p.marker), "%s"),
		"{credentials}", luaStrings(p.credentialHeaders, "[%s] = true"),
		"{connection}", stateTunnel, "{namespace}", metadataNamespace,
	).Replace(laneLua)
}

// luaStrings is a list of Lua; the texts are names and base64.
func luaStrings(texts []string, format string) string {
	var all []string
	for _, t := range texts {
		all = append(all, strings.Replace(format, "%s", strconv.Quote(t), 1))
	}
	return strings.Join(all, ", ")
}

// laneFilters are those before ext_proc. Both do nothing but on the routes that have a lane.
func laneFilters(p plan) []*hcmv3.HttpFilter {
	take := httpFilter(filterLane, laneLuaFilter(p))
	set := httpFilter(filterCredential, onlyWhen(hasField(metadataLane), filterHygiene, &headermutationv3.HeaderMutation{}))
	take.Disabled, set.Disabled = true, true
	return []*hcmv3.HttpFilter{take, set}
}

// leaseFilter is the one after ext_proc.
func leaseFilter(p plan) *hcmv3.HttpFilter {
	note := httpFilter(filterLease, onlyWhen(hasField(metadataLease), "envoy.filters.http.lua", laneLuaFilter(p)))
	note.Disabled = true
	return note
}

func laneLuaFilter(p plan) *luav3.Lua {
	return &luav3.Lua{DefaultSourceCode: inlineString(laneScript(p)), ClearRouteCache: no(), SharedVmId: laneVM}
}

// laneRoute turns these filters on, for the requests of a route.
func laneRoute(route string, l Lane) map[string]*anypb.Any {
	return map[string]*anypb.Any{
		filterLane:  laneContext(map[string]*structpb.Value{contextLane: structpb.NewStringValue(l.Key(route))}),
		filterLease: laneContext(nil),
		filterCredential: pack(&headermutationv3.HeaderMutationPerRoute{Mutations: &headermutationv3.Mutations{
			RequestMutations: []*mutationv3.HeaderMutation{{Action: &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
				Header:       &corev3.HeaderValue{Key: l.Header, Value: "%SECRET(credential)%"},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS,
			}}}},
			Formatters: []*corev3.TypedExtensionConfig{extension("envoy.formatter.generic_secret", &secretv3.GenericSecret{
				SecretConfigs: map[string]*tlsv3.SdsSecretConfig{"credential": secretSource(credentialName(l.Credential))},
			})},
		}}),
	}
}

// laneContext is what the script finds where it runs; an empty one is not nil to it.
func laneContext(fields map[string]*structpb.Value) *anypb.Any {
	return pack(&luav3.LuaPerRoute{FilterContext: &structpb.Struct{Fields: fields}})
}

// unlessSet is ext_proc, but for a request that has a lane and its credential.
func unlessSet(p plan) *compositev3.Composite {
	var held []*matcher.Matcher_MatcherList_Predicate
	for _, h := range p.credentialHeaders {
		held = append(held, headerHolds(h, p.marker))
	}
	placeholder := held[0]
	if len(held) > 1 {
		placeholder = &matcher.Matcher_MatcherList_Predicate{MatchType: &matcher.Matcher_MatcherList_Predicate_OrMatcher{
			OrMatcher: &matcher.Matcher_MatcherList_Predicate_PredicateList{Predicate: held},
		}}
	}
	return onlyWhen(not(&matcher.Matcher_MatcherList_Predicate{MatchType: &matcher.Matcher_MatcherList_Predicate_AndMatcher{
		AndMatcher: &matcher.Matcher_MatcherList_Predicate_PredicateList{Predicate: []*matcher.Matcher_MatcherList_Predicate{
			hasField(metadataLane),
			not(placeholder),
		}},
	}}), filterExtProc, extProcSettings(p))
}

func headerHolds(name, text string) *matcher.Matcher_MatcherList_Predicate {
	return single(&matcher.Matcher_MatcherList_Predicate_SinglePredicate{
		Input: matchExtension("header", &envoymatcherv3.HttpRequestHeaderMatchInput{HeaderName: name}),
		Matcher: &matcher.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: &matcher.StringMatcher{
			MatchPattern: &matcher.StringMatcher_Contains{Contains: text},
		}},
	})
}

// hasField is true of a request that has a field in its metadata.
func hasField(name string) *matcher.Matcher_MatcherList_Predicate {
	return fieldIs(name, present())
}

// fieldIs is true of a request with a field in its metadata that matches.
func fieldIs(name string, value *envoymatcherv3.ValueMatcher) *matcher.Matcher_MatcherList_Predicate {
	return single(&matcher.Matcher_MatcherList_Predicate_SinglePredicate{
		Input: matchExtension("metadata", &inputsv3.DynamicMetadataInput{
			Filter: metadataNamespace,
			Path:   []*inputsv3.DynamicMetadataInput_PathSegment{{Segment: &inputsv3.DynamicMetadataInput_PathSegment_Key{Key: name}}},
		}),
		Matcher: &matcher.Matcher_MatcherList_Predicate_SinglePredicate_CustomMatch{
			CustomMatch: matchExtension("metadata", &metadatav3.Metadata{Value: value}),
		},
	})
}

func single(p *matcher.Matcher_MatcherList_Predicate_SinglePredicate) *matcher.Matcher_MatcherList_Predicate {
	return &matcher.Matcher_MatcherList_Predicate{MatchType: &matcher.Matcher_MatcherList_Predicate_SinglePredicate_{SinglePredicate: p}}
}

// onlyWhen is a filter that is made for the requests for which the condition holds when they come to it. One in match_delegate would be
// made for each request and then skipped, and to make an ext_proc is no small part of what a request in the fast lane costs.
func onlyWhen(condition *matcher.Matcher_MatcherList_Predicate, inner string, settings proto.Message) *compositev3.Composite {
	return &compositev3.Composite{
		Matcher: &matcher.Matcher{MatcherType: &matcher.Matcher_MatcherList_{MatcherList: &matcher.Matcher_MatcherList{
			Matchers: []*matcher.Matcher_MatcherList_FieldMatcher{{
				Predicate: condition,
				OnMatch: &matcher.Matcher_OnMatch{OnMatch: &matcher.Matcher_OnMatch_Action{
					Action: matchExtension("make", &compositev3.ExecuteFilterAction{TypedConfig: extension(inner, settings)}),
				}},
			}},
		}}},
	}
}

func (l *Lane) check() error {
	if l != nil && (l.Credential == "" || !headerName.MatchString(l.Header)) {
		return errors.New("a lane needs a credential, and a header in lower case")
	}
	return nil
}

// credentialName is the name of the secret. It has no dot, whatever the credential is called: see answerTo.
func credentialName(credential string) string {
	sum := sha256.Sum256([]byte(credential))
	return staticPrefix + "credential/" + hex.EncodeToString(sum[:12])
}

// Credential is what Envoy sends in the header of a lane.
type Credential struct {
	Version string // tells it from others, and is no secret
	Value   secrettext.Text
}

// SetCredentials tells Envoys what to send in the lanes, by the names in the lanes; whoever has another value of one of them is sent the new one. One that
// is not named keeps its value.
func (s *Server) SetCredentials(credentials map[string]Credential) {
	s.secrets.setCredentials(credentials)
}

func credentialSecret(name string, c Credential) *secret {
	return &secret{version: c.Version, body: pack(&tlsv3.Secret{Name: name, Type: &tlsv3.Secret_GenericSecret{
		GenericSecret: &tlsv3.GenericSecret{Secret: inlineString(c.Value.Reveal())},
	}})}
}
