package config

import (
	"wayleave/secret"
	"wayleave/webhook"
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
	switch {
	case h.URL == "":
		for _, key := range []struct{ name, value string }{{"secret_file", h.SecretFile}, {"ca_file", h.CAFile}} {
			if key.value != "" {
				k.fault(path+"."+key.name, "has no use without url", "write url, or remove it")
			}
		}
		return
	case h.SecretFile == "":
		k.fault(path, "has no secret_file: whoever gets its messages could not tell them from anybody else's", "write a key into a file and name it: echo whsec_$(openssl rand -base64 32)")
	}
	if err := webhook.CheckURL(h.URL); err != nil {
		k.fault(path+".url", err.Error(), "write https://approvals.example.com/wayleave")
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
