package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wayleave/demo"
	"wayleave/freeport"
)

// patience is how long anything may take before a test gives up on it. It decides no outcome of a healthy run.
const patience = 60 * time.Second

var (
	binDir   string // holds wayleave and demo, built with the race detector
	toolsBin string // holds envoy and bao
	python   string // has the client libraries
)

func TestMain(m *testing.M) {
	if which := os.Getenv(goClient); which != "" {
		if err := runGoClient(which, os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Most of what tests do is wait for other processes. The flag still overrides this.
	if err := flag.Set("test.parallel", strconv.Itoa(3*runtime.NumCPU())); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func runTests(m *testing.M) (int, error) {
	root, err := filepath.Abs("..")
	if err != nil {
		return 0, err
	}
	toolsBin = filepath.Join(root, ".tools", "bin")
	python = filepath.Join(root, ".tools", "clients", "bin", "python")
	for _, tool := range []string{filepath.Join(toolsBin, "envoy"), filepath.Join(toolsBin, "bao"), python} {
		if _, err := os.Stat(tool); err != nil {
			return 0, fmt.Errorf("%w; run 'make tools'", err)
		}
	}
	if binDir = os.Getenv("WAYLEAVE_E2E_NAMESPACE"); binDir != "" { // built already, by the run that this one is part of
		return m.Run(), nil
	}
	// The product looks for its tools beside its own bin directory.
	top, err := os.MkdirTemp("", "wle2e")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(top) }()
	binDir = filepath.Join(top, "bin")
	if err := os.Symlink(filepath.Dir(toolsBin), filepath.Join(top, ".tools")); err != nil {
		return 0, err
	}
	build := exec.Command("go", "build", "-race", "-o", binDir+string(filepath.Separator), "./cmd/...")
	if os.Getenv(soakMinutes) != "" { // figures are of what is shipped
		build.Args = slices.DeleteFunc(build.Args, func(arg string) bool { return arg == "-race" })
	}
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("building: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// world is a stand-in provider and API, and a directory in which one gate runs against them.
type world struct {
	*demo.Demo
	dir   string
	proxy string // ip:port of the gate's proxy listener
	env   []string

	planted bool // a leak, which must be found at the end
}

// newWorld starts the stand-ins. The directory is short, since unix sockets go into it.
func newWorld(dir string) (*world, error) {
	d, err := demo.Start(demo.Options{
		Hosts:    []string{"api.demo.test", "other.demo.test", "*.wild.demo.test"},
		Provider: demo.ProviderOptions{Issued: func(secret string) { handedOut.add(demoKind(secret), secret) }},
	})
	if err != nil {
		return nil, err
	}
	proxy, err := freeport.Address()
	if err != nil {
		return nil, err
	}
	vault, err := freeport.Address() // for stories with a Vault of their own
	if err != nil {
		return nil, err
	}
	overTLS, err := freeport.Address() // for those with a proxy over TLS
	if err != nil {
		return nil, err
	}
	w := &world{Demo: d, dir: dir, proxy: proxy}
	w.env = []string{
		"PATH=" + strings.Join([]string{binDir, toolsBin, os.Getenv("PATH")}, string(filepath.ListSeparator)),
		"HOME=" + dir, "TMPDIR=" + filepath.Join(dir, "tmp"), "WAYLEAVE_LOG=debug",
		"WAYLEAVE_CONFIG=" + filepath.Join(dir, "wayleave.yaml"), "WAYLEAVE_STATE=" + filepath.Join(dir, "state"),
		"BROWSER=" + filepath.Join(binDir, "demo") + " approve",
		"PROXY=" + proxy, "PROXY_TLS=" + overTLS, "PROXY_TLS_PORT=" + port(overTLS), "PROVIDER=" + d.ProviderURL, "API=" + d.APIAddr, "CLIENT_ID=" + d.Provider.ClientID(),
		"PYTHON=" + python, "NODE_CLIENTS=" + filepath.Join(filepath.Dir(toolsBin), "node-clients", "node_modules"), "VAULT_PORT=" + port(vault), "GORACE=halt_on_error=1 exitcode=66 atexit_sleep_ms=0 log_path=" + filepath.Join(dir, "race"), // else each command waits for a second when it has done its work
	}
	return w, errors.Join(os.WriteFile(filepath.Join(dir, "api-ca.pem"), d.CA.PEM(), 0o600), os.Mkdir(w.saved("tmp"), 0o700))
}

func (w *world) getenv(name string) string {
	for _, kv := range w.env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// envoyKey begins what a configuration says of Envoy.
var envoyKey = regexp.MustCompile(`(?m)^envoy:`)

// configure writes the configuration, with $NAME filled in from the world's environment. Envoy logs as much as it may, for the leak
// check, unless the configuration says how much.
func (w *world) configure(text string) error {
	if !envoyKey.MatchString(text) {
		text += "\nenvoy: {log_level: debug}\n"
	}
	return os.WriteFile(w.getenv("WAYLEAVE_CONFIG"), []byte(os.Expand(text, w.getenv)), 0o600)
}

// command prepares a command in the world's directory and environment. What it prints is kept for the leak check.
func (w *world) command(name string, args ...string) *command {
	path := name // looked up in our own PATH, unless it is one of ours or of the tools
	for _, dir := range []string{binDir, toolsBin} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			path = filepath.Join(dir, name)
		}
	}
	c := exec.Command(path, args...)
	c.Dir, c.Env = w.dir, slices.Clip(w.env) // clipped: what is appended for one command is no other's
	return w.searched(c)
}

func (w *world) saved(name string) string { return filepath.Join(w.dir, name) }

// gate is a running `wayleave up`.
type gate struct {
	*world
	cmd  *command
	out  *output
	done chan struct{}
}

// up starts `wayleave up` and returns when it is ready.
func (w *world) up() (*gate, error) {
	g := &gate{world: w, cmd: w.command("wayleave", "up"), out: newOutput(w.saved("up.log")), done: make(chan struct{})}
	g.cmd.Stdout, g.cmd.Stderr = g.out, g.out
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = g.cmd.Wait(); close(g.done) }()
	if err := g.waitOutput("wayleave: ready"); err != nil {
		g.kill()
		return nil, err
	}
	if err := g.learn(); err != nil {
		_ = g.stop()
		return nil, fmt.Errorf("learning what not to find: %w", err)
	}
	return g, nil
}

// waitOutput waits until the gate has printed text.
func (g *gate) waitOutput(text string) error {
	for deadline := time.After(patience); ; {
		seen, changed := g.out.contains(text)
		if seen {
			return nil
		}
		select {
		case <-changed:
		case <-g.done:
			if seen, _ := g.out.contains(text); seen {
				return nil
			}
			return fmt.Errorf("the gate ended before it printed %q:\n%s", text, g.out)
		case <-deadline:
			return fmt.Errorf("the gate did not print %q:\n%s", text, g.out)
		}
	}
}

// signal sends a signal and waits for the gate to end.
func (g *gate) signal(s syscall.Signal) error {
	if err := g.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) { // it ends by itself
		return err
	}
	select {
	case <-g.done:
		return nil
	case <-time.After(patience):
		return errors.New("the gate did not end")
	}
}

func (g *gate) kill() {
	_ = g.cmd.Process.Kill()
	<-g.done
}

// stands has a failure count however the test does when it is run once more by itself, as the Makefile has it run: gotestsum repeats nothing after
// such a line. A token that was where it must not be was there, and a data race is one.
func stands(err error) error {
	if err != nil {
		fmt.Println("panic: no second run mends this")
	}
	return err
}

// stop ends the gate as Ctrl-C does and reports a data race or an unclean end.
func (g *gate) stop() error {
	select {
	case <-g.done:
		return nil
	default:
	}
	leaks := stands(g.liveLeaks())
	if err := g.signal(syscall.SIGINT); err != nil {
		g.kill()
		return errors.Join(fmt.Errorf("%w:\n%s", err, g.out), leaks)
	}
	if code := g.cmd.ProcessState.ExitCode(); code != 0 {
		return errors.Join(fmt.Errorf("the gate ended with %d:\n%s", code, g.out), leaks)
	}
	return leaks
}

// output collects what a process prints, in memory for waiting and in a file for the leak check.
type output struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	looked  map[string]int // up to where a text was looked for, and was not there
	file    *os.File
	changed chan struct{}
}

