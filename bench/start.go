package main

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"wayleave/freeport"
	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/program"
	"wayleave/secret"
	"wayleave/supervise"
	"wayleave/vault"
	"wayleave/vault/embedded"
	"wayleave/worker"
)

// start: how long it takes from the start of the product's own programs until a worker has an answer to a request whose placeholder was
// swapped. The store is a real OpenBao, which has all that an earlier start made; before each, the executables are in memory or are not.

const (
	gateAlone  = "the gate alone, until it serves" // what the others are compared with
	envoyAlone = "Envoy, whose gate serves"
	serveBoth  = "gate and Envoy at once"
	everything = "`wayleave up`: OpenBao, gate and Envoy"

	warm = "executables in memory"
	cold = "executables on the disk"

	untilMS = "ms"

	startPatience = time.Minute
	lookAgain     = 2 * time.Millisecond
)

var starts = []string{gateAlone, envoyAlone, serveBoth, everything}

type startRun struct {
	*report
	rounds int
}

func startFlags(f *flag.FlagSet) func(context.Context, *report) error {
	r := &startRun{}
	f.IntVar(&r.rounds, "rounds", 11, "how often each start is measured")
	return func(ctx context.Context, rep *report) error {
		r.report = rep
		if r.rounds < 1 {
			return errors.New("rounds are at least 1")
		}
		return r.run(ctx)
	}
}

func (r *startRun) run(ctx context.Context) (err error) {
	t := r.table("From the start of the programs until the first swapped answer", gateAlone, metric{Name: untilMS})
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	up, err := startUpstream()
	if err != nil {
		return err
	}
	defer up.Close()
	r.say("building wayleave")
	i, err := install(ctx, dir, up)
	if err != nil {
		return err
	}
	for round := range r.rounds {
		for _, of := range []string{warm, cold} {
			r.say("round %d of %d: %s", round+1, r.rounds, of)
			found := map[string]time.Duration{}
			if err := i.served(ctx, of == cold, found); err != nil {
				return fmt.Errorf("%s: %w", of, err)
			}
			if found[everything], err = i.begin(ctx, of == cold, i.answers, i.command("up")); err != nil {
				return fmt.Errorf("%s: %s: %w", of, everything, err)
			}
			for _, name := range starts {
				t.add(of, name, round, map[string]float64{untilMS: millis(found[name])})
			}
		}
	}
	return nil
}

// installed are the product's programs, and a store with a connected grant and a session.
type installed struct {
	*world
	dir   string
	store embedded.Config
}

func (i *installed) in(name string) string { return filepath.Join(i.dir, name) }

// install builds the product and puts the other programs beside it, so that nobody else has their files in memory.
func install(ctx context.Context, dir string, up *upstream) (*installed, error) {
	i := &installed{dir: dir, store: embedded.Config{StateDir: filepath.Join(dir, "state"), Binary: filepath.Join(dir, "bao")}}
	if out, err := exec.CommandContext(ctx, "go", "build", raced(), "-o", i.in("wayleave"), "wayleave/cmd/wayleave").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building wayleave: %w\n%s", err, out)
	}
	envoy, err := findEnvoy(ctx)
	if err != nil {
		return nil, err
	}
	bao, err := program.Find(ctx, embedded.Program, os.Getenv("WAYLEAVE_BAO"), "")
	if err != nil {
		return nil, err
	}
	for name, path := range map[string]string{"envoy": envoy.Path, "bao": bao.Path} {
		if out, err := exec.CommandContext(ctx, "cp", path, i.in(name)).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("copying %s: %w\n%s", name, err, out)
		}
	}
	proxy, err := freeport.Address()
	if err != nil {
		return nil, err
	}
	i.world = &world{proxy: proxy, upstream: up, gate: &gate{}}
	server, err := embedded.Start(ctx, i.store)
	if err != nil {
		return nil, err
	}
	defer server.Stop()
	if err := i.fill(ctx, server); err != nil {
		return nil, err
	}
	return i, errors.Join(
		os.WriteFile(i.in("wayleave.yaml"), fmt.Appendf(nil, startText, proxy, apiHost, up.address), 0o600),
		os.WriteFile(i.in("upstream.pem"), up.ca, 0o600),
	)
}

// raced has the product built as this program is, so that a test with the race detector compiles nothing twice.
func raced() string {
	info, ok := debug.ReadBuildInfo()
	return fmt.Sprintf("-race=%t", ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}))
}

// startText is what an operator writes. No token is refreshed, so the provider is nowhere.
const startText = `listen: {proxy: "%s"}
upstream: {ca_files: [upstream.pem]}
providers:
  anthropic: {token_url: "http://127.0.0.1:1/token", redirect_url: "", allow_insecure: true, refused_hosts: []}
grants:
  ` + grantName + `: {provider: anthropic}
routes:
  - {hosts: [%s], grant: ` + grantName + `, connect_to: "%s"}
profiles:
  ` + profileName + `: {grants: [` + grantName + `]}
workers:
  ` + workerName + `: {profile: ` + profileName + `, token_sha256: 81cbc1eb23c22dc0b4952967d43bfa14d86d5aff475df9b94efd393f40277529}
`

