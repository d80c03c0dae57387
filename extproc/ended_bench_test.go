package extproc

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	dataaccesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// loggedInFull is an entry with all that Envoy has of a usual request.
func loggedInFull(kept *structpb.Struct) *dataaccesslogv3.HTTPAccessLogEntry {
	c := logged(metadataNamespace, kept)
	c.Metadata.FilterMetadata["envoy.filters.http.rbac"] = &structpb.Struct{Fields: map[string]*structpb.Value{"enforced_effective_policy_id": structpb.NewStringValue("verdict"), "enforced_engine_result": structpb.NewStringValue("allowed")}}
	c.DownstreamRemoteAddress, c.UpstreamLocalAddress = socket("127.0.0.1", 48480), socket("127.0.0.1", 40524)
	c.DownstreamLocalAddress, c.DownstreamDirectRemoteAddress = internal("intercept"), internal("internal_client_address")
	c.TlsProperties = &dataaccesslogv3.TLSProperties{
		TlsVersion: dataaccesslogv3.TLSProperties_TLSv1_3, TlsCipherSuite: wrapperspb.UInt32(4865), TlsSniHostname: "api.provider.test",
		LocalCertificateProperties: &dataaccesslogv3.TLSProperties_CertificateProperties{}, PeerCertificateProperties: &dataaccesslogv3.TLSProperties_CertificateProperties{},
	}
	c.ResponseFlags = nil
	took := durationpb.New(6583224)
	c.TimeToLastRxByte, c.TimeToFirstUpstreamTxByte, c.TimeToLastUpstreamTxByte, c.TimeToFirstUpstreamRxByte = took, took, took, took
	c.TimeToLastUpstreamRxByte, c.TimeToFirstDownstreamTxByte, c.TimeToLastDownstreamTxByte = took, took, took
	c.UpstreamCluster, c.RouteName, c.UpstreamWireBytesReceived, c.UpstreamWireBytesSent = "to_provider", "provider", 53, 75
	c.AccessLogType = dataaccesslogv3.AccessLogType_DownstreamEnd
	return &dataaccesslogv3.HTTPAccessLogEntry{
		CommonProperties: c, ProtocolVersion: dataaccesslogv3.HTTPAccessLogEntry_HTTP2,
		Request: &dataaccesslogv3.HTTPRequestProperties{
			RequestMethod: corev3.RequestMethod_GET, Scheme: "https", Authority: "api.provider.test", Path: "/a?q=1", UserAgent: "Go-http-client/2.0",
			RequestHeadersBytes: 148, UpstreamHeaderBytesSent: 75, DownstreamHeaderBytesReceived: 121,
		},
		Response: &dataaccesslogv3.HTTPResponseProperties{
			ResponseCode: wrapperspb.UInt32(200), ResponseHeadersBytes: 70, ResponseCodeDetails: "via_upstream", UpstreamHeaderBytesReceived: 53, DownstreamHeaderBytesSent: 51,
		},
	}
}

func internal(name string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
		AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: name},
	}}}
}

// BenchmarkEnded is what a usual end costs the gate.
func BenchmarkEnded(b *testing.B) {
	f := newServer(b)
	kept := f.server.kept(swapOf("authorization"), Decided{RequestID: "967c4647-b860-4cdd-942e-10b57bd4b268", Swapped: true, Worker: "ci", Session: "nmft5rtlbngnnzcfpu5yt4al", Source: "127.0.0.1", Route: "provider", Grant: "credential", Revision: "0123456789ab", Token: "abcdefgh.1", Fingerprint: "0123456789abcdef"})
	raw, err := proto.Marshal(requestsLogged(loggedInFull(kept.message())))
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d bytes", len(raw))
	f.server.ended = func(Ended) {}
	for b.Loop() {
		var in emptypb.Empty
		if err := proto.Unmarshal(raw, &in); err != nil {
			b.Fatal(err)
		}
		f.server.hear("envoy-1", in.ProtoReflect().GetUnknown())
	}
}
