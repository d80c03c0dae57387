package isolate

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"wayleave/secret"
)

// This test binary is, by the first argument, also the entry to the network and the program in it.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "testOnlyEnter":
			code, err := Enter(os.Args[2:])
			fmt.Fprintln(os.Stderr, err)
			os.Exit(code)
		case "testOnlyProbe":
			probe()
			os.Exit(7)
		}
	}
	os.Exit(m.Run())
}

// probe does what programs do, and says what came of it.
func probe() {
	say := func(what string, got any) { fmt.Printf("%s: %v\n", what, got) }
	get := func(c *http.Client, u string) any {
		resp, err := c.Get(u)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d %s", resp.StatusCode, body)
	}
	direct := &http.Client{Transport: &http.Transport{}}
	ended := func(err error) any {
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			return "refused"
		case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
			return "reset" // whenever that was noticed
		}
		return err
	}
	send := func(address, text string) any {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return ended(err)
		}
		defer conn.Close()
		if _, err := fmt.Fprint(conn, text); err != nil {
			return ended(err)
		}
		_ = conn.(*net.TCPConn).CloseWrite()
		answer, err := io.ReadAll(conn)
		if err != nil {
			return ended(err)
		}
		return string(answer)
	}
	echo := func(address string) any { return send(address, "ping\n") }
	hello := func(address, name string) any {
		asked, _, _ := strings.Cut(fmt.Sprint(send(address, clientHello(name))), " says \x16")
		return asked
	}
	say("proxy, plain", get(&http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment}}, "http://plain.test/a?b=c"))
	say("direct, plain", get(direct, "http://plain.test/a?b=c"))
	say("direct, plain port", get(direct, "http://plain.test:8080/d"))
	say("captured", echo("api.test:443"))
	say("captured by address", echo("192.0.2.7:443"))
	say("captured by IPv6 address", echo("[2001:db8::7]:443"))
	say("captured by an address of hosts(5)", echo("192.0.2.9:443"))
	say("TLS there", hello("192.0.2.9:443", "Other.test"))
	say("TLS at the address of one name", hello("192.0.2.8:443", "other.test"))
	say("TLS at an address", hello("192.0.2.7:443", "api.test"))
	say("captured port", echo("ssh.test:22"))
	say("denied", echo("denied.test:443"))
	say("another port", echo("api.test:444"))
	say("the gate itself", echo(os.Getenv("GATE")))
	_, err := net.DefaultResolver.LookupHost(context.Background(), "x.y.search.test.")
	say("below the search list", err != nil)
	say("uid", os.Getuid())
	var caps [2]unix.CapUserData
	err = unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0])
	say("rights", fmt.Sprint(caps[0].Effective, err))
	say("environment", os.Getenv("ONLY"))
}

// clientHello is what a TLS client begins with.
func clientHello(name string) string {
	client := &mute{}
	_ = tls.Client(client, &tls.Config{ServerName: name}).Handshake()
	return client.sent.String()
}

// mute is a connection to somebody who says nothing.
type mute struct {
	net.Conn
	sent bytes.Buffer
}

func (m *mute) Write(p []byte) (int, error)      { return m.sent.Write(p) }
func (m *mute) Read([]byte) (int, error)         { return 0, io.EOF }
func (m *mute) Close() error                     { return nil }
func (m *mute) SetWriteDeadline(time.Time) error { return nil }

// gate is a proxy for tests, which echoes what goes through it, in place of every destination but denied.test.
type gate struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
}

