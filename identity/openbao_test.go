package identity_test

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"wayleave/identity"
	"wayleave/oauth"
	"wayleave/secret"
	"wayleave/vault/vaulttest"
)

// A real OpenID Connect issuer: OpenBao, which makes tokens about its entities and rotates its keys.
func TestOpenBaoVouches(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	s.Raw(t, "POST", "identity/oidc/config", `{"issuer":"`+s.Address+`"}`)
	s.Raw(t, "POST", "identity/oidc/key/ci", `{"allowed_client_ids":["*"],"algorithm":"ES256","verification_ttl":"1h","rotation_period":"1h"}`)
	for role, audience := range map[string]string{"gate": "https://gate.example.com", "elsewhere": "https://elsewhere.example.com"} {
		s.Raw(t, "POST", "identity/oidc/role/"+role, `{"key":"ci","client_id":"`+audience+`","ttl":"10m","template":"{\"repository\":\"acme/app\",\"groups\":[\"a\",\"b\"]}"}`)
	}
	s.Raw(t, "POST", "sys/policies/acl/vouch", `{"policy":"path \"identity/oidc/token/*\" { capabilities = [\"read\"] }"}`)
	s.Raw(t, "POST", "sys/auth/userpass", `{"type":"userpass"}`)
	s.Raw(t, "POST", "auth/userpass/users/agent", `{"password":"of-the-agent","token_policies":"vouch"}`)
	var login struct {
		Auth struct {
			ClientToken string `json:"client_token"`
			EntityID    string `json:"entity_id"`
		} `json:"auth"`
	}
	decode(t, s.Raw(t, "POST", "auth/userpass/login/agent", `{"password":"of-the-agent"}`), &login)
	token := func(role string) secret.Text {
		t.Helper()
		var got struct {
			Data struct {
				Token string `json:"token"`
			} `json:"data"`
		}
		status, answer := s.Send(t, secret.New(login.Auth.ClientToken), "GET", "identity/oidc/token/"+role, "")
		if status != 200 {
			t.Fatalf("%d %s", status, answer)
		}
		decode(t, answer, &got)
		return secret.New(got.Data.Token)
	}

	ca, err := os.ReadFile(s.RootConfig.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	later := time.Duration(0)
	v := identity.NewVerifier([]identity.Issuer{{
		Name: "bao", Issuer: s.Address + "/v1/identity/oidc", Audience: "https://gate.example.com", HTTP: oauth.NewHTTPClient(roots),
	}}, identity.Options{Now: func() time.Time { return time.Now().Add(later) }})
	refused := func(token secret.Text, reason identity.Reason) {
		t.Helper()
		_, err := v.Verify(t.Context(), token)
		if refusal, ok := errors.AsType[*identity.Refusal](err); !ok || refusal.Reason != reason {
			t.Errorf("got %v, want %s", err, reason)
		}
	}

	first := token("gate")
	proof, err := v.Verify(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	if proof.Subject != login.Auth.EntityID || proof.Subject == "" {
		t.Errorf("the subject is %q, the entity %q", proof.Subject, login.Auth.EntityID)
	}
	if !(identity.Match{Issuer: "bao", Claims: map[string]string{"sub": login.Auth.EntityID, "repository": "acme/*", "groups": "b"}}).Accepts(proof) {
		t.Errorf("its claims do not fit: %v", proof.Claims)
	}
	refused(token("elsewhere"), identity.WrongAudience)

	s.Raw(t, "POST", "identity/oidc/key/ci/rotate", `{"verification_ttl":"1h"}`)
	s.Raw(t, "POST", "identity/oidc/key/ci/rotate", `{"verification_ttl":"1h"}`) // the next key was published already
	later = time.Minute
	second := token("gate")
	for _, token := range []secret.Text{first, second} {
		if _, err := v.Verify(t.Context(), token); err != nil {
			t.Errorf("after the rotation of its keys: %v", err)
		}
	}
	later = 12 * time.Minute
	refused(second, identity.Expired)
}

func decode(t *testing.T, raw []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
}
