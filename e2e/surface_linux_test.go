package e2e

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"wayleave/freeport"
)

// What can be reached of a running gate, and by whom.
func TestAttackSurface(t *testing.T) {
	t.Parallel()
	console, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	g := start(t, oneTeam+"console: {listen: \""+console+"\"}\n", "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	if _, err := arrived(w.client(t, true), w); err != nil {
		t.Fatal(err)
	}

	t.Run("nothing listens but the proxy", func(t *testing.T) {
		processes := descendants(t, g.cmd.Process.Pid)
		if len(processes) < 3 {
			t.Fatalf("%d processes: the test is not looking", len(processes))
		}
		var listeners []string
		for _, pid := range processes {
			listeners = append(listeners, listening(t, pid)...)
		}
		want := []string{port(console), port(g.proxy)}
		slices.Sort(want)
		slices.Sort(listeners)
		if listeners = slices.Compact(listeners); !slices.Equal(listeners, want) {
			t.Errorf("TCP ports listened on: %v; want %v", listeners, want)
		}
	})

	t.Run("the state is the operator's alone", func(t *testing.T) {
		sockets := 0
		err := filepath.WalkDir(g.getenv("WAYLEAVE_STATE"), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return ignoreVanished(err)
			}
			info, err := d.Info()
			if err != nil {
				return ignoreVanished(err)
			}
			switch mode := info.Mode(); {
			case mode.IsDir() && path == g.getenv("WAYLEAVE_STATE") && mode.Perm() != 0o700: // nobody passes it
				t.Errorf("%s has mode %v", path, mode)
			case mode&fs.ModeSocket != 0:
				sockets++
				if mode.Perm()&0o022 != 0 { // to connect is to write
					t.Errorf("%s has mode %v", path, mode)
				}
			}
			return nil
		})
		if err != nil || sockets < 4 {
			t.Errorf("%d sockets looked at, %v", sockets, err)
		}
		run, err := os.Stat(filepath.Join(g.getenv("WAYLEAVE_STATE"), "run"))
		if err != nil || run.Mode().Perm() != 0o700 {
			t.Errorf("the directory of the sockets: %v, %v", run.Mode(), err)
		}
	})

	t.Run("nobody else connects to the sockets", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("only root can become somebody else")
		}
		run := filepath.Join(g.getenv("WAYLEAVE_STATE"), "run")
		// As if the directories had been opened: each socket must hold by itself.
		for _, dir := range []string{g.dir, g.getenv("WAYLEAVE_STATE"), run, filepath.Join(run, "..", "vault")} {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"gate.sock", "api.sock", "admin.sock", "../vault/vault.sock"} {
			if err := connectAs(65534, filepath.Join(run, name)); !errors.Is(err, syscall.EACCES) {
				t.Errorf("%s: %v; want permission denied", name, err)
			}
			if err := connectAs(0, filepath.Join(run, name)); err != nil {
				t.Errorf("%s, as its owner: %v", name, err)
			}
		}
	})

	// Envoy's admin interface and the gate's gRPC services have no path through the proxy listener.
	t.Run("no way in from the proxy", func(t *testing.T) {
		for _, path := range []string{
			"/config_dump", "/logging?level=trace", "/quitquitquit", "/ready", "/stats", "/.wayleave/../config_dump",
			"/envoy.service.ext_proc.v3.ExternalProcessor/Process", "/envoy.service.auth.v3.Authorization/Check", "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
			"/grpc.health.v1.Health/Check", "/.wayleave/v1/grants", "/.wayleave/debug/pprof/", "/debug/pprof/", "/metrics",
		} {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				if a := ask(t, g.dial(t), method+" "+path+" HTTP/1.1\r\nHost: "+g.proxy+"\r\nContent-Length: 0\r\n\r\n"); a.status < 400 || a.reason == "" {
					t.Errorf("%s %s: %v; want a refusal of ours", method, path, a)
				}
			}
		}
	})
}

// descendants are pid and all processes below it.
func descendants(t *testing.T, pid int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	children := map[int][]int{}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		var child, parent int
		var state string
		_, after, _ := strings.Cut(string(b), ") ") // the name in parentheses may hold anything
		if _, err := fmt.Sscan(string(b), &child); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(after, &state, &parent); err != nil {
			t.Fatal(err)
		}
		children[parent] = append(children[parent], child)
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// listening returns the TCP ports that a process listens on.
func listening(t *testing.T, pid int) (ports []string) {
	t.Helper()
	mine := map[string]bool{}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:[") {
			mine[strings.Trim(to, "socket:[]")] = true
		}
	}
	for _, table := range []string{"tcp", "tcp6"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			continue // no IPv6, or it has ended
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			// sl local_address rem_address st …: see proc_net_tcp in the kernel's documentation.
			fields := strings.Fields(lines.Text())
			const listen = "0A"
			if len(fields) < 10 || fields[3] != listen || !mine[fields[9]] {
				continue
			}
			p, err := hex.DecodeString(port(fields[1]))
			if err != nil {
				t.Fatal(err)
			}
			ports = append(ports, fmt.Sprint(int(p[0])<<8|int(p[1])))
		}
	}
	return ports
}

// connectAs connects to a unix socket as another user.
func connectAs(uid int, path string) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread, whose user this changes, ends with the goroutine
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			result <- errno
			return
		}
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			result <- err
			return
		}
		defer syscall.Close(fd)
		result <- syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
	}()
	return <-result
}
