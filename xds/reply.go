package xds

import (
	"encoding/json"
	"slices"
	"strings"

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
	reasonUpstreamBrokeOff    = "upstream_broke_off"
	reasonBarrier             = "barrier"
	reasonMisdirected         = "misdirected"
	reasonUseConnect          = "use_connect"
	reasonUseTLS              = "use_tls"
	reasonMalformed           = "malformed"
	reasonTokenReplaced       = "token_replaced"

	useConnect = "wayleave proxies https only: set HTTPS_PROXY and use an https URL, which makes the client send CONNECT. A host that speaks nothing else an operator lists in plain"
	tooMuch    = "wayleave has no memory left for more requests at the moment; nothing was sent. Try again, and if it lasts tell the operator that Envoy needs more memory, or workers limits"
	tooLarge   = "wayleave takes request headers of 96 KiB and 1,000 lines at most; nothing was sent. Send less, cookies for instance"

	// ofEnvoy is true of a failure that nobody has given a reason. A success is the gate's, in the place of an upstream.
	ofEnvoy = "(response.code >= 400 && !('" + reasonHeader + "' in response.headers))"
	// aboutRequest is true of a reply about the form of the request: all of 4xx, and a transfer coding nobody knows.
	aboutRequest = "(response.code < 500 || response.code == 501)"
	// ofUpstream is true of a reply about the connection to the upstream, or the lack of one.
	ofUpstream = "(response.code_details.startsWith('upstream_') || response.code_details.startsWith('dns_') || response.code_details.startsWith('dynamic_forward_proxy_') || response.code_details.startsWith('no_healthy_upstream') || response.code_details.startsWith('cluster_not_found'))"
	// brokeOff is true when the upstream was reached, and has not said that it did nothing with the request.
	brokeOff = "(response.code_details.startsWith('upstream_') && !response.code_details.contains('connection_failure') && !response.code_details.contains('connection_timeout') && !response.code_details.contains('overflow') && !response.code_details.contains('refused_stream'))"
	// noRoutes is true while Envoy has not been told its routes.
	noRoutes = "response.code_details.startsWith('route_')"
	// noMemory is true when Envoy has no memory left for more (package envoy).
	noMemory = "response.code_details == 'overload'"
	// tooLongAgain is true when a request that was to be sent again turned out too long to have been kept.
	tooLongAgain = "response.code_details.startsWith('request_payload_exceeded_retry_buffer_limit')"
)

func proxyReplies() *hcmv3.LocalReplyConfig {
	return &hcmv3.LocalReplyConfig{Mappers: slices.Concat(
		[]*hcmv3.ResponseMapper{
			replyWhen(ofEnvoy+" && response.code_details.startsWith('http1.https_url_on_plaintext')", streamID, reasonUseConnect, pointless, useConnect),
			placeholderReply(streamID),
			replyWhen(ofEnvoy+" && response.code == 431", streamID, reasonMalformed, pointless, tooLarge),
			replyWhen(ofEnvoy+" && "+aboutRequest+" && !"+noRoutes, streamID, reasonMalformed, pointless,
				"wayleave cannot read this request to the proxy; nothing was sent. A client asks with CONNECT host:port, a DNS name and a number, which HTTPS_PROXY makes it do"),
		},
		upstreamReplies("xds.route_name == '"+routePlain+"'", tunnelID),
		[]*hcmv3.ResponseMapper{
			replyWhen(ofEnvoy+" && "+noMemory, streamID, reasonGateUnavailable, again, tooMuch),
			replyWhen(ofEnvoy, streamID, reasonGateUnavailable, again,
				"wayleave cannot check this connection at the moment; nothing was sent. Try again, and if it lasts tell the operator to run: wayleave doctor"),
		},
	)}
}

func interceptReplies() *hcmv3.LocalReplyConfig {
	return &hcmv3.LocalReplyConfig{Mappers: slices.Concat(
		[]*hcmv3.ResponseMapper{
			placeholderReply(requestID),
			replyWhen(ofEnvoy+" && response.code_details.startsWith('rbac_access_denied')", requestID, reasonBarrier, pointless,
				"wayleave stopped this request because the gate gave no verdict on it; nothing was sent. Tell the operator: this is a fault of the gate, and its log has the request id"),
			withStatus(503, replyWhen(ofEnvoy+" && "+tooLongAgain, requestID, reasonTokenReplaced, again,
				"the provider rejected the token that wayleave sent, and wayleave is getting another, but this request is too long for wayleave to send it again by itself. Send it again")),
			replyWhen(ofEnvoy+" && response.code == 431", tunnelID, reasonMalformed, pointless, tooLarge),
			replyWhen(ofEnvoy+" && response.code_details.startsWith('upgrade_failed')", tunnelID, reasonMalformed, pointless,
				"wayleave forwards no other upgrade than websocket; nothing was sent. Send the request without the Upgrade header"),
			replyWhen(ofEnvoy+" && "+aboutRequest+" && !"+noRoutes, tunnelID, reasonMalformed, pointless,
				"wayleave cannot take this request as it is written: its first line, a header, how its length is given, or its body is not as HTTP has it; it was not sent, or not to its end. The access log names the fault under this x-request-id"),
		},
		upstreamReplies("true", requestID),
		[]*hcmv3.ResponseMapper{
			replyWhen(ofEnvoy+" && "+noMemory, tunnelID, reasonGateUnavailable, again, tooMuch),
			replyWhen(ofEnvoy, requestID, reasonGateUnavailable, again,
				"wayleave cannot decide on this request at the moment; nothing was sent. Try again, and if it lasts tell the operator to run: wayleave doctor"),
		},
	)}
}

