package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"wayleave/demo"
)

// program is a client as people run it.
type program struct {
	name    string
	command []string        // sends one request with {PLACEHOLDER} to {URL}, which is at {HOST}
	url     string          // with {HOST} in it
	path    string          // where its requests arrive, or begin to
	missing string          // why it cannot be run here; empty: it can
	version func() []string // a command that prints it
}

// programs are all the rows of the page, of this machine's versions.
func programs(t *testing.T) []program {
	script := func(name string) string {
		path, err := filepath.Abs(filepath.Join("testdata", "clients", name))
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	var list []program
	add := func(name, path string, version []string, command ...string) *program {
		p := program{name: name, path: path, url: "https://{HOST}" + path, command: command, version: func() []string { return version }}
		if _, err := exec.LookPath(version[0]); err != nil {
			p.missing = version[0] + " is not installed"
		}
		list = append(list, p)
		return &list[len(list)-1]
	}

	const bearer = "Authorization: Bearer {PLACEHOLDER}"
	curl := []string{"curl", "--version"}
	if out, _ := exec.Command(curl[0], curl[1:]...).Output(); bytes.Contains(out, []byte("HTTP2")) {
		add("curl", "/curl", curl, "curl", "-sS", "--fail-with-body", "--proxy-cacert", "{BUNDLE}", "-H", bearer, "{URL}")
	}
	add("curl --http1.1", "/curl-http1", curl, "curl", "-sS", "--fail-with-body", "--proxy-cacert", "{BUNDLE}", "--http1.1", "-H", bearer, "{URL}")
	add("wget", "/wget", []string{"wget", "--version"}, "wget", "-nv", "-t1", "-O-", "--header="+bearer, "{URL}")
	add("openssl s_client", "/openssl", []string{"openssl", "version"}, "sh", script("s_client.sh"), "{HOST}")
	add("git", "/repo.git", []string{"git", "--version"}, "git", "-c", "credential.helper=", "ls-remote", "https://x-access-token:{PLACEHOLDER}@{HOST}/repo.git")

	py := func(name, library, of string) *program {
		version := []string{python, "-c", "import importlib.metadata as m; print(m.version('" + of + "'))"}
		return add("Python "+name, "/"+library, version, python, script("client.py"), library, "{URL}")
	}
	py("requests", "requests", "requests")
	py("httpx", "httpx", "httpx")
	py("httpx, http2=True", "httpx-h2", "httpx")
	py("urllib", "urllib", "pip").version = func() []string { return []string{python, "--version"} }
	py("aiohttp, trust_env=True", "aiohttp", "aiohttp")
	py("websockets", "websockets", "websockets").url = "wss://{HOST}/websockets"
	py("anthropic", "anthropic", "anthropic")
	py("openai", "openai", "openai")

	major := ""
	if out, err := exec.Command("node", "--version").Output(); err == nil {
		major, _, _ = strings.Cut(strings.TrimPrefix(strings.TrimSpace(string(out)), "v"), ".")
	}
	js := func(name, library string) *program {
		return add("Node.js "+major+" "+name, "/node-"+library, []string{"node", "--version"}, "node", script("client.cjs"), library, "{URL}")
	}
	js("fetch", "fetch")
	js("https", "https")
	js("undici, EnvHttpProxyAgent", "undici")
	js("https-proxy-agent", "https-proxy-agent")
	js("ws, https-proxy-agent", "ws").url = "wss://{HOST}/node-ws"

	// The SDKs need a Node.js that knows of proxies, whatever the one of this machine does.
	if node := filepath.Join(filepath.Dir(toolsBin), "agents", "node"); major != "" {
		for name, library := range map[string]string{"@anthropic-ai/sdk": "sdk-anthropic", "openai": "sdk-openai"} {
			add("Node.js SDK "+name, "/node-"+library, []string{node, "--version"}, node, script("client.cjs"), library, "{URL}")
		}
	}

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	golang := func(name, client, module string) *program {
		p := add("Go "+name, "/go-"+client, []string{"go", "version"}, "env", goClient+"="+client, self, "{URL}")
		p.missing = ""
		if module != "" {
			p.version = func() []string { return []string{"go", "list", "-m", "-f", "{{.Version}}", module} }
		}
		return p
	}
	golang("net/http", "http", "")
	golang("coder/websocket", "websocket", "github.com/coder/websocket")
	rpc := golang("gRPC", "grpc", "google.golang.org/grpc")
	rpc.url, rpc.path = "{HOST}", grpc_health_v1.Health_Check_FullMethodName

	classes, noJava := t.TempDir(), ""
	if out, err := exec.Command("javac", "-d", classes, script("Client.java")).CombinedOutput(); err != nil {
		noJava = fmt.Sprintf("it takes javac of a JDK 17 or later: %v %s", err, out)
	}
	jdk := func(name, class string) {
		p := add("Java "+name, "/java-"+class, []string{"java", "--version"}, "java", "-XX:TieredStopAtLevel=1", "-cp", classes, "Client", class, "{URL}")
		p.missing = cmp.Or(p.missing, noJava)
	}
	jdk("HttpClient", "HttpClient")
	jdk("HttpClient, header Proxy-Authorization", "HttpClient-authenticated")
	jdk("HttpsURLConnection", "HttpsURLConnection")
	jdk("HttpsURLConnection, an Authenticator", "HttpsURLConnection-authenticated")
	return list
}

// way is how a program gets to a host, and what becomes of it: a column of the page.
type way struct {
	name        string
	host        string
	worker      worker                      // whose environment and placeholder the program has
	environment func(env map[string]string) // changes that; nil: not
	where       func(*exec.Cmd) *exec.Cmd   // it runs; nil: here
	upstream    *site                       // where the request should arrive; nil: it is refused
}

// run makes one request of p in the world of a gate, and says what the page says of it.
func (p program) run(t *testing.T, g *gate, way way) string {
	env := maps.Clone(way.worker.env)
	env["NODE_PATH"] = env["NODE_CLIENTS"]
	if way.environment != nil {
		way.environment(env)
	}
	fill := strings.NewReplacer("{URL}", strings.ReplaceAll(p.url, "{HOST}", way.host), "{HOST}", way.host, "{PLACEHOLDER}", way.worker.placeholder, "{BUNDLE}", env["CURL_CA_BUNDLE"])
	var args []string
	for _, a := range p.command {
		args = append(args, fill.Replace(a))
	}
	c := exec.Command(args[0], args[1:]...)
	c.Dir = g.newHome(t)
	for name, value := range env {
		c.Env = append(c.Env, name+"="+value)
	}
	if way.where != nil {
		c = way.where(c)
	}
	stop := time.AfterFunc(patience, func() { _ = c.Process.Kill() })
	defer stop.Stop()
	output, err := g.searched(c).CombinedOutput()
	t.Logf("%s, %s: %v\n%s", p.name, way.name, err, output)

	out := lineNumbers.ReplaceAllString(string(output), "")
	has := func(expression string) bool { return regexp.MustCompile(expression).MatchString(out) }
	switch {
	case err == nil && way.upstream == nil:
		t.Errorf("%s, %s: it did not fail", p.name, way.name)
		return "nothing"
	case err == nil:
		if !way.upstream.served(p.path) {
			t.Errorf("%s, %s: nothing arrived", p.name, way.name)
		}
		return "ok"
	case has(`ENOTFOUND|UnknownHost|Name or service not known`):
		return "goes around the gate"
	case has(`\b407\b|Proxy Authentication Required`):
		return "407"
	case way.upstream != nil:
		return "no"
	case has(`wayleave: `):
		return "our words"
	case has(`\b400\b`):
		return "400"
	}
	return "only that it failed"
}

var lineNumbers = regexp.MustCompile(`line \d+|:\d+\b`) // of stack traces

// Real clients, given nothing but the environment of `wayleave run`, get to where they want with the real token, and
// docs/clients.md says how each of them does.
func TestClients(t *testing.T) {
	parallel(t)
	made := makeWorld(t)
	up := newSite(t, made.CA, "front.demo.test", made.accepts)
	tunnelled := newSite(t, made.CA, "tunnel.demo.test", func(string) bool { return true })
	dns := newResolver(t)
	dns.set("tunnel.demo.test", "127.0.0.1")
	// A tunnelled host shows its own certificate, of an authority that the worker's system knows.
	made.env = append(made.env, "SSL_CERT_FILE="+made.saved("api-ca.pem"))
	g := startIn(t, made, strings.Replace(base(fmt.Sprintf(`
  - {hosts: [api.demo.test], grant: claude, connect_to: "$API"}
  - {hosts: [front.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [denied.demo.test], grant: claude, paths: [{prefix: /, deny: it is not for workers}]}
`, up.address), fmt.Sprintf(`, dns_resolvers: ["%s"], allow_private: [127.0.0.0/8]`, dns.address), fmt.Sprintf("tunnel: [\"tunnel.demo.test:%s\"]\n", tunnelled.port())),
		"$PROXY}", "$PROXY, proxy_tls: $PROXY_TLS, tls_names: [localhost]}", 1), "claude")
	w := g.hold(t, "w")
	overTLS := g.hold(t, "w", "WAYLEAVE_GATE=https://localhost:"+g.getenv("PROXY_TLS_PORT"), "WAYLEAVE_GATE_CA="+filepath.Join(g.getenv("WAYLEAVE_STATE"), "ca.pem"))
	isolated := g.hold(t, "w", "--isolate")
	clientsDo(t, g, up, []way{
		{name: "proxy", host: "front.demo.test", worker: w, upstream: up},
		{name: "proxy over TLS", host: "front.demo.test", worker: overTLS, upstream: up},
		{name: "isolated", host: "front.demo.test", worker: isolated, upstream: up, where: isolated.inItsNetwork},
		{name: "tunnelled host", host: "tunnel.demo.test:" + tunnelled.port(), worker: w, upstream: tunnelled, environment: func(env map[string]string) {
			env["NODE_OPTIONS"] = "--use-openssl-ca" // its own roots are built in, and the test's authority is not among them
		}},
		{name: "shows of a 407", host: "front.demo.test", worker: w, environment: func(env map[string]string) {
			password, _ := w.proxy.User.Password()
			for name, value := range env {
				env[name] = strings.ReplaceAll(value, password, "wrong")
			}
		}},
		{name: "shows of a refusal", host: "denied.demo.test", worker: w},
	})
}

// clientsDo runs every program in these ways, ends the gate, and compares with the page or updates it.
func clientsDo(t *testing.T, g *gate, up *site, ways []way) {
	real, err := arrived(ways[0].worker.client(t, true), ways[0].worker)
	if err != nil {
		t.Fatal(err)
	}
	up.bearer.Store(real)
	list := programs(t)
	cells := make([][]string, len(list))
	var wg errgroup.Group
	wg.SetLimit(2 * runtime.NumCPU())
	for i, p := range list {
		if p.missing != "" {
			t.Logf("%s is not run: %s", p.name, p.missing)
			continue
		}
		wg.Go(func() error {
			for _, way := range ways {
				cells[i] = append(cells[i], p.run(t, g, way))
			}
			return nil
		})
	}
	_ = wg.Wait()
	if up.sawText(placeholderMarker) {
		t.Error("a placeholder arrived")
	}

	if err := g.stop(); err != nil { // Envoy writes the rest of its log
		t.Fatal(err)
	}
	versions := g.spoken(t)
	page := readTable(t, "../docs/clients.md", "TestClients")
	for i, p := range list {
		row := map[string]string{}
		for j, cell := range cells[i] {
			if cell == "ok" && ways[j].upstream == up {
				cell = versions(p.path)
			} else if cell == "ok" {
				cell = ways[j].upstream.spoken(p.path)
			}
			row[ways[j].name] = cell
		}
		page.record(t, p.name, row, func() string {
			version := p.version()
			out, _ := exec.Command(version[0], version[1:]...).CombinedOutput()
			return regexp.MustCompile(`\d+\.\d+[\w.]*`).FindString(string(out))
		})
	}
	page.write(t)
}

// accepts reports whether a credential is one with a token that the API knows.
func (w *world) accepts(authorization string) bool {
	r := httptest.NewRequest(http.MethodGet, "/echo", nil)
	r.Header.Set("Authorization", authorization)
	answer := httptest.NewRecorder()
	w.API.ServeHTTP(answer, r)
	return answer.Code == http.StatusOK
}

// holder is the variable with the process that hold leaves waiting.
const holder = "E2E_HOLDER"

// hold is enrol for programs that need the worker's files too: the launcher stays until the test ends. It has more
// flags, and more variables in its environment.
func (g *gate) hold(t *testing.T, name string, more ...string) worker {
	t.Helper()
	const end = "-- the end --"
	args := []string{"run", "--worker", name}
	var env []string
	for _, m := range more {
		if strings.HasPrefix(m, "--") {
			args = append(args, m)
		} else {
			env = append(env, m)
		}
	}
	c := g.command("wayleave", append(args, "--", "sh", "-c", "export "+holder+"=$$; "+sayEnvironment+"; echo '"+end+"'; exec cat")...)
	c.Env = append(c.Env, env...)
	stdin, err1 := c.StdinPipe()
	stdout, err2 := c.StdoutPipe()
	if err := errors.Join(err1, err2, c.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = c.Wait()
	})
	var said []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(said, []byte(end)) {
		n, err := stdout.Read(buf)
		if err != nil {
			t.Fatalf("enrolling %s: %v\n%s", name, err, said)
		}
		said = append(said, buf[:n]...)
	}
	return workerFrom(t, string(said), "ANTHROPIC_AUTH_TOKEN")
}

