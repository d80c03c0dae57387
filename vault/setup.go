package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"wayleave/deploy"
	"wayleave/secret"
)

// rootLife is how long a root CA lasts: workers install it, so it changes rarely.
const rootLife = 10 * 365 * 24 * time.Hour

// SetupOptions adjust Setup; the zero value is the product's default.
type SetupOptions struct {
	AppRoleMount string       // where the gateway's AppRole role lives; default "approle"
	NoAppRole    bool         // the gateway logs in by another method, whose role the administrator makes
	Note         func(string) // told of each thing created or changed, for the operator to read; may be nil
}

// setup is one run of Setup.
type setup struct {
	*Client
	approle string
	note    func(format string, args ...any)
}

// Setup prepares a server for the product with an administrator's client: the two mounts its configuration names, the
// root CA, the three policies, and, unless told otherwise, the AppRole role of the gateway. It is idempotent: what is there and right stays,
// and a root CA is not replaced before it has ended. It refuses a KV version 1 mount.
func Setup(ctx context.Context, admin *Client, o SetupOptions) error {
	s := setup{Client: admin, approle: cmp.Or(o.AppRoleMount, defaultAppRole), note: func(string, ...any) {}}
	if o.Note != nil {
		s.note = func(format string, args ...any) { o.Note(fmt.Sprintf(format, args...)) }
	}
	type step struct {
		what string
		do   func(context.Context) error
	}
	steps := []step{
		{"the document mount " + admin.cfg.Mount, s.documents},
		{"the PKI mount " + admin.cfg.PKIMount, s.pki},
		{"the root CA", s.root},
		{"the policies", s.policies},
	}
	if !o.NoAppRole {
		steps = append(steps, step{"the AppRole mount " + s.approle, s.role})
	}
	for _, step := range steps {
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("setting up %s: %w", step.what, err)
		}
	}
	return nil
}

func (s setup) post(ctx context.Context, path string, body any) error {
	return s.write(ctx, adminTimeout, path, body, nil)
}

// mounts returns what is mounted below path ("sys/mounts" or "sys/auth"), by name without the final slash.
func (s setup) mounts(ctx context.Context, path string) (map[string]mountInfo, error) {
	var m struct {
		Data map[string]mountInfo `json:"data"`
	}
	if err := s.read(ctx, path, &m); err != nil {
		return nil, err
	}
	byName := map[string]mountInfo{}
	for name, info := range m.Data {
		byName[strings.TrimSuffix(name, "/")] = info
	}
	return byName, nil
}

func (s setup) documents(ctx context.Context) error {
	mounts, err := s.mounts(ctx, "sys/mounts")
	if err != nil {
		return err
	}
	name := s.cfg.Mount
	if m, ok := mounts[name]; ok {
		if err := m.isKV2(name); err != nil {
			return err
		}
	} else {
		err := s.post(ctx, "sys/mounts/"+name, map[string]any{"type": "kv", "description": "Wayleave grants and keys", "options": map[string]string{"version": "2"}})
		if err != nil {
			return err
		}
		s.note("mounted KV version 2 at %s", name)
	}
	var config struct {
		Data struct {
			CASRequired bool   `json:"cas_required"`
			MaxVersions int    `json:"max_versions"`
			DeleteAfter string `json:"delete_version_after"`
		} `json:"data"`
	}
	// A new mount answers 400 or 503 for a moment, while it sets itself up.
	if err := s.whenUp(ctx, func() error { return s.read(ctx, name+"/config", &config) }); err != nil {
		return err
	}
	if config.Data.CASRequired && config.Data.MaxVersions == 1 && cmp.Or(config.Data.DeleteAfter, "0s") == "0s" {
		return nil
	}
	// One version: an old one would keep a refresh token readable that the provider still knows the family of. That one stays:
	// keys and imported values are written once.
	if err := s.post(ctx, name+"/config", map[string]any{"cas_required": true, "max_versions": 1, "delete_version_after": "0s"}); err != nil {
		return err
	}
	s.note("made %s require check-and-set, keep one version, and delete none by itself", name)
	return nil
}

// whenUp repeats f while a mount is being set up, for a few seconds.
func (s setup) whenUp(ctx context.Context, f func() error) error {
	delay := backoff{low: 50 * time.Millisecond, high: time.Second}
	for attempt := 0; ; attempt++ {
		err := f()
		starting := err != nil && (strings.Contains(strings.ToLower(err.Error()), "upgrading") || errors.Is(err, ErrUnavailable))
		if !starting || attempt == 8 || !sleep(ctx, delay.next()) {
			return err
		}
	}
}

