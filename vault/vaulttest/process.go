package vaulttest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave/freeport"
	"wayleave/secret"
	"wayleave/vault"
)

// StartDev runs the binary, OpenBao's or Vault's, in its development mode with TLS on a port of 127.0.0.1, and sets it up
// for the product. It ends with the test. Mutual TLS works there, and so does the command-line client.
func StartDev(t testing.TB, binary string) *Server {
	t.Helper()
	certs := t.TempDir()
	address := freeAddress(t)
	const token = "administrator"
	run(t, binary, "server", "-dev", "-dev-no-store-token", "-dev-root-token-id="+token, "-dev-tls", "-dev-tls-cert-dir="+certs, "-dev-listen-address="+address)
	// OpenBao's and Vault's files have different names.
	ca := waitFor(t, "the server's certificates", func() (string, error) {
		files, err := filepath.Glob(filepath.Join(certs, "*-ca.pem"))
		if err == nil && len(files) != 1 {
			err = fmt.Errorf("%d files", len(files))
		}
		if err != nil {
			return "", err
		}
		return files[0], nil
	})
	s := &Server{Address: "https://" + address, RootConfig: vault.Config{
		Address: "https://" + address, CAFile: ca, Auth: vault.Auth{Method: "token", Token: secret.New(token)},
	}}
	s.Root = waitFor(t, "the server", func() (*vault.Client, error) { return vault.Open(t.Context(), s.RootConfig, nil) })
	t.Cleanup(s.Root.Close)
	s.setUp(t)
	return s
}

// setUp prepares the server, if nobody has, and makes the other three clients.
func (s *Server) setUp(t testing.TB) {
	t.Helper()
	ctx := t.Context()
	if err := vault.Setup(ctx, s.Root, vault.SetupOptions{}); err != nil {
		t.Fatal(err)
	}
	auth, _, err := vault.IssueAppRole(ctx, s.Root, "", false)
	if err != nil {
		t.Fatal(err)
	}
	s.GatewayConfig, s.OperatorConfig, s.ViewerConfig = s.RootConfig, s.RootConfig, s.RootConfig
	s.GatewayConfig.Auth = auth
	for role, cfg := range map[vault.Role]*vault.Config{vault.Operator: &s.OperatorConfig, vault.Viewer: &s.ViewerConfig} {
		token, err := vault.IssueToken(ctx, s.Root, role, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Auth = vault.Auth{Method: "token", Token: token}
	}
	s.Gateway, s.Operator, s.Viewer = Open(t, s.GatewayConfig), Open(t, s.OperatorConfig), Open(t, s.ViewerConfig)
}

// Raft is a cluster of two OpenBao nodes, without mounts.
type Raft struct {
	Active, Standby vault.Config // the same store through either node, as root
	KillActive      func()       // kill -9, once
}

// StartRaft runs the cluster on ports of 127.0.0.1 and ends it with the test. It takes some seconds.
func StartRaft(t testing.TB) *Raft {
	t.Helper()
	binary, dir := Binary(t), t.TempDir()
	var addresses [2]string
	var processes [2]*exec.Cmd
	for i := range addresses {
		addresses[i] = "http://" + freeAddress(t)
		cluster := freeAddress(t)
		data := filepath.Join(dir, fmt.Sprintf("data%d", i))
		if err := os.Mkdir(data, 0o700); err != nil {
			t.Fatal(err)
		}
		// As OpenBao does by default: on a busy machine an active node is not to lose its place for a late heartbeat.
		storage := map[string]any{"path": data, "node_id": fmt.Sprintf("node%d", i), "performance_multiplier": "5"}
		if i > 0 {
			storage["retry_join"] = []map[string]string{{"leader_api_addr": addresses[0]}}
		}
		text, err := json.Marshal(map[string]any{
			"storage":  map[string]any{"raft": storage},
			"listener": []any{map[string]any{"tcp": map[string]any{"address": strings.TrimPrefix(addresses[i], "http://"), "cluster_address": cluster, "tls_disable": true}}},
			"api_addr": addresses[i], "cluster_addr": "https://" + cluster, "log_level": "warn", "ui": false,
		})
		if err != nil {
			t.Fatal(err)
		}
		config := filepath.Join(dir, fmt.Sprintf("node%d.json", i))
		if err := os.WriteFile(config, text, 0o600); err != nil {
			t.Fatal(err)
		}
		processes[i] = run(t, binary, "server", "-config="+config)
	}
	ctx := t.Context()
	var unseal, root secret.Text
	for i, address := range addresses {
		seal, err := vault.NewSeal(vault.Config{Address: address})
		if err != nil {
			t.Fatal(err)
		}
		defer seal.Close()
		waitFor(t, address, func() (vault.SealStatus, error) {
			is, err := seal.Status(ctx)
			switch {
			case err == nil && i == 0 && !is.Initialized:
				unseal, root, err = seal.Init(ctx)
			case err == nil && !is.Initialized:
				err = fmt.Errorf("%s has not joined yet", address)
			}
			if err == nil {
				// The standby answers at once and unseals later, when it has the keys' proof from the active node.
				if is.Sealed, err = seal.Unseal(ctx, unseal); err == nil && is.Sealed {
					err = fmt.Errorf("%s is still sealed", address)
				}
			}
			return is, err
		})
	}
	as := func(address string) vault.Config {
		return vault.Config{Address: address, Auth: vault.Auth{Method: "token", Token: root}}
	}
	r := &Raft{Active: as(addresses[0]), Standby: as(addresses[1]), KillActive: func() {
		_ = processes[0].Process.Kill()
	}}
	for _, cfg := range []vault.Config{r.Active, r.Standby} {
		waitFor(t, cfg.Address, func() (struct{}, error) {
			c, err := vault.Open(ctx, cfg, nil)
			if err == nil {
				c.Close()
			}
			return struct{}{}, err
		})
	}
	return r
}

// run starts a program that is killed at the end of the test. What it said is shown when the test failed.
func run(t testing.TB, binary string, args ...string) *exec.Cmd {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "VAULT_") && !strings.HasPrefix(v, "BAO_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s %s said:\n%s", binary, args[0], text[max(0, len(text)-2000):])
		}
		_ = log.Close()
	})
	return cmd
}

