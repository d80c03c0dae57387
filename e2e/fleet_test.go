package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wayleave/freeport"
)

// fleet is the production form: an OpenBao that is given, and replicas of the gate that share it, each with an Envoy.
type fleet struct {
	*world
	bao      *gate
	unseal   string
	config   string // of its gates
	replicas []*replica
}

// replica is a running `wayleave serve` and its Envoy.
type replica struct {
	*gate
	envoy *gate
	dir   string // its run directory
}

const fleetConfig = `
vault:
  address: $VAULT_ADDR
  auth: {method: approle, role_id: $ROLE_ID, secret_id_file: secret-id}
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
grants:
  claude: {provider: anthropic}
routes:
  - {hosts: [api.demo.test], grant: claude, connect_to: "$API"}
profiles:
  default: {grants: [claude]}
workers:
  w: {profile: default, token_sha256: 81cbc1eb23c22dc0b4952967d43bfa14d86d5aff475df9b94efd393f40277529}
`

// newFleet starts and prepares an OpenBao.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	w := makeWorld(t)
	address := "127.0.0.1:" + w.getenv("VAULT_PORT")
	w = w.with("VAULT_ADDR=http://"+address, "BAO_ADDR=http://"+address, "VAULT_TOKEN=administrator", "BAO_TOKEN=administrator",
		"WAYLEAVE_TOKEN=wlworker_for_this_story_only", "ROLE_ID=not known yet")
	f := &fleet{world: w, config: fleetConfig}
	f.bao = f.start(t, w, "bao.log", "bao", "server", "-dev", "-dev-no-store-token", "-dev-root-token-id=administrator", "-dev-listen-address="+address)
	if err := f.bao.waitOutput("Root Token:"); err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(f.bao.out.String(), "Unseal Key: ")
	f.unseal, _, _ = strings.Cut(after, "\n")
	handedOut.add("an unseal key", f.unseal)
	addAll("an unseal key", f.unseal)
	if err := w.configure(fleetConfig); err != nil {
		t.Fatal(err)
	}
	f.must(t, "wayleave", "vault", "setup")
	role := "auth/approle/role/wayleave-gateway"
	f.world = w.with("ROLE_ID=" + f.must(t, "bao", "read", "-field=role_id", role+"/role-id"))
	f.must(t, "sh", "-c", `umask 77; bao write -f -field=secret_id "$0"/secret-id >secret-id`, role)
	return f
}

// with is the world with some variables set.
func (w *world) with(set ...string) *world {
	out := *w
	out.env = nil
	for _, kv := range w.env {
		name, _, _ := strings.Cut(kv, "=")
		if !slices.ContainsFunc(set, func(s string) bool { return strings.HasPrefix(s, name+"=") }) {
			out.env = append(out.env, kv)
		}
	}
	out.env = append(out.env, set...)
	return &out
}

// start runs a program until the test ends.
func (f *fleet) start(t *testing.T, w *world, log, name string, args ...string) *gate {
	t.Helper()
	g := &gate{world: w, cmd: w.command(name, args...), out: newOutput(w.saved(log)), done: make(chan struct{})}
	g.cmd.Stdout, g.cmd.Stderr = g.out, g.out
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // Envoy ends with the thread that started it (PR_SET_PDEATHSIG), and those of other tests end
		started <- g.cmd.Start()
		if g.cmd.Process != nil {
			_ = g.cmd.Wait()
		}
		close(g.done)
		runtime.UnlockOSThread()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = g.cmd.Process.Signal(syscall.SIGCONT)
		if err := g.stop(); err != nil && name == "wayleave" {
			t.Error(err)
		}
		if t.Failed() && name != "bao" {
			t.Logf("%s printed:\n%s", log, g.out)
		}
	})
	return g
}

