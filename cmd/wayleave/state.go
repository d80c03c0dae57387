package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"wayleave/secret"
)

// state is the directory that `wayleave up` owns and the other commands find things in:
//
//	lock               held while `up` runs: one gate per directory
//	gate.json          where workers on this machine reach the gate, and its configuration
//	gate.log           what the gate did, and gate.log.1 what it did before
//	ca.pem             the roots that workers trust, the one that signs first
//	vault/             the embedded OpenBao: data, unseal material, the operator's token
//	workers/NAME.token enrolment tokens that `up` made
//	envoy/             bootstrap and logs
//	console.login      a link that logs an operator of this machine in to the console, once
//	run/               sockets
//	spool/             new tokens that Vault does not have yet, encrypted
type state struct{ dir string }

// gateFile is gate.json.
type gateFile struct {
	Proxy  string `json:"proxy"`  // base URL of the proxy listener
	Config string `json:"config"` // path of the configuration, absolute
}

// addStateFlag adds --state to c and returns what it will name.
func addStateFlag(c *cobra.Command) *state {
	st := &state{dir: absolute(defaultStateDir())}
	c.Flags().Var(st, "state", "directory of a gate started with 'wayleave up' on this machine (default $WAYLEAVE_STATE, or ~/.local/state/wayleave)")
	sayDefaultInWords(c, "state")
	return st
}

// Set, String and Type make a state a flag. Sockets and children need its absolute path.
func (s *state) Set(dir string) error {
	if dir == "" {
		return errors.New("is empty; name a directory")
	}
	s.dir = absolute(dir)
	return nil
}

func (s *state) String() string { return s.dir }

// Type is what help shows as the kind of value.
func (*state) Type() string { return "dir" }

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// defaultStateDir follows the XDG base directory specification.
func defaultStateDir() string {
	if d := os.Getenv("WAYLEAVE_STATE"); d != "" {
		return d
	}
	if d := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "wayleave")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "."
	}
	return filepath.Join(home, ".local", "state", "wayleave")
}

func (s state) path(elem ...string) string { return filepath.Join(append([]string{s.dir}, elem...)...) }

// lock makes the directory and takes it for this process.
func (s state) lock() (release func(), err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %w; name another with --state", err)
	}
	if err := os.Chmod(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("closing the state directory to others: %w; name one of your own with --state", err)
	}
	return lockFile(s.path("lock"), fmt.Sprintf("another 'wayleave up' is using %s; stop it, or give this one a directory of its own with --state", s.dir))
}

// lockFile takes a file for this process, or fails with the words taken; the lock ends with the process, however it ends.
func lockFile(path, taken string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening a lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, errors.New(taken)
	}
	return func() { _ = f.Close() }, nil
}

// maxSocketPath is what fits in sockaddr_un.sun_path with its terminating NUL, less our longest socket name.
func maxSocketPath() int {
	if runtime.GOOS == "linux" {
		return 108 - len("/admin.sock") - 1
	}
	return 104 - len("/admin.sock") - 1
}

// socketDir returns a private directory short enough for unix sockets: run/ below the state, or one below the
// system's temporary directory when the state's own path is too long.
func (s state) socketDir() (dir string, remove func(), err error) {
	dir = s.path("run")
	remove = func() {}
	if len(dir) > maxSocketPath() {
		if dir, err = os.MkdirTemp("", "wayleave-"); err != nil {
			return "", nil, fmt.Errorf("making a directory for sockets: %w", err)
		}
		remove = func() { _ = os.RemoveAll(dir) }
	} else if err = os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("making a directory for sockets: %w", err)
	}
	return dir, remove, nil
}

func (s state) writeGate(g gateFile) error {
	b, err := json.Marshal(g)
	if err != nil {
		return err
	}
	return os.WriteFile(s.path("gate.json"), append(b, '\n'), 0o600)
}

var errNoGate = errors.New("no gate was started")

func (s state) readGate() (gateFile, error) {
	var g gateFile
	b, err := os.ReadFile(s.path("gate.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return g, fmt.Errorf("%w in %s; start one with 'wayleave up', or name one with --gate or WAYLEAVE_GATE", errNoGate, s.dir)
	}
	if err != nil {
		return g, fmt.Errorf("reading where the gate is: %w; run this as the user who runs 'wayleave up', or set WAYLEAVE_GATE and WAYLEAVE_TOKEN", err)
	}
	if err := json.Unmarshal(b, &g); err != nil {
		return g, fmt.Errorf("reading %s: %w; 'wayleave up' writes it anew at its next start", s.path("gate.json"), err)
	}
	return g, nil
}

func (s state) workerTokenPath(name string) string { return s.path("workers", name+".token") }

// workerToken reads the enrolment token that `up` made for the named worker, or for the only one when name is empty.
func (s state) workerToken(name string) (secret.Text, error) {
	names := s.workersWithToken()
	list := strings.Join(names, ", ")
	switch {
	case len(names) == 0:
		return secret.Text{}, fmt.Errorf("no worker token in %s; set WAYLEAVE_TOKEN to the one your operator gave you", s.dir)
	case name == "" && len(names) == 1:
		name = names[0]
	case name == "":
		return secret.Text{}, usageError{fmt.Errorf("several workers are configured (%s); say which with --worker", list)}
	case !slices.Contains(names, name):
		return secret.Text{}, usageError{fmt.Errorf("no token for a worker %q in %s; there are: %s", name, s.dir, list)}
	}
	return readSecretFile(s.workerTokenPath(name))
}

// workersWithToken are the names of the workers that `up` made tokens for.
func (s state) workersWithToken() []string {
	paths, err := filepath.Glob(s.path("workers", "*.token"))
	if err != nil {
		return nil
	}
	var names []string
	for _, p := range paths {
		names = append(names, strings.TrimSuffix(filepath.Base(p), ".token"))
	}
	return names
}

// readSecretFile reads a file that holds one secret and a newline.
func readSecretFile(path string) (secret.Text, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return secret.Text{}, fmt.Errorf("reading a secret: %w", err)
	}
	t := secret.New(strings.TrimSpace(string(b)))
	if t.IsZero() {
		return t, fmt.Errorf("%s is empty; it should hold one secret", path)
	}
	return t, nil
}
