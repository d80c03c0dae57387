package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"wayleave/config"
	"wayleave/extproc"
	"wayleave/provider"
	"wayleave/worker"
)

// next says who does what about a refusal by the gate.
var next = map[string]string{
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

// ofEnvoy are the replies that Envoy makes without the gate.
var ofEnvoy = []struct{ reason, status, retry, what, next string }{
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

func refusalsPage(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("# Refusals\n\n" + generated + `
What a worker sees when its request is not forwarded. The body is JSON in the error shape of the provider's own API, so that its clients show the
text. The headers are

| header | value |
|---|---|
| ` + "`x-wayleave-reason`" + ` | the reason below; an answer without this header is the provider's own |
| ` + "`x-request-id`" + ` | the same id is in the gate's log and in Envoy's access log |
| ` + "`x-should-retry`" + ` | false where the same request cannot succeed later |
| ` + "`retry-after`" + ` | seconds, where it can |

## By the gate

Clients differ in which status they show and which they retry, so a provider may have another one: the presets that do are named, and
` + "`providers.<name>.refusal_status`" + ` changes it.

| reason | status | retry | what it says | who does what next |
|---|---|---|---|---|
`)
	for _, r := range extproc.Reasons() {
		status := fmt.Sprint(r.Status)
		for _, name := range provider.Presets() {
			if p, _ := provider.Preset(name); p.RefusalStatus[r.Name] != 0 && p.RefusalStatus[r.Name] != r.Status {
				status += fmt.Sprintf("; %s: %d", name, p.RefusalStatus[r.Name])
			}
		}
		if next[r.Name] == "" {
			t.Errorf("nobody is named who does something about %s", r.Name)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", r.Name, status, yesNo(r.Retry), cell(r.Words), next[r.Name])
	}
	b.WriteString(`
Words in braces are filled in; ` + "`policy_denied`" + ` gives the reason that the configuration or the rule states.

Whose placeholder was sent is not for the worker to know. The gate's log says it of each ` + "`not_your_placeholder`" + `: ` + "`session`" + ` is the one that sent it,
` + "`placeholder_of`" + ` the one it was made for, where that is known, and ` + "`cause`" + ` is

| cause | the placeholder is |
|---|---|
| ` + "`other_session`" + ` | that of another session of the same worker |
| ` + "`other_worker`" + ` | that of another worker's session |
| ` + "`other_credential`" + ` | this session's, for another credential: it was sent to a host that has another |
| ` + "`altered`" + ` | none that the gate made: a character differs, or what is around it is no form that the route reads |
| ` + "`unknown_key`" + ` | made with a session key that is not kept any more, or by another gate |

A worker that is not known and a host that may not be reached are refused when the tunnel is opened, with 407 and 403. Most clients show only that
status. Everything else is refused inside the tunnel, where clients show the text. A TLS name that is not served ends in a TLS alert.

## By Envoy

These have one shape for every provider.

| reason | status | retry | what happened | who does what next |
|---|---|---|---|---|
`)
	for _, r := range ofEnvoy {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", r.reason, r.status, r.retry, r.what, r.next)
	}
	b.WriteString(`
## When a worker enrols

` + "`wayleave run`" + ` shows what the gate says, which has the details; programs read JSON with ` + "`error`" + ` (the reason), ` + "`message`" + ` and ` + "`request_id`" + `, and
` + "`retry-after`" + ` where a retry may help.

| reason | status | retry | what happened | who does what next |
|---|---|---|---|---|
`)
	for _, r := range worker.Refusals() {
		fmt.Fprintf(&b, "| `%s` | %d | %s | %s | %s |\n", r.Reason, r.Status, yesNo(r.Retry), r.What, r.Next)
	}
	return b.String()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

var reasonSet = regexp.MustCompile(`"key":\s*"x-wayleave-reason",\s*"value":\s*"([a-z_]+)"|x-wayleave-reason: ([a-z_]+)`)

// The page has every reason that is among what Envoy is told, and no other.
func TestEveryReplyOfEnvoyIsOnThePage(t *testing.T) {
	resources, err := envoyResources(wiringConfig(t), "", "/run/wayleave", "/dev/stdout")
	if err != nil {
		t.Fatal(err)
	}
	var built, shown []string
	for _, r := range resources.All() {
		text, err := protojson.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range reasonSet.FindAllSubmatch(text, -1) {
			built = append(built, string(m[1])+string(m[2]))
		}
	}
	for _, r := range ofEnvoy {
		shown = append(shown, r.reason)
	}
	slices.Sort(built)
	slices.Sort(shown)
	if built = slices.Compact(built); !slices.Equal(built, shown) {
		t.Errorf("Envoy is told of %v, docs/refusals.md of %v", built, shown)
	}
}

// What the gate refuses with is what the configuration lets an operator choose a status for.
func TestEveryReasonMayHaveAStatus(t *testing.T) {
	var b strings.Builder
	for _, r := range extproc.Reasons() {
		fmt.Fprintf(&b, "      %s: 418\n", r.Name)
	}
	text := "providers:\n  mine:\n    preset: anthropic\n    refusal_status:\n" + b.String() + `
grants: {g: {provider: mine}}
routes: [{hosts: [api.example.com], grant: g}]
profiles: {p: {grants: [g]}}
workers: {w: {profile: p}}
`
	if _, err := config.Parse("wayleave.yaml", []byte(text)); err != nil {
		t.Error(err)
	}
}
