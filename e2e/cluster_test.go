package e2e

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wayleave/freeport"
)

// cluster is what docs/availability.md is about: three nodes of OpenBao with raft and TLS, two gates that know all three, two Envoys
// that know both gates and share the workers' address, and for each worker a grant of its own.
type cluster struct {
	*fleet
	nodes  [3]*node
	gates  map[string]*gate
	envoys [2]*gate // each a `wayleave envoy`
	owners *owners
}

// node is one OpenBao.
type node struct {
	*gate
	name, address, config, data string
	there                       func(*exec.Cmd) *exec.Cmd // makes it run where it is; nil: here
}

const clusterGrants = 8

// clusterSettings are what tests choose.
type clusterSettings struct {
	life  time.Duration // of access tokens
	log   string        // of gates and Envoys
	hosts [3]nodeHost   // of the nodes; the zero value: they are at 127.0.0.1
}

// nodeHost is where a node is.
type nodeHost struct {
	address string
	command func(*exec.Cmd) *exec.Cmd // makes a command run there; nil: here
}

// owners knows whose each access token is, by what the API says of it.
type owners struct {
	mu         sync.Mutex
	connecting string            // the grant that is being connected
	of         map[string]string // hash of a token → grant
}

func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// note is told of each answer of the provider.
func (o *owners) note(params map[string]string, answer map[string]any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	grant := o.connecting
	if old := params["refresh_token"]; old != "" {
		grant = o.of[hashOf(old)]
	}
	access, _ := answer["access_token"].(string)
	refresh, _ := answer["refresh_token"].(string)
	o.of[hashOf("Bearer "+access)], o.of[hashOf(refresh)] = grant, grant
}

// whose is the grant of the credential that arrived.
func (o *owners) whose(hash string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.of[hash]
}

func grantName(i int) string   { return fmt.Sprint("grant-", i) }
func workerName(i int) string  { return fmt.Sprint("worker-", i) }
func workerToken(i int) string { return fmt.Sprint("wlworker_for_this_story_only_", i) }

// clusterConfig is that of the gates and the Envoys.
func clusterConfig() string {
	var b strings.Builder
	b.WriteString(`
vault:
  address: $NODE0
  nodes: [$NODE1, $NODE2]
  ca_file: api-ca.pem
  auth: {method: approle, role_id: $ROLE_ID, secret_id_file: secret-id}
listen: {proxy: $PROXY, replicas: [a, b]}
envoy: {name: $ENVOY, log_level: $ENVOY_LOG}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
`)
	for key, entry := range map[string]func(i int) string{
		"grants":   func(i int) string { return grantName(i) + ": {provider: anthropic}" },
		"profiles": func(i int) string { return grantName(i) + ": {grants: [" + grantName(i) + "]}" },
		"workers": func(i int) string {
			return workerName(i) + ": {profile: " + grantName(i) + ", token_sha256: " + hashOf(workerToken(i)) + "}"
		},
		"routes": func(i int) string {
			return "- {name: " + grantName(i) + ", hosts: [api.demo.test], grant: " + grantName(i) + `, connect_to: "$API"}`
		},
	} {
		fmt.Fprintf(&b, "%s:\n", key)
		for i := range clusterGrants {
			fmt.Fprintf(&b, "  %s\n", entry(i))
		}
	}
	return b.String()
}