// inItsNetwork makes c run where the worker's holder does.
func (w worker) inItsNetwork(c *exec.Cmd) *exec.Cmd {
	there := exec.Command("nsenter", append([]string{"-t", w.env[holder], "--user", "--preserve-credentials", "--net", "--", c.Path}, c.Args[1:]...)...)
	there.Dir, there.Env = c.Dir, c.Env
	return there
}

// spoken returns what the access log says about which version of HTTP a path was asked for with.
func (g *gate) spoken(t *testing.T) func(path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(g.getenv("WAYLEAVE_STATE"), "envoy", "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for line := range bytes.Lines(b) {
		var l struct{ Kind, Authority, Path, Protocol string }
		if json.Unmarshal(line, &l) == nil && l.Kind == "request" && strings.HasPrefix(l.Authority, "front.demo.test") {
			versions[l.Path] = l.Protocol
		}
	}
	return func(path string) string { return versionOf(versions, path) }
}

func versionOf(versions map[string]string, path string) string {
	for of, version := range versions {
		if of == path || strings.HasPrefix(of, path+"/") {
			return map[string]string{"HTTP/2": "HTTP/2", "HTTP/2.0": "HTTP/2", "HTTP/1.1": "HTTP/1.1"}[version]
		}
	}
	return "?"
}

