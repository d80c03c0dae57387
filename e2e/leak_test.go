package e2e

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"go.yaml.in/yaml/v3"

	"wayleave/demo"
)

// handedOut are the secrets that stand-ins, authorization servers and Vaults gave out, in all stories of this run: each story is
// searched for those of all.
var handedOut = newSecrets()

// issued matches any secret of the stand-in provider, whole: what a log shows masked is too short for it.
var issued = regexp.MustCompile(`demo-(?:at|rt|wt)-[A-Za-z0-9_-]{12,}`)

// demoKind is what a secret of the stand-in provider is.
func demoKind(secret string) string {
	kinds := map[string]string{
		demo.AccessPrefix: "an access token", demo.RefreshPrefix: "a refresh token", "demo-ac-": "an authorization code", "demo-cs-": "a client secret",
	}
	return cmp.Or(kinds[secret[:min(len(secret), len(demo.AccessPrefix))]], "a secret of the stand-in provider")
}

// meant are the ends of the names of files whose purpose is to hold secrets of a kind.
var meant = []struct{ file, kind string }{
	{"/vault/init.json", "an unseal key"}, // of an OpenBao of our own
	{"/vault/init.json", "a Vault token"},
	{"/vault/operator.token", "a Vault token"},
	{"/bao.log", "an unseal key"}, // which a server in development mode prints
	{"/secret-id", "a secret id"},
	{"/operator-token", "a Vault token"}, // people's
	{"/viewer-token", "a Vault token"},
	{"/agent.pem", "a private key"}, // workers', of their platforms
	{"/other.pem", "a private key"},
	{"/expired.pem", "a private key"},
	{"/stranger.pem", "a private key"},
	{"/plain.pem", "a private key"},
	{"/hook.key", "a key of messages"},
	{"/mail.key", "a mail password"},
	{"/robot.secret", "a client secret"}, // where 'provider discover --register' was told to write it
	{"/page", "an authorization code"},   // which the operator sees, and pastes
}

// leaks looks for secrets in everything the world's directory holds: logs, state, what commands printed, what clients saved, and
// OpenBao's own files. It reports data races of the world's programs too.
func (w *world) leaks() error { return errors.Join(w.learn(), w.races(), leaksBelow(w.dir, 1)) }

// races are those that programs of the world reported.
func (w *world) races() error {
	reports, err := filepath.Glob(filepath.Join(w.dir, "race.*"))
	for _, report := range reports {
		text, e := os.ReadFile(report)
		err = errors.Join(err, e, fmt.Errorf("a data race:\n%s", text))
	}
	return err
}

// leaksBelow looks for secrets in all files of a directory, which are so many at least.
func leaksBelow(dir string, least int) error {
	var found []error
	files := 0
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ignoreVanished(err)
		}
		leaks, _, err := handedOut.inFile(file)
		if err != nil {
			return ignoreVanished(err)
		}
		files++
		for _, l := range leaks {
			if !l.meantFor(file) {
				found = append(found, fmt.Errorf("%s holds %v", file, l))
			}
		}
		return nil
	})
	if files < least {
		found = append(found, fmt.Errorf("only %d files to look at: the check is not looking", files))
	}
	return errors.Join(append(firstOf(found), err)...)
}

func (l leak) meantFor(file string) bool {
	for _, m := range meant {
		if strings.HasSuffix(file, m.file) && strings.HasPrefix(l.kind, m.kind) {
			return true
		}
	}
	return false
}

// firstOf keeps a log in which every line is a leak from being printed as a whole.
func firstOf(found []error) []error {
	if const20 := 20; len(found) > const20 {
		return append(found[:const20], fmt.Errorf("and %d more", len(found)-const20))
	}
	return found
}

// leaksIn looks for secrets in a text that comes from somewhere.
func leaksIn(where string, text []byte) error {
	var found []error
	for _, l := range handedOut.in(text) {
		found = append(found, fmt.Errorf("%s shows %v", where, l))
	}
	return errors.Join(firstOf(found)...)
}