func (s setup) pki(ctx context.Context) error {
	mounts, err := s.mounts(ctx, "sys/mounts")
	if err != nil {
		return err
	}
	name := s.cfg.PKIMount
	if m, ok := mounts[name]; ok {
		if m.Type != "pki" {
			return fmt.Errorf("the mount %s is of type %s, not pki: choose another (vault.pki_mount in the configuration)", name, m.Type)
		}
	} else {
		err := s.post(ctx, "sys/mounts/"+name, map[string]any{"type": "pki", "description": "Wayleave egress CA"})
		if err != nil {
			return err
		}
		s.note("mounted PKI at %s", name)
	}
	tune := "sys/mounts/" + name + "/tune"
	var limits struct {
		Data struct {
			MaxLeaseTTL int64 `json:"max_lease_ttl"` // seconds
		} `json:"data"`
	}
	if err := s.read(ctx, tune, &limits); err != nil {
		return err
	}
	if time.Duration(limits.Data.MaxLeaseTTL)*time.Second < rootLife {
		if err := s.post(ctx, tune, map[string]any{"max_lease_ttl": rootLife.String()}); err != nil {
			return err
		}
		s.note("let certificates of %s last %d years", name, rootLife/(365*24*time.Hour))
	}
	// Every intermediate is stored; without this the store grows for ever.
	autoTidy := name + "/config/auto-tidy"
	var tidy struct {
		Data struct {
			Enabled bool `json:"enabled"`
		} `json:"data"`
	}
	if err := s.whenUp(ctx, func() error { return s.read(ctx, autoTidy, &tidy) }); err != nil {
		return err
	}
	if tidy.Data.Enabled {
		return nil
	}
	s.note("made %s forget expired certificates", name)
	return s.post(ctx, autoTidy, map[string]any{"enabled": true, "tidy_cert_store": true, "interval_duration": "24h"})
}