// site is an upstream that is a web server, a git server, a gRPC server and a WebSocket server.
type site struct {
	*upstream
	bearer atomic.Value // hash of what has to arrive as Bearer, a string
	mu     sync.Mutex
	protos map[string]string // path → version of the requests that were served
}

func (f *site) served(path string) bool { return f.spoken(path) != "?" }

func (f *site) spoken(path string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return versionOf(f.protos, path)
}

func newSite(t *testing.T, ca *demo.CA, host string, live func(authorization string) bool) *site {
	t.Helper()
	repository := http.FileServer(http.Dir(makeRepository(t)))
	rpc := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(rpc, health.NewServer())
	t.Cleanup(rpc.Stop)
	f := &site{protos: map[string]string{}}
	f.upstream = newUpstream(t, ca, host, func(w http.ResponseWriter, r *http.Request) {
		authorization := r.Header.Get("Authorization")
		sum := sha256.Sum256([]byte(authorization))
		bearer := strings.HasPrefix(authorization, "Bearer ")
		if !live(authorization) || bearer && f.bearer.Load() != nil && hex.EncodeToString(sum[:]) != f.bearer.Load() {
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, "no real token", http.StatusUnauthorized)
			return
		}
		f.mu.Lock()
		f.protos[r.URL.Path] = r.Proto
		f.mu.Unlock()
		switch {
		case strings.HasPrefix(r.URL.Path, "/repo.git/"):
			repository.ServeHTTP(w, r)
		case strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
			rpc.ServeHTTP(w, r)
		case r.Header.Get("Upgrade") != "":
			echoMessages(w, r)
		default: // what the Messages API answers will do for all
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"id":"1","type":"message","role":"assistant","model":"demo","content":[{"type":"text","text":"hello"}],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}`)
		}
	})
	return f
}

// echoMessages sends WebSocket messages back until the client leaves.
func echoMessages(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	conn.SetReadLimit(16 << 20)
	for {
		kind, data, err := conn.Read(r.Context())
		if err != nil || conn.Write(r.Context(), kind, data) != nil {
			return
		}
	}
}

// makeRepository returns a directory with repo.git, which has one commit and what git's dumb HTTP transport asks for.
func makeRepository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	c := exec.Command("sh", "-ec", `git init -q --bare repo.git; cd repo.git
commit=$(git -c user.name=a -c user.email=a@demo.test commit-tree -m one "$(git hash-object -wt tree /dev/null)")
git update-ref refs/heads/main "$commit"; git update-server-info`)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Logf("no repository: %v\n%s", err, out)
	}
	return dir
}

// goClient is the variable that makes this test binary one of the clients.
const goClient = "E2E_GO_CLIENT"

// runGoClient is a Go program as people write it, which takes proxy and certificates from its environment.
func runGoClient(which, url string) error {
	ctx := context.Background()
	header := http.Header{"Authorization": {"Bearer " + os.Getenv("ANTHROPIC_AUTH_TOKEN")}}
	switch which {
	case "http":
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		req.Header = header
		resp, err := (&http.Client{}).Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", resp.Status, b)
		}
		return err
	case "websocket":
		conn, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPHeader: header})
		if err != nil {
			return err
		}
		defer conn.CloseNow()
		if err := conn.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
			return err
		}
		if _, got, err := conn.Read(ctx); err != nil || string(got) != "hello" {
			return fmt.Errorf("read %q, %w", got, err)
		}
		return nil
	case "grpc":
		target := url
		if !strings.Contains(url, ":") {
			target += ":443"
		}
		conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(credentials.NewTLS(nil)))
		if err != nil {
			return err
		}
		defer conn.Close()
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", header.Get("Authorization"))
		_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		return err
	}
	return fmt.Errorf("no client %q", which)
}
