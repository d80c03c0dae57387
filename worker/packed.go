package worker

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// packed is a document in one string. OpenBao refuses a request with more than a thousand strings in it, names included, and
// all servers one of more than a megabyte, which thousands of sessions would be.
type packed struct {
	Packed []byte `json:"packed"` // JSON, compressed with gzip
}

const maxUnpacked = 64 << 20

var errNotPacked = errors.New("not a document of this version of the gate")

func getPacked(ctx context.Context, docs Documents, path string, into any) (version int, err error) {
	var p packed
	if version, err = docs.Get(ctx, path, &p); err != nil {
		return version, err
	}
	z, err := gzip.NewReader(bytes.NewReader(p.Packed))
	if err == nil {
		err = json.NewDecoder(io.LimitReader(z, maxUnpacked)).Decode(into)
	}
	if err != nil {
		return version, fmt.Errorf("%s: %w: %w", path, errNotPacked, err)
	}
	return version, nil
}

func putPacked(ctx context.Context, docs Documents, path string, doc any, cas int) error {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := errors.Join(json.NewEncoder(z).Encode(doc), z.Close()); err != nil {
		return fmt.Errorf("encoding %s: %w", path, err)
	}
	_, err := docs.Put(ctx, path, packed{b.Bytes()}, cas)
	return err
}