// freeAddress is an address nobody listens at.
func freeAddress(t testing.TB) string {
	t.Helper()
	address, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// waitFor repeats f until it succeeds, for at most a minute.
func waitFor[T any](t testing.TB, what string, f func() (T, error)) T {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	end := time.After(time.Minute)
	for {
		v, err := f()
		if err == nil {
			return v
		}
		select {
		case <-end:
			t.Fatalf("waiting for %s: %v", what, err)
		case <-tick.C:
		}
	}
}

// Send makes a request that the product never makes. The path may start with a namespace.
func (s *Server) Send(t testing.TB, token secret.Text, method, path, body string) (status int, answer []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.base()+"/v1/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", token.Reveal())
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := (&http.Client{Transport: s.transport(t)}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, answer
}

// Raw is a request as root that must succeed.
func (s *Server) Raw(t testing.TB, method, path, body string) []byte {
	t.Helper()
	code, answer := s.Send(t, s.RootConfig.Auth.Token, method, path, body)
	if code >= 300 {
		t.Fatalf("%s %s: %d %s", method, path, code, answer)
	}
	return answer
}

func (s *Server) base() string {
	if strings.HasPrefix(s.Address, "unix:") {
		return "http://vault"
	}
	return s.Address
}

func (s *Server) transport(t testing.TB) *http.Transport {
	tr := &http.Transport{DisableKeepAlives: true}
	if socket, ok := strings.CutPrefix(s.Address, "unix://"); ok {
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}
	}
	if s.RootConfig.CAFile != "" {
		tr.TLSClientConfig = trust(t, s.RootConfig.CAFile)
	}
	return tr
}

func trust(t testing.TB, caFile string) *tls.Config {
	t.Helper()
	text, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		t.Fatalf("%s holds no certificate", caFile)
	}
	return &tls.Config{RootCAs: pool}
}
