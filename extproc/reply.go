package extproc

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// reply lets a request go on. It is what nearly every question gets, so it is written by hand, as questions are read.
type reply struct {
	set    [][2]string // headers: each gets one value, whatever was there
	remove []string    // headers
	kept   fields      // that Envoy is to keep of the request; nil: none
	toEnd  bool        // Envoy asks again when the request has ended
}

// message is r as a ProcessingResponse that gRPC sends as it is.
func (r *reply) message() proto.Message {
	m := &emptypb.Empty{}
	m.ProtoReflect().SetUnknown(r.marshal())
	return m
}

// marshal writes a ProcessingResponse. Numbers are those of envoy/service/ext_proc/v3/external_processor.proto.
func (r *reply) marshal() []byte {
	mutation := 0
	for _, h := range r.set {
		mutation += sizeOf(1, optionSize(h))
	}
	for _, name := range r.remove {
		mutation += sizeOf(2, len(name))
	}
	common := sizeOf(2, mutation)
	headers := sizeOf(1, common)
	size := sizeOf(1, headers)
	kept, named, value, entry := 0, 0, 0, 0
	if r.kept != nil {
		for _, f := range r.kept {
			kept += sizeOf(1, fieldSize(f))
		}
		value = sizeOf(5, kept)
		entry = sizeOf(1, len(metadataNamespace)) + sizeOf(2, value)
		named = sizeOf(1, entry)
		size += sizeOf(8, named)
	}
	if r.toEnd {
		size += sizeOf(9, len(untilEndBytes))
	}

	b := make([]byte, 0, size)
	b = begun(b, 1, headers)  // request_headers
	b = begun(b, 1, common)   // response
	b = begun(b, 2, mutation) // header_mutation
	for _, h := range r.set {
		b = begun(b, 1, optionSize(h)) // set_headers
		b = begun(b, 1, headerSize(h)) // header
		b = text(b, 1, h[0])           // key
		b = text(b, 3, h[1])           // raw_value: value would arrive empty
		b = protowire.AppendTag(b, 3, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD))
	}
	for _, name := range r.remove {
		b = text(b, 2, name) // remove_headers
	}
	if r.kept != nil { // a google.protobuf.Struct of one
		b = begun(b, 8, named) // dynamic_metadata
		b = begun(b, 1, entry) // fields
		b = text(b, 1, metadataNamespace)
		b = begun(b, 2, value)
		b = begun(b, 5, kept) // struct_value
		for _, f := range r.kept {
			b = begun(b, 1, fieldSize(f)) // fields
			b = text(b, 1, f[0])
			b = begun(b, 2, sizeOf(3, len(f[1])))
			b = text(b, 3, f[1]) // string_value
		}
	}
	if r.toEnd {
		b = begun(b, 9, len(untilEndBytes)) // mode_override
		b = append(b, untilEndBytes...)
	}
	return b
}

var untilEndBytes = func() []byte {
	b, err := proto.Marshal(untilEnd())
	if err != nil {
		panic(err) // it is always the same
	}
	return b
}()

// headerSize is that of a HeaderValue.
func headerSize(h [2]string) int { return sizeOf(1, len(h[0])) + sizeOf(3, len(h[1])) }

// optionSize is that of a HeaderValueOption.
func optionSize(h [2]string) int { return sizeOf(1, headerSize(h)) + 2 }

// fieldSize is that of an entry of a Struct's fields.
func fieldSize(f [2]string) int { return sizeOf(1, len(f[0])) + sizeOf(2, sizeOf(3, len(f[1]))) }

// sizeOf is that of a field of so many bytes, with what comes before them.
func sizeOf(number protowire.Number, bytes int) int {
	return protowire.SizeTag(number) + protowire.SizeBytes(bytes)
}

// begun begins a field of so many bytes.
func begun(b []byte, number protowire.Number, bytes int) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(bytes)) //nolint:gosec // a length
}

func text(b []byte, number protowire.Number, s string) []byte {
	return append(begun(b, number, len(s)), s...)
}
