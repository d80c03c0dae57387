package secret

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// No verb, handler or encoder may show a secret, in any position of any value.
func TestNothingPrintsIt(t *testing.T) {
	const plain = "hunter2-hunter2"
	s := New(plain)
	type inner struct {
		Exported   Text
		unexported Text
		ptr        *Text
	}
	in := inner{Exported: s, unexported: s, ptr: &s}
	values := []any{s, &s, in, &in, []Text{s}, map[string]Text{"k": s}, []any{in, &in}, fmt.Errorf("wrapped: %v", s)}

	var out bytes.Buffer
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb, v)
		}
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(h).Info("m", "v", v)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatalf("marshalling %T: %v", v, err)
		}
		out.Write(b)
	}
	for _, needle := range []string{plain, fmt.Sprintf("%x", plain), fmt.Sprintf("%X", plain)} {
		if strings.Contains(out.String(), needle) {
			t.Fatalf("a printer shows the secret as %.4s…", needle)
		}
	}
	if !strings.Contains(out.String(), redacted) {
		t.Fatal("nothing printed at all: the test is not looking")
	}
}

func TestRevealAndEqual(t *testing.T) {
	if got := New("a").Reveal(); got != "a" {
		t.Errorf("Reveal = %q", got)
	}
	if !New("").IsZero() || New("x").IsZero() || !(Text{}).IsZero() {
		t.Error("IsZero is wrong")
	}
	if !New("a").Equal(New("a")) || New("a").Equal(New("b")) || !New("").Equal(Text{}) {
		t.Error("Equal is wrong")
	}
}