func placeholderReply(id string) *hcmv3.ResponseMapper {
	return replyWhen(ofEnvoy+" && response.code_details.startsWith('"+denied(policyPlaceholder)+"')", id, reasonBarrier, pointless,
		"wayleave stopped this request because it still held a placeholder where a credential goes; nothing was sent. Send the placeholder only in the header its variable is meant for, and only to that provider's hosts")
}

// upstreamReplies tell why a host was not reached, or what came of it, where the condition holds.
func upstreamReplies(condition, id string) []*hcmv3.ResponseMapper {
	here := ofEnvoy + " && " + condition
	return []*hcmv3.ResponseMapper{
		replyWhen(here+" && response.code_details.contains('address_denied')", id, reasonUpstreamUnreachable, pointless,
			"wayleave did not connect, because the name of this host resolves to a private address; nothing was sent. If that is intended, an operator adds the address to upstream.allow_private"),
		replyWhen(here+" && response.code_details.startsWith('dns_cache_overflow')", id, reasonUpstreamUnreachable, again,
			"wayleave did not look up the name of this host, because workers have asked for more names in the last minutes than it keeps; nothing was sent. Try again in some minutes"),
		replyWhen(here+" && response.code_details.startsWith('dns_')", id, reasonUpstreamUnreachable, again,
			"wayleave could not look up the name of this host; nothing was sent. Try again, and if it lasts ask the operator to check upstream.dns_resolvers"),
		replyWhen(here+" && response.code_details.contains('CERTIFICATE_VERIFY_FAILED')", id, reasonUpstreamUnreachable, pointless,
			"wayleave did not connect, because the certificate of this host is not valid for its name or its authority is not known; nothing was sent. For an authority of your own, an operator adds it to upstream.ca_files"),
		replyWhen(here+" && "+brokeOff, id, reasonUpstreamBrokeOff, clientsChoice,
			"wayleave lost the connection to the provider before an answer came, or could not read the answer; the provider may have acted on the request. Send it again if that does no harm"),
		replyWhen(here+" && "+ofUpstream, id, reasonUpstreamUnreachable, again,
			"wayleave could not reach the provider; nothing was sent. Try again, and if it lasts ask the operator to look up the request id in the access log"),
	}
}

// withHelp has every refusal lead to the page about its reason (RFC 8288): those of Envoy's own, and those of the gate, which have a reason
// already and are left as they are else.
func withHelp(c *hcmv3.LocalReplyConfig, url string) *hcmv3.LocalReplyConfig {
	if url == "" {
		return c
	}
	link := func(reason string) *corev3.HeaderValueOption {
		before, after, _ := strings.Cut(strings.ReplaceAll(url, "%", "%%"), "{reason}")
		return overwrite("link", "<"+before+reason+after+`>; rel="help"`)
	}
	for _, m := range c.GetMappers() {
		for _, h := range m.GetHeadersToAdd() {
			if h.GetHeader().GetKey() == reasonHeader {
				m.HeadersToAdd = append(m.HeadersToAdd, link(h.GetHeader().GetValue()))
				break
			}
		}
	}
	c.Mappers = append(c.Mappers, &hcmv3.ResponseMapper{
		Filter:       celFilter("'" + reasonHeader + "' in response.headers"),
		HeadersToAdd: []*corev3.HeaderValueOption{link("%RESP(" + reasonHeader + ")%")},
	})
	return c
}

// denied begins the response code details of a request that a DENY policy refused.
func denied(policy string) string { return "rbac_access_denied_matched_policy[" + policy + "]" }

// retry is the value of x-should-retry, which some clients obey.
type retry string

const (
	again         retry = "true"
	pointless     retry = "false"
	clientsChoice retry = "" // no header: only the client knows whether twice does harm
)

// replyWhen rewrites the replies for which the CEL condition holds; id is how to name the request.
func replyWhen(condition, id, reason string, r retry, message string) *hcmv3.ResponseMapper {
	headers := []*corev3.HeaderValueOption{overwrite(reasonHeader, reason), overwrite("x-request-id", id)}
	if r != clientsChoice {
		headers = append(headers, overwrite("x-should-retry", string(r)))
	}
	body, err := structpb.NewStruct(map[string]any{
		"type":  "error", // one shape for the clients of several providers: each reads what it knows
		"error": map[string]any{"type": "api_error", "code": reason, "message": message + more(reason)},
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
		HeadersToAdd: headers,
	}
}

// withStatus gives the reply another status than Envoy would.
func withStatus(status uint32, m *hcmv3.ResponseMapper) *hcmv3.ResponseMapper {
	m.StatusCode = number(status)
	return m
}

// errorBody is a body of the same shape, where Envoy takes it as text.
func errorBody(kind, reason, message string) string {
	body, err := json.Marshal(map[string]any{
		"type":  "error",
		"error": map[string]string{"type": kind, "code": reason, "message": message + more(reason)},
	})
	if err != nil {
		panic("xds: " + err.Error()) // maps of strings always marshal
	}
	return string(body)
}

// more names the page of a reason, which every wayleave has in it.
func more(reason string) string { return " (more: wayleave explain " + reason + ")" }
