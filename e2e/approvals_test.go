package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const holdingProfile = `  default:
    grants: [claude]
    rules:
      - {name: soon, when: 'method == "DELETE" && path.startsWith("/soon")', hold: {words: this one waits for a moment only, for: 3s}}
      - {name: deletes, when: method == "DELETE", hold: {words: deletes want a second pair of eyes, for: 2m}}
`

// approval is what 'wayleave approval list --json' prints of one.
type approval struct {
	ID, Worker, Session, Rule, Words, Method, Host, Path, Gate, State string
}

// held lists approvals, as an operator does.
func (s *house) held(t *testing.T) (all []approval) {
	t.Helper()
	var out struct{ Approvals []approval }
	if text := s.must(t, "wayleave", "approval", "list", "--all", "--json"); json.Unmarshal([]byte(text), &out) != nil {
		t.Fatal(text)
	}
	return out.Approvals
}

// waits is the one request for the path that waits.
func (s *house) waits(t *testing.T, path string) approval {
	t.Helper()
	var found approval
	if err := eventually(func() error {
		for _, a := range s.held(t) {
			if a.Path == path && a.State == "waiting" {
				found = a
				return nil
			}
		}
		return fmt.Errorf("nothing waits: %+v", s.held(t))
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// became waits for an approval's state.
func (s *house) became(t *testing.T, id, state string) {
	t.Helper()
	if err := eventually(func() error {
		for _, a := range s.held(t) {
			if a.ID == id && a.State == state {
				return nil
			}
		}
		return fmt.Errorf("not %s: %+v", state, s.held(t))
	}); err != nil {
		t.Error(err)
	}
}

// deleted is what a request got.
type deleted struct {
	answer
	err error
}

// Requests wait at one of two gates until an operator has decided, and end in every way there is.
func TestApprovals(t *testing.T) {
	t.Parallel()
	s := newHouseOf(t, strings.Replace(fleetConfig, "  default: {grants: [claude]}\n", holdingProfile, 1), "a", "b")
	w := (&gate{world: s.world}).enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	remove := func(ctx context.Context, path string, http2 bool) <-chan deleted {
		got := make(chan deleted, 1)
		c := w.client(t, http2)
		go func() {
			a, err := do(c, w.request(http.MethodDelete, "https://api.demo.test"+path, nil).WithContext(ctx))
			got <- deleted{a, err}
		}()
		return got
	}
	refused := func(what string, got deleted, status int, reason, words string) {
		t.Helper()
		if got.err != nil || got.status != status || got.reason != reason || !strings.Contains(got.body, words) {
			t.Errorf("%s: %v, %v; want %d %s with %q", what, got.answer, got.err, status, reason, words)
		}
	}
	holder := func(a approval) string { return a.Gate[strings.LastIndexByte(a.Gate, '/')+1:] }

	// Allowed: it goes on with the real token, and its query was nobody's business.
	got := remove(t.Context(), "/echo?secret=in-the-query", true)
	a := s.waits(t, "/echo")
	if a.Worker != "w" || a.Session == "" || a.Rule != "deletes" || a.Method != "DELETE" || a.Host != "api.demo.test:443" || a.Words != "deletes want a second pair of eyes" {
		t.Errorf("an operator sees %+v", a)
	}
	if shown := s.must(t, "wayleave", "approval", "show", a.ID); strings.Contains(shown, "in-the-query") || !strings.Contains(shown, "DELETE api.demo.test:443/echo") {
		t.Error(shown)
	}
	if said := s.must(t, "wayleave", "approval", "allow", a.ID, "--note", "go on"); !strings.Contains(said, "Allowed: DELETE api.demo.test:443/echo of worker w.") {
		t.Error(said)
	}
	if r := <-got; r.err != nil || r.status != http.StatusOK || !strings.Contains(r.body, "authorization_sha256") {
		t.Errorf("allowed: %v, %v", r.answer, r.err)
	}
	if err := s.gates[holder(a)].waitLine("held request ended", "approval="+a.ID, "state=allowed", "by=", "from="); err != nil {
		t.Error(err)
	}

	// Denied, with the operator's words; and nobody decides twice.
	got = remove(t.Context(), "/denied", false)
	a = s.waits(t, "/denied")
	s.must(t, "wayleave", "approval", "deny", a.ID, "--note", "not on a Friday")
	refused("denied", <-got, 400, "approval_denied", "approval "+a.ID+": not on a Friday")
	if out, err := s.command("wayleave", "approval", "allow", a.ID).CombinedOutput(); err == nil || !strings.Contains(string(out), "does not wait any more: it is denied") {
		t.Errorf("%v: %s", err, out)
	}

	// Nobody decides.
	refused("timed out", <-remove(t.Context(), "/soon", true), 400, "approval_timed_out", "wayleave approval list")

	// The worker goes away.
	for path, http2 := range map[string]bool{"/gone/2": true, "/gone/1.1": false} {
		ctx, leave := context.WithCancel(t.Context())
		got = remove(ctx, path, http2)
		a = s.waits(t, path)
		leave()
		<-got
		s.became(t, a.ID, "withdrawn")
	}

	// A gate is stopped, and then the other killed, each with a request that waits there.
	got = remove(t.Context(), "/stopped", true)
	a = s.waits(t, "/stopped")
	if err := s.gates[holder(a)].stop(); err != nil {
		t.Error(err)
	}
	refused("its gate stopped", <-got, 503, "approval_unavailable", "this gate is being stopped; try again later")
	s.became(t, a.ID, "stopped")
	s.serve(t, holder(a))
	got = remove(t.Context(), "/killed", true)
	a = s.waits(t, "/killed")
	s.gates[holder(a)].kill()
	refused("its gate killed", <-got, 503, "gate_unavailable", "")
	if out, err := s.command("wayleave", "approval", "allow", a.ID).CombinedOutput(); err == nil || !strings.Contains(string(out), "may be gone") {
		t.Errorf("%v: %s", err, out)
	}

	// What is allowed for a while is allowed at the other gate too, and only to this session.
	got = remove(t.Context(), "/kept", true)
	a = s.waits(t, "/kept")
	s.must(t, "wayleave", "approval", "allow", a.ID, "--for", "1h")
	if r := <-got; r.err != nil || r.status >= 500 || r.reason != "" {
		t.Errorf("allowed for an hour: %v, %v", r.answer, r.err)
	}
	for _, name := range []string{"a", "b"} {
		if name != holder(a) {
			s.serve(t, name)
			if err := s.gates[holder(a)].stop(); err != nil {
				t.Error(err)
			}
			if err := eventually(func() error { _, err := arrived(w.client(t, true), w); return err }); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	if r := <-remove(t.Context(), "/kept/again", true); r.err != nil || r.reason != "" {
		t.Errorf("within the hour: %v, %v", r.answer, r.err)
	}
	if list := s.must(t, "wayleave", "approval", "list"); !strings.Contains(list, "Decisions that hold for later requests:") || !strings.Contains(list, a.Session) {
		t.Error(list)
	}
	other := (&gate{world: s.world}).enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	for path, asker := range map[string]worker{"/other": other, "/forgotten": w} {
		if asker.placeholder == w.placeholder {
			s.must(t, "wayleave", "approval", "forget", a.ID)
		}
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			_, _ = do(asker.client(t, true), asker.request(http.MethodDelete, "https://api.demo.test"+path, nil).WithContext(ctx))
		}()
		s.waits(t, path)
		leave()
	}

	// Without Vault nobody can decide, and nothing goes on.
	s.must(t, "bao", "operator", "seal")
	refused("without Vault", <-remove(t.Context(), "/unseen", true), 503, "approval_unavailable", "the gate's vault fails; try again later")
	s.must(t, "bao", "operator", "unseal", s.unseal)
}

// A program of the operator's decides at once, by the signed message that it gets, or leaves a request to people.
func TestApprovalWebhook(t *testing.T) {
	t.Parallel()
	const key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
	verifier, err := standardwebhooks.NewWebhook(key)
	if err != nil {
		t.Fatal(err)
	}
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if err := verifier.Verify(body, r.Header); err != nil {
			t.Errorf("%v: %s", err, body)
		}
		switch {
		case strings.Contains(string(body), `"path":"/echo"`):
			fmt.Fprint(w, `{"verdict": "allow"}`)
		case strings.Contains(string(body), `"path":"/no"`):
			fmt.Fprint(w, `{"verdict": "deny", "note": "there is no ticket"}`)
		}
	}))
	defer hook.Close()
	w := makeWorld(t)
	if err := os.WriteFile(w.saved("hook.key"), []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := startIn(t, w, `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true}
grants:
  claude: {provider: anthropic}
routes:
  - {hosts: [api.demo.test], grant: claude, connect_to: "$API"}
approvals:
  webhook: {url: "`+hook.URL+`", secret_file: hook.key}
profiles:
`+holdingProfile+`
workers:
  w: {profile: default}
`, "claude")
	work := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	remove := func(path string) (answer, error) {
		return do(work.client(t, true), work.request(http.MethodDelete, "https://api.demo.test"+path, nil))
	}
	if a, err := remove("/echo"); err != nil || a.status != http.StatusOK {
		t.Errorf("allowed: %v, %v", a, err)
	}
	if a, err := remove("/no"); err != nil || a.reason != "approval_denied" || !strings.Contains(a.body, "there is no ticket") {
		t.Errorf("denied: %v, %v", a, err)
	}
	if a, err := remove("/soon"); err != nil || a.reason != "approval_timed_out" {
		t.Errorf("left to people: %v, %v", a, err)
	}
	out, err := g.command("wayleave", "approval", "list", "--all", "--json").CombinedOutput()
	if err != nil || strings.Count(string(out), `"by": "the webhook for approvals"`) != 2 {
		t.Errorf("%v: %s", err, out)
	}
}
