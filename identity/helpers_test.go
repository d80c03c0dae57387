package identity

import (
	"context"
	"encoding/base64"
	"testing"
)

func jsonBase64(raw []byte) string { return base64.RawURLEncoding.EncodeToString(raw) }

func contextThatIsOver(t testing.TB) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx, cancel
}
