package xds

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// A gate serves several revisions of the configuration at once, and decides by the one that the Envoy which asks was told. So
// Envoy names it with each question. The name comes with the routes, or with the settings of a filter by ECDS: no
// listener changes with it, and no connection ends.

const (
	// RevisionMetadata is the gRPC metadata of ext_proc and of the check of redirected tunnels that names the revision.
	RevisionMetadata = "wayleave-revision"
	// RevisionHeader is the header of requests to the worker API that does.
	RevisionHeader = "x-wayleave-revision"
	// ContextRevision is the context extension that names it in the checks of CONNECT and of plain requests.
	ContextRevision = "revision"
)

// tagged are the gRPC metadata of a question about a revision; none when it has no name.
func tagged(revision string) []*corev3.HeaderValue {
	if revision == "" {
		return nil
	}
	return []*corev3.HeaderValue{{Key: RevisionMetadata, Value: revision}}
}

// tagProcessing is for all routes below, whatever else they have settled for ext_proc. The filter that asks about retries is
// known by the one it is in.
func tagProcessing(revision string) map[string]*anypb.Any {
	if revision == "" {
		return nil
	}
	tag := pack(&extprocv3.ExtProcPerRoute{Override: &extprocv3.ExtProcPerRoute_Overrides{Overrides: &extprocv3.ExtProcOverrides{GrpcInitialMetadata: tagged(revision)}}})
	return map[string]*anypb.Any{filterExtProc: tag, filterAgain: tag}
}

// tagChecks is for all routes below that are checked.
func tagChecks(revision string) map[string]*anypb.Any {
	if revision == "" {
		return nil
	}
	return map[string]*anypb.Any{filterAuthz: pack(&authzv3.ExtAuthzPerRoute{Override: &authzv3.ExtAuthzPerRoute_CheckSettings{
		CheckSettings: &authzv3.CheckSettings{ContextExtensions: map[string]string{ContextRevision: revision}},
	}})}
}

// tagAPI names the revision to the worker API, and takes away what a worker has written there.
func tagAPI(revision string, r *routev3.Route) {
	if revision == "" {
		r.RequestHeadersToRemove = append(r.RequestHeadersToRemove, RevisionHeader)
		return
	}
	r.RequestHeadersToAdd = append(r.RequestHeadersToAdd, overwrite(RevisionHeader, revision))
}
