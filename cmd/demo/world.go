package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"wayleave/demo"
	"wayleave/freeport"
)

const (
	apiHost   = "api.demo.test"
	grantName = "demo"
)

// world is what the tour runs: the stand-ins, `wayleave up` and a worker.
type world struct {
	dir            string // the state directory, absolute
	self, wayleave string // programs
	demo           *demo.Demo
	up             *process
	worker         *shell

	mu      sync.Mutex
	secrets []string // all that the provider has issued
}

func newWorld(dir string) (*world, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	w := &world{dir: dir}
	if w.self, w.wayleave, err = beside("wayleave"); err != nil {
		return nil, err
	}
	return w, os.MkdirAll(dir, 0o700)
}

func (w *world) close() {
	if w.worker != nil {
		w.worker.stop()
	}
	if w.up != nil {
		w.up.stop()
	}
	if w.demo != nil {
		_ = w.demo.Close()
	}
}

func (w *world) config() string { return filepath.Join(w.dir, "wayleave.yaml") }
func (w *world) gate() string   { return filepath.Join(w.dir, "gate") }
func (w *world) apiCA() string  { return filepath.Join(w.dir, "api-ca.pem") }

// ports are kept from one start to the next, since the stored grant and configuration name them.
type ports struct{ Provider, API, Proxy string }

// startDemo starts the provider and the API, and writes what an operator would write for them.
func (w *world) startDemo() error {
	var p ports
	file := filepath.Join(w.dir, "ports.json")
	if b, err := os.ReadFile(file); err != nil || json.Unmarshal(b, &p) != nil {
		p = ports{"127.0.0.1:0", "127.0.0.1:0", ""}
	}
	d, err := demo.Start(demo.Options{ProviderAddr: p.Provider, APIAddr: p.API, Hosts: []string{apiHost},
		Provider: demo.ProviderOptions{AccessTTL: 10 * time.Minute, Issued: func(secret string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.secrets = append(w.secrets, secret)
		}}})
	if err != nil {
		return fmt.Errorf("%w; is another demo running? stop it, or give this one its own --state", err)
	}
	w.demo = d
	if p.Proxy == "" {
		if p.Proxy, err = freeport.Address(); err != nil {
			return err
		}
	}
	p.Provider, p.API = strings.TrimPrefix(d.ProviderURL, "http://"), d.APIAddr
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(file, b, 0o600),
		os.WriteFile(w.apiCA(), d.CA.PEM(), 0o600),
		os.WriteFile(w.config(), fmt.Appendf(nil, configuration, p.Proxy, d.ProviderURL, d.ProviderURL, d.ProviderURL, d.Provider.ClientID(), apiHost, d.APIAddr), 0o600),
	)
}

// configuration is what an operator would write: a preset, with the endpoints of the stand-ins.
const configuration = `# Made by 'make demo'.
listen:
  proxy: %s
upstream:
  ca_files: [api-ca.pem]
providers:
  demo:
    preset: anthropic
    authorize_url: %s/authorize
    token_url: %s/token
    revoke_url: %s/revoke
    client_id: %s
    redirect_url: ""            # a callback on loopback
    allow_insecure: true        # the demo provider speaks http, on loopback only
    placeholder_prefix: demo-
    refused_hosts: []
grants:
  demo:
    provider: demo
    scopes: [user:inference, user:profile, user:sessions:claude_code]
routes:
  - hosts: [%s]
    grant: demo
    required_scopes: [user:inference]
    paths:
      - prefix: /v1/code/
        required_scopes: [user:sessions:claude_code]
    connect_to: %s
profiles:
  default:
    grants: [demo]
workers:
  demo:
    profile: default
`

// command prepares a program that finds the demo's configuration and state, and wayleave by its name.
func (w *world) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = w.dir
	c.Env = append(os.Environ(), "WAYLEAVE_CONFIG="+w.config(), "WAYLEAVE_STATE="+w.gate(), "VAULT_ADDR=", "WAYLEAVE_GATE=", "WAYLEAVE_TOKEN=",
		"BROWSER="+w.self+" approve", "PATH="+filepath.Dir(w.wayleave)+string(filepath.ListSeparator)+os.Getenv("PATH"))
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 20 * time.Second
	return c
}

// sh runs a line of sh, and returns what it printed, errors too.
func (w *world) sh(ctx context.Context, line string) (string, error) {
	out, err := w.command(ctx, "sh", "-c", line).CombinedOutput()
	return string(out), err
}

