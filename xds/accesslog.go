package xds

import (
	"maps"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datalogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	grpcv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// The access log holds no header but :method, :path (without its query) and :authority: any other may be a
// credential, and after the swap authorization is the real one.

const (
	// streamID names a request, or a tunnel. It is the header x-request-id, which Envoy sets (generate_request_id).
	streamID = "%STREAM_ID%"
	// requestID is the same kept for later: the router takes the header away before the access log is written.
	requestID = "%FILTER_STATE(" + stateRequestID + ":PLAIN)%"
	// tunnelID names the tunnel, for a request that Envoy could not read far enough to give it a name.
	tunnelID = "%FILTER_STATE(" + stateTunnel + ":PLAIN)%"
)

// connectionLog is what every record has.
var connectionLog = map[string]string{
	"time":               "%START_TIME%",
	"duration_ms":        "%DURATION%",
	"bytes_received":     "%BYTES_RECEIVED%",
	"bytes_sent":         "%BYTES_SENT%",
	"chain":              "%FILTER_CHAIN_NAME%",
	"flags":              "%RESPONSE_FLAGS%",
	"identity":           "%FILTER_STATE(" + stateIdentity + ":PLAIN)%",
	"tunnel":             tunnelID,
	"connect_authority":  "%FILTER_STATE(" + stateAuthority + ":PLAIN)%",
	"worker_address":     "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
	"server_name":        "%REQUESTED_SERVER_NAME%",
	"upstream":           "%UPSTREAM_HOST%",
	"termination":        "%CONNECTION_TERMINATION_DETAILS%",
	"downstream_failure": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%",
	"upstream_failure":   "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}

// httpLog is what a request's record has; id is how to name the request.
func httpLog(id string) map[string]string {
	fields := maps.Clone(connectionLog)
	maps.Copy(fields, requestLog)
	fields["request_id"] = id
	return fields
}

var requestLog = map[string]string{
	"method":            "%REQ(:METHOD)%",
	"path":              "%PATH(NQ)%",
	"authority":         "%REQ(:AUTHORITY)%",
	"protocol":          "%PROTOCOL%",
	"upstream_protocol": "%UPSTREAM_PROTOCOL%",
	"status":            "%RESPONSE_CODE%",
	"attempts":          "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
	"details":           "%RESPONSE_CODE_DETAILS%",
	"reason":            "%RESP(X-WAYLEAVE-REASON)%",
	"verdict":           "%DYNAMIC_METADATA(" + metadataNamespace + ":" + metadataVerdict + ")%",
	"route":             "%DYNAMIC_METADATA(" + metadataNamespace + ":route)%",
	"revision":          "%DYNAMIC_METADATA(" + metadataNamespace + ":revision)%",
	"grant":             "%DYNAMIC_METADATA(" + metadataNamespace + ":grant)%",
}

// accessLog writes records with these fields; kind tells them apart.
func accessLog(path, kind string, fields map[string]string) []*accesslogv3.AccessLog {
	if path == "" {
		return nil
	}
	l := fileLog(path, kind, fields)
	l.Filter = whenEnded()
	return []*accesslogv3.AccessLog{l}
}

// whenEnded selects what has ended, where Envoy tells meanwhile too.
func whenEnded() *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_LogTypeFilter{LogTypeFilter: &accesslogv3.LogTypeFilter{
		Types: []datalogv3.AccessLogType{datalogv3.AccessLogType_DownstreamPeriodic}, Exclude: true,
	}}}
}

// untrusted are what OpenSSL calls the alerts by which a worker ends a handshake because it does not trust the certificate (RFC 8446
// section 6.2): unknown_ca, certificate_unknown, bad_certificate and certificate_expired.
var untrusted = []string{"ALERT_UNKNOWN_CA", "ALERT_CERTIFICATE_UNKNOWN", "ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE_EXPIRED"}

// untrustedLog tells the gate of the handshakes that ended so, by which the root CAs of Envoys are compared. It names the connection no further.
func untrustedLog() *accesslogv3.AccessLog {
	var any []string
	for _, alert := range untrusted {
		any = append(any, "connection.transport_failure_reason.contains('"+alert+"')")
	}
	return &accesslogv3.AccessLog{
		Name:       "envoy.access_loggers.tcp_grpc",
		Filter:     celFilter(strings.Join(any, " || ")),
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(&grpcv3.TcpGrpcAccessLogConfig{CommonConfig: toGate("untrusted", clusterGate)})},
	}
}

// refusedConnectionLog records the connections that no HTTP or TCP filter will: a failed handshake, and those of the
// chains that deny.
func refusedConnectionLog(path string) []*accesslogv3.AccessLog {
	if path == "" {
		return nil
	}
	l := fileLog(path, "refused", connectionLog)
	l.Filter = celFilter("connection.transport_failure_reason != '' || xds.filter_chain_name == 'deny' || xds.filter_chain_name == '" + deniedChainName + "' || xds.filter_chain_name == ''")
	return []*accesslogv3.AccessLog{l}
}

func fileLog(path, kind string, fields map[string]string) *accesslogv3.AccessLog {
	format := &structpb.Struct{Fields: map[string]*structpb.Value{"kind": structpb.NewStringValue(kind)}}
	for k, v := range fields {
		format.Fields[k] = structpb.NewStringValue(v)
	}
	return &accesslogv3.AccessLog{
		Name: "envoy.access_loggers.file",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(&filev3.FileAccessLog{
			Path: path,
			AccessLogFormat: &filev3.FileAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
				OmitEmptyValues: true,
				Format:          &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: format},
			}},
		})},
	}
}
