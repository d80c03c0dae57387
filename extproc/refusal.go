package extproc

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"wayleave/grant"
	"wayleave/worker"
)

// The reasons of a refusal: the values of the x-wayleave-reason header.
const (
	neverConnected       = string(grant.NeverConnected)
	scopeMissing         = string(grant.ScopeMissing)
	needsReconnect       = string(grant.NeedsReconnect)
	refreshUnavailable   = string(grant.RefreshUnavailable)
	vaultUnavailable     = string(grant.VaultUnavailable)
	badCredentialStored  = "bad_credential_stored"
	notYourPlaceholder   = "not_your_placeholder"
	misplacedPlaceholder = "misplaced_placeholder"
	duplicateCredential  = "duplicate_credential"
	policyDenied         = "policy_denied"
	rateLimited          = "rate_limited"
	tokenEndpoint        = "token_endpoint"
	hostNotAllowed       = "host_not_allowed"
	hostQuarantined      = "host_quarantined"
	misdirected          = "misdirected"
	sessionExpired       = "session_expired"
	sessionRevoked       = "session_revoked"
	proxyAuthRequired    = "proxy_auth_required"
	approvalNeeded       = "approval_needed"
	approvalDenied       = "approval_denied"
	approvalTimedOut     = "approval_timed_out"
	approvalUnavailable  = "approval_unavailable"
)

// AuditUnavailable is the reason when what was decided could not be told of.
const AuditUnavailable = "audit_unavailable"

// Reason documents one reason of a refusal.
type Reason struct {
	// Name is the value of x-wayleave-reason.
	Name string
	// Status is the HTTP status; a provider may have another for its own clients.
	Status int
	// Retry reports whether the same request may succeed later. When not, x-should-retry: false says so.
	Retry bool
	// Words are shown to the worker. {grant}, {connect} (or import), {scopes}, {host}, {header}, {approval} and {detail} are filled in.
	Words string
}

// reasons is the one table of what a worker is told. Words say what happened and who does what next; they avoid the
// phrases that clients match on to replace our text by their own.
var reasons = []Reason{
	{neverConnected, 403, false, "the gate has no credential for {grant} yet; an operator gives it one with: wayleave grant {connect} {grant}"},
	{scopeMissing, 403, false, "the credential for {grant} lacks scopes this request needs ({scopes}); an operator allows them with: wayleave grant connect {grant}"},
	{needsReconnect, 403, false, "the credential for {grant} can no longer be refreshed; an operator renews it with: wayleave grant {connect} {grant}; nothing has to change on your side"},
	{refreshUnavailable, 503, true, "the credential for {grant} has expired and its provider does not refresh it at the moment; try again later"},
	{vaultUnavailable, 503, true, "the credential for {grant} cannot be read at the moment, because the gate's vault fails; try again later, and if it lasts an operator looks at the gate's log"},
	{badCredentialStored, 503, false, "the stored credential for {grant} cannot be sent in a header; an operator replaces it with: wayleave grant {connect} {grant}"},
	{notYourPlaceholder, 403, false, "the placeholder in {header} is not the one of this session for {grant}; use the one from this worker's own environment, unchanged"},
	{misplacedPlaceholder, 400, false, "a placeholder is in {detail}, where it is not swapped; send it in {header} only"},
	{duplicateCredential, 400, false, "the request has more than one credential, or marks its credential as hop-by-hop; send one, in {header}"},
	{policyDenied, 403, false, "{detail}"},
	{rateLimited, 429, true, "{detail}"},
	{tokenEndpoint, 503, false, "{host} gives out tokens, and the gate alone refreshes them; keep using the placeholder, it stays valid"},
	{hostNotAllowed, 403, false, "{host} may not be reached from here: {detail}"},
	{hostQuarantined, 403, false, "{host} is not served, because what is configured for it has a fault; an operator finds it with: wayleave config check"},
	{misdirected, 421, false, "the request is for {host}, its connection for another host or port; open a connection for each"},
	{sessionExpired, 403, false, "the session of this worker is over; start the worker again to get a new one"},
	{sessionRevoked, 403, false, "an operator has ended the session of this worker; if it may still run, start it again to get a new one"},
	{approvalNeeded, 403, false, "this needs an operator's approval ({detail}), and cannot wait for one on this way; an operator allows it by a rule"},
	{approvalDenied, 403, false, "an operator has denied this request, which is approval {approval}: {detail}"},
	{approvalTimedOut, 403, false, "nobody has decided in time about this request, which was approval {approval} ({detail}); ask an operator to look at: wayleave approval list, and then send it again"},
	{approvalUnavailable, 503, true, "this needs an operator's approval, and nobody can be asked: {detail}; try again later"},
	{AuditUnavailable, 503, true, "the gate cannot write down what it does at the moment, and is told to refuse requests then; try again later, and if it lasts an operator looks at the gate's log"},
	{proxyAuthRequired, 407, false, "the gate does not know who is calling; start the program with: wayleave run, or set the proxy user and password of a session"},
}

