// Command demo shows the main job from outside: it starts a stand-in provider and API, drives the wayleave command as an
// operator and a worker would, and prints what left the worker and what arrived.
//
// It owns the story and its words; the stand-ins are package demo, and everything that is shown is done by wayleave.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"wayleave/demo"
	"wayleave/freeport"
)

const (
	apiHost   = "api.demo.test"
	grantName = "demo"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "approve" { // what $BROWSER runs: the operator who agrees
		if err := approve(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			os.Exit(1)
		}
		return
	}
	state := flag.String("state", ".demo", "directory for everything the demo makes; a second start resumes it")
	once := flag.Bool("once", false, "check the swap, stop everything and exit")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *state, *once, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// story is one run of the demo.
type story struct {
	dir      string // the state directory, absolute
	wayleave string // the binary
	out      io.Writer
	world    *demo.Demo
	n        int
}

func run(ctx context.Context, dir string, once bool, out io.Writer) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	s := &story{dir: dir, wayleave: filepath.Join(filepath.Dir(exe), "wayleave"), out: out}
	if _, err := os.Stat(s.wayleave); err != nil {
		return fmt.Errorf("no wayleave beside %s: run 'make build' first", exe)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}

	if err := s.step("starting a demo provider and API", s.startWorld); err != nil {
		return err
	}
	defer func() { _ = s.world.Close() }()
	var up *process
	if err := s.step("starting OpenBao, the gate and Envoy (wayleave up)", func() (err error) { up, err = s.startUp(ctx); return err }); err != nil {
		return err
	}
	defer up.stop()
	if err := s.step("connecting the grant, as an operator would (wayleave grant connect "+grantName+")", func() error { return s.connect(ctx, exe) }); err != nil {
		return err
	}
	if err := s.step("running a worker (wayleave run -- curl …)", func() error { return s.curl(ctx) }); err != nil {
		return err
	}
	if python := s.python(ctx); python == "" {
		fmt.Fprint(out, "-  no Python with the anthropic SDK here: 'make tools' brings one\n")
	} else if err := s.step("running the Python anthropic SDK (wayleave run -- python …)", func() error { return s.sdk(ctx, python) }); err != nil {
		return err
	}
	if once {
		fmt.Fprint(out, "\nThe swap works. Stopping.\n")
		return nil
	}
	s.tryThis()
	select {
	case <-ctx.Done():
		fmt.Fprint(out, "\nStopping.\n")
		return nil
	case <-up.done:
		return fmt.Errorf("wayleave up ended by itself; its last words:\n%s", up.tail())
	}
}

// step says what is being done, and that it is done or what to do about it.
func (s *story) step(what string, f func() error) error {
	s.n++
	fmt.Fprintf(s.out, "%d. %s …\n", s.n, what)
	if err := f(); err != nil {
		return fmt.Errorf("step %d, %s: %w\nwhat was made is in %s; 'make demo' resumes there, and removing it starts afresh", s.n, what, err, s.dir)
	}
	return nil
}

// ports are kept from one start to the next, since the stored grant and configuration name them.
type ports struct{ Provider, API, Proxy string }

func (s *story) startWorld() error {
	var p ports
	file := filepath.Join(s.dir, "ports.json")
	if b, err := os.ReadFile(file); err != nil || json.Unmarshal(b, &p) != nil {
		p = ports{"127.0.0.1:0", "127.0.0.1:0", ""}
	}
	world, err := demo.Start(demo.Options{ProviderAddr: p.Provider, APIAddr: p.API, Hosts: []string{apiHost},
		Provider: demo.ProviderOptions{AccessTTL: 5 * time.Minute}})
	if err != nil {
		return fmt.Errorf("%w; is another demo running? stop it, or give this one its own --state", err)
	}
	s.world = world
	if p.Proxy == "" {
		if p.Proxy, err = freeport.Address(); err != nil {
			return err
		}
	}
	p.Provider, p.API = strings.TrimPrefix(world.ProviderURL, "http://"), world.APIAddr
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(file, b, 0o600),
		os.WriteFile(filepath.Join(s.dir, "api-ca.pem"), world.CA.PEM(), 0o600),
		os.WriteFile(s.config(), fmt.Appendf(nil, configuration, p.Proxy, world.ProviderURL, world.ProviderURL, world.ProviderURL, world.Provider.ClientID(), apiHost, world.APIAddr), 0o600),
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

func (s *story) config() string { return filepath.Join(s.dir, "wayleave.yaml") }
func (s *story) gate() string   { return filepath.Join(s.dir, "gate") }

// command prepares a wayleave command on the demo's configuration or state.
func (s *story) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, s.wayleave, args...)
	c.Env = append(os.Environ(), "WAYLEAVE_CONFIG="+s.config(), "WAYLEAVE_STATE="+s.gate(), "VAULT_ADDR=", "WAYLEAVE_GATE=", "WAYLEAVE_TOKEN=")
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 20 * time.Second
	return c
}

func (s *story) startUp(ctx context.Context) (*process, error) {
	// It is stopped by us, in order, not by the context.
	p, err := startProcess(s.command(context.WithoutCancel(ctx), "up"), s.out)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.ready:
		return p, nil
	case <-p.done:
		return nil, fmt.Errorf("it ended before it was ready; its last words:\n%s", p.tail())
	case <-ctx.Done():
		p.stop()
		return nil, ctx.Err()
	}
}

