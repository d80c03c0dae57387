package xds

import (
	"encoding/base64"
	"strings"

	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// The barrier does not trust ext_proc to have run. Envoy has been seen to let requests pass when its client could
// not be made, and to skip a mutation with an empty value; here Envoy checks the result with filters of its own.

const (
	filterRBAC        = "envoy.filters.http.rbac"
	policyPlaceholder = "placeholder"
	policyVerdict     = "verdict"
)

// verdicts are the values of the verdict that let a request out.
var verdicts = []string{"pass", "swap"}

// barrier refuses a request in which one of the headers still holds a placeholder, and one that ext_proc has not decided to let out.
func barrier(headers []string, marker string) *hcmv3.HttpFilter {
	var decided []*rbacconfig.Permission
	for _, v := range verdicts {
		decided = append(decided, metadataIs(metadataVerdict, v))
	}
	undecided := &rbacconfig.Permission{Rule: &rbacconfig.Permission_NotRule{NotRule: &rbacconfig.Permission{
		Rule: &rbacconfig.Permission_OrRules{OrRules: &rbacconfig.Permission_Set{Rules: decided}},
	}}}
	rules := deny(policyPlaceholder, holdsPlaceholder(headers, marker))
	rules.Policies[policyVerdict] = &rbacconfig.Policy{Permissions: []*rbacconfig.Permission{undecided}, Principals: anyone()}
	return httpFilter(filterRBAC, &rbacv3.RBAC{Rules: rules})
}

// placeholderBarrier is for where nothing is swapped, and so there is no verdict.
func placeholderBarrier(headers []string, marker string) *hcmv3.HttpFilter {
	return httpFilter(filterRBAC, &rbacv3.RBAC{Rules: deny(policyPlaceholder, holdsPlaceholder(headers, marker))})
}

// holdsPlaceholder is met by a request in which one of the headers holds a placeholder, in the clear or inside Basic credentials.
func holdsPlaceholder(headers []string, marker string) *rbacconfig.Policy {
	var held []*rbacconfig.Permission
	for _, h := range headers {
		for _, text := range append([]string{marker}, base64Cores(marker)...) {
			held = append(held, headerContains(h, text))
		}
	}
	return &rbacconfig.Policy{Permissions: held, Principals: anyone()} // any of them
}

func headerContains(name, text string) *rbacconfig.Permission {
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_Header{Header: &routev3.HeaderMatcher{
		Name: name,
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Contains{Contains: text},
		}},
	}}}
}

func metadataIs(key, value string) *rbacconfig.Permission {
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_SourcedMetadata{SourcedMetadata: &rbacconfig.SourcedMetadata{
		MetadataSource: rbacconfig.MetadataSource_DYNAMIC,
		MetadataMatcher: &matcherv3.MetadataMatcher{
			Filter: metadataNamespace,
			Path:   []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: key}}},
			Value:  exactly(value),
		},
	}}}
}

func exactly(value string) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
		MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value},
	}}}
}

// base64Cores returns the three texts of which one is in the base64 of whatever contains s: one for each place s
// can have in a group of three bytes, without the characters that depend on its neighbours.
func base64Cores(s string) []string {
	var cores []string
	for before := range 3 {
		encoded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", before) + s))
		first := (before*8 + 5) / 6       // the first character wholly made of s
		last := (before + len(s)) * 8 / 6 // and the end of such characters
		cores = append(cores, encoded[first:last])
	}
	return cores
}
