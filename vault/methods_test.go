package vault_test

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

func toJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// logIn opens a client as cfg says and checks that it may do the gateway's work.
func logIn(t *testing.T, cfg vault.Config) error {
	t.Helper()
	c, err := vault.Open(t.Context(), cfg, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Preflight(t.Context(), vault.Gateway)
}

// fileMethod is a log-in whose credential is in a file.
type fileMethod struct {
	server  *vaulttest.Server
	cfg     vault.Config
	file    string
	good    string // a credential that the server accepts,
	renewed string // and the one that replaces it
	expired string
}

// refusal is one log-in that must fail, and what the error must say.
type refusal struct {
	name   string
	change func(*vault.Auth)
	file   string // what the file holds; empty: the good credential
	want   string
}

func (m fileMethod) test(t *testing.T, refusals []refusal) {
	t.Helper()
	for _, tt := range append(refusals, refusal{"expired", nil, m.expired, "it expired 1h0m"}) {
		cfg := m.cfg
		if tt.change != nil {
			tt.change(&cfg.Auth)
		}
		credential := m.good
		if tt.file != "" {
			credential = tt.file
		}
		write(t, m.file, credential)
		err := logIn(t, cfg)
		if !errors.Is(err, vault.ErrDenied) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
		if secret := strings.TrimSpace(credential); err != nil && secret != "" && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error shows the credential: %v", tt.name, err)
		}
	}

	// Tokens end after seconds here. The file is read again at each log-in, so a credential that came late is found.
	write(t, m.file, m.good)
	c, log := openLogged(t, m.cfg)
	if err := read(c); err != nil {
		t.Errorf("with the good credential: %v", err)
	}
	write(t, m.file, m.expired)
	eventually(t, "a log-in that fails", func() bool { return log.times(logInFailed) > 0 })
	write(t, m.file, m.renewed)
	again := log.times(loggedInAgain)
	eventually(t, "a log-in with the new credential", func() bool { return log.times(loggedInAgain) > again })
	if err := read(c); err != nil {
		t.Errorf("with the new credential: %v", err)
	}
}

// short makes the tokens of a role end soon, and renewals not help.
func short(role map[string]any) map[string]any {
	all := map[string]any{"token_policies": []string{"wayleave-gateway"}, "token_ttl": "2s", "token_max_ttl": "2s"}
	maps.Copy(all, role)
	return all
}