// fill connects the grant and issues the session, and learns the root that workers trust.
func (i *installed) fill(ctx context.Context, server *embedded.Server) error {
	root, err := server.Root()
	if err != nil {
		return err
	}
	store, err := vault.Open(ctx, root, nil)
	if err != nil {
		return err
	}
	defer store.Close()
	t := oauth.Token{Access: secret.New(realToken), Refresh: secret.New("sk-ant-ort01-never-presented"), Expiry: time.Now().Add(tokenLife)}
	if _, err := grant.Connect(ctx, store, grant.Spec{Name: grantName, Provider: "anthropic"}, t, time.Now()); err != nil {
		return err
	}
	sessions, err := worker.OpenSessions(ctx, store, worker.LedgerOptions{})
	if err != nil {
		return err
	}
	session, token, err := sessions.Issue(workerName, profileName, 24*time.Hour, time.Now())
	if err != nil {
		return err
	}
	i.gate.carried = carried{session.ID, token.Reveal(), sessions.Placeholder(session, grantName, placeholder)}
	certs, err := store.Roots(ctx)
	if err != nil {
		return err
	}
	i.roots = x509.NewCertPool()
	for _, c := range certs {
		i.roots.AddCert(c)
	}
	return nil
}

// command is one of wayleave's.
func (i *installed) command(args ...string) *exec.Cmd {
	c := exec.Command(i.in("wayleave"), args...) //nolint:noctx // begin ends it
	c.Dir = i.dir
	c.Env = []string{
		"PATH=" + i.dir + string(filepath.ListSeparator) + os.Getenv("PATH"), "HOME=" + i.dir, "TMPDIR=" + i.dir,
		"WAYLEAVE_CONFIG=" + i.in("wayleave.yaml"), "WAYLEAVE_STATE=" + i.store.StateDir,
	}
	return c
}

// served measures what starts beside a store that runs already.
func (i *installed) served(ctx context.Context, cold bool, found map[string]time.Duration) error {
	server, err := embedded.Start(ctx, i.store)
	if err != nil {
		return err
	}
	defer server.Stop()
	root, err := server.Root()
	if err != nil {
		return err
	}
	run := i.in("run")
	gate := func() *exec.Cmd {
		c := i.command("serve", "--run-dir", run)
		c.Env = append(c.Env, "VAULT_ADDR="+root.Address, "VAULT_TOKEN="+root.Auth.Token.Reveal())
		return c
	}
	envoy := func() *exec.Cmd { return i.command("envoy", "--run-dir", run) }
	if found[gateAlone], err = i.begin(ctx, cold, i.serves, gate()); err != nil {
		return fmt.Errorf("%s: %w", gateAlone, err)
	}
	if found[serveBoth], err = i.begin(ctx, cold, i.answers, gate(), envoy()); err != nil {
		return fmt.Errorf("%s: %w", serveBoth, err)
	}
	stop, err := i.running(ctx, gate())
	if err != nil {
		return err
	}
	defer stop()
	if err := until(ctx, i.serves); err != nil {
		return err
	}
	if found[envoyAlone], err = i.begin(ctx, cold, i.answers, envoy()); err != nil {
		return fmt.Errorf("%s: %w", envoyAlone, err)
	}
	return nil
}

// begin starts the programs, measures how long it takes until done has no error, and ends them.
func (i *installed) begin(ctx context.Context, cold bool, done func(context.Context) error, commands ...*exec.Cmd) (time.Duration, error) {
	if cold {
		if err := i.forget(ctx); err != nil {
			return 0, err
		}
	}
	begun := time.Now()
	stop, err := i.running(ctx, commands...)
	if err != nil {
		return 0, err
	}
	defer stop()
	err = until(ctx, done)
	return time.Since(begun), err
}

// running starts the programs, which stop ends: the last first, so that no Envoy asks a gate that is gone.
func (i *installed) running(ctx context.Context, commands ...*exec.Cmd) (stop func(), err error) {
	stop = func() {}
	for _, c := range commands {
		_, end, err := start(ctx, supervise.Process{Name: "wayleave " + c.Args[1], Command: func() *exec.Cmd { return c }})
		if err != nil {
			stop()
			return nil, err
		}
		stop = after(end, stop)
	}
	return stop, nil
}

// until asks again and again.
func until(ctx context.Context, done func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		err := done(ctx)
		if err == nil {
			return nil
		}
		if gone := pause(ctx, lookAgain); gone != nil {
			return errors.Join(err, gone)
		}
	}
}

// serves is whether the gate says of itself that it does.
func (i *installed) serves(ctx context.Context) error {
	if _, err := os.Stat(i.in("run/gate.sock")); err != nil { // cheaper than a connection that fails
		return err
	}
	c, err := grpc.NewClient("unix:"+i.in("run/gate.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	answer, err := healthpb.NewHealthClient(c).Check(ctx, &healthpb.HealthCheckRequest{})
	if err == nil && answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		err = fmt.Errorf("the gate says %v", answer.GetStatus())
	}
	return err
}

// answers is whether a worker has an answer to a request whose placeholder was swapped, over a connection of its own.
func (i *installed) answers(ctx context.Context) error {
	a, err := i.requester(ctx, get, http.StatusOK)
	if err != nil {
		return err
	}
	return a.Close()
}

// forget has the kernel keep nothing of the executables in memory.
func (i *installed) forget(ctx context.Context) error {
	for _, name := range []string{"wayleave", "envoy", "bao"} {
		if out, err := exec.CommandContext(ctx, "dd", "if="+i.in(name), "iflag=nocache", "count=0").CombinedOutput(); err != nil {
			return fmt.Errorf("taking %s out of memory: %w\n%s", name, err, out)
		}
	}
	return nil
}
