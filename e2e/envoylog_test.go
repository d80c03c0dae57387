package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Envoy logs all that it may, and no credential is in it: neither the real ones nor those of workers. Told to log everything,
// which nobody can tell it by our commands without saying so, it prints each of them: so the check would see it.
func TestEnvoyLogHasNoCredentials(t *testing.T) {
	t.Parallel()
	g := start(t, oneTeam+"envoy: {log_level: trace}\n", "claude")
	token, err := os.ReadFile(filepath.Join(g.getenv("WAYLEAVE_STATE"), "workers", "w.token"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(g.getenv("WAYLEAVE_STATE"), "envoy", "envoy.log")
	shown := func() (what []string, log []byte) {
		w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
		everyCredential(t, g, w)
		if log, err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
		session, _ := w.proxy.User.Password()
		for name, text := range map[string]string{
			"the worker's token": strings.TrimSpace(string(token)), "the placeholder": w.placeholder, "the session": session,
			"the proxy's password": strings.Fields(w.proxyAuthorization())[2], "a private key": "PRIVATE KEY",
		} {
			if bytes.Contains(log, []byte(text)) {
				what = append(what, name)
			}
		}
		if issued.Match(log) {
			what = append(what, "the real token")
		}
		slices.Sort(what)
		return what, log
	}

	what, log := shown()
	g.Provider.ExpireAccess() // so that the next request is sent again, with another token
	again, _ := shown()
	if what = append(what, again...); len(what) > 0 {
		t.Errorf("Envoy's log has %q", what)
	}
	if !bytes.Contains(log, []byte("[trace][connection]")) {
		t.Error("Envoy does not log at trace: the check is not looking")
	}

	level := func(name string) {
		t.Helper()
		socket := filepath.Join(g.getenv("WAYLEAVE_STATE"), "run", "admin.sock")
		if out, err := g.command("curl", "-sSf", "-XPOST", "--unix-socket", socket, "http://admin/logging?level="+name).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	level("trace")
	defer func() { // what was printed meanwhile must not be left anywhere
		level("warning")
		if err := os.Truncate(file, 0); err != nil {
			t.Error(err)
		}
	}()
	if what, _ := shown(); !slices.Equal(what, []string{"the placeholder", "the proxy's password", "the real token", "the worker's token"}) {
		t.Errorf("Envoy at trace shows %q: the check is not looking", what)
	}
}

// everyCredential sends what makes Envoy handle each kind of credential, in each way.
func everyCredential(t *testing.T, g *gate, w worker) {
	t.Helper()
	for _, http2 := range []bool{false, true} {
		if _, err := arrived(w.client(t, http2), w); err != nil {
			t.Fatal(err)
		}
	}
	misplaced := w.request(http.MethodGet, "https://api.demo.test/echo?q="+w.placeholder, nil)
	misplaced.Header.Set("X-Other", w.placeholder)
	if a, err := do(w.client(t, false), misplaced); err != nil || a.reason == "" {
		t.Fatal(fmt.Sprint(a), err)
	}
	if _, err := w.echoes(t, "api.demo.test", "hello"); err != nil {
		t.Fatal(err)
	}
}
