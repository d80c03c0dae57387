package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"wayleave/oauth"
	"wayleave/secret"
)

// LoadSecrets reads the files and environment variables the configuration names, into the fields that are not part of
// the file: the Vault log-in, the client secrets and keys of the providers in use, and the digests of workers' tokens.
// It is not part of Load so that a configuration can be checked where its secrets are not. The error joins everything
// that could not be read; each part names the key, and none holds a secret.
func (c *Config) LoadSecrets(getenv func(string) string) error {
	var errs []error
	file := func(key, name string) secret.Text {
		s, err := readSecret(c.Path(name))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
		return s
	}

	errs = append(errs, c.Vault.Auth.loadSecrets(file, getenv, c.Path))

	switch o := &c.Console.OIDC; {
	case o.ClientSecretFile != "":
		o.ClientSecret = file("console.oidc.client_secret_file", o.ClientSecretFile)
	case o.ClientSecretEnv != "":
		if o.ClientSecret = secret.New(getenv(o.ClientSecretEnv)); o.ClientSecret.IsZero() {
			errs = append(errs, fmt.Errorf("console.oidc.client_secret_env: $%s is not set; export it, or use client_secret_file", o.ClientSecretEnv))
		}
	}

	errs = append(errs, c.Telemetry.OTLP.loadHeaders(file, getenv))
	errs = append(errs, c.LoadNotify())
	if h := &c.Approvals.Webhook; h.SecretFile != "" {
		h.Key = file("approvals.webhook.secret_file", h.SecretFile)
	}

	if h := &c.Audit.Webhook; h.SecretFile != "" {
		h.Key = file("audit.webhook.secret_file", h.SecretFile)
	}

	inUse := map[string]bool{}
	for _, g := range c.Grants {
		inUse[g.Provider] = true
	}
	for _, name := range keys(c.Providers) {
		if inUse[name] {
			errs = append(errs, c.LoadClient(name, getenv))
		}
	}

	holder := map[string]string{}
	for _, name := range keys(c.Workers) {
		w, path := c.Workers[name], join("workers", name)
		if w.TokenFile != "" {
			if token := file(path+".token_file", w.TokenFile); !token.IsZero() {
				digest := sha256.Sum256([]byte(token.Reveal()))
				w.TokenDigest = hex.EncodeToString(digest[:])
			}
		}
		c.Workers[name] = w
		if w.TokenDigest == "" {
			continue
		}
		if other, taken := holder[w.TokenDigest]; taken {
			errs = append(errs, fmt.Errorf("%s: has the same token as worker %q; give each worker a token of its own", path, other))
		}
		holder[w.TokenDigest] = name
	}
	return errors.Join(errs...)
}

// LoadClient reads the client secret and the client's key of one provider, for whoever needs no other secret.
func (c *Config) LoadClient(name string, getenv func(string) string) error {
	var errs []error
	p, path := c.Providers[name], join("providers", name)
	switch {
	case p.ClientSecretFile != "":
		s, err := readSecret(c.Path(p.ClientSecretFile))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s.client_secret_file: %w", path, err))
		}
		p.ClientSecret = s
	case p.ClientSecretEnv != "":
		p.ClientSecret = secret.New(getenv(p.ClientSecretEnv))
		if p.ClientSecret.IsZero() {
			errs = append(errs, fmt.Errorf("%s.client_secret_env: $%s is not set; export it, or use client_secret_file", path, p.ClientSecretEnv))
		}
	}
	if p.ClientKeyFile != "" {
		data, err := os.ReadFile(c.Path(p.ClientKeyFile))
		if err == nil {
			p.ClientKey, err = oauth.ParseKey(data)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s.client_key_file: %w", path, err))
		}
	}
	if _, ok := c.Providers[name]; ok {
		c.Providers[name] = p
	}
	return errors.Join(errs...)
}

// OwnFiles are the files by which the gate proves who it is to Vault and to providers, by the keys that name them: who reads one can pose as the
// gate.
func (c *Config) OwnFiles() map[string]string {
	a, all := c.Vault.Auth, map[string]string{}
	named := map[string]string{
		"vault.auth.token_file": a.TokenFile, "vault.auth.secret_id_file": a.SecretIDFile, "vault.auth.key_file": a.KeyFile, // a JWT is the platform's, and short-lived
	}
	for name, p := range c.Providers {
		named[join("providers", name)+".client_secret_file"] = p.ClientSecretFile
		named[join("providers", name)+".client_key_file"] = p.ClientKeyFile
	}
	for key, file := range named {
		if file != "" {
			all[key] = c.Path(file)
		}
	}
	return all
}

// Renewed is the configuration of a provider with the client's secret and key as their files have them now. What cannot be read stays as it is.
func (c *Config) Renewed(provider string, of oauth.Config) oauth.Config {
	p := c.Providers[provider]
	if p.ClientSecretFile != "" {
		if s, err := readSecret(c.Path(p.ClientSecretFile)); err == nil {
			of.ClientSecret = s
		}
	}
	if p.ClientKeyFile != "" {
		if data, err := os.ReadFile(c.Path(p.ClientKeyFile)); err == nil {
			if key, err := oauth.ParseKey(data); err == nil {
				of.ClientKey = key
			}
		}
	}
	return of
}

// readSecret reads a file that holds one secret on one line.
func readSecret(name string) (secret.Text, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return secret.Text{}, err
	}
	text := strings.TrimRight(string(data), "\r\n")
	switch {
	case text == "":
		return secret.Text{}, fmt.Errorf("%s is empty; write the secret into it", name)
	case strings.ContainsAny(text, "\r\n"):
		return secret.Text{}, fmt.Errorf("%s has several lines; a secret is one", name)
	}
	return secret.New(text), nil
}
