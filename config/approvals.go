package config

import (
	"wayleave/secret"
)

// Approvals says who is asked about requests that rules hold, beside whoever uses `wayleave approval`.
type Approvals struct {
	// A program of yours, which may decide at once. docs/policy.md says what it is sent.
	Webhook ApprovalWebhook `yaml:"webhook"`
}

// An ApprovalWebhook is called once for each request that begins to wait. What it does not decide, an operator does.
type ApprovalWebhook struct {
	// https:// address. Default: nobody is called.
	URL string `yaml:"url"`

	// File that holds the key that messages are signed with: whsec_ and 24 to 64 bytes in base64.
	SecretFile string `yaml:"secret_file"`

	// PEM file of authorities that may sign the server's certificate, in addition to the system's. Default: none.
	CAFile string `yaml:"ca_file"`

	// Key is filled by LoadSecrets.
	Key secret.Text `yaml:"-"`
}

func (k *checker) approvals() {
	const path = "approvals.webhook"
	h := k.Approvals.Webhook
	if err := k.signedWebhook(path, h.URL, h.SecretFile, h.CAFile); err != nil {
		k.fault(path+".url", err.Error(), "write https://approvals.example.com/wayleave")
	}
	if h.URL == "" {
		return
	}
	if !k.holds() {
		k.warn(path, "is never called: no rule of a profile holds requests", "write a rule with hold, or remove it")
	}
}

// holds reports whether a rule makes requests wait.
func (k *checker) holds() bool {
	for _, p := range k.Profiles {
		for _, r := range p.Rules {
			if r.Hold.Words != "" && !p.DryRun {
				return true
			}
		}
	}
	return false
}
