package config

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"

	"wayleave/secret"
)

// This file has the log-in methods of Vault: what each needs, and what it has no use for.

// podToken is where Kubernetes puts a pod's service-account token, and replaces it before it expires.
const podToken = "/var/run/secrets/kubernetes.io/serviceaccount/token" //nolint:gosec // a path

// authKeys are the keys of vault.auth that not every method has, in the order of the manual.
var authKeys = []struct {
	key     string
	methods []string // that use it
	value   func(Auth) string
}{
	{"role", []string{"kubernetes", "jwt", "cert"}, func(a Auth) string { return a.Role }},
	{"token_file", []string{"token"}, func(a Auth) string { return a.TokenFile }},
	{"role_id", []string{"approle"}, func(a Auth) string { return a.RoleID }},
	{"secret_id_file", []string{"approle"}, func(a Auth) string { return a.SecretIDFile }},
	{"jwt_file", []string{"jwt", "kubernetes"}, func(a Auth) string { return a.JWTFile }},
	{"jwt_env", []string{"jwt"}, func(a Auth) string { return a.JWTEnv }},
	{"cert_file", []string{"cert"}, func(a Auth) string { return a.CertFile }},
	{"key_file", []string{"cert"}, func(a Auth) string { return a.KeyFile }},
}

func (a *Auth) applyDefaults() {
	fill(&a.Method, "token")
	switch a.Method {
	case "token":
		fill(&a.Mount, "approle")
	case "kubernetes":
		fill(&a.JWTFile, podToken)
	}
	fill(&a.Mount, a.Method)
}

func (k *checker) vaultAuth() {
	a := k.Vault.Auth
	if k.doc.isBroken("vault.auth.method") {
		return
	}
	for _, key := range authKeys {
		if !slices.Contains(key.methods, a.Method) && key.value(a) != "" {
			k.fault("vault.auth."+key.key, "is not used by method "+a.Method, "set vault.auth.method: "+strings.Join(key.methods, " or ")+", or remove it")
		}
	}
	need := func(key, value, fix string) {
		if value == "" {
			k.fault("vault.auth."+key, "is missing: method "+a.Method+" needs it", fix)
		}
	}
	switch a.Method {
	case "approle":
		need("role_id", a.RoleID, "write what `vault read auth/"+a.Mount+"/role/<role>/role-id` shows")
		need("secret_id_file", a.SecretIDFile, "name the file that holds the secret id")
	case "kubernetes":
		need("role", a.Role, "name a role of auth/"+a.Mount+" that is bound to the gate's service account")
	case "jwt":
		need("role", a.Role, "name a role of auth/"+a.Mount+" that is bound to the token's issuer and audience")
		switch {
		case a.JWTFile == "" && a.JWTEnv == "":
			need("jwt_file", "", "name the file that holds the token, or a variable with jwt_env")
		case a.JWTFile != "" && a.JWTEnv != "":
			k.fault("vault.auth.jwt_env", "written beside jwt_file", "keep one of the two")
		}
	case "cert":
		need("cert_file", a.CertFile, "name the PEM file of the client certificate")
		need("key_file", a.KeyFile, "name the PEM file of its key")
		if v := k.Vault.Address; v != "" && !strings.HasPrefix(v, "https:") {
			k.fault("vault.address", "method cert needs TLS", "write an https:// address")
		}
	}
}

// loadSecrets fills what comes from the environment. What is in files is read at each log-in; here they are looked at, so
// that a missing one is reported with everything else. readFile has such a report made.
func (a *Auth) loadSecrets(readFile func(key, name string) secret.Text, getenv func(string) string, path func(string) string) error {
	switch {
	case a.Method == "approle":
		readFile("vault.auth.secret_id_file", a.SecretIDFile)
	case a.Method == "token" && a.TokenFile != "":
		readFile("vault.auth.token_file", a.TokenFile)
	case a.Method == "token":
		a.Token = secret.New(getenv("VAULT_TOKEN"))
	case a.JWTEnv != "":
		if a.JWT = secret.New(getenv(a.JWTEnv)); a.JWT.IsZero() {
			return fmt.Errorf("vault.auth.jwt_env: $%s is not set; export it, or use jwt_file", a.JWTEnv)
		}
	case a.JWTFile != "":
		readFile("vault.auth.jwt_file", a.JWTFile)
	case a.Method == "cert":
		if _, err := tls.LoadX509KeyPair(path(a.CertFile), path(a.KeyFile)); err != nil {
			return fmt.Errorf("vault.auth.cert_file: %w", err)
		}
	}
	return nil
}