// Files may vanish while they are listed: sockets, spools, OpenBao's temporary files.
func ignoreVanished(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// learn adds what gates log in to Vault with, what the world's own OpenBao has been made with, and the keys that gates keep in it, as
// far as that is there.
func (w *world) learn() error {
	if id, err := os.ReadFile(w.saved("secret-id")); err == nil {
		handedOut.add("a secret id", strings.TrimSpace(string(id)))
	}
	if address := w.getenv("VAULT_ADDR"); address != "" {
		_ = learnKeys(&http.Client{Timeout: liveFor}, address, w.getenv("BAO_TOKEN")) // stories stop it, seal it and break it
	}
	state := w.getenv("WAYLEAVE_STATE")
	text, err := os.ReadFile(filepath.Join(state, "vault", "init.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has none
	}
	var made struct {
		Key   string `json:"unseal_key"`
		Token string `json:"root_token"`
	}
	if err == nil {
		err = json.Unmarshal(text, &made)
	}
	if err != nil {
		return err
	}
	handedOut.add("an unseal key", made.Key)
	addAll("an unseal key", made.Key)
	handedOut.add("a Vault token", made.Token)
	err = learnKeys(overSocket(filepath.Join(state, "vault", "vault.sock")), "http://vault", made.Token)
	if gone := (*net.OpError)(nil); errors.As(err, &gone) {
		return nil // it does not run
	}
	return err
}

// learnKeys adds the keys that gates keep in a Vault.
func learnKeys(c *http.Client, address, token string) error {
	ask := func(method, path string, into any) error {
		req, err := http.NewRequest(method, address+"/v1/wayleave/"+path, nil)
		if err != nil {
			return err
		}
		req.Header.Set("X-Vault-Token", token)
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: status %d", path, resp.StatusCode)
		}
		return json.NewDecoder(resp.Body).Decode(into)
	}
	var list struct{ Data struct{ Keys []string } }
	if err := ask("LIST", "metadata/keys", &list); err != nil {
		return err
	}
	for _, name := range list.Data.Keys {
		var doc struct{ Data struct{ Data any } }
		if err := ask(http.MethodGet, "data/keys/"+name, &doc); err != nil {
			return err
		}
		addAll("the key "+name, doc.Data.Data)
	}
	return nil
}

// addAll adds every text of a document that is a key by its length.
func addAll(kind string, doc any) {
	switch d := doc.(type) {
	case string:
		if raw, err := base64.StdEncoding.DecodeString(d); err == nil && len(raw) >= shortest {
			handedOut.add(kind, string(raw))
		}
	case []any:
		for _, v := range d {
			addAll(kind, v)
		}
	case map[string]any:
		for _, v := range d {
			addAll(kind, v)
		}
	}
}

// liveLeaks looks for secrets in what can be asked of the world's processes while they run: arguments and environments, Envoys' admin
// interfaces, and the figures of gates.
func (w *world) liveLeaks() error {
	found := []error{w.learn(), w.processLeaks()}
	sockets, err := filepath.Glob(filepath.Join(w.dir, "*", "admin.sock"))
	if err != nil {
		return err
	}
	deeper, err := filepath.Glob(filepath.Join(w.dir, "*", "run", "admin.sock"))
	if err != nil {
		return err
	}
	for _, socket := range append(sockets, deeper...) {
		if pages, err := adminPages(socket); err == nil { // else it has stopped, or was stopped
			for page, text := range pages {
				found = append(found, leaksIn(socket+page, text))
			}
		}
	}
	configured, err := os.ReadFile(w.getenv("WAYLEAVE_CONFIG"))
	if err != nil {
		return errors.Join(append(found, ignoreVanished(err))...)
	}
	var cfg struct{ Metrics struct{ Listen string } }
	if err := yaml.Unmarshal(configured, &cfg); err == nil && cfg.Metrics.Listen != "" && cfg.Metrics.Listen != "none" {
		for _, page := range []string{"/metrics", "/readyz", "/livez"} {
			if text, err := fetched(&http.Client{Timeout: liveFor}, "http://"+cfg.Metrics.Listen+page); err == nil { // else it has stopped
				found = append(found, leaksIn(page, text))
			}
		}
	}
	return errors.Join(found...)
}

// liveFor is how long a process that may be stopped or busy is asked what it shows.
const liveFor = 5 * time.Second

// processLeaks looks for secrets in what any process of this user can read about those of the world: arguments and environments.
func (w *world) processLeaks() error {
	found := []error{}
	seen := 0
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, p := range all {
		args, err1 := os.ReadFile(filepath.Join(p, "cmdline"))
		env, err2 := os.ReadFile(filepath.Join(p, "environ"))
		if err1 != nil || err2 != nil || !strings.Contains(string(args)+string(env), w.dir+"/") {
			continue // it has ended, or is another's
		}
		seen++
		found = append(found, leaksIn(p+"/cmdline", args), leaksIn(p+"/environ", env))
	}
	if seen == 0 {
		found = append(found, errors.New("no process of the world's: the check is not looking"))
	}
	return errors.Join(found...)
}

// adminPages are what Envoy tells about itself.
func adminPages(socket string) (map[string][]byte, error) {
	c, pages := overSocket(socket), map[string][]byte{}
	for _, page := range []string{"/config_dump?include_eds", "/init_dump", "/stats", "/stats/prometheus", "/clusters", "/certs", "/listeners", "/server_info", "/runtime", "/memory", "/logging?level="} {
		text, err := fetched(c, "http://admin"+page)
		if err != nil {
			return nil, err
		}
		pages[page] = text
	}
	return pages, nil
}

func fetched(c *http.Client, address string) ([]byte, error) {
	resp, err := c.Get(address)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// overSocket is a client of whoever listens on a unix socket.
func overSocket(socket string) *http.Client {
	return &http.Client{Timeout: liveFor, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: liveFor}).DialContext(ctx, "unix", socket)
		},
	}}
}

