package telemetry

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	collectorlogsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	logsv1 "go.opentelemetry.io/proto/otlp/logs/v1"
)

// LogEvent is one record for the collector.
type LogEvent struct {
	Time     time.Time
	Severity slog.Level
	Name     string // of what happened; empty: it has none
	Trace    string // the id of its trace, in hexadecimal; empty: it has none
	// Body is JSON, which becomes a structure; what is none is sent as text.
	Body []byte
	// Attributes are strings, bools, numbers and lists of strings.
	Attributes map[string]any
}

// EmitLogs sends events, and returns when the collector has them. After an error that is a *[Rejected] it has all but some, which are
// counted as dropped; after any other it has none of them, and the same may be sent again, but for [ErrUnwanted].
func (t *Telemetry) EmitLogs(ctx context.Context, events []LogEvent) error {
	if t.wire == nil {
		return errNone
	}
	if len(events) == 0 {
		return nil
	}
	now, in := nano(time.Now()), &logsv1.ScopeLogs{Scope: &commonv1.InstrumentationScope{Name: "wayleave/audit"}}
	for _, e := range events {
		in.LogRecords = append(in.LogRecords, e.record(now))
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	out := &collectorlogsv1.ExportLogsServiceResponse{}
	err := t.wire.send(ctx, logsTo, &collectorlogsv1.ExportLogsServiceRequest{
		ResourceLogs: []*logsv1.ResourceLogs{{Resource: t.resource, ScopeLogs: []*logsv1.ScopeLogs{in}}},
	}, out)
	if err == nil {
		err = t.rejected(out.GetPartialSuccess().GetRejectedLogRecords(), out.GetPartialSuccess().GetErrorMessage())
	}
	if again, ok := errors.AsType[*retry](err); ok {
		t.outages[Logs].began(again)
		return err
	}
	n := 0 // who asked counts the rest
	if some, ok := errors.AsType[*Rejected](err); ok {
		n = int(some.Count)
	}
	t.outages[Logs].ended(err, n)
	return err
}

func (e LogEvent) record(observed uint64) *logsv1.LogRecord {
	r := &logsv1.LogRecord{
		TimeUnixNano: nano(e.Time), ObservedTimeUnixNano: observed, EventName: e.Name,
		SeverityNumber: severity(e.Severity), SeverityText: e.Severity.String(),
	}
	if id, err := hex.DecodeString(e.Trace); err == nil && isID(id, 16) {
		r.TraceId = id
	}
	var body any
	if err := json.Unmarshal(e.Body, &body); err != nil {
		body = string(e.Body)
	}
	r.Body = value(body)
	for _, key := range slices.Sorted(maps.Keys(e.Attributes)) {
		r.Attributes = append(r.Attributes, &commonv1.KeyValue{Key: key, Value: value(e.Attributes[key])})
	}
	return r
}

// severity is OpenTelemetry's number: slog's levels are four apart, as those are, and 0 is INFO, 9.
func severity(l slog.Level) logsv1.SeverityNumber {
	return logsv1.SeverityNumber(min(max(int(l)+9, 1), 24))
}

// value is v as OTLP has it.
func value(v any) *commonv1.AnyValue {
	switch v := v.(type) {
	case nil:
		return &commonv1.AnyValue{}
	case string:
		return &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: strings.ToValidUTF8(v, "?")}}
	case bool:
		return &commonv1.AnyValue{Value: &commonv1.AnyValue_BoolValue{BoolValue: v}}
	case int:
		return integer(int64(v))
	case int64:
		return integer(v)
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return integer(int64(v))
		}
		return &commonv1.AnyValue{Value: &commonv1.AnyValue_DoubleValue{DoubleValue: v}}
	case []string:
		list := &commonv1.ArrayValue{}
		for _, s := range v {
			list.Values = append(list.Values, value(s))
		}
		return &commonv1.AnyValue{Value: &commonv1.AnyValue_ArrayValue{ArrayValue: list}}
	case []any:
		list := &commonv1.ArrayValue{}
		for _, x := range v {
			list.Values = append(list.Values, value(x))
		}
		return &commonv1.AnyValue{Value: &commonv1.AnyValue_ArrayValue{ArrayValue: list}}
	case map[string]any:
		list := &commonv1.KeyValueList{}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			list.Values = append(list.Values, &commonv1.KeyValue{Key: key, Value: member(key, v[key])})
		}
		return &commonv1.AnyValue{Value: &commonv1.AnyValue_KvlistValue{KvlistValue: list}}
	}
	return value(fmt.Sprint(v))
}

// member is a member of an object. JSON does not tell 12 from 12.0, and a column of a collector's is of one kind.
func member(key string, v any) *commonv1.AnyValue {
	if f, ok := v.(float64); ok && strings.HasSuffix(key, "_ms") {
		return &commonv1.AnyValue{Value: &commonv1.AnyValue_DoubleValue{DoubleValue: f}}
	}
	return value(v)
}

func integer(n int64) *commonv1.AnyValue {
	return &commonv1.AnyValue{Value: &commonv1.AnyValue_IntValue{IntValue: n}}
}