func (s setup) root(ctx context.Context) error {
	var issuers struct{}
	err := s.list(ctx, s.cfg.PKIMount+"/issuers", &issuers)
	switch {
	case err == nil:
		return s.replaceEnded(ctx)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	if _, err = s.generateRoot(ctx, RootName); err == nil {
		s.note("generated the root CA %q", RootName)
	}
	return err
}

// replaceEnded lets another root sign when the one that signs has ended: no gate could start with it.
func (s setup) replaceEnded(ctx context.Context) error {
	roots, err := s.Roots(ctx)
	if err != nil || time.Now().Before(roots[0].NotAfter) {
		return err
	}
	made, err := s.PrepareRoot(ctx)
	if err == nil {
		err = s.ActivateRoot(ctx, made)
	}
	if err == nil {
		s.note("generated the root CA %q in place of %q, which has ended", made.Subject.CommonName, roots[0].Subject.CommonName)
	}
	return err
}

// policyText is the role's policy for the mounts of cfg and the AppRole mount.
func policyText(role Role, cfg Config, approle string) (string, error) {
	text, err := deploy.VaultPolicies.ReadFile("vault/" + string(role) + ".hcl")
	if err != nil {
		return "", err
	}
	return strings.NewReplacer(
		`path "`+defaultMount+`/`, `path "`+cfg.Mount+`/`,
		`path "`+defaultPKIMount+`/`, `path "`+cfg.PKIMount+`/`,
		`path "auth/`+defaultAppRole+`/`, `path "auth/`+approle+`/`,
	).Replace(string(text)), nil
}

func (s setup) policies(ctx context.Context) error {
	for _, role := range []Role{Gateway, Operator, Viewer} {
		text, err := policyText(role, s.cfg, s.approle)
		if err != nil {
			return err
		}
		path := "sys/policies/acl/" + role.Policy()
		var have struct {
			Data struct {
				Policy string `json:"policy"`
			} `json:"data"`
		}
		err = s.read(ctx, path, &have)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if have.Data.Policy == text {
			continue
		}
		if err := s.post(ctx, path, map[string]any{"policy": text}); err != nil {
			return err
		}
		s.note("wrote the policy %s", role.Policy())
	}
	return nil
}

// role makes the AppRole role the gateway logs in with. Its tokens live fifteen minutes and are renewed as long as the
// gateway runs, so that those of a gateway that died do not linger; nothing limits how often a secret id is used,
// because the gateway logs in again whenever it must.
func (s setup) role(ctx context.Context) error {
	mounts, err := s.mounts(ctx, "sys/auth")
	if err != nil {
		return err
	}
	if m, ok := mounts[s.approle]; !ok {
		if err := s.post(ctx, "sys/auth/"+s.approle, map[string]any{"type": "approle"}); err != nil {
			return err
		}
		s.note("enabled AppRole at %s", s.approle)
	} else if m.Type != "approle" {
		return fmt.Errorf("the auth mount %s is of type %s, not approle: choose another (vault.auth.mount in the configuration)", s.approle, m.Type)
	}
	path := "auth/" + s.approle + "/role/" + Gateway.Policy()
	var have struct {
		Data struct {
			Policies []string `json:"token_policies"`
			Period   int64    `json:"token_period"` // seconds
		} `json:"data"`
	}
	err = s.read(ctx, path, &have)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if len(have.Data.Policies) == 1 && have.Data.Policies[0] == Gateway.Policy() && have.Data.Period > 0 {
		return nil
	}
	s.note("wrote the AppRole role %s", Gateway.Policy())
	return s.post(ctx, path, map[string]any{
		"token_policies": []string{Gateway.Policy()},
		"token_period":   "15m", "token_type": "service",
		"secret_id_num_uses": 0, "token_num_uses": 0, "bind_secret_id": true,
	})
}

// IssueToken makes a token with the role's policy alone, for the operator or viewer; it needs an administrator's client.
// The token may be renewed for ever and dies when it is not used for period. It does not end with the administrator's.
func IssueToken(ctx context.Context, admin *Client, role Role, period time.Duration) (secret.Text, error) {
	const path = "auth/token/create-orphan"
	var made *api.Secret
	err := admin.call(ctx, adminTimeout, "update", path, func(ctx context.Context, a *api.Client) (err error) {
		made, err = a.Logical().WriteWithContext(ctx, path, map[string]any{
			"policies": []string{role.Policy()}, "period": period.String(), "renewable": true, "display_name": role.Policy(),
		})
		return err
	})
	if err != nil {
		return secret.Text{}, fmt.Errorf("making a token for the %s: %w", role, err)
	}
	if made == nil || made.Auth == nil {
		return secret.Text{}, fmt.Errorf("making a token for the %s: the answer holds none", role)
	}
	return secret.New(made.Auth.ClientToken), nil
}

// IssueAppRole makes a secret id for the gateway's role at the AppRole mount (default "approle") and returns what the
// gateway logs in with; it needs an administrator's client. With only, every earlier secret id stops working.
//
// The server may cap the life of a secret id; a cap comes back as ttl (0: none), for the caller to warn about.
func IssueAppRole(ctx context.Context, admin *Client, mount string, only bool) (auth Auth, ttl time.Duration, err error) {
	mount = cmp.Or(mount, defaultAppRole)
	role := "auth/" + mount + "/role/" + Gateway.Policy()
	if only {
		if err := forgetSecretIDs(ctx, admin, role); err != nil {
			return Auth{}, 0, fmt.Errorf("withdrawing the earlier secret ids: %w", err)
		}
	}
	var id struct {
		Data struct {
			RoleID string `json:"role_id"`
		} `json:"data"`
	}
	if err := admin.read(ctx, role+"/role-id", &id); err != nil {
		return Auth{}, 0, fmt.Errorf("reading the gateway's role id (run `wayleave vault setup`): %w", err)
	}
	var made struct {
		SecretID string `json:"secret_id"`
		TTL      int64  `json:"secret_id_ttl"` // seconds
	}
	if err := admin.write(ctx, adminTimeout, role+"/secret-id", struct{}{}, &made); err != nil {
		return Auth{}, 0, fmt.Errorf("making a secret id: %w", err)
	}
	return Auth{Method: "approle", RoleID: id.Data.RoleID, SecretID: secret.New(made.SecretID), Mount: mount},
		time.Duration(made.TTL) * time.Second, nil
}

func forgetSecretIDs(ctx context.Context, admin *Client, role string) error {
	var l struct {
		Data struct {
			Accessors []string `json:"keys"`
		} `json:"data"`
	}
	if err := admin.list(ctx, role+"/secret-id", &l); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	for _, accessor := range l.Data.Accessors {
		err := admin.write(ctx, adminTimeout, role+"/secret-id-accessor/destroy", map[string]string{"secret_id_accessor": accessor}, nil)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}