func newGate(t *testing.T) *gate {
	g := &gate{}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked := r.Method + " " + r.RequestURI
		if user, password, _ := proxyUser(r); user != "session" || password != "token" {
			asked += " as nobody"
		}
		g.mu.Lock()
		g.asked = append(g.asked, asked)
		g.mu.Unlock()
		if r.Method != http.MethodConnect {
			fmt.Fprintf(w, "%s %s", r.Host, r.URL.RequestURI())
			return
		}
		if strings.HasPrefix(r.Host, "denied") {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"error":"host_not_allowed","message":"wayleave: not from here"}`)
			return
		}
		conn, in, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 200 OK\r\n\r\n")
		said, _ := io.ReadAll(in)
		fmt.Fprintf(conn, "%s says %s", r.Host, said)
	}))
	t.Cleanup(g.Close)
	return g
}

func proxyUser(r *http.Request) (user, password string, ok bool) {
	h := r.Header.Get("Proxy-Authorization")
	return (&http.Request{Header: http.Header{"Authorization": {h}}}).BasicAuth()
}

// prepare has command run isolated behind g. What the relay says of refusals is in the returned list once it has ended.
func prepare(t *testing.T, g *gate, command string, args ...string) (cmd *exec.Cmd, refusals func() []string) {
	t.Helper()
	u, err := url.Parse(g.URL)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	var mu sync.Mutex
	cmd = exec.Command(command, args...)
	child, err := Prepare(cmd, []string{"testOnlyEnter"}, Way{
		Gate: u, User: "session", Password: secret.New("token"), Search: []string{"search.test"}, Dots: 5, Ports: []uint16{22}, PlainPorts: []uint16{8080},
		Hosts: HostsFile([]byte("127.0.0.1 localhost\n192.0.2.9\tHosts.test alias.test # 192.0.2.7 x\n192.0.2.9 other.test\n::1 ip6-localhost\n192.0.2.8 only.test\n192.0.2.7\n")),
		Refused: func(destination, why string) {
			mu.Lock()
			defer mu.Unlock()
			said = append(said, destination+": "+why)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- child.Serve(ctx, func(proxy netip.AddrPort) []string {
			return []string{"HTTP_PROXY=http://" + proxy.String(), "ONLY=this", "GATE=" + u.Host}
		})
	}()
	return cmd, func() []string {
		child.Close()
		cancel()
		if err := <-ended; err != nil && cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == 7 {
			t.Errorf("the relay: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		return said
	}
}

func TestIsolated(t *testing.T) {
	g := newGate(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd, refusals := prepare(t, g, self, "testOnlyProbe")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	said := refusals()
	if cmd.ProcessState == nil {
		t.Skipf("no network namespace can be made here: %v", Explain(err))
	}
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Fatalf("exit code %d: %s%s", code, out, &stderr)
	}
	got := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		what, result, _ := strings.Cut(lines.Text(), ": ")
		got[what] = result
	}
	for what, want := range map[string]string{
		"proxy, plain":             "200 plain.test /a?b=c",
		"direct, plain":            "200 plain.test /a?b=c",
		"direct, plain port":       "200 plain.test:8080 /d",
		"captured":                 "api.test:443 says ping",
		"captured by address":      "192.0.2.7:443 says ping",
		"captured by IPv6 address": "[2001:db8::7]:443 says ping",
		"captured port":            "ssh.test:22 says ping",

		"captured by an address of hosts(5)": "hosts.test:443 says ping",
		"TLS there":                          "other.test:443",
		"TLS at the address of one name":     "only.test:443",
		"TLS at an address":                  "api.test:443",
		"denied":                             "reset",
		"another port":                       "refused",
		"the gate itself":                    "refused", // its port is none of the network's
		"below the search list":              "true",
		"uid":                                fmt.Sprint(os.Getuid()),
		"environment":                        "this",
	} {
		if got[what] != want {
			t.Errorf("%s: %q, want %q", what, got[what], want)
		}
	}
	if os.Getuid() != 0 && got["rights"] != "0 <nil>" {
		t.Errorf("the program has rights: %s", got["rights"])
	}
	if want := "denied.test:443: not from here"; len(said) != 1 || said[0] != want {
		t.Errorf("refused: %q, want %q", said, want)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if all, _ := json.Marshal(g.asked); strings.Contains(string(all), "as nobody") || len(g.asked) != 12 {
		t.Errorf("the gate was asked %s", all)
	}
}

// Whatever keeps a machine from making the network, the words are the same.
func TestExplain(t *testing.T) {
	for _, no := range []error{unix.EPERM, unix.EACCES, unix.ENOSPC} {
		start := fmt.Errorf("starting agent: %w", &os.PathError{Op: "fork/exec", Path: "/usr/bin/wayleave", Err: no})
		if err := Explain(start); !errors.Is(err, ErrNotPermitted) || !errors.Is(err, no) {
			t.Errorf("%v: %v", no, err)
		}
	}
	for _, other := range []error{nil, io.EOF, &exec.Error{Name: "agent", Err: exec.ErrNotFound}, &os.PathError{Op: "fork/exec", Path: "/usr/bin/wayleave", Err: unix.ENOENT}} {
		if err := Explain(other); errors.Is(err, ErrNotPermitted) || !errors.Is(err, other) {
			t.Errorf("%v: %v", other, err)
		}
	}
}

func TestIsolatedProgramsThatDoNotStart(t *testing.T) {
	g := newGate(t)
	notExecutable := t.TempDir() + "/program"
	if err := os.WriteFile(notExecutable, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	plain := t.TempDir() + "/plain" // a script without #!
	if err := os.WriteFile(plain, []byte("exit 9"), 0o700); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]int{"/no/such/program": 127, notExecutable: 126, plain: 9} {
		cmd, refusals := prepare(t, g, command)
		err := cmd.Run()
		refusals()
		if cmd.ProcessState == nil {
			t.Skipf("no network namespace can be made here: %v", Explain(err))
		}
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Errorf("%s: exit code %d, want %d", command, code, want)
		}
	}
}