// newCluster starts all of it, and connects the grants.
func newCluster(t *testing.T, s clusterSettings) *cluster {
	t.Helper()
	w := makeWorld(t).with("WAYLEAVE_LOG="+s.log, "ENVOY_LOG="+s.log, "ENVOY=envoy-0", "ROLE_ID=not known yet")
	c := &cluster{fleet: &fleet{world: w}, gates: map[string]*gate{}, owners: &owners{of: map[string]string{}}}
	if s.log == "info" {
		c.world = c.with("ENVOY_LOG=warning")
	}
	c.startNodes(t, s)
	c.world = c.with("VAULT_ADDR="+c.nodes[0].address, "BAO_ADDR="+c.nodes[0].address, "VAULT_TOKEN=administrator", "BAO_TOKEN=administrator",
		"BAO_CACERT="+c.saved("api-ca.pem"), "WAYLEAVE_GATE=http://"+c.proxy)
	for i, n := range c.nodes {
		c.world = c.with(fmt.Sprintf("NODE%d=%s", i, n.address))
	}
	if err := c.configure(clusterConfig()); err != nil {
		t.Fatal(err)
	}
	c.patiently(t, "wayleave", "vault", "setup")
	role := "auth/approle/role/wayleave-gateway"
	c.world = c.with("ROLE_ID=" + c.must(t, "bao", "read", "-field=role_id", role+"/role-id"))
	c.must(t, "sh", "-c", `umask 77; bao write -f -field=secret_id "$0"/secret-id >secret-id`, role)
	if err := c.configure(clusterConfig()); err != nil {
		t.Fatal(err)
	}
	c.Provider.SetAccessTTL(s.life)
	c.Provider.EditAnswers(c.owners.note)
	for _, name := range []string{"a", "b"} {
		c.serve(t, name)
	}
	for i := range c.envoys {
		c.startEnvoy(t, i)
	}
	for i := range clusterGrants {
		c.owners.mu.Lock()
		c.owners.connecting = grantName(i)
		c.owners.mu.Unlock()
		c.patiently(t, "wayleave", "grant", "connect", grantName(i))
	}
	// Whoever does harm to it does it to gates that know of every grant.
	for _, g := range c.gates {
		for i := range clusterGrants {
			if err := g.waitOutput(`msg="grant state" grant=` + grantName(i) + ` provider=anthropic state=healthy`); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := learnKeys(c.vaultClient(), c.nodes[0].address, "administrator"); err != nil {
		t.Fatal(err)
	}
	return c
}

// patiently runs a command until it succeeds: on a busy machine Vault's nodes may change their leader by themselves.
func (c *cluster) patiently(t *testing.T, name string, args ...string) {
	t.Helper()
	if err := eventually(func() error {
		out, err := c.command(name, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// startNodes makes the cluster. Nodes unseal themselves, as those of a fleet must that nobody watches.
func (c *cluster) startNodes(t *testing.T, s clusterSettings) {
	t.Helper()
	dir := shortDir(t) // not the world's: it is theirs to hold keys
	var hosts []string
	for i := range s.hosts {
		s.hosts[i].address = cmp.Or(s.hosts[i].address, "127.0.0.1")
		hosts = append(hosts, s.hosts[i].address)
	}
	saved := func(name string, text []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert, err := c.CA.Issue(hosts...)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	certFile, keyFile := saved("cert.pem", chain), saved("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	seal := saved("seal", []byte(hashOf(dir)[:32]))
	var join []map[string]string
	for i := range c.nodes {
		address, err := freeport.Address()
		if err != nil {
			t.Fatal(err)
		}
		c.nodes[i] = &node{name: fmt.Sprint("bao-", i), address: "https://" + net.JoinHostPort(hosts[i], port(address)), there: s.hosts[i].command}
		join = append(join, map[string]string{"leader_api_addr": c.nodes[i].address, "leader_ca_cert_file": c.saved("api-ca.pem")})
	}
	for i, n := range c.nodes {
		address, err := freeport.Address()
		if err != nil {
			t.Fatal(err)
		}
		own := net.JoinHostPort(hosts[i], port(address))
		n.data = filepath.Join(dir, n.name)
		if err := os.Mkdir(n.data, 0o700); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(map[string]any{
			"storage": map[string]any{"raft": map[string]any{"path": n.data, "node_id": n.name, "performance_multiplier": "2", "retry_join": join}},
			"listener": []any{map[string]any{"tcp": map[string]any{"address": strings.TrimPrefix(n.address, "https://"), "cluster_address": own,
				"tls_cert_file": certFile, "tls_key_file": keyFile}}},
			"seal":     map[string]any{"static": map[string]any{"current_key_id": "1", "current_key": "file://" + seal}},
			"api_addr": n.address, "cluster_addr": "https://" + own, "log_level": "info", "ui": false,
		})
		if err != nil {
			t.Fatal(err)
		}
		n.config = saved(n.name+".json", text)
		c.startNode(t, n)
	}
	c.initialize(t)
	for _, n := range c.nodes {
		c.healthy(t, n)
	}
	c.voting(t)
}

// voting waits until each node has a vote, which one that joins gets some seconds later: until then the first one's end is the cluster's.
func (c *cluster) voting(t *testing.T) {
	t.Helper()
	w := c.with("BAO_ADDR="+c.nodes[0].address, "BAO_CACERT="+c.saved("api-ca.pem"), "BAO_TOKEN=administrator")
	if err := eventually(func() error {
		out, err := w.command("bao", "operator", "raft", "list-peers", "-format=json").Output()
		if n := strings.Count(string(out), `"voter": true`); err == nil && n != len(c.nodes) {
			err = fmt.Errorf("%d of %d nodes vote", n, len(c.nodes))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// initialize makes the store at the first node; the others join it. Its administrator has a token that is no secret.
func (c *cluster) initialize(t *testing.T) {
	t.Helper()
	bao := func(token string, args ...string) (out []byte) {
		t.Helper()
		if err := eventually(func() (err error) {
			run := exec.Command(filepath.Join(toolsBin, "bao"), args...) // not the world's: what it prints is secret
			run.Env = append(os.Environ(), "BAO_ADDR="+c.nodes[0].address, "BAO_CACERT="+c.saved("api-ca.pem"), "BAO_TOKEN="+token)
			out, err = run.Output()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	var made struct {
		Token string `json:"root_token"`
	}
	if err := json.Unmarshal(bao("", "operator", "init", "-format=json", "-recovery-shares=1", "-recovery-threshold=1"), &made); err != nil {
		t.Fatal(err)
	}
	handedOut.add("a Vault token", made.Token)
	bao(made.Token, "token", "create", "-id=administrator", "-policy=root")
	bao(made.Token, "operator", "raft", "autopilot", "set-config", "-server-stabilization-time=1s") // before it has a vote
}

// startNode starts a node, in place of the one of this name before it.
func (c *cluster) startNode(t *testing.T, n *node) {
	t.Helper()
	run := exec.Command(filepath.Join(toolsBin, "bao"), "server", "-config="+n.config)
	if n.there != nil {
		run = n.there(run)
	}
	n.gate = c.start(t, c.world, n.name+".log", run.Path, run.Args[1:]...)
}

// vaultClient asks nodes.
func (c *cluster) vaultClient() *http.Client {
	return &http.Client{Timeout: liveFor, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: c.CA.Pool()}}}
}

// healthy waits until a node serves: as the active one, or as a standby that knows who is.
func (c *cluster) healthy(t *testing.T, n *node) {
	t.Helper()
	if err := eventually(func() error {
		if resp, err := c.vaultClient().Get(n.address + "/v1/sys/health?standbyok=true"); err != nil {
			return err
		} else if resp.Body.Close(); resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", n.name, resp.Status)
		}
		if c.asksLeader(n) == "" {
			return fmt.Errorf("%s knows no leader", n.name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// asksLeader is the address of the active node as a node knows it; empty: it knows none.
func (c *cluster) asksLeader(n *node) string {
	resp, err := c.vaultClient().Get(n.address + "/v1/sys/leader")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var leader struct {
		Address string `json:"leader_address"`
	}
	_ = json.NewDecoder(resp.Body).Decode(&leader)
	return leader.Address
}

// leader is the active node.
func (c *cluster) leader(t *testing.T) *node {
	t.Helper()
	var found *node
	if err := eventually(func() error {
		for _, n := range c.nodes {
			address := c.asksLeader(n)
			for _, l := range c.nodes {
				if l.address == address && c.asksLeader(l) == address { // it says so too
					found = l
					return nil
				}
			}
		}
		return errors.New("the cluster has no leader")
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// standby is a node that is not the active one.
func (c *cluster) standby(t *testing.T) *node {
	t.Helper()
	leader := c.leader(t)
	for _, n := range c.nodes {
		if n != leader {
			return n
		}
	}
	return nil
}

// serve starts a gate, in place of the one of this name before it, and again as long as it ends, as an init system does.
func (c *cluster) serve(t *testing.T, name string) {
	t.Helper()
	if err := eventually(func() error {
		c.gates[name] = c.start(t, c.with("VAULT_TOKEN=", "BAO_TOKEN="), "gate."+name+".log", "wayleave", "serve", "--replica", name, "--run-dir", c.runDir())
		return c.gates[name].waitOutput("msg=serving")
	}); err != nil {
		t.Fatal(err)
	}
}

// envoyDir is the run directory of an Envoy. The second has that of the first one's gates by links.
func (c *cluster) envoyDir(i int) string {
	if i == 0 {
		return c.runDir()
	}
	return c.saved(fmt.Sprint("run-", i))
}

// startEnvoy starts `wayleave envoy`, which starts an Envoy and whoever comes after it.
func (c *cluster) startEnvoy(t *testing.T, i int) {
	t.Helper()
	dir := c.envoyDir(i)
	if i > 0 {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, socket := range []string{"gate.a.sock", "gate.b.sock"} {
			if err := os.Symlink(filepath.Join(c.runDir(), socket), filepath.Join(dir, socket)); err != nil && !errors.Is(err, os.ErrExist) {
				t.Fatal(err)
			}
		}
	}
	name := fmt.Sprint("envoy-", i)
	w := c.with("ENVOY="+name, "WAYLEAVE_CONFIG="+c.saved(name+".yaml"))
	if err := w.configure(clusterConfig()); err != nil {
		t.Fatal(err)
	}
	c.envoys[i] = c.start(t, w, name+".log", "wayleave", "envoy", "--run-dir", dir, "--drain", "8s")
	c.live(t, i)
}

// live waits until an Envoy has the workers' listener.
func (c *cluster) live(t *testing.T, i int) {
	t.Helper()
	if err := eventually(func() error {
		pages, err := fetched(overSocket(filepath.Join(c.envoyDir(i), "admin.sock")), "http://admin/listeners")
		if err == nil && !strings.Contains(string(pages), c.proxy) {
			err = fmt.Errorf("envoy-%d does not listen yet", i)
		}
		return err
	}); err != nil {
		t.Fatalf("%v\n%s", err, c.envoys[i].out)
	}
}

// killEnvoy kills the Envoy itself, and returns when `wayleave envoy` has another one.
func (c *cluster) killEnvoy(t *testing.T, i int) {
	t.Helper()
	pid := c.envoyPID(t, i)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := eventually(func() error {
		if c.envoyPID(t, i) == pid {
			return errors.New("it is not back")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	c.live(t, i)
}

// envoyPID is that of the Envoy of a `wayleave envoy`.
func (c *cluster) envoyPID(t *testing.T, i int) (pid int) {
	t.Helper()
	if err := eventually(func() error {
		files, err := filepath.Glob(filepath.Join(c.envoyDir(i), "envoy.?.pid"))
		if err != nil || len(files) == 0 {
			return errors.Join(err, errors.New("no Envoy"))
		}
		text, err := os.ReadFile(files[len(files)-1])
		if err == nil {
			pid, err = pidIn(string(text))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return pid
}

// killNode kills a node and starts it again.
func (c *cluster) killNode(t *testing.T, n *node) {
	t.Helper()
	n.kill()
	c.startNode(t, n)
	c.healthy(t, n)
}

// stepDown has the active node give up its place.
func (c *cluster) stepDown(t *testing.T) {
	t.Helper()
	c.atLeader(t, "bao", "operator", "step-down")
	c.leader(t)
}

// killGate kills a gate and starts it again.
func (c *cluster) killGate(t *testing.T, name string) {
	t.Helper()
	c.gates[name].kill()
	c.serve(t, name)
}

// asked waits until each Envoy asks a gate again.
func (c *cluster) asked(t *testing.T, name string) {
	t.Helper()
	for i := range c.envoys {
		asksAgain(t, c.envoyDir(i), name)
	}
}