func TestLogInMethods(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	stored(t, s)
	as := func(t *testing.T, auth vault.Auth) (cfg vault.Config, file string) {
		cfg, file = s.RootConfig, filepath.Join(t.TempDir(), "credential")
		cfg.Auth = auth
		return cfg, file
	}
	ours, other := vaulttest.NewIssuer(t), vaulttest.NewIssuer(t)
	token := func(i *vaulttest.Issuer, life time.Duration, change map[string]any) string {
		c := map[string]any{"iss": "https://ci.example", "sub": "repo:fleet", "aud": "wayleave"}
		maps.Copy(c, change)
		return i.Token(t, life, c)
	}
	for mount, config := range map[string]map[string]any{
		"jwt":   {"jwks_url": ours.URL, "bound_issuer": "https://ci.example"},
		"ci/gh": {"jwt_validation_pubkeys": []string{ours.PublicPEM(t)}},
	} {
		t.Run(mount, func(t *testing.T) {
			t.Parallel()
			s.Raw(t, http.MethodPut, "sys/auth/"+mount, `{"type":"jwt"}`)
			s.Raw(t, http.MethodPut, "auth/"+mount+"/config", toJSON(t, config))
			s.Raw(t, http.MethodPut, "auth/"+mount+"/role/gate", toJSON(t, short(map[string]any{
				"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{"wayleave"}, "bound_subject": "repo:fleet",
			})))
			cfg, file := as(t, vault.Auth{Method: "jwt", Mount: mount, Role: "gate"})
			cfg.Auth.JWTFile = file
			fileMethod{s, cfg, file, token(ours, time.Hour, nil), token(ours, 2*time.Hour, nil), token(ours, -time.Hour, nil)}.test(t, []refusal{
				{"audience", nil, token(ours, time.Hour, map[string]any{"aud": []string{"other"}}), `it is for ["other"]: ask for one`},
				{"subject", nil, token(ours, time.Hour, map[string]any{"sub": "repo:mallory"}), `subject "repo:mallory"`},
				{"signature", nil, token(other, time.Hour, nil), "no key that the server knows has signed it"},
				{"no JWT", nil, "hush-hush-hush-hush-hush", "not a JSON web token"},
				{"empty file", nil, "\n", "is empty"},
				{"no file", func(a *vault.Auth) { a.JWTFile += ".none" }, "", "no such file"},
				{"wrong role", func(a *vault.Auth) { a.Role = "gaet" }, "", `make the role "gaet" of auth/` + mount},
				{"no role", func(a *vault.Auth) { a.Role = "" }, "", "vault.auth.role"},
				{"wrong mount", func(a *vault.Auth) { a.Mount = "nowhere" }, "", "mend vault.auth.mount"},
			})
		})
	}
	t.Run("jwt without the issuer's keys", func(t *testing.T) {
		t.Parallel()
		away := vaulttest.NewIssuer(t)
		s.Raw(t, http.MethodPut, "sys/auth/away", `{"type":"jwt"}`)
		s.Raw(t, http.MethodPut, "auth/away/config", toJSON(t, map[string]any{"jwks_url": away.URL}))
		s.Raw(t, http.MethodPut, "auth/away/role/gate", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"wayleave"}`)
		away.Down.Store(true)
		cfg, file := as(t, vault.Auth{Method: "jwt", Mount: "away", Role: "gate"})
		cfg.Auth.JWTFile = file
		write(t, file, token(away, time.Hour, nil))
		if err := logIn(t, cfg); err == nil || !strings.Contains(err.Error(), "could not fetch the issuer's keys") {
			t.Error(err)
		}
	})
	t.Run("kubernetes", func(t *testing.T) {
		t.Parallel()
		k := vaulttest.NewKubernetes(t)
		s.Raw(t, http.MethodPut, "sys/auth/kubernetes", `{"type":"kubernetes"}`)
		s.Raw(t, http.MethodPut, "auth/kubernetes/config", toJSON(t, map[string]any{
			"kubernetes_host": k.URL, "kubernetes_ca_cert": k.CA, "token_reviewer_jwt": k.ServiceAccount(t, "reviewer", "api", time.Hour),
		}))
		s.Raw(t, http.MethodPut, "auth/kubernetes/role/gate", toJSON(t, short(map[string]any{
			"bound_service_account_names": "gate", "bound_service_account_namespaces": "fleet", "audience": "vault",
		})))
		cfg, file := as(t, vault.Auth{Method: "kubernetes", Role: "gate"})
		cfg.Auth.JWTFile = file
		fileMethod{s, cfg, file, k.ServiceAccount(t, "gate", "vault", time.Hour), k.ServiceAccount(t, "gate", "vault", 2*time.Hour), k.ServiceAccount(t, "gate", "vault", -time.Hour)}.test(t, []refusal{
			{"audience", nil, k.ServiceAccount(t, "gate", "api", time.Hour), `it is for ["api"]: ask for one`},
			{"service account", nil, k.ServiceAccount(t, "mallory", "vault", time.Hour), `subject "system:serviceaccount:fleet:mallory"`},
			{"wrong role", func(a *vault.Auth) { a.Role = "gaet" }, "", `make the role "gaet" of auth/kubernetes`},
			{"not in a pod", func(a *vault.Auth) { a.JWTFile += ".none" }, "", "no such file"},
		})
		k.Down.Store(true)
		if err := logIn(t, cfg); !errors.Is(err, vault.ErrDenied) || !strings.Contains(err.Error(), "the server could not ask Kubernetes") {
			t.Errorf("without Kubernetes: %v", err)
		}
	})
	t.Run("cert", func(t *testing.T) {
		t.Parallel()
		ca, other := vaulttest.NewAuthority(t, "Fleet CA"), vaulttest.NewAuthority(t, "Another CA")
		s.Raw(t, http.MethodPut, "sys/auth/cert", `{"type":"cert"}`)
		s.Raw(t, http.MethodPut, "auth/cert/certs/gate", toJSON(t, short(map[string]any{"certificate": ca.PEM(), "allowed_common_names": "gate"})))
		cfg, file := as(t, vault.Auth{Method: "cert", Role: "gate"})
		cfg.Auth.CertFile, cfg.Auth.KeyFile = file, file
		fileMethod{s, cfg, file, ca.Client(t, "gate", time.Hour), ca.Client(t, "gate", 2*time.Hour), ca.Client(t, "gate", -time.Hour)}.test(t, []refusal{
			{"name", nil, ca.Client(t, "mallory", time.Hour), `its name "CN=mallory"`},
			{"authority", nil, other.Client(t, "gate", time.Hour), `its issuer "CN=Another CA"`},
			{"no PEM", nil, "hush-hush-hush-hush-hush", "PEM"},
			{"no file", func(a *vault.Auth) { a.KeyFile += ".none" }, "", "no such file"},
			{"no key", func(a *vault.Auth) { a.KeyFile = "" }, "", "key_file"},
			{"wrong role", func(a *vault.Auth) { a.Role = "gaet" }, "", "certificate roles of auth/cert"},
		})
		write(t, file, ca.Client(t, "gate", time.Hour))
		cfg.Auth.Role = "" // whichever fits
		if err := logIn(t, cfg); err != nil {
			t.Errorf("without naming the role: %v", err)
		}
		cfg.Address = "http" + strings.TrimPrefix(cfg.Address, "https")
		if err := logIn(t, cfg); err == nil || !strings.Contains(err.Error(), "needs TLS") {
			t.Errorf("without TLS: %v", err)
		}
	})
	t.Run("approle and token", func(t *testing.T) {
		t.Parallel()
		cfg, file := as(t, s.GatewayConfig.Auth)
		write(t, file, cfg.Auth.SecretID.Reveal()+"\n")
		cfg.Auth.SecretIDFile, cfg.Auth.SecretID = file, s.ViewerConfig.Auth.Token // the file counts
		if err := logIn(t, cfg); err != nil {
			t.Error(err)
		}
		write(t, file, s.RootConfig.Auth.Token.Reveal()+"\n")
		cfg.Auth = vault.Auth{Method: "token", TokenFile: file}
		if err := logIn(t, cfg); err != nil {
			t.Error(err)
		}
		cfg.Auth.TokenFile += ".none"
		if err := logIn(t, cfg); !errors.Is(err, vault.ErrDenied) || !strings.Contains(err.Error(), "no such file") {
			t.Error(err)
		}
	})
}
