package telemetry

import (
	"context"
	"iter"

	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// An Envoy puts into its spans what workers write as it came, and bytes that are no UTF-8 make a message unreadable that has the spans of
// others too. So it is read span by span, and of a span that is not as it should be the attributes that are not are left out.

// relayService is opentelemetry.proto.collector.trace.v1.TraceService.
var relayService = grpc.ServiceDesc{
	ServiceName: collectortracev1.TraceService_ServiceDesc.ServiceName,
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Export",
		Handler: func(service any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var in emptypb.Empty // which leaves all as it came
			if err := decode(&in); err != nil {
				return nil, err
			}
			service.(*Telemetry).relay(in.ProtoReflect().GetUnknown())
			return &collectortracev1.ExportTraceServiceResponse{}, nil
		},
	}},
}

// spansOf are those of an ExportTraceServiceRequest. The numbers are those of collector/trace/v1/trace_service.proto and trace/v1/trace.proto.
func spansOf(request []byte) iter.Seq[*tracev1.Span] {
	return func(yield func(*tracev1.Span) bool) {
		for resource := range fields(request, 1) {
			for scope := range fields(resource, 2) {
				for text := range fields(scope, 2) {
					if span := readSpan(text); span != nil && !yield(span) {
						return
					}
				}
			}
		}
	}
}

// fields are those of the number that a message has, as far as it is one.
func fields(message []byte, number protowire.Number) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for whole := range everyField(message) {
			if n, kind, head := protowire.ConsumeTag(whole); n == number && kind == protowire.BytesType {
				if value, size := protowire.ConsumeBytes(whole[head:]); size >= 0 && !yield(value) {
					return
				}
			}
		}
	}
}

func everyField(message []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(message) > 0 {
			_, _, n := protowire.ConsumeField(message)
			if n < 0 || !yield(message[:n]) {
				return
			}
			message = message[n:]
		}
	}
}

// readSpan returns nil for what is no span.
func readSpan(text []byte) *tracev1.Span {
	span := &tracev1.Span{}
	if proto.Unmarshal(text, span) == nil {
		return span
	}
	const attributes = 9
	var kept []byte
	for whole := range everyField(text) {
		n, kind, head := protowire.ConsumeTag(whole)
		if n == attributes && kind == protowire.BytesType {
			if value, size := protowire.ConsumeBytes(whole[head:]); size < 0 || proto.Unmarshal(value, &commonv1.KeyValue{}) != nil {
				continue
			}
		}
		kept = append(kept, whole...)
	}
	if span = new(tracev1.Span); proto.Unmarshal(kept, span) != nil {
		return nil
	}
	return span
}
