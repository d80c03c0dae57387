package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/ca"
	"wayleave/config"
	"wayleave/envoy/envoytest"
	"wayleave/vault/vaulttest"
)

func TestPrintFindings(t *testing.T) {
	var out bytes.Buffer
	printFindings(&out, []finding{
		good("envoy", "1.40.0 at /bin/envoy: found in $PATH"),
		warn("grant claude", "never_connected", "run `wayleave grant connect claude`"),
		fail("configuration", "a.yaml:1:1: one\na.yaml:2:1: two", ""),
	})
	want := `ok    envoy         1.40.0 at /bin/envoy: found in $PATH
warn  grant claude  never_connected
                    → run ` + "`wayleave grant connect claude`" + `
fail  configuration a.yaml:1:1: one
                    a.yaml:2:1: two
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// isolated makes a machine with nothing on it: no configuration, no Vault, no gate.
func isolated(t *testing.T) state {
	t.Helper()
	for _, name := range []string{"WAYLEAVE_CONFIG", "WAYLEAVE_GATE", "WAYLEAVE_TOKEN", "WAYLEAVE_ENVOY", "WAYLEAVE_BAO", "VAULT_ADDR", "VAULT_TOKEN"} {
		t.Setenv(name, "")
	}
	st := state{dir: filepath.Join(t.TempDir(), "state")}
	t.Setenv("WAYLEAVE_STATE", st.dir)
	return st
}

// doctor runs the command and returns its findings by what they are about: status, detail and fix in one text.
func doctor(t *testing.T, code int, args ...string) map[string]string {
	t.Helper()
	var out, errs bytes.Buffer
	if got := run(t.Context(), append([]string{"doctor", "--json"}, args...), strings.NewReader(""), &out, &errs); got != code {
		t.Errorf("exit code %d, said %q; want %d", got, errs.String(), code)
	}
	var findings []finding
	if err := json.Unmarshal(out.Bytes(), &findings); err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for _, f := range findings {
		said[f.What] += strings.Join([]string{f.Status, f.Detail, f.Fix}, " | ")
	}
	return said
}

func expect(t *testing.T, said map[string]string, want map[string]string) {
	t.Helper()
	for what, text := range want {
		if !strings.Contains(said[what], text) {
			t.Errorf("%s: %q; want %q", what, said[what], text)
		}
	}
}

func TestDoctor(t *testing.T) {
	const programs = "testdata/programs" // an Envoy that is too old, and no OpenBao
	absolutePrograms, err := filepath.Abs(programs)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", absolutePrograms)

	t.Run("a machine with nothing", func(t *testing.T) {
		isolated(t)
		expect(t, doctor(t, 1), map[string]string{
			"configuration": "warn", "envoy": "fail | ", "openbao": "make tools", "gate": "warn | none was started in",
		})
	})
	t.Run("an old Envoy", func(t *testing.T) {
		isolated(t)
		expect(t, doctor(t, 1), map[string]string{"envoy": "1.39.0"})
		t.Setenv("WAYLEAVE_ENVOY", filepath.Join(absolutePrograms, "none"))
		expect(t, doctor(t, 1), map[string]string{"envoy": "WAYLEAVE_ENVOY"})
	})
	t.Run("faults", func(t *testing.T) {
		isolated(t)
		bad := filepath.Join(t.TempDir(), "bad.yaml")
		if err := os.WriteFile(bad, []byte("nonsense: true\nlistne: {}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		expect(t, doctor(t, 1, "-c", bad), map[string]string{"configuration": "bad.yaml:2:1"})
	})
	t.Run("secrets that cannot be read", func(t *testing.T) {
		isolated(t)
		expect(t, doctor(t, 1, "-c", "testdata/wiring.yaml"), map[string]string{"secrets": "vault.auth.secret_id_file"})
	})
	t.Run("secrets that everybody can read", func(t *testing.T) {
		isolated(t)
		dir := t.TempDir()
		shut := filepath.Join(dir, "shut")
		if err := os.Mkdir(shut, 0o700); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "wayleave.yaml")
		for name, text := range map[string]string{
			file: `
providers:
  open: {authorize_url: https://a.example/a, token_url: https://a.example/t, client_id: us, auth_style: client_secret_post, client_secret_file: open.secret}
  shut: {authorize_url: https://a.example/a, token_url: https://a.example/t, client_id: us, auth_style: client_secret_post, client_secret_file: shut/in.secret}
  linked: {authorize_url: https://a.example/a, token_url: https://a.example/t, client_id: us, auth_style: client_secret_post, client_secret_file: linked.secret}
`, filepath.Join(dir, "open.secret"): "s", filepath.Join(shut, "in.secret"): "s",
		} {
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil { //nolint:gosec // that is what is looked for
				t.Fatal(err)
			}
		}
		for _, path := range []string{dir, filepath.Dir(dir)} { // whatever the umask
			if err := os.Chmod(path, 0o755); err != nil { //nolint:gosec // likewise
				t.Fatal(err)
			}
		}
		for at := filepath.Dir(dir); at != "/"; at = filepath.Dir(at) {
			if info, err := os.Stat(at); err != nil || info.Mode().Perm()&1 == 0 {
				t.Skipf("%s is closed to others", at)
			}
		}
		if err := os.Symlink("shut/in.secret", filepath.Join(dir, "linked.secret")); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		found := examineOwnFiles(cfg)
		if len(found) != 1 || found[0].Status != "warn" || !strings.Contains(found[0].Detail, "providers.open.client_secret_file: every user") || !strings.Contains(found[0].Fix, "chmod o-r") {
			t.Errorf("%+v", found)
		}
	})
	t.Run("a gate that runs, one that is away, one without its half", func(t *testing.T) {
		st := isolated(t)
		status := http.StatusOK
		gate := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		if err := os.MkdirAll(st.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := st.writeGate(gateFile{Proxy: gate.URL, Config: absolute("testdata/wiring.yaml")}); err != nil {
			t.Fatal(err)
		}
		expect(t, doctor(t, 1, "-c", ""), map[string]string{"configuration": "ok | ", "secrets": "fail"}) // the gate knows its configuration
		if err := st.writeGate(gateFile{Proxy: gate.URL}); err != nil {
			t.Fatal(err)
		}
		expect(t, doctor(t, 1), map[string]string{"gate": "ok | runs; workers connect to " + gate.URL})
		status = http.StatusServiceUnavailable
		expect(t, doctor(t, 1), map[string]string{"gate": "fail | " + gate.URL + " answers with status 503"})
		gate.Close()
		expect(t, doctor(t, 1), map[string]string{"gate": "warn | was at " + gate.URL})
	})
}

func TestExamineCA(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.pem")
	if got := examineCA(path, time.Now()); got != nil {
		t.Errorf("before the first start: %v", got)
	}
	m := vaulttest.NewMemory()
	if _, err := m.PrepareRoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	roots, err := m.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	one, both := ca.PEM(roots[:1]), ca.PEM(roots)
	late := roots[0].NotAfter.AddDate(0, 0, -89)
	for _, c := range []struct {
		content []byte
		now     time.Time
		want    string // of each root
	}{
		{one, time.Now(), "ok"},
		{both, time.Now(), "ok ok"},
		{one, late, "warn"},
		{both, late, "warn ok"},
		{one, time.Now().AddDate(50, 0, 0), "fail"},
		{[]byte("nothing"), time.Now(), "warn"},
		{[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), time.Now(), "warn"},
	} {
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		got := examineCA(path, c.now)
		var statuses []string
		for _, f := range got {
			statuses = append(statuses, f.Status)
			if f.Status != "ok" && f.Fix == "" {
				t.Errorf("%+v has no fix", f)
			}
		}
		if strings.Join(statuses, " ") != c.want {
			t.Errorf("got %+v; want %s", got, c.want)
		}
	}
}

func TestExamineWorkers(t *testing.T) {
	st := state{dir: t.TempDir()}
	if _, err := st.ensureWorkerToken("laptop"); err != nil {
		t.Fatal(err)
	}
	got := examineWorkers(wiringConfig(t), st, true)
	if len(got) != 1 || got[0].Detail != "ci (token in the configuration), laptop (token in "+st.dir+")" {
		t.Errorf("got %+v", got)
	}
	got = examineWorkers(wiringConfig(t), state{dir: t.TempDir()}, false)
	if len(got) != 2 || got[1].Status != "warn" || !strings.Contains(got[1].Fix, "wayleave worker token") {
		t.Errorf("got %+v", got)
	}
}

// Envoy's own word decides, and comes with where to look.
func TestValidateRefused(t *testing.T) {
	isolated(t)
	for _, c := range []struct {
		program string
		code    int
		says    string
	}{
		{"refusing-envoy", exitFailure, "no such listener; what it was sent"},
		{"envoy", exitFailure, "1.39.0"},
		{"none", exitFailure, "WAYLEAVE_ENVOY"},
	} {
		t.Setenv("WAYLEAVE_ENVOY", absolute(filepath.Join("testdata", "programs", c.program)))
		var out, errs bytes.Buffer
		code := run(t.Context(), []string{"config", "render", "--validate", "-c", "testdata/example.yaml"}, strings.NewReader(""), &out, &errs)
		if code != c.code || !strings.Contains(errs.String(), c.says) || out.Len() > 0 {
			t.Errorf("%s: exit code %d, said %q, printed %q; want %d and %q", c.program, code, errs.String(), out.String(), c.code, c.says)
		}
	}
}

// Doctor asks those who vouch for workers, before a worker does.
func TestDoctorAsksIssuers(t *testing.T) {
	isolated(t)
	t.Setenv("WAYLEAVE_ENVOY", envoytest.Binary(t))
	t.Setenv("WAYLEAVE_BAO", vaulttest.Binary(t))
	issuer := vaulttest.NewIssuer(t)
	file := filepath.Join(t.TempDir(), "wayleave.yaml")
	text := `issuers: {ci: {issuer: "https://ci.example", audience: gate, jwks_url: ` + issuer.URL + `}}
workers: {w: {profile: p, from: {issuer: ci, subject: x}}}
profiles: {p: {}}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if said := doctor(t, 0, "-c", file)["issuers"]; !strings.Contains(said, "ci answers") {
		t.Errorf("says %q", said)
	}
	issuer.Down.Store(true)
	if said := doctor(t, 0, "-c", file)["issuers"]; !strings.Contains(said, "answers 503") || !strings.Contains(said, "issuers.ci") {
		t.Errorf("says %q", said)
	}
}
