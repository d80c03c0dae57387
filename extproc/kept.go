package extproc

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// What was decided Envoy keeps as dynamic metadata of the request, or of the connection: for its barriers, for when it asks about a
// retry, and for its access log, which so tells also a gate that was started since of whom it speaks. Nothing in it is secret.

// Where it is: ours is ext_proc's, ext_authz has a namespace of its own for what is asked of a request to the proxy, and another one for
// what is asked of a connection.
const (
	metadataNamespace   = "wayleave"
	namespaceProxy      = "envoy.filters.http.ext_authz"
	namespaceRedirected = "envoy.filters.network.ext_authz"
)

// Its fields.
const (
	metadataVerdict  = "verdict" // Envoy lets no request out without one
	fieldRequest     = "request"
	fieldGate        = "gate" // that decided, where there are several
	fieldReason      = "reason"
	fieldMethod      = "method" // if Envoy's log has no word for it
	fieldWorker      = "worker"
	fieldSession     = "session"
	fieldSource      = "source"
	fieldRoute       = "route"
	fieldGrant       = "grant"
	fieldRule        = "rule"
	fieldRevision    = "revision" // of the configuration that decided, as it is shown
	fieldVersion     = "version"  // of the token
	fieldFingerprint = "fingerprint"
	fieldTrace       = "trace"

	// Of a swap alone.
	fieldScopes     = "scopes"
	fieldHeader     = "header"
	fieldUser       = "user"
	fieldPassword   = "password"
	fieldUnsearched = "unsearched"
	fieldAnswered   = "answered" // by Envoy: how the provider answered the last attempt, where that matters
)

// Values of the verdict.
const (
	verdictSwap = "swap"
	verdictPass = "pass"
)

// fields are such metadata.
type fields map[string]*structpb.Value

func fieldsOf(m *corev3.Metadata, namespace string) fields {
	return m.GetFilterMetadata()[namespace].GetFields()
}

func (f fields) text(name string) string { return f[name].GetStringValue() }

// set leaves out what says nothing.
func (f fields) set(name, value string) {
	if value != "" {
		f[name] = structpb.NewStringValue(value)
	}
}

func (f fields) flag(name string, value bool) {
	if value {
		f[name] = structpb.NewBoolValue(true)
	}
}

// in has Envoy keep f of the request that is answered about.
func (f fields) in(out *extprocv3.ProcessingResponse) *extprocv3.ProcessingResponse {
	if f != nil {
		out.DynamicMetadata = &structpb.Struct{Fields: fields{metadataNamespace: structpb.NewStructValue(&structpb.Struct{Fields: f})}}
	}
	return out
}

// kept is what Envoy is to keep of a decision.
func (s *Server) kept(x Decided) fields {
	f := make(fields, 20)
	switch {
	case x.Reason != "", x.Answered: // nothing leaves
	case x.Swapped:
		f.set(metadataVerdict, verdictSwap)
	default:
		f.set(metadataVerdict, verdictPass)
	}
	f.set(fieldRequest, x.RequestID)
	f.set(fieldGate, s.gate)
	f.set(fieldReason, x.Reason)
	f.set(fieldWorker, x.Worker)
	f.set(fieldSession, x.Session)
	f.set(fieldSource, x.Source)
	f.set(fieldRoute, x.Route)
	f.set(fieldGrant, x.Grant)
	f.set(fieldRule, x.Rule)
	f.set(fieldRevision, x.Revision)
	f.set(fieldVersion, x.Token)
	f.set(fieldFingerprint, x.Fingerprint)
	f.set(fieldTrace, x.Trace)
	if corev3.RequestMethod_value[x.Method] == 0 {
		f.set(fieldMethod, x.Method)
	}
	return f
}
