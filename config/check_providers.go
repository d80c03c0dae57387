package config

import (
	"crypto"
	"crypto/ed25519"
	"regexp"
	"slices"

	"wayleave/provider"
	"wayleave/secret"
)

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// refusalReasons are the values of the header x-wayleave-reason.
var refusalReasons = []string{
	"approval_denied", "approval_needed", "approval_timed_out", "approval_unavailable", "audit_unavailable", "bad_credential_stored", "duplicate_credential", "host_not_allowed", "host_quarantined", "misdirected", "misplaced_placeholder", "needs_reconnect",
	"never_connected", "not_your_placeholder", "policy_denied", "proxy_auth_required", "refresh_unavailable", "scope_missing",
	"rate_limited", "session_expired", "session_revoked", "token_endpoint", "vault_unavailable",
}

// providers checks each provider as it is after its overrides. What its own fields may hold is known to package provider.
func (k *checker) providers() {
	for _, name := range keys(k.Providers) {
		p, path := k.Providers[name], join("providers", name)
		k.name(path, name)
		if !slices.Contains(provider.Presets(), p.Preset) {
			k.fault(path+".preset", "there is no preset "+quote(p.Preset), choose(p.Preset, provider.Presets()))
			continue
		}
		if p.ClientSecretFile != "" && p.ClientSecretEnv != "" {
			k.fault(path+".client_secret_env", "written beside client_secret_file", "keep one of the two")
		}
		if p.ClientSecretEnv != "" && !variableName.MatchString(p.ClientSecretEnv) {
			// The value is not shown: it may be the secret itself.
			k.fault(path+".client_secret_env", "is not the name of an environment variable", "use letters, digits and _")
		}
		for _, reason := range keys(p.RefusalStatus) {
			if !slices.Contains(refusalReasons, reason) {
				k.fault(join(path+".refusal_status", reason), quote(reason)+" is not the reason of a refusal", choose(reason, refusalReasons))
			}
		}
		checked := p.Provider
		if p.ClientSecretFile != "" || p.ClientSecretEnv != "" || k.doc.broken[path+".client_secret_file"] {
			checked.ClientSecret = secret.New("read later") // stands for what LoadSecrets will find
		}
		if p.ClientKeyFile != "" {
			checked.ClientKey = readLater
		}
		if k.doc.isBroken(path + ".kind") {
			continue
		}
		at := path
		if !k.doc.given(path) { // a preset that a grant names itself
			at = k.firstGrantOf(name)
		}
		for _, f := range checked.Validate() {
			if key := path + "." + f.Key; !k.doc.isBroken(key) && !k.doc.isBrokenWithin(key) {
				k.doc.fault(key, k.doc.find(at+"."+f.Key), f.Problem, "")
			}
		}
	}
}

// readLater stands for the key that LoadSecrets will find.
var readLater crypto.Signer = ed25519.PrivateKey(nil)

// firstGrantOf returns the path of the first grant, by name, of a provider.
func (k *checker) firstGrantOf(provider string) string {
	for _, name := range keys(k.Grants) {
		if k.Grants[name].Provider == provider {
			return join("grants", name)
		}
	}
	return "grants"
}
