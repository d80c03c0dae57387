package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// issued matches any secret of the stand-in provider, whole: what a log shows masked is too short for it.
var issued = regexp.MustCompile(`demo-(?:at|rt|wt)-[A-Za-z0-9_-]{12,}`)

// leaks looks for real tokens in everything the world's directory holds: logs, state, what commands printed, what
// clients saved, and OpenBao's own files.
func (w *world) leaks() error {
	var found []error
	files := 0
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ignoreVanished(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return ignoreVanished(err)
		}
		files++
		if hit := issued.Find(b); hit != nil {
			found = append(found, fmt.Errorf("%s holds a real token (%.12s…)", path, hit))
		}
		return nil
	})
	if files < 5 {
		found = append(found, fmt.Errorf("only %d files to look at: the check is not looking", files))
	}
	return errors.Join(append(found, err)...)
}

// Files may vanish while they are listed: sockets, spools, OpenBao's temporary files.
func ignoreVanished(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// processLeaks looks for real tokens in what any process of this user can read about ours: arguments and environment.
func (g *gate) processLeaks() error {
	pids := []int{g.cmd.Process.Pid}
	files, err := filepath.Glob(filepath.Join(g.getenv("WAYLEAVE_STATE"), "*", "*.pid"))
	if err != nil || len(files) < 2 {
		return fmt.Errorf("PID files of Envoy and OpenBao: %v, %w", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		pid, err := pidIn(string(b))
		if err != nil {
			return err
		}
		pids = append(pids, pid)
	}
	for _, pid := range pids {
		for _, name := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
			if err != nil {
				return err
			}
			if hit := issued.Find(b); hit != nil {
				return fmt.Errorf("/proc/%d/%s shows a real token (%.12s…)", pid, name, hit)
			}
		}
	}
	return nil
}

// adminLeaks looks for real tokens and private keys in what Envoy tells about itself.
func (g *gate) adminLeaks() error {
	for _, page := range []string{"/config_dump?include_eds", "/stats", "/clusters", "/certs", "/listeners", "/server_info"} {
		b, err := g.admin(page)
		if err != nil {
			return err
		}
		if len(b) == 0 {
			return fmt.Errorf("%s is empty: the check is not looking", page)
		}
		if hit := issued.Find(b); hit != nil {
			return fmt.Errorf("%s shows a real token (%.12s…)", page, hit)
		}
		if bytes.Contains(b, []byte("PRIVATE KEY")) {
			return fmt.Errorf("%s shows a private key", page)
		}
	}
	return nil
}

// admin asks Envoy's admin interface.
func (g *gate) admin(page string) ([]byte, error) {
	sockets, err := filepath.Glob(filepath.Join(g.getenv("WAYLEAVE_STATE"), "run", "admin.sock"))
	if err != nil || len(sockets) != 1 {
		return nil, fmt.Errorf("no admin socket in the state directory: %v %w", sockets, err)
	}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", sockets[0])
		},
	}}
	resp, err := client.Get("http://admin" + page)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}