// Reasons returns every reason of a refusal, for documentation.
func Reasons() []Reason { return slices.Clone(reasons) }

func reasonNamed(name string) Reason {
	return reasons[slices.IndexFunc(reasons, func(r Reason) bool { return r.Name == name })]
}

// refusal is one answer that is not a request forwarded.
type refusal struct {
	reason string
	status int  // in place of the reason's own; 0: as the table and the provider have it
	asks   bool // for the credential: the client may have one, and send it when it is asked
	// What the words of the reason refer to; empty where they do not.
	grant, host, header, detail string
	approval                    string // its id
	imported                    bool   // the grant is
	scopes                      []string
	retryAfter                  time.Duration
	// For the log only.
	cause    error
	mismatch worker.Mismatch // why a placeholder was not the one that was due
	owner    string          // the session it was of, where that is known
}

func (f *refusal) message() string {
	connect := "connect"
	if f.imported {
		connect = "import"
	}
	return "wayleave: " + strings.NewReplacer(
		"{connect}", connect,
		"{grant}", cmp.Or(f.grant, "this host"),
		"{scopes}", strings.Join(f.scopes, " "),
		"{host}", cmp.Or(f.host, "this host"),
		"{header}", cmp.Or(f.header, "the header it is meant for"),
		"{approval}", f.approval,
		"{detail}", f.detail,
	).Replace(reasonNamed(f.reason).Words)
}

// text is all that a worker is told in words.
func (f *refusal) text() string { return f.message() + more(f.reason) }

// code is the refusal as gRPC has it. Clients may try again by themselves on Unavailable alone.
func (f *refusal) code() codes.Code {
	switch reason := reasonNamed(f.reason); {
	case reason.Status == http.StatusTooManyRequests:
		return codes.ResourceExhausted
	case reason.Retry:
		return codes.Unavailable
	case reason.Status == http.StatusBadRequest:
		return codes.InvalidArgument
	}
	return codes.PermissionDenied
}

// more names the page of a reason, which every wayleave has in it.
func more(reason string) string { return " (more: wayleave explain " + reason + ")" }

// askOperator is the detail of hostNotAllowed for a host that could be allowed.
func askOperator(profile string) string {
	return "an operator adds it to a route or to tunnel, and the route's grant to profile " + profile
}

// answer is a refusal as HTTP.
type answer struct {
	status  int
	headers [][2]string
	body    []byte
}

// answer shapes the refusal for the clients of r's provider; r is nil when the request found no route.
func (f *refusal) answer(r *Route, requestID string) answer {
	reason := reasonNamed(f.reason)
	status, format := reason.Status, ""
	if r != nil {
		status, format = cmp.Or(r.Status[f.reason], status), r.ErrorFormat
	}
	status = cmp.Or(f.status, status)
	if f.asks {
		status = http.StatusUnauthorized
	}
	a := answer{status: status, body: errorBody(format, status, f.reason, f.text(), requestID)}
	set := func(name, value string) { a.headers = append(a.headers, [2]string{name, value}) }
	set("content-type", "application/json")
	set("x-wayleave-reason", f.reason)
	set("x-request-id", requestID)
	if !reason.Retry {
		set("x-should-retry", "false")
	} else {
		set("retry-after", strconv.Itoa(wholeSeconds(f.retryAfter)))
	}
	if f.asks {
		set("www-authenticate", `Basic realm="wayleave"`)
	}
	if status == http.StatusProxyAuthRequired {
		set("proxy-authenticate", `Basic realm="wayleave"`) // RFC 9110 section 15.5.8 requires it
	}
	return a
}

// wholeSeconds is a wait as Retry-After has it, rounded up.
func wholeSeconds(wait time.Duration) int {
	return max(1, int((wait + time.Second - 1).Seconds()))
}

// errorBody writes an error as the provider's own clients read it.
func errorBody(format string, status int, reason, message, requestID string) []byte {
	type object = map[string]any
	var body object
	switch format {
	case "anthropic":
		body = object{"type": "error", "error": object{"type": anthropicType(status), "message": message}, "request_id": requestID}
	case "openai":
		body = object{"error": object{"message": message, "type": "invalid_request_error", "param": nil, "code": reason}}
	case "github":
		body = object{"message": message, "status": strconv.Itoa(status)}
	default:
		body = object{"error": reason, "message": message, "request_id": requestID}
	}
	out, _ := json.Marshal(body) // strings only
	return out
}

// anthropicType is the error type that API documents for a status.
func anthropicType(status int) string {
	switch status {
	case 401:
		return "authentication_error"
	case 403:
		return "permission_error"
	case 404:
		return "not_found_error"
	case 429:
		return "rate_limit_error"
	}
	if status >= 500 {
		return "api_error"
	}
	return "invalid_request_error"
}
