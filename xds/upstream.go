package xds

import (
	_ "embed"

	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	codecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// Between the router and an upstream's connection, for each attempt of a request:
//
//	ext_proc, after a 401 only ▶ lua: notes a 401, searches the answer ▶ codec
//
// The router sends a swapped request again when the upstream answers 401, if the gate has said so at the swap. Only
// then does the second ext_proc run, and it replaces the token that was rejected. A retry after a lost connection goes
// by it: nothing is wrong with its token. What gRPC answers comes with status 200, often behind a part of the answer, so that the router
// cannot send such a request again; the gate is told of it as of all ends, and has another token for the next one.

// filterAgain asks the gate about a retry.
const filterAgain = "wayleave.ext_proc_again"

// metadataAnswered is the status of the last attempt, where that matters: 401, or 16, gRPC's UNAUTHENTICATED.
const metadataAnswered = "answered"

// upstreamVM is one for all clusters: Envoy would make each its own, of a quarter of a megabyte for each of its threads.
const upstreamVM = "wayleave.upstream"

//go:embed upstream.lua
var upstreamLua string

func upstreamFilters(p plan) []*hcmv3.HttpFilter {
	return []*hcmv3.HttpFilter{
		httpFilter(filterAgain, onlyWhen(fieldIs(metadataAnswered, exactly("401")), filterExtProc, extProcSettings(p))),
		httpFilter("envoy.filters.http.lua", &luav3.Lua{DefaultSourceCode: inlineString(upstreamLua), ClearRouteCache: no(), SharedVmId: upstreamVM}),
		httpFilter("envoy.filters.http.upstream_codec", &codecv3.UpstreamCodec{}),
	}
}
