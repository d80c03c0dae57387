package main

import (
	"fmt"

	"wayleave/extproc"
	"wayleave/provider"
)

// nextStep says who does what about a refusal by the gate.
var nextStep = map[string]string{
	"never_connected":       "operator: `wayleave grant connect`, for a key `wayleave grant import`",
	"scope_missing":         "operator: `wayleave grant connect`, and allow the scopes",
	"needs_reconnect":       "operator: `wayleave grant connect`, for a key `wayleave grant import`",
	"refresh_unavailable":   "nobody: the gate tries again; if it lasts, the provider is down",
	"vault_unavailable":     "operator: `wayleave doctor`",
	"bad_credential_stored": "operator: `wayleave grant connect`, for a key `wayleave grant import`",
	"not_your_placeholder":  "worker: take the placeholder from its own environment",
	"misplaced_placeholder": "worker: send the placeholder in its own header only",
	"duplicate_credential":  "worker: send one credential",
	"policy_denied":         "operator, if it should be allowed: change the route or the profile",
	"approval_needed":       "operator: allow it by a rule before the one that holds it",
	"approval_denied":       "operator, if it was a mistake: ask again",
	"approval_timed_out":    "operator: `wayleave approval list`, and whoever sent it: again",
	"audit_unavailable":     "operator: the gate's log; it is the gate that refuses, as `audit.on_failure` says",
	"approval_unavailable":  "nobody: the client asks again; operator, if it lasts: the message, and `wayleave doctor`",
	"rate_limited":          "worker: send less at a time; operator, if that is too little: raise the limit",
	"token_endpoint":        "nobody: the client keeps its placeholder",
	"host_not_allowed":      "operator, if it should be allowed: add the host",
	"host_quarantined":      "operator: mend what `wayleave config check` reports",
	"misdirected":           "client: open a connection for each host",
	"session_expired":       "worker: start it again",
	"session_revoked":       "operator, if it was a mistake; else nobody",
	"proxy_auth_required":   "worker: start it with `wayleave run`",
}

// envoyReason is a reason of a reply that Envoy makes without the gate.
type envoyReason struct{ reason, status, retry, what, next string }

var ofEnvoy = []envoyReason{
	{"gate_unavailable", "503, or 504 when the gate hangs", "yes", "the gate did not answer Envoy; nothing was forwarded", "operator: `wayleave doctor`"},
	{"upstream_unreachable", "502, 503, 504", "yes, unless it cannot help",
		"the name was not found or is that of an address that is not allowed, nobody listens there, or the certificate is not for this name; nothing was sent",
		"operator: look up the request id in the access log; see `upstream` in [configuration.md](configuration.md)"},
	{"upstream_broke_off", "502, 503, 504", "client's choice", "the connection ended before the answer; the provider may have acted on the request", "client: send it again if that does no harm"},
	{"malformed", "400, 403, 431, 501", "no", "the request is not as HTTP has it, or too large; nothing was sent", "client: send another"},
	{"barrier", "403", "no", "a placeholder was left where a credential goes, or the gate gave no verdict; nothing was sent", "worker: send the placeholder in its own header only; else operator: report it, it is a fault of the gate"},
	{"misdirected", "421", "no", "the host is not served on this connection", "client: open a connection for each host"},
	{"use_connect", "403", "no", "a request without TLS, or for a TLS host without CONNECT, was sent to the proxy", "worker: use an https URL; operator, if the host has no TLS: list it in `plain`"},
	{"token_replaced", "503", "yes", "the provider rejected the token, and the request was too long to be sent again by the gate", "client: send it again; the gate has another token by then"},
	{"use_tls", "400", "no", "the port is that of the proxy over TLS, and what came was in the clear", "worker: write https:// in the URL of the proxy"},
}

// statuses are those of a reason, with the presets that have another.
func statuses(r extproc.Reason) string {
	out := fmt.Sprint(r.Status)
	for _, name := range provider.Presets() {
		if p, _ := provider.Preset(name); p.RefusalStatus[r.Name] != 0 && p.RefusalStatus[r.Name] != r.Status {
			out += fmt.Sprintf("; %s: %d", name, p.RefusalStatus[r.Name])
		}
	}
	return out
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
