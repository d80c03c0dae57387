package operate

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"wayleave/config"
	"wayleave/secret"
)

// Who replaces a client's secret or key need not tell the gate. What its file is while it is written is not the secret.
func TestClientSecretIsReplaced(t *testing.T) {
	want := ""
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, got, _ := r.BasicAuth(); got != want {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"error":"invalid_client"}`)
			return
		}
		fmt.Fprint(w, `{"access_token":"a","expires_in":60}`)
	}))
	defer s.Close()
	dir := t.TempDir()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "acme.secret"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n")
	cfg, err := config.Parse(filepath.Join(dir, "wayleave.yaml"), fmt.Appendf(nil, `
providers:
  acme: {authorize_url: %[1]q, token_url: %[1]q, client_id: us, auth_style: client_secret_basic, client_secret_file: acme.secret, allow_insecure: true}
grants: {acme: {provider: acme}}
vault: {auth: {token_file: acme.secret}}
`, s.URL))
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.LoadSecrets(os.Getenv); err != nil {
		t.Fatal(err)
	}
	spec := Specs(cfg)[0]
	for _, step := range []struct{ file, want string }{{"first\n", "first"}, {"", "first"}, {"second\n", "second"}, {"two\nlines\n", "first"}} {
		write(step.file)
		want = step.want
		if _, err := spec.OAuth.Refresh(t.Context(), secret.New("r"), nil, nil); err != nil {
			t.Errorf("%q in the file: %v", step.file, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "acme.secret")); err != nil {
		t.Fatal(err)
	}
	if _, err := spec.OAuth.Refresh(t.Context(), secret.New("r"), nil, nil); err != nil {
		t.Errorf("no file: %v", err)
	}
}
