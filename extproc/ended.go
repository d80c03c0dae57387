package extproc

import (
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// Ended is how something that was decided came to its end, as Envoy's access log tells. A request that is under way is not told of,
// nor one whose Envoy died.
type Ended struct {
	// Decided is what Envoy knows of the decision, for a gate that does not any more: all of it but Took, and but Rule, Route and
	// Revision where another gate than the one that is told decided before an upgrade. Its Token is the one that was sent last.
	Decided

	Node                     string // the Envoy
	Status                   int    // that the worker got; 0: it went away before, or it is a connection that was redirected
	Details, Flags           string // why it ended so, in Envoy's words
	BytesReceived, BytesSent int64  // by Envoy from the worker, and to it, with what frames them
	Duration                 time.Duration
	Attempts                 int    // at the upstream
	Upstream                 string // its address
	Protocol                 string // the worker's
}

// fields are dynamic metadata of ours.
type fields map[string]*structpb.Value

// Fields of the metadata beside those of a swap (sent).
const (
	fieldGate        = "gate" // that decided, where there are several
	fieldRequest     = "request"
	fieldReason      = "reason"
	fieldWorker      = "worker"
	fieldSession     = "session"
	fieldSource      = "source"
	fieldRoute       = "route"
	fieldGrant       = "grant"
	fieldVersion     = "version" // of the token
	fieldFingerprint = "fingerprint"
	fieldRule        = "rule"
)

// kept is what Envoy is to keep of a decision, so that its access log says of whom and what it speaks. Nothing in it is secret.
func (s *Server) kept(x Decided) fields {
	f := make(fields, 16)
	set := func(name, value string) {
		if value != "" {
			f[name] = structpb.NewStringValue(value)
		}
	}
	switch {
	case x.Reason != "", x.Answered: // nothing leaves
	case x.Swapped:
		set(metadataVerdict, verdictSwap)
	default:
		set(metadataVerdict, verdictPass)
	}
	set(fieldGate, s.gate)
	set(fieldRequest, x.RequestID)
	set(fieldReason, x.Reason)
	set(fieldRevision, x.Revision)
	set(fieldWorker, x.Worker)
	set(fieldSession, x.Session)
	set(fieldSource, x.Source)
	set(fieldRoute, x.Route)
	set(fieldGrant, x.Grant)
	set(fieldRule, x.Rule)
	set(fieldVersion, x.Token)
	set(fieldFingerprint, x.Fingerprint)
	return f
}

// in has Envoy keep f of the request that is answered about.
func (f fields) in(out *extprocv3.ProcessingResponse) *extprocv3.ProcessingResponse {
	if f != nil {
		out.DynamicMetadata = &structpb.Struct{Fields: fields{metadataNamespace: structpb.NewStructValue(&structpb.Struct{Fields: f})}}
	}
	return out
}