func newOutput(path string) *output {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		f = nil
	}
	return &output{file: f, looked: map[string]int{}, changed: make(chan struct{})}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file != nil {
		_, _ = o.file.Write(p)
	}
	close(o.changed)
	o.changed = make(chan struct{})
	return o.buf.Write(p)
}

// contains reports whether text was printed, and returns a channel that is closed at the next output.
func (o *output) contains(text string) (bool, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	from := max(0, o.looked[text]-len(text))
	if bytes.Contains(o.buf.Bytes()[from:], []byte(text)) {
		return true, o.changed
	}
	o.looked[text] = o.buf.Len()
	return false, o.changed
}

// forget has what was printed so far not be found any more; the leak check has it all the same.
func (o *output) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf.Reset()
	clear(o.looked)
}

// all is everything that was printed.
func (o *output) all() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// String is what was printed, as a person wants to read it: without what is only there to be searched for leaks, and without what
// Envoy says of each address in its configuration.
func (o *output) String() string {
	var b strings.Builder
	for line := range strings.Lines(o.all()) {
		if !strings.Contains(line, "level=DEBUG") && !strings.Contains(line, "[debug]") && !strings.Contains(line, "marked as work-in-progress") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// start is a world with a configuration, a running gate and connected grants, for tests in Go.
func start(t *testing.T, config string, grants ...string) *gate {
	t.Helper()
	return startIn(t, makeWorld(t), config, grants...)
}

// makeWorld is a world that ends with the test.
func makeWorld(t *testing.T) *world {
	t.Helper()
	w, err := newWorld(shortDir(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after all that ran in it
		_ = w.Close()
		if err := w.leaks(); (err != nil) != w.planted {
			_ = stands(err)
			t.Errorf("planted: %v, and found: %v", w.planted, err)
		}
	})
	return w
}

// startIn is start in a world that the test has furnished.
func startIn(t *testing.T, w *world, config string, grants ...string) *gate {
	t.Helper()
	if err := w.configure(config); err != nil {
		t.Fatal(err)
	}
	g, err := w.up()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the gate printed:\n%s", g.out)
		}
	})
	for _, name := range grants {
		if out, err := w.command("wayleave", "grant", "connect", name).CombinedOutput(); err != nil {
			t.Fatalf("connecting %s: %v\n%s", name, err, out)
		}
	}
	return g
}

// shortDir is a temporary directory whose path leaves room for socket names.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func port(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }

// eventually asks again until ok holds; the last error says what was wrong. What takes long to ask, such as a command, is asked less often.
func eventually(ok func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		began := time.Now()
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("still after %v: %w", patience, err)
		case <-time.After(max(50*time.Millisecond, time.Since(began))):
		}
	}
}

var _ io.Writer = (*output)(nil)