// must runs a command to its success and returns what it printed.
func (f *fleet) must(t *testing.T, name string, args ...string) string {
	t.Helper()
	c := f.command(name, args...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// replica starts another one, with some variables set for its configuration.
func (f *fleet) replica(t *testing.T, set ...string) *replica {
	t.Helper()
	name := fmt.Sprint("replica", len(f.replicas))
	proxy, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	w := f.with(append(set, "PROXY="+proxy, "WAYLEAVE_GATE=http://"+proxy, "WAYLEAVE_CONFIG="+f.saved(name+".yaml"), "VAULT_TOKEN=")...)
	if err := w.configure(f.config); err != nil {
		t.Fatal(err)
	}
	dir := f.saved(name)
	r := &replica{dir: dir, gate: f.start(t, w, name+".log", "wayleave", "serve", "--run-dir", dir)}
	if err := r.waitOutput("msg=serving"); err != nil {
		t.Fatal(err)
	}
	bootstrap, err := w.command("wayleave", "config", "render", "--bootstrap", "--run-dir", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+".envoy.yaml", bootstrap, 0o600); err != nil {
		t.Fatal(err)
	}
	r.envoy = f.start(t, w, name+".envoy.log", "envoy", "-c", dir+".envoy.yaml", "--disable-hot-restart", "--log-level", "warning", "--concurrency", "1")
	if err := eventually(func() error {
		out, err := w.command("wayleave", "run", "--", "true").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	f.replicas = append(f.replicas, r)
	return r
}

// loadPause is between two requests of a connection, else a load takes the processors from what it waits for.
const loadPause = 50 * time.Millisecond

// load is requests over many connections until its end.
type load struct {
	wg       sync.WaitGroup
	end      chan struct{}
	served   atomic.Int64
	mu       sync.Mutex
	failures []error
}

// startLoad opens connections at each replica.
func startLoad(t *testing.T, connections int, replicas ...*replica) *load {
	t.Helper()
	l := &load{end: make(chan struct{})}
	for _, r := range replicas {
		w := r.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
		for i := range connections {
			client := w.client(t, i%2 == 0)
			l.wg.Go(func() {
				tick := time.NewTicker(loadPause)
				defer tick.Stop()
				for {
					select {
					case <-l.end:
						return
					case <-tick.C:
					}
					if _, err := arrived(client, w); err != nil {
						l.mu.Lock()
						l.failures = append(l.failures, err)
						l.mu.Unlock()
						return
					}
					l.served.Add(1)
				}
			})
		}
	}
	return l
}

// more waits until n further requests were served.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	before := l.served.Load()
	if err := eventually(func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.failures) > 0 || l.served.Load() >= before+n {
			return nil
		}
		return errors.New("requests hang")
	}); err != nil {
		t.Error(err)
	}
}

// stop ends the load, in which nothing may have failed.
func (l *load) stop(t *testing.T) {
	t.Helper()
	close(l.end)
	l.wg.Wait()
	for _, err := range l.failures {
		t.Error(err)
	}
}

func (f *fleet) connect(t *testing.T, life time.Duration) {
	t.Helper()
	f.Provider.SetAccessTTL(life)
	f.must(t, "wayleave", "grant", "connect", "claude")
	f.Provider.SetAccessTTL(time.Hour)
}

// freeze stops a process, and returns when none of its threads runs: on a busy machine that is some time after the signal.
func (g *gate) freeze() {
	_ = g.cmd.Process.Signal(syscall.SIGSTOP)
	for err := error(syscall.EINTR); errors.Is(err, syscall.EINTR); {
		_, err = syscall.Wait4(g.cmd.Process.Pid, nil, syscall.WUNTRACED, nil)
	}
}

// waitAll waits until each replica has printed text.
func (f *fleet) waitAll(t *testing.T, text string) {
	t.Helper()
	for _, r := range f.replicas {
		if err := r.waitOutput(text); err != nil {
			t.Fatal(err)
		}
	}
}

// forget makes waitAll look at what is printed from now on.
func (f *fleet) forget() {
	for _, r := range f.replicas {
		r.forget()
	}
}

func (g *gate) forget() { g.out.forget() }

// Two replicas under load share one grant and one Vault. Whatever happens to the Vault, or to our log-in there, while
// the token lives is no worker's business.
func TestReplicas(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	a, b := f.replica(t), f.replica(t)

	t.Run("expiry", func(t *testing.T) {
		f.Provider.SetLatency(time.Second, 0)
		f.connect(t, 2*time.Second)
		l := startLoad(t, 25, a, b)
		if err := eventually(func() error {
			if f.Provider.Stats().Refreshes == 0 {
				return errors.New("no refresh")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		l.more(t, 200)
		l.stop(t)
		if s := f.Provider.Stats(); s.TokenCalls != 2 || s.Exchanges != 1 || s.Refreshes != 1 || s.MaxPresented() != 1 {
			t.Errorf("%+v, want one exchange and one refresh", s)
		}
	})

	l := startLoad(t, 5, a, b)
	t.Run("our log-in is revoked", func(t *testing.T) {
		f.forget()
		f.must(t, "bao", "lease", "revoke", "-prefix", "-sync", "auth/approle/login")
		f.waitAll(t, "logged in to vault again")
		l.more(t, 50)
	})
	t.Run("sealed", func(t *testing.T) {
		f.forget()
		f.must(t, "bao", "operator", "seal")
		f.waitAll(t, "state=degraded")
		l.more(t, 50)
		f.forget()
		f.must(t, "bao", "operator", "unseal", f.unseal)
		f.waitAll(t, "state=healthy was=degraded")
		l.more(t, 50)
	})
	t.Run("policy taken away", func(t *testing.T) {
		f.forget()
		f.must(t, "bao", "policy", "delete", "wayleave-gateway")
		f.waitAll(t, `must grant \"read\" on wayleave/data/grants/claude`)
		l.more(t, 50)
		f.must(t, "wayleave", "vault", "setup")
		f.waitAll(t, "state=healthy was=degraded")
		l.more(t, 50)
		for _, r := range f.replicas {
			told := map[string]int{} // what is told, without when and why
			for line := range strings.Lines(r.out.String()) {
				if strings.Contains(line, "must grant") {
					_, line, _ = strings.Cut(line, "level=")
					line, _, _ = strings.Cut(line, " err=")
					told[line]++
				}
			}
			for what, n := range told {
				if n > 2 {
					t.Errorf("a lack of rights is logged %d times: %s", n, what)
				}
			}
		}
	})
	l.stop(t)

	// The provider fails, the Vault hangs before that could be stored, and the token expires: the worker is told which of
	// the two it is, and when to come back.
	t.Run("frozen", func(t *testing.T) {
		f.Provider.FailCalls(func(rw http.ResponseWriter, params map[string]string) bool {
			if params["grant_type"] != "refresh_token" {
				return false
			}
			f.bao.freeze()
			rw.WriteHeader(http.StatusServiceUnavailable)
			return true
		})
		f.forget()
		f.connect(t, 2*time.Second)
		var refreshing *replica // the other one may not know this consent yet, and serves the token before it
		if err := eventually(func() error {
			for _, r := range f.replicas {
				if seen, _ := r.out.contains("grant not refreshed"); seen {
					refreshing = r
					return nil
				}
			}
			return errors.New("nobody has tried to refresh")
		}); err != nil {
			t.Fatal(err)
		}
		w := refreshing.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
		client := w.client(t, true)
		until := func(status int, reason string) {
			t.Helper()
			if err := eventually(func() error {
				got, err := do(client, w.request(http.MethodGet, "https://api.demo.test/echo", nil))
				if err == nil && (got.status != status || got.reason != reason || status != http.StatusOK && got.header.Get("Retry-After") == "") {
					err = fmt.Errorf("got %v", got)
				}
				return err
			}); err != nil {
				t.Error(err)
			}
		}
		until(http.StatusServiceUnavailable, "vault_unavailable")
		f.Provider.FailCalls(nil)
		_ = f.bao.cmd.Process.Signal(syscall.SIGCONT)
		until(http.StatusOK, "")
	})
}

// A replica that is killed while it holds the lease is replaced by another, once it cannot be at the provider any more.
// Until then workers wait, or are told when to come back.
func TestHolderKilled(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	arrived, killed := make(chan struct{}), make(chan struct{})
	var calls atomic.Int64
	f.Provider.FailCalls(func(_ http.ResponseWriter, params map[string]string) bool {
		if params["grant_type"] != "refresh_token" || calls.Add(1) > 1 {
			return false
		}
		close(arrived)
		<-killed
		panic(http.ErrAbortHandler)
	})
	a := f.replica(t)
	f.connect(t, 2*time.Second)
	select {
	case <-arrived:
	case <-time.After(patience):
		t.Fatal("no refresh")
	}
	b := f.replica(t)
	a.kill()
	close(killed)

	w := b.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	var wg sync.WaitGroup
	for i := range 25 {
		client := w.client(t, i%2 == 0)
		wg.Go(func() {
			if err := eventually(func() error {
				got, err := do(client, w.request(http.MethodGet, "https://api.demo.test/echo", nil))
				if err == nil && got.status != http.StatusOK {
					if got.status != http.StatusServiceUnavailable || got.reason != "refresh_unavailable" || got.header.Get("Retry-After") == "" {
						t.Errorf("got %v", got)
					}
					err = fmt.Errorf("got %v", got)
				}
				return err
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s := f.Provider.Stats(); calls.Load() != 2 || s.Refreshes != 1 || s.MaxPresented() != 1 {
		t.Errorf("%d refresh calls, %+v", calls.Load(), s)
	}
}

// The Vault hangs at the worst moment, when the provider has just rotated the refresh token. The new token serves, is
// stored as soon as that works, and a gate that is stopped meanwhile waits for it and says so.
func TestVaultFrozenAfterAnswer(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	a := f.replica(t)
	var refreshes atomic.Int64
	f.Provider.EditAnswers(func(params map[string]string, answer map[string]any) {
		if params["grant_type"] != "refresh_token" {
			return
		}
		f.bao.freeze()
		if refreshes.Add(1) == 1 {
			answer["expires_in"] = 10 // so that a second refresh comes soon
		}
	})
	f.connect(t, 2*time.Second)
	l := startLoad(t, 5, a)
	if err := a.waitOutput("state=degraded"); err != nil {
		t.Fatal(err)
	}
	l.more(t, 50)
	_ = f.bao.cmd.Process.Signal(syscall.SIGCONT)
	if err := a.waitOutput("state=healthy was=degraded"); err != nil {
		t.Fatal(err)
	}
	l.more(t, 50)

	f.forget()
	if err := a.waitOutput("state=degraded"); err != nil {
		t.Fatal(err)
	}
	l.more(t, 50)
	l.stop(t)
	if err := a.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := a.waitOutput("stopping waits until the new token is stored"); err != nil {
		t.Fatal(err)
	}
	_ = f.bao.cmd.Process.Signal(syscall.SIGCONT)
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	<-a.done
	if code := a.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the gate ended with %d", code)
	}
	summaries, err := f.listed()
	if s := summaries["claude"]; err != nil || s.Generation != 2 || s.State != "healthy" {
		t.Errorf("listed: %+v, %v; want the second refresh", s, err)
	}
	if s := f.Provider.Stats(); s.Refreshes != 2 || s.MaxPresented() != 1 {
		t.Errorf("%+v", s)
	}
}
