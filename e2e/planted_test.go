package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"wayleave/demo"
)

// Wherever in a world one secret is planted, the leak check of its end finds it, and says where.
func TestPlantedLeaksAreFound(t *testing.T) {
	t.Parallel()
	serve := func(t *testing.T, l net.Listener, text string) string {
		t.Helper()
		srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })}}
		srv.Start()
		t.Cleanup(srv.Close)
		return l.Addr().String()
	}
	listen := func(t *testing.T, network, address string) net.Listener {
		t.Helper()
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, p := range []struct {
		where string // what is said of it
		live  bool   // it is found while processes run
		plant func(t *testing.T, w *world, access, refresh string) error
	}{
		{"up.log", false, func(_ *testing.T, w *world, access, _ string) error {
			_, err := fmt.Fprintf(newOutput(w.saved("up.log")), "level=DEBUG msg=%q\n", "let out with Bearer "+access)
			return err
		}},
		{"state/spool/x", false, func(_ *testing.T, w *world, _, refresh string) error {
			dir := w.saved("state/spool")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "x"), []byte("\x00\x01"+refresh), 0o600)
		}},
		{"in base64", false, func(_ *testing.T, w *world, access, _ string) error {
			return os.WriteFile(w.saved("basic"), []byte("Basic "+base64.StdEncoding.EncodeToString([]byte("x-access-token:"+access))), 0o600)
		}},
		{"hexadecimal", false, func(_ *testing.T, w *world, access, _ string) error {
			return os.WriteFile(w.saved("dump"), fmt.Appendf(nil, "%x", access), 0o600)
		}},
		{"as numbers", false, func(_ *testing.T, w *world, access, _ string) error {
			return os.WriteFile(w.saved("bytes"), fmt.Append(nil, []byte(access)), 0o600)
		}},
		{"printed.", false, func(_ *testing.T, w *world, _, refresh string) error {
			out, err := w.command("sh", "-c", `echo "invalid_grant: the refresh token $0 was presented twice" >&2; exit 1`, refresh).Output()
			if err == nil || len(out) > 0 {
				return fmt.Errorf("printed %q, %w", out, err)
			}
			return nil
		}},
		{"printed.", false, func(_ *testing.T, w *world, access, _ string) error {
			c := w.command("echo", access)
			c.Stdout = new(bytes.Buffer)
			return c.Run()
		}},
		{"/environ", true, func(t *testing.T, w *world, access, _ string) error {
			c := w.with("TOKEN="+access).command("sleep", "600")
			t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
			return c.Start()
		}},
		{"/cmdline", true, func(t *testing.T, w *world, access, _ string) error {
			c := w.command("sh", "-c", "read x", access)
			in, err := c.StdinPipe()
			t.Cleanup(func() { _ = in.Close(); _ = c.Wait() })
			if err != nil {
				return err
			}
			return c.Start()
		}},
		{"admin.sock/", true, func(t *testing.T, w *world, access, _ string) error {
			run := w.saved("state/run")
			if err := os.MkdirAll(run, 0o700); err != nil {
				return err
			}
			serve(t, listen(t, "unix", filepath.Join(run, "admin.sock")), `{"inline_string":"`+access+`"}`)
			return nil
		}},
		{"/metrics", true, func(t *testing.T, w *world, access, _ string) error {
			return w.configure("metrics: {listen: \"" + serve(t, listen(t, "tcp", "127.0.0.1:0"), `tokens{grant="`+access+`"} 1`) + "\"}\n")
		}},
	} {
		t.Run(p.where, func(t *testing.T) {
			w := makeWorld(t)
			other := w.command("sleep", "600") // else there is no process to look at
			if err := other.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
			if err := w.liveLeaks(); err != nil {
				t.Fatal(err)
			}
			access, refresh := w.Provider.Issue(demo.ScopeInference)
			if err := p.plant(t, w, access, refresh); err != nil {
				t.Fatal(err)
			}
			check := w.leaks
			if p.live {
				check = w.liveLeaks
			}
			w.planted = !p.live
			if err := check(); err == nil || !strings.Contains(err.Error(), p.where) || strings.Contains(err.Error(), access) || strings.Contains(err.Error(), refresh) {
				t.Errorf("the check says %v", err)
			}
		})
	}
}

// A script fails when one of its commands prints a secret, though nothing of it is in a file.
func TestPlantedLeakInAScript(t *testing.T) {
	t.Parallel()
	access, _ := makeWorld(t).Provider.Issue(demo.ScopeInference)
	if err := leaksIn("what the script printed", []byte("> exec curl\n[stdout]\nauthorization: Bearer "+access+"\n")); err == nil {
		t.Error("not found")
	}
}

// An Envoy that logs what it forwards is found out: the check reads its log too, and a real token is in it.
func TestEnvoyThatLogsTokensIsFound(t *testing.T) {
	t.Parallel()
	g := start(t, oneTeam, "claude")
	resp, err := overSocket(g.adminSocket()).Post("http://admin/logging?level=trace", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	said, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("Envoy says %d: %s", resp.StatusCode, said)
	}
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	if _, err := arrived(w.client(t, true), w); err != nil {
		t.Fatal(err)
	}
	g.planted = true
	if err := eventually(func() error { // Envoy's log is written by and by
		if err := g.leaks(); err == nil || !strings.Contains(err.Error(), filepath.Join("state", "envoy")) {
			return fmt.Errorf("the check says %w", err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// What a gate leaves behind when it is ended in the middle of its work, with the stacks of all that it was doing, has no secret: Go
// prints where texts are, and not what they are.
func TestDumpOfAGateHasNoSecret(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGABRT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			world := makeWorld(t)
			world.env = append(world.env, "GOTRACEBACK=system")
			g := startIn(t, world, oneTeam, "claude")
			w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
			if _, err := arrived(w.client(t, true), w); err != nil {
				t.Fatal(err)
			}
			// A token is rejected, and its refresh goes on, with requests that wait for it.
			calls := g.Provider.Stats().TokenCalls
			g.Provider.SetLatency(2*patience, 0)
			g.Provider.ExpireAccess()
			for range 4 {
				client := w.client(t, true)
				client.Timeout = 2 * patience
				go func() { _, _ = do(client, w.request(http.MethodGet, "https://api.demo.test/echo", nil)) }() // ends with the gate
			}
			if err := eventually(func() error {
				if g.Provider.Stats().TokenCalls == calls {
					return fmt.Errorf("nothing is refreshed")
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if err := g.signal(sig); err != nil {
				t.Fatal(err)
			}
			dump := g.out.all()
			for _, part := range []string{"goroutine ", "wayleave/extproc.", "wayleave/grant.", "wayleave/oauth.", "wayleave/xds."} {
				if !strings.Contains(dump, part) {
					t.Errorf("the dump has no %q", part)
				}
			}
			if err := stands(leaksIn("the dump", []byte(dump))); err != nil {
				t.Error(err)
			}
		})
	}
}