// adminLeaks is liveLeaks for an Envoy that must be there, and must tell something.
func (g *gate) adminLeaks() error {
	pages, err := adminPages(g.adminSocket())
	if err != nil {
		return err
	}
	var found []error
	for _, page := range []string{"/config_dump?include_eds", "/stats", "/clusters", "/certs", "/listeners", "/server_info"} {
		if len(pages[page]) == 0 {
			found = append(found, fmt.Errorf("%s is empty: the check is not looking", page))
		}
		found = append(found, leaksIn(page, pages[page]))
	}
	return errors.Join(found...)
}

func (g *gate) adminSocket() string {
	return filepath.Join(g.getenv("WAYLEAVE_STATE"), "run", "admin.sock")
}

// admin asks Envoy's admin interface.
func (g *gate) admin(page string) ([]byte, error) {
	c := overSocket(g.adminSocket())
	c.Timeout = patience
	return fetched(c, "http://admin"+page)
}

// command is a command whose output is also written to a file of its own, which is searched with all others.
type command struct {
	*exec.Cmd
	printed string
}

var commands atomic.Int64

// searched has a command's output searched.
func (w *world) searched(c *exec.Cmd) *command {
	return &command{c, w.saved(fmt.Sprintf("printed.%d", commands.Add(1)))}
}

// Output is exec.Cmd's.
func (c *command) Output() ([]byte, error) {
	c.keepErrors()
	out, err := c.Cmd.Output()
	if ended := (*exec.ExitError)(nil); errors.As(err, &ended) {
		c.keep(ended.Stderr)
	}
	c.keep(out)
	return out, err
}

// CombinedOutput is exec.Cmd's.
func (c *command) CombinedOutput() ([]byte, error) {
	out, err := c.Cmd.CombinedOutput()
	c.keep(out)
	return out, err
}

// Run is exec.Cmd's.
func (c *command) Run() error {
	c.keepAll()
	return c.Cmd.Run()
}

// Start is exec.Cmd's.
func (c *command) Start() error {
	c.keepAll()
	return c.Cmd.Start()
}

// keepAll keeps what is printed beside giving it to whoever is to have it. Files and outputs are searched anyway.
func (c *command) keepAll() {
	same := c.Stdout == c.Stderr
	c.Stdout = c.kept(cmp.Or(c.Stdout, io.Discard))
	if same {
		c.Stderr = c.Stdout // of which exec makes sure that one at a time writes to it
		return
	}
	c.Stderr = c.kept(cmp.Or(c.Stderr, io.Discard))
}

func (c *command) keepErrors() { c.Stderr = c.kept(c.Stderr) }

func (c *command) kept(w io.Writer) io.Writer {
	switch w.(type) {
	case nil, *os.File, *output:
		return w
	}
	return io.MultiWriter(w, writerFunc(c.keep))
}

func (c *command) keep(text []byte) {
	f, err := os.OpenFile(c.printed, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err) // a check that does not look is none
	}
	defer f.Close()
	_, _ = f.Write(text)
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }
