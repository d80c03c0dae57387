package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave/config"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// TestMain lets a shell script of a test call this program as `wayleave`.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "wayleave" {
		os.Exit(realMain())
	}
	os.Exit(m.Run())
}

// pageSection is a part of a page: its commands and its configuration.
type pageSection struct{ title, shell, yaml string }

func pageSections(t *testing.T, page string) (out []pageSection) {
	t.Helper()
	blocks, _ := blocksOf(t, page)
	for _, b := range blocks {
		if len(out) == 0 || out[len(out)-1].title != b.section {
			out = append(out, pageSection{title: b.section})
		}
		switch last := &out[len(out)-1]; b.lang {
		case "sh":
			last.shell += b.text
		case "yaml":
			last.yaml += b.text
		}
	}
	return out
}

// Every command of the page does what it says on a real OpenBao, and the gate logs in with each configuration shown.
func TestVaultPage(t *testing.T) {
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	for _, path := range []string{"sys/auth/approle", "sys/mounts/wayleave", "sys/mounts/wayleave-pki"} {
		s.Raw(t, "DELETE", path, "") // the page makes them
	}
	isolated(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(in(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"wayleave": self, "bao": vaulttest.Binary(t)} {
		if err := os.Symlink(target, in(name)); err != nil {
			t.Fatal(err)
		}
	}
	kubernetes, issuer, authority := vaulttest.NewKubernetes(t), vaulttest.NewIssuer(t), vaulttest.NewAuthority(t, "Fleet CA")
	put("kubernetes.pem", kubernetes.CA)
	put("kubernetes.jwt", kubernetes.ServiceAccount(t, "wayleave", "vault", time.Hour))
	put("issuer.jwt", issuer.Token(t, time.Hour, map[string]any{"iss": "https://issuer.internal", "sub": "spiffe://fleet.internal/wayleave", "aud": "vault"}))
	put("fleet-ca.pem", authority.PEM())
	put("client.pem", authority.Client(t, "wayleave", time.Hour))
	put("wayleave.yaml", fmt.Sprintf("vault: {ca_file: %s}\n", s.RootConfig.CAFile))
	// What the page has of a company's own, and here is ours.
	ours := strings.NewReplacer(
		"https://vault.internal:8200", s.Address,
		"https://kubernetes.default.svc", kubernetes.URL+" kubernetes_ca_cert=@kubernetes.pem token_reviewer_jwt=@kubernetes.jwt",
		"https://issuer.internal/keys", issuer.URL,
		"/run/secrets/", dir+"/",
		"/var/run/secrets/vault/token", in("kubernetes.jwt"),
		"/run/spiffe/vault.jwt", in("issuer.jwt"),
		"/run/spiffe/svid.pem", in("client.pem"), "/run/spiffe/svid.key", in("client.pem"),
	)
	shell := func(script string) string {
		t.Helper()
		c := exec.CommandContext(t.Context(), "sh", "-eu", "-c", ours.Replace(script))
		c.Dir = dir
		c.Env = append(os.Environ(), "PATH="+dir+string(os.PathListSeparator)+os.Getenv("PATH"), "HOME="+dir,
			"VAULT_ADDR="+s.Address, "VAULT_CACERT="+s.RootConfig.CAFile, "VAULT_TOKEN="+s.RootConfig.Auth.Token.Reveal())
		var errs bytes.Buffer
		c.Stderr = &errs
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%s\n%v\n%s%s", script, err, out, errs.Bytes())
		}
		return string(out)
	}

	ran, loggedIn := 0, 0
	for _, part := range pageSections(t, "docs/vault.md") {
		said := ""
		if part.shell != "" {
			said = shell(part.shell)
			ran++
		}
		if part.yaml == "" {
			continue
		}
		text := ours.Replace(part.yaml)
		if part.title == "AppRole" {
			text = strings.Replace(text, "6c5c7b1e-0000-4000-8000-000000000000", strings.TrimSpace(said), 1)
		}
		cfg, err := config.Parse(in("example.yaml"), []byte(text))
		if err != nil {
			t.Errorf("%s: %v", part.title, err)
			continue
		}
		cfg.Vault.CAFile = s.RootConfig.CAFile
		if part.title == "Namespaces" || part.title == "Clusters" {
			continue // vault.TestNamespace and e2e's TestKills have them
		}
		if err := cfg.LoadSecrets(os.Getenv); err != nil {
			t.Errorf("%s: %v", part.title, err)
			continue
		}
		c, err := vault.Open(t.Context(), vaultConfig(cfg), nil)
		if err != nil {
			t.Errorf("%s: %v", part.title, err)
			continue
		}
		if err := c.Preflight(t.Context(), vault.Gateway); err != nil {
			t.Errorf("%s: %v", part.title, err)
		}
		if l, err := c.LogIn(t.Context()); err != nil || l.Period == 0 {
			t.Errorf("%s: %+v, %v; want a log-in whose renewals have no end", part.title, l, err)
		}
		c.Close()
		loggedIn++
	}
	if ran < 7 || loggedIn != 5 {
		t.Errorf("%d sections run, %d log-ins: the test is not looking", ran, loggedIn)
	}

	// The token that `bao login` leaves is a person's log-in, and VAULT_TOKEN comes first.
	shell("bao login -no-print \"$(bao token create -orphan -policy=wayleave-viewer -field=token)\"")
	t.Setenv("HOME", dir)
	t.Setenv("VAULT_ADDR", s.Address)
	grants := func() (string, int) {
		var out, errs bytes.Buffer
		code := run(t.Context(), []string{"grant", "list", "-c", in("wayleave.yaml")}, strings.NewReader(""), &out, &errs)
		return errs.String(), code
	}
	if said, code := grants(); code != exitOK {
		t.Errorf("with ~/.vault-token: %d, %q", code, said)
	}
	t.Setenv("VAULT_TOKEN", "dead")
	if said, code := grants(); code != exitFailure || !strings.Contains(said, "the vault token has expired") {
		t.Errorf("with a dead VAULT_TOKEN: %d, %q", code, said)
	}
	t.Setenv("VAULT_TOKEN", "")
	t.Setenv("HOME", t.TempDir())
	if said, code := grants(); code != exitFailure || !strings.Contains(said, "bao login") {
		t.Errorf("with no token: %d, %q", code, said)
	}
}
