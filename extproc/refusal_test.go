package extproc

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
)

// What an operator has to run depends on where the credential comes from.
func TestRefusalNamesTheCommand(t *testing.T) {
	for _, reason := range []string{neverConnected, needsReconnect, badCredentialStored} {
		for imported, want := range map[bool]string{false: "wayleave grant connect npm", true: "wayleave grant import npm"} {
			if m := (&refusal{reason: reason, grant: "npm", imported: imported}).message(); !strings.Contains(m, want) {
				t.Errorf("%s, imported %v: %s", reason, imported, m)
			}
		}
	}
}

// Every message ends with the command that prints the page of its reason.
func TestRefusalNamesItsPage(t *testing.T) {
	for _, r := range reasons {
		a := (&refusal{reason: r.Name, detail: "words"}).answer(nil, "1")
		var body struct{ Message string }
		if err := json.Unmarshal(a.body, &body); err != nil || !strings.HasSuffix(body.Message, " (more: wayleave explain "+r.Name+")") {
			t.Errorf("%s: %s, %v", r.Name, a.body, err)
		}
	}
}

// Clients of gRPC try again by themselves when they are told Unavailable, and only then.
func TestRefusalsAsGRPCHasThem(t *testing.T) {
	want := map[string]codes.Code{rateLimited: codes.ResourceExhausted, misplacedPlaceholder: codes.InvalidArgument, duplicateCredential: codes.InvalidArgument, neverConnected: codes.PermissionDenied}
	for _, r := range reasons {
		f := &refusal{reason: r.Name, detail: "words"}
		code, named := want[r.Name]
		if got := f.code(); named && got != code || !named && (got == codes.Unavailable) != r.Retry {
			t.Errorf("%s: %v", r.Name, got)
		}
		for kind, grpc := range map[string]bool{"application/grpc": true, "application/grpc+proto": true, "application/grpc-web": false, "application/json": false} {
			out := f.immediate(&request{headers: []header{{"content-type", kind}}}, nil, "1").GetImmediateResponse()
			if text := string(out.GetBody()); (text == f.text()) != grpc || (out.GetGrpcStatus() != nil) != grpc {
				t.Errorf("%s to %s: %v, %s", r.Name, kind, out.GetGrpcStatus(), text)
			}
		}
	}
}