func (s *story) connect(ctx context.Context, exe string) error {
	c := s.command(ctx, "grant", "connect", grantName, "--timeout", "1m")
	c.Env = append(c.Env, "BROWSER="+exe+" approve")
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	_, summary, _ := strings.Cut(string(out), "Exchanging the code…\n")
	fmt.Fprint(s.out, indent(summary))
	return nil
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

const body = `{"model":"demo","max_tokens":16,"messages":[{"role":"user","content":"hello"}]}`

func (s *story) curl(ctx context.Context) error {
	script := `exec curl -sSv --fail-with-body -H "Authorization: Bearer $ANTHROPIC_AUTH_TOKEN" -H 'content-type: application/json' -d '` + body + `' https://` + apiHost + `/v1/messages`
	var stdout, stderr bytes.Buffer
	for end := time.Now().Add(15 * time.Second); ; {
		stdout.Reset()
		stderr.Reset()
		c := s.command(ctx, "run", "--", "sh", "-c", script)
		c.Stdout, c.Stderr = &stdout, &stderr
		err := c.Run()
		if err == nil {
			break
		}
		// The demo provider forgets everything when it ends, so after a resumed start the gate holds a token of its last
		// life until it sees the new consent, seconds after the connect.
		if !strings.Contains(stderr.String(), "error: 401") || time.Now().After(end) {
			return fmt.Errorf("%w\n%s%s", err, stdout.String(), stderr.String())
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	sent := sentRequest(stderr.String())
	received, err := s.received("/v1/messages")
	if err != nil {
		return err
	}
	if !strings.Contains(sent, "wlplaceholder") || !strings.Contains(received.Authorization, demo.AccessPrefix) {
		return errors.New("the placeholder was not replaced by a real token; the log of the gate says why")
	}
	fmt.Fprintf(s.out, "\n   as the worker sent it:\n%s\n   as the API received it:\n%s\n   the API's answer:\n%s\n",
		indent(indent(sent)),
		indent(indent(fmt.Sprintf("%s %s %s\nhost: %s\nauthorization: %s\n", received.Method, received.Path, received.Proto, received.Host, received.Authorization))),
		indent(indent(stdout.String())))
	return nil
}

var placeholderTail = regexp.MustCompile(`(wlplaceholder.{6})\S+`)

// sentRequest takes the request inside the tunnel out of curl's own account of what it sent, with the placeholder shortened.
func sentRequest(verbose string) string {
	var lines []string
	for line := range strings.Lines(verbose) {
		line, sent := strings.CutPrefix(strings.TrimRight(line, "\r\n"), "> ")
		switch {
		case !sent || line == "":
		case strings.HasPrefix(line, "CONNECT "):
			lines = nil
		case strings.HasPrefix(line, "POST "):
			lines = []string{line}
		case strings.HasPrefix(strings.ToLower(line), "host:"), strings.HasPrefix(strings.ToLower(line), "authorization:"):
			lines = append(lines, placeholderTail.ReplaceAllString(line, "$1…"))
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// received is the last request that arrived at path.
func (s *story) received(path string) (demo.Request, error) {
	requests := s.world.API.Requests()
	for i := len(requests) - 1; i >= 0; i-- {
		if requests[i].Path == path {
			return requests[i], nil
		}
	}
	return demo.Request{}, fmt.Errorf("no request arrived at %s", path)
}

// python finds an interpreter with the anthropic SDK: the one of `make tools`, or the user's own.
func (s *story) python(ctx context.Context) string {
	for _, p := range []string{filepath.Join(filepath.Dir(filepath.Dir(s.wayleave)), ".tools", "clients", "bin", "python"), "python3"} {
		if exec.CommandContext(ctx, p, "-c", "import anthropic").Run() == nil {
			return p
		}
	}
	return ""
}

const sdkScript = `
import anthropic
client = anthropic.Anthropic(base_url="https://` + apiHost + `")
message = client.messages.create(model="demo", max_tokens=16, messages=[{"role": "user", "content": "hello from the SDK"}])
print(message.content[0].text)
`

func (s *story) sdk(ctx context.Context, python string) error {
	out, err := s.command(ctx, "run", "--", python, "-c", sdkScript).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			out = append(out, exit.Stderr...)
		}
		return fmt.Errorf("%w\n%s", err, out)
	}
	fmt.Fprintf(s.out, "   it printed: %s", out)
	return nil
}

func (s *story) tryThis() {
	fmt.Fprintf(s.out, `
Everything stays up until Ctrl-C. In another terminal:

  export PATH=%s:$PATH WAYLEAVE_CONFIG=%s WAYLEAVE_STATE=%s
  wayleave run -- sh                      # look around as a worker: env, curl https://%s/echo …
  wayleave run -- sh -c 'curl -sS -H "Authorization: Bearer $ANTHROPIC_AUTH_TOKEN" https://%s/echo'
  wayleave run -- curl -sS https://not-listed.example/    # refused, with the reason
  wayleave grant list
  wayleave config render
  wayleave doctor
`, filepath.Dir(s.wayleave), s.config(), s.gate(), apiHost, apiHost)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("   " + line)
	}
	return b.String()
}

// process is `wayleave up` as our child.
type process struct {
	cmd   *exec.Cmd
	ready chan struct{} // closed when it says so
	done  chan struct{} // closed when it has ended
	lines []string      // read after done, or under the reader's own goroutine
}

func startProcess(c *exec.Cmd, progress io.Writer) (*process, error) {
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
			if !ready {
				if text, said := strings.CutPrefix(line, "wayleave: "); said {
					fmt.Fprintf(progress, "   %s\n", text)
				}
				if strings.HasPrefix(line, "wayleave: ready") {
					ready = true
					close(p.ready)
				}
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
