package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"wayleave/config"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// examined is what examineVault finds, by what it is about, as doctor returns it.
func examined(t *testing.T, identity vault.Config, role vault.Role) map[string]string {
	t.Helper()
	said := map[string]string{}
	for _, f := range examineVault(t.Context(), new(config.Config), identity, role) {
		said[f.What] = strings.Join([]string{f.Status, f.Detail, f.Fix}, " | ")
		if f.Status != "ok" && f.Fix == "" {
			t.Errorf("%s has no fix: %s", f.What, f.Detail)
		}
	}
	return said
}

func TestExamineVault(t *testing.T) {
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	expect(t, examined(t, s.GatewayConfig, vault.Gateway), map[string]string{
		"vault": "ok | 2.", "vault log-in": "ok | by approle at auth/approle/login, policies default, wayleave-gateway; ends in 1",
		"secret id": "ok | never ends", "vault rights": "ok | what the gateway needs",
	})
	expect(t, examined(t, s.ViewerConfig, vault.Viewer), map[string]string{"vault log-in": "ok | by token, policies", "vault rights": "ok"})
	expect(t, examined(t, s.RootConfig, vault.Gateway), map[string]string{"vault log-in": "never ends"})
	expect(t, examined(t, s.ViewerConfig, vault.Operator), map[string]string{"vault rights": "fail | permission denied: the operator lacks create, update on wayleave/data/grants/any"})

	wrong := s.GatewayConfig
	wrong.Auth.SecretID = secret.New("hush-hush")
	said := examined(t, wrong, vault.Gateway)
	expect(t, said, map[string]string{"vault": "ok", "vault log-in": "fail | logging in to vault: permission denied: role id and secret id not accepted"})
	if strings.Contains(said["vault log-in"], "hush-hush") {
		t.Error("doctor shows the secret id")
	}
	wrong = s.GatewayConfig
	wrong.Namespace = "nowhere"
	expect(t, examined(t, wrong, vault.Gateway), map[string]string{"vault": "namespace nowhere", "vault log-in": "fail | logging in to vault: there is no such namespace"})
	wrong = s.GatewayConfig
	wrong.CAFile = ""
	expect(t, examined(t, wrong, vault.Gateway), map[string]string{"vault": "certificate"})

	cluster := s.GatewayConfig
	cluster.Address, cluster.Nodes = "https://127.0.0.1:1", []string{s.GatewayConfig.Address}
	expect(t, examined(t, cluster, vault.Gateway), map[string]string{"vault node https://127.0.0.1:1": "warn | ", "vault": "ok | 2.", "vault rights": "ok"})
	cluster.Nodes = []string{"https://127.0.0.1:2"}
	expect(t, examined(t, cluster, vault.Gateway), map[string]string{"vault node https://127.0.0.1:2": "warn | ", "vault": "fail | none of its nodes"})

	s.Raw(t, http.MethodPut, "auth/approle/role/wayleave-gateway", `{"secret_id_ttl":"1h","token_period":"0","token_ttl":"5m"}`)
	s.Raw(t, http.MethodPut, "wayleave/config", `{"delete_version_after":"1h"}`)
	if _, err := s.Gateway.Put(t.Context(), "status/a", struct{}{}, 0); err != nil {
		t.Fatal(err)
	}
	expect(t, examined(t, s.GatewayConfig, vault.Gateway), map[string]string{"vault mount": "warn | deletes documents by itself"})
	capped, _, err := vault.IssueAppRole(t.Context(), s.Root, "", false)
	if err != nil {
		t.Fatal(err)
	}
	soon := s.GatewayConfig
	soon.Auth = capped
	expect(t, examined(t, soon, vault.Gateway), map[string]string{"vault log-in": "ok | by approle", "secret id": "warn | it ends in "})
	s.Raw(t, http.MethodPut, "sys/policies/acl/wayleave-gateway", `{"policy":"path \"nowhere\" { capabilities = [\"read\"] }"}`)
	expect(t, examined(t, s.GatewayConfig, vault.Gateway), map[string]string{"secret id": "warn | looking up our secret id: permission denied", "vault rights": "fail | "})

	for body, want := range map[string]string{
		`{"policies":["wayleave-viewer"],"ttl":"1h","no_parent":true}`:                     "is renewed up to its maximum only | fine for a person",
		`{"policies":["wayleave-viewer"],"ttl":"1h","no_parent":true,"renewable":false}`:   "cannot be renewed | fine for a person",
		`{"policies":["wayleave-viewer"],"period":"1h","no_parent":true,"renewable":true}`: "ok | by token",
	} {
		token := s.ViewerConfig
		token.Auth.Token = tokenIn(t, s.Raw(t, http.MethodPut, "auth/token/create", body))
		expect(t, examined(t, token, vault.Viewer), map[string]string{"vault log-in": want})
	}
}

func TestExamineSealedVault(t *testing.T) {
	s := vaulttest.Start(t)
	s.Seal(t)
	expect(t, examined(t, s.GatewayConfig, vault.Gateway), map[string]string{"vault": "fail | sealed | unseal it: bao operator unseal"})
	gone := s.GatewayConfig
	gone.Address += ".none"
	expect(t, examined(t, gone, vault.Gateway), map[string]string{"vault": "see that it runs at unix://"})
}

func TestExamineClock(t *testing.T) {
	for skew, want := range map[time.Duration]string{
		0: "", 29 * time.Second: "", -29 * time.Second: "",
		time.Minute: "Vault's is 1m0s ahead of ours", -time.Hour: "Vault's is 1h0m0s behind ours",
	} {
		got := examineClock("Vault", skew)
		if (want == "") != (len(got) == 0) || want != "" && (!strings.Contains(got[0].Detail, want) || got[0].Fix == "") {
			t.Errorf("%v: %+v, want %q", skew, got, want)
		}
	}
}

func TestSetupOptions(t *testing.T) {
	for _, c := range []struct {
		gate  config.Auth
		mount string // of AppRole; empty: none is made
	}{
		{config.Auth{Method: "token", Mount: "approle"}, "approle"}, {config.Auth{Method: "approle", Mount: "robots"}, "robots"},
		{config.Auth{Method: "kubernetes", Mount: "kubernetes"}, ""}, {config.Auth{Method: "jwt", Mount: "ci"}, ""}, {config.Auth{Method: "cert", Mount: "cert"}, ""},
	} {
		if got := setupOptions(c.gate, nil); got.AppRoleMount != c.mount || got.NoAppRole != (c.mount == "") {
			t.Errorf("%s: %+v", c.gate.Method, got)
		}
	}
}

// tokenIn is the token in an answer of the server.
func tokenIn(t *testing.T, answer []byte) secret.Text {
	t.Helper()
	var made struct {
		Auth struct {
			Token string `json:"client_token"`
		} `json:"auth"`
	}
	if err := json.Unmarshal(answer, &made); err != nil || made.Auth.Token == "" {
		t.Fatalf("no token in the answer: %v", err)
	}
	return secret.New(made.Auth.Token)
}
