package extproc

import (
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// What was decided Envoy keeps as dynamic metadata of the request, or of the connection: for its barriers, for when it asks about a
// retry, and for its access log, which so tells also a gate that was started since of whom it speaks. Nothing in it is secret.
//
// Each field costs Envoy some time, more than once. So there are those that Envoy itself looks at, and one text with all the rest.

// Where it is: ours is ext_proc's, ext_authz has a namespace of its own for what is asked of a request to the proxy, and another one for
// what is asked of a connection.
const (
	metadataNamespace   = "wayleave"
	namespaceProxy      = "envoy.filters.http.ext_authz"
	namespaceRedirected = "envoy.filters.network.ext_authz"
)

// Its fields.
const (
	metadataVerdict = "verdict"  // Envoy lets no request out without one
	fieldGate       = "gate"     // that decided, where there are several
	fieldNote       = "note"     // for us
	fieldFailures   = "failures" // of ends we want to be told of failures alone

	// Of a swap alone, for upstream.lua.
	fieldHeader     = "header"     // that holds the token
	fieldUser       = "user"       // it is the user of Basic credentials
	fieldPassword   = "password"   // or their password
	fieldUnsearched = "unsearched" // the answer's body is, so that it must not pass unless it is a WebSocket
	fieldAnswered   = "answered"   // by Envoy: how the provider answered the last attempt, where that matters

	// Of the fast lane.
	fieldLease = "lease" // that we give
	fieldLane  = "lane"  // that Envoy has given the request

	// For Envoy's own log and spans.
	fieldRoute    = "route"
	fieldGrant    = "grant"
	fieldRevision = "revision"
	fieldRequest  = "request"
	fieldWorker   = "worker"
	fieldReason   = "reason"
)

// Values of the verdict.
const (
	verdictSwap = "swap"
	verdictPass = "pass"

	yes = "yes" // of what is so or is not there
)

// fields are such metadata: names and values.
type fields [][2]string

func (f fields) text(name string) string {
	for _, x := range f {
		if x[0] == name {
			return x[1]
		}
	}
	return ""
}

// set leaves out what says nothing.
func (f *fields) set(name, value string) {
	if value != "" {
		*f = append(*f, [2]string{name, value})
	}
}

func (f *fields) flag(name string, value bool) {
	if value {
		f.set(name, yes)
	}
}

// message is f as ext_authz has it.
func (f fields) message() *structpb.Struct {
	m := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(f))}
	for _, x := range f {
		m.Fields[x[0]] = structpb.NewStringValue(x[1])
	}
	return m
}

// in has Envoy keep f of the request that is answered about.
func (f fields) in(out *extprocv3.ProcessingResponse) *extprocv3.ProcessingResponse {
	if f != nil {
		out.DynamicMetadata = &structpb.Struct{Fields: map[string]*structpb.Value{metadataNamespace: structpb.NewStructValue(f.message())}}
	}
	return out
}

// kept is what Envoy is to keep of a decision.
func (s *Server) kept(d *decision, x Decided) fields {
	f := make(fields, 0, 12)
	var scopes []string
	switch {
	case x.Reason != "", x.Answered: // nothing leaves
	case x.Swapped:
		f.set(metadataVerdict, verdictSwap)
		f.set(fieldHeader, d.swap.out.header)
		f.flag(fieldUser, d.swap.out.basic && d.swap.out.tokenIsUser)
		f.flag(fieldPassword, d.swap.out.basic && d.swap.out.tokenIsPassword)
		f.flag(fieldUnsearched, d.upgrade && d.route.MaskBody)
		scopes = d.swap.scopes
	default:
		f.set(metadataVerdict, verdictPass)
	}
	f.set(fieldGate, s.gate)
	f.set(fieldNote, noteOf(x, scopes))
	f.flag(fieldFailures, s.ended == nil)
	if s.shown || x.Trace != "" {
		f.set(fieldRoute, x.Route)
		f.set(fieldGrant, x.Grant)
		f.set(fieldRevision, x.Revision)
	}
	if x.Trace != "" {
		f.set(fieldRequest, x.RequestID)
		f.set(fieldWorker, x.Worker)
		f.set(fieldReason, x.Reason)
	}
	return f
}

// The note is a line for each of these, the last ones of which may be missing.
const (
	noteRequest = iota
	noteReason
	noteMethod // if Envoy's log has no word for it
	noteWorker
	noteSession
	noteSource
	noteRoute
	noteGrant
	noteRule
	noteRevision
	noteVersion
	noteFingerprint
	noteTrace
	noteScopes // of a swap: RFC 6749 section 3.3: none has a space in it
	noteCause
	noteOwner
	noteLines
)

// noteOf is what the note says of a decision.
func noteOf(x Decided, scopes []string) string {
	lines := [noteLines]string{
		noteRequest: x.RequestID, noteReason: x.Reason, noteWorker: x.Worker, noteSession: x.Session, noteSource: x.Source, noteRoute: x.Route,
		noteGrant: x.Grant, noteRule: x.Rule, noteRevision: x.Revision, noteVersion: x.Token, noteFingerprint: x.Fingerprint, noteTrace: x.Trace,
		noteCause: x.Cause, noteOwner: x.PlaceholderOf,
	}
	if corev3.RequestMethod_value[x.Method] == 0 {
		lines[noteMethod] = x.Method
	}
	if len(scopes) > 0 {
		lines[noteScopes] = strings.Join(scopes, " ")
	}
	return joined(lines[:])
}

// joined makes lines one text that is UTF-8.
func joined(lines []string) string {
	for i, line := range lines {
		if strings.Contains(line, "\n") { // no name has one
			lines[i] = strings.ReplaceAll(line, "\n", " ")
		}
	}
	note := strings.TrimRight(strings.Join(lines, "\n"), "\n")
	if !utf8.ValidString(note) {
		note = strings.ToValidUTF8(note, "?")
	}
	return note
}

// readNote reads what noteOf wrote, and whatever else as far as it can.
func readNote(note string) (x Decided, scopes []string) {
	var lines [noteLines]string
	for i := range lines {
		lines[i], note, _ = strings.Cut(note, "\n")
	}
	return Decided{
		RequestID: lines[noteRequest], Reason: lines[noteReason], Method: lines[noteMethod], Worker: lines[noteWorker], Session: lines[noteSession],
		Source: lines[noteSource], Route: lines[noteRoute], Grant: lines[noteGrant], Rule: lines[noteRule], Revision: lines[noteRevision],
		Token: lines[noteVersion], Fingerprint: lines[noteFingerprint], Trace: lines[noteTrace],
		Cause: lines[noteCause], PlaceholderOf: lines[noteOwner],
	}, strings.Fields(lines[noteScopes])
}
