package config_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wayleave/config"
)

func load(t *testing.T, text string, files map[string]string) *config.Config {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := config.Parse(filepath.Join(dir, "wayleave.yaml"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLoadSecrets(t *testing.T) {
	c := load(t, valid, map[string]string{"acme.secret": "open sesame\n", "ci.token": "worker token\r\n"})
	before := c.Hash()
	getenv := func(name string) string { return map[string]string{"VAULT_TOKEN": "hvs.x"}[name] }
	if err := c.LoadSecrets(getenv); err != nil {
		t.Fatal(err)
	}
	if p, _ := c.ProviderOf("acme"); p.ClientSecret.Reveal() != "open sesame" {
		t.Error("the client secret is not the content of its file")
	}
	if c.Vault.Auth.Token.Reveal() != "hvs.x" {
		t.Error("the Vault token is not $VAULT_TOKEN")
	}
	digest := sha256.Sum256([]byte("worker token"))
	if got := c.Workers["ci"].TokenDigest; got != hex.EncodeToString(digest[:]) {
		t.Errorf("digest of the worker's token: got %q", got)
	}
	if got := c.Workers["laptop"].TokenDigest; got != "" {
		t.Errorf("digest of a worker without token: got %q", got)
	}
	if c.Hash() != before {
		t.Error("secrets are part of the hash")
	}
}

func TestLoadSecretsAppRoleAndEnvironment(t *testing.T) {
	text := strings.ReplaceAll(valid, "client_secret_file: acme.secret", "client_secret_env: ACME") +
		"vault: {auth: {method: approle, role_id: r, secret_id_file: id}}\n"
	c := load(t, text, map[string]string{"id": "secret id", "ci.token": "t"})
	if err := c.LoadSecrets(func(name string) string { return "from " + name }); err != nil {
		t.Fatal(err)
	}
	if !c.Vault.Auth.Token.IsZero() || !c.Vault.Auth.JWT.IsZero() {
		t.Error("the log-in is not the secret id alone")
	}
	if p, _ := c.ProviderOf("acme"); p.ClientSecret.Reveal() != "from ACME" {
		t.Error("the client secret is not the variable's value")
	}
}

// testKey is a client's key as openssl writes one.
const testKey = `-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
`

func TestLoadSecretsReadsKeys(t *testing.T) {
	text := strings.ReplaceAll(valid, "auth_style: client_secret_basic\n    client_secret_file: acme.secret", "auth_style: private_key_jwt\n    client_key_file: acme.pem")
	c := load(t, text, map[string]string{"acme.pem": testKey, "ci.token": "t"})
	before := c.Hash()
	if err := c.LoadSecrets(os.Getenv); err != nil {
		t.Fatal(err)
	}
	if p, _ := c.ProviderOf("acme"); p.ClientKey == nil || p.Validate() != nil {
		t.Error("the client's key is not that of its file")
	}
	if c.Hash() != before {
		t.Error("keys are part of the hash")
	}
	c = load(t, text, map[string]string{"acme.pem": "hunter2", "ci.token": "t"})
	if err := c.LoadSecrets(os.Getenv); err == nil || !strings.Contains(err.Error(), "providers.acme.client_key_file: ") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a file that is no key: %v", err)
	}
	c = load(t, text, map[string]string{"ci.token": "t"})
	if err := c.LoadClient("acme", os.Getenv); err == nil || !strings.Contains(err.Error(), "providers.acme.client_key_file: ") {
		t.Errorf("a file that is missing: %v", err)
	}
	if err := c.LoadClient("anthropic", os.Getenv); err != nil {
		t.Errorf("another provider's client: %v", err)
	}
}

func TestLoadSecretsOfVaultLogIns(t *testing.T) {
	getenv := func(name string) string { return map[string]string{"CI_JWT": "a.b.c", "VAULT_TOKEN": "hvs.x"}[name] }
	for auth, want := range map[string]string{
		"{method: approle, role_id: r, secret_id_file: there}": "",
		"{method: approle, role_id: r, secret_id_file: none}":  "vault.auth.secret_id_file: ",
		"{token_file: there}":                                     "",
		"{token_file: none}":                                      "vault.auth.token_file: ",
		"{method: kubernetes, role: r, jwt_file: there}":          "",
		"{method: kubernetes, role: r}":                           "vault.auth.jwt_file: open /var/run/secrets/kubernetes.io/serviceaccount/token",
		"{method: jwt, role: r, jwt_file: empty}":                 "vault.auth.jwt_file: ",
		"{method: jwt, role: r, jwt_env: CI_JWT}":                 "",
		"{method: jwt, role: r, jwt_env: NONE}":                   "vault.auth.jwt_env: $NONE is not set",
		"{method: cert, cert_file: there, key_file: there}":       "vault.auth.cert_file: ",
		"{method: cert, cert_file: cert.pem, key_file: none.pem}": "vault.auth.cert_file: ",
	} {
		c := load(t, "vault: {auth: "+auth+"}\n", map[string]string{"there": "hunter2", "empty": "\n"})
		err := c.LoadSecrets(getenv)
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%s: %v, want %q", auth, err, want)
		}
		if strings.Contains(auth, "CI_JWT") != (c.Vault.Auth.JWT.Reveal() == "a.b.c") {
			t.Errorf("%s: the token in the environment: %v", auth, !c.Vault.Auth.JWT.IsZero())
		}
	}
}

func TestLoadSecretsReportsEverything(t *testing.T) {
	text := strings.ReplaceAll(valid, "client_secret_file: acme.secret", "client_secret_env: ACME") + `
  twin: {profile: default, token_file: ci.token}
  empty: {profile: default, token_file: empty}
  lines: {profile: default, token_file: lines}
vault: {auth: {token_file: missing}}
`
	c := load(t, text, map[string]string{"ci.token": "hunter2", "empty": "\n", "lines": "hunter2\nhunter2\n"})
	err := c.LoadSecrets(func(string) string { return "" })
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"vault.auth.token_file: ", "providers.acme.client_secret_env: $ACME is not set", `workers.twin: has the same token as worker "ci"`,
		"workers.empty.token_file: ", "workers.lines.token_file: ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Error("the error shows a secret")
	}
}
