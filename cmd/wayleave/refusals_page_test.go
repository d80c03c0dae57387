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
	"wayleave/worker"
)

func refusalsPage(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("# Refusals\n\n" + generated + `
What a worker sees when its request is not forwarded. The body is JSON in the error shape of the provider's own API, so that its clients show the
text. The text ends with a command, ` + "`wayleave explain <reason>`" + `, which prints the page about that reason; the names below lead to the same pages. To gRPC the
gate's are a status with the text for its message: UNAVAILABLE where the same call may succeed later, RESOURCE_EXHAUSTED where that is because of a limit, INVALID_ARGUMENT
for 400, else PERMISSION_DENIED. The headers are

| header | value |
|---|---|
| ` + "`x-wayleave-reason`" + ` | the reason below; an answer without this header is the provider's own |
| ` + "`x-request-id`" + ` | the same id is in the gate's log and in Envoy's access log |
| ` + "`x-should-retry`" + ` | false where the same request cannot succeed later |
| ` + "`retry-after`" + ` | seconds, where it can |
| ` + "`link`" + ` | the page about the reason, of relation ` + "`help`" + `, where [` + "`listen.help_url`" + `](configuration.md#listen) says where your people read them |

## By the gate

Clients differ in which status they show and which they retry, so a provider may have another one: the presets that do are named, and
` + "`providers.<name>.refusal_status`" + ` changes it.

| reason | status | retry | what it says | who does what next |
|---|---|---|---|---|
`)
	for _, r := range extproc.Reasons() {
		status := statuses(r)
		if nextStep[r.Name] == "" {
			t.Errorf("nobody is named who does something about %s", r.Name)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", linked(r.Name), status, yesNo(r.Retry), cell(r.Words), nextStep[r.Name])
	}
	b.WriteString(`
Words in braces are filled in; ` + "`policy_denied`" + ` gives the reason that the configuration or the rule states.

Whose placeholder was sent is not for the worker to know. The gate's log and the [audit](audit.md) say it of each ` + "`not_your_placeholder`" + `: ` + "`session`" + ` is the one that sent it,
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
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", linked(r.reason), r.status, r.retry, r.what, r.next)
	}
	b.WriteString(`
## When a worker enrols

` + "`wayleave run`" + ` shows what the gate says, which has the details; programs read JSON with ` + "`error`" + ` (the reason), ` + "`message`" + ` and ` + "`request_id`" + `, and
` + "`retry-after`" + ` where a retry may help.

| reason | status | retry | what happened | who does what next |
|---|---|---|---|---|
`)
	for _, r := range worker.Refusals() {
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s |\n", linked(r.Reason), r.Status, yesNo(r.Retry), r.What, r.Next)
	}
	return b.String()
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

// linked is a reason with the page about it.
func linked(reason string) string { return fmt.Sprintf("[`%s`](errors/%s.md)", reason, reason) }