// startUp starts `wayleave up`, and tells what it says until it is ready.
func (w *world) startUp(ctx context.Context, tell func(line string)) error {
	// It is stopped by us, in order, not by the context.
	p, err := startProcess(w.command(context.WithoutCancel(ctx), w.wayleave, "up"), tell)
	if err != nil {
		return err
	}
	w.up = p
	select {
	case <-p.ready:
		return nil
	case <-p.done:
		return fmt.Errorf("wayleave up ended before it was ready; its last words:\n%s", p.tail())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// received is the last request that arrived at path.
func (w *world) received(path string) (demo.Request, error) {
	requests := w.demo.API.Requests()
	for i := len(requests) - 1; i >= 0; i-- {
		if requests[i].Path == path {
			return requests[i], nil
		}
	}
	return demo.Request{}, fmt.Errorf("no request arrived at %s", path)
}

// python finds an interpreter with the anthropic SDK: the one of `make tools`, or the user's own.
func (w *world) python(ctx context.Context) string {
	for _, p := range []string{filepath.Join(filepath.Dir(filepath.Dir(w.wayleave)), ".tools", "clients", "bin", "python3"), "python3"} {
		if exec.CommandContext(ctx, p, "-c", "import anthropic").Run() == nil {
			return p
		}
	}
	return ""
}

// leaks says where a token that the provider issued is found: in one of these texts, by their names, or in a file of the
// state directory. It returns how many tokens and files it looked at.
func (w *world) leaks(texts map[string]string) (found []string, tokens, files int, err error) {
	w.mu.Lock()
	secrets := w.secrets
	w.mu.Unlock()
	look := func(place, text string) {
		for _, s := range secrets {
			if strings.Contains(text, s) {
				found = append(found, place)
				return
			}
		}
	}
	for name, text := range texts {
		look(name, text)
	}
	err = filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // OpenBao and the gate replace files while they run
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		files++
		look(path, string(b))
		return err
	})
	return found, len(secrets), files, err
}

// approve opens the consent page and follows it to the callback, as a browser would; a device's page has no callback.
func approve(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if strings.Contains(url, "user_code=") {
		return demo.ApproveDevice(ctx, url)
	}
	callback, err := demo.Approve(ctx, url)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, callback, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{Proxy: nil}}).Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// until asks again each second, for a minute, until done says so.
func until(ctx context.Context, done func() (bool, error)) error {
	for end := time.Now().Add(time.Minute); ; {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if time.Now().After(end) {
			return errors.New("it did not come within a minute")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// shell is a worker: one `wayleave run -- sh` for the whole tour, in which we type.
type shell struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	r    io.Closer
	out  *bufio.Reader // reads r
	mark string        // ends what a command printed
}

func (w *world) startWorker(ctx context.Context) error {
	c := w.command(context.WithoutCancel(ctx), w.wayleave, "run", "--", "sh")
	in, err := c.StdinPipe()
	if err != nil {
		return err
	}
	r, out, err := os.Pipe()
	if err != nil {
		return err
	}
	c.Stdout, c.Stderr = out, out
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for us
	err = c.Start()
	_ = out.Close()
	if err != nil {
		return errors.Join(err, r.Close())
	}
	w.worker = &shell{c, in, r, bufio.NewReader(r), rand.Text()}
	_, err = w.worker.do(ctx, "true") // what 'wayleave run' says of this machine's variables comes first
	return err
}

// do runs a line in the worker's shell, and returns what it printed, errors too. An end of ctx ends the shell.
func (sh *shell) do(ctx context.Context, line string) (string, error) {
	defer context.AfterFunc(ctx, func() { _ = syscall.Kill(-sh.cmd.Process.Pid, syscall.SIGTERM) })()
	if _, err := fmt.Fprintf(sh.in, "%s\necho %s\n", line, sh.mark); err != nil {
		return "", fmt.Errorf("the worker's shell is gone: %w", err)
	}
	var printed strings.Builder
	for {
		line, err := sh.out.ReadString('\n')
		if before, end := strings.CutSuffix(strings.TrimSuffix(line, "\n"), sh.mark); end {
			printed.WriteString(before)
			return printed.String(), nil
		}
		printed.WriteString(line)
		if err != nil {
			return "", fmt.Errorf("the worker's shell ended: %w\n%s", err, printed.String())
		}
	}
}

func (sh *shell) stop() {
	_ = sh.in.Close()
	_ = sh.cmd.Wait()
	_ = sh.r.Close()
}

// process is `wayleave up` as our child.
type process struct {
	cmd   *exec.Cmd
	ready chan struct{} // closed when it says so
	done  chan struct{} // closed when it has ended
	lines []string      // read after done, or under the reader's own goroutine
}

func startProcess(c *exec.Cmd, tell func(line string)) (*process, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.Stdout, c.Stderr = w, w
	// A terminal's Ctrl-C is for us; we pass it on when the story is over.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		return nil, errors.Join(err, r.Close(), w.Close())
	}
	_ = w.Close()
	p := &process{cmd: c, ready: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		ready := false
		for scan := bufio.NewScanner(r); scan.Scan(); {
			line := scan.Text()
			p.lines = append(p.lines, line)
			if ready {
				continue
			}
			if strings.HasPrefix(line, "wayleave: ") {
				tell(line)
			}
			if strings.HasPrefix(line, "wayleave: ready") {
				ready = true
				close(p.ready)
			}
		}
		_ = r.Close()
		_ = c.Wait()
	}()
	return p, nil
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	<-p.done
}

// tail is the last lines of a process that has ended.
func (p *process) tail() string {
	<-p.done
	return strings.Join(p.lines[max(0, len(p.lines)-15):], "\n")
}
