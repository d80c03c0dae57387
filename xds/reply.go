package xds

import (
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// Replies that Envoy makes by itself get a body a client can show and a header a program can read. The answers of
// the gate, ext_authz's and ext_proc's, are left as they are: they carry x-wayleave-reason already.
//
// The texts leave out Envoy's own details, which tell of the inside; those are in the access log under the same
// request id.

const (
	reasonHeader = "x-wayleave-reason"

	reasonGateUnavailable     = "gate_unavailable"
	reasonUpstreamUnreachable = "upstream_unreachable"
	reasonBarrier             = "barrier"
	reasonMisdirected         = "misdirected"
	reasonUseConnect          = "use_connect"

	// ofEnvoy is true of a reply that nobody has given a reason.
	ofEnvoy = "!('" + reasonHeader + "' in response.headers)"
	// ofUpstream is true of a reply about the connection to the upstream, or the lack of one.
	ofUpstream = "(response.code_details.startsWith('upstream_') || response.code_details.startsWith('dns_') || response.code_details.startsWith('no_healthy_upstream') || response.code_details.startsWith('cluster_not_found'))"
)

func proxyReplies() *hcmv3.LocalReplyConfig {
	return &hcmv3.LocalReplyConfig{Mappers: []*hcmv3.ResponseMapper{
		replyWhen(ofEnvoy+" && response.code >= 500", streamID, reasonGateUnavailable, true,
			"wayleave cannot check this connection at the moment; nothing was sent. Try again, and if it lasts tell the operator to run: wayleave status"),
	}}
}

func interceptReplies() *hcmv3.LocalReplyConfig {
	return &hcmv3.LocalReplyConfig{Mappers: []*hcmv3.ResponseMapper{
		replyWhen(ofEnvoy+" && response.code_details.startsWith('"+denied(policyPlaceholder)+"')", requestID, reasonBarrier, false,
			"wayleave stopped this request because it still held a placeholder where a credential goes; nothing was sent. Send the placeholder only in the header its variable is meant for, and only to that provider's hosts"),
		replyWhen(ofEnvoy+" && response.code_details.startsWith('rbac_access_denied')", requestID, reasonBarrier, false,
			"wayleave stopped this request because the gate gave no verdict on it; nothing was sent. Tell the operator: this is a fault of the gate, and its log has the request id"),
		replyWhen(ofEnvoy+" && response.code >= 500 && "+ofUpstream, requestID, reasonUpstreamUnreachable, true,
			"wayleave could not reach the provider, or could not verify that it is the provider. Try again, and if it lasts ask the operator to look up the request id in the access log"),
		replyWhen(ofEnvoy+" && response.code >= 500", requestID, reasonGateUnavailable, true,
			"wayleave cannot decide on this request at the moment; nothing was sent. Try again, and if it lasts tell the operator to run: wayleave status"),
	}}
}

// denied begins the response code details of a request that a DENY policy refused.
func denied(policy string) string { return "rbac_access_denied_matched_policy[" + policy + "]" }

// replyWhen rewrites the replies for which the CEL condition holds; id is how to name the request.
func replyWhen(condition, id, reason string, retry bool, message string) *hcmv3.ResponseMapper {
	body, err := structpb.NewStruct(map[string]any{
		"type":  "error", // one shape for the clients of several providers: each reads what it knows
		"error": map[string]any{"type": "api_error", "code": reason, "message": message},
	})
	if err != nil {
		panic("xds: " + err.Error()) // only for values JSON does not have
	}
	return &hcmv3.ResponseMapper{
		Filter: celFilter(condition),
		BodyFormatOverride: &corev3.SubstitutionFormatString{
			ContentType: "application/json",
			Format:      &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: body},
		},
		HeadersToAdd: []*corev3.HeaderValueOption{
			overwrite(reasonHeader, reason),
			overwrite("x-request-id", id),
			overwrite("x-should-retry", strconv.FormatBool(retry)),
		},
	}
}
