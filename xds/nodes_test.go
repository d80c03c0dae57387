package xds

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// An Envoy that was built before a release says so beside its version.
func TestEnvoyVersion(t *testing.T) {
	for label, want := range map[string]string{"": "1.40.2", "dev": "1.40.2-dev", "-dev": "1.40.2-dev"} {
		build := &corev3.BuildVersion{Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 40, Patch: 2}, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"build.type": structpb.NewStringValue("RELEASE")}}}
		if label != "" {
			build.Metadata.Fields[buildLabel] = structpb.NewStringValue(label)
		}
		if got := envoyVersion(&corev3.Node{UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: build}}); got != want {
			t.Errorf("%q: %s, want %s", label, got, want)
		}
	}
}
