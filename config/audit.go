package config

import (
	"fmt"
	"time"

	"wayleave/secret"
	"wayleave/webhook"
)

// Audit says where the gate keeps account of what is done through it: a line of JSON for each request, for each connection that was
// refused, and for each thing that an operator changed in the console. It has paths, and no query, header or body; of tokens only
// names that tell them apart.
type Audit struct {
	// File to add to, readable by the gate's user only. What was before is kept in others, called so and .1, .2 behind. With
	// listen.replicas each gate has its own: audit.a.jsonl for audit.jsonl. Default: audit.jsonl in the state directory of
	// `wayleave up`; for `wayleave serve` none.
	File string `yaml:"file"`

	// Megabytes that all files take together at most, from 1 to 100000.
	MaxMB int `yaml:"max_mb" jsonschema:"minimum=1,maximum=100000,default=500"`

	// How many files of what was before are kept, from 1 to 100.
	Keep int `yaml:"keep" jsonschema:"minimum=1,maximum=100,default=1"`

	// Give each line the hash of the one before, so that `wayleave audit verify` sees what was changed or taken away. Needs a file.
	Chain bool `yaml:"chain"`

	// When a line cannot be written: serve lets requests through and counts what is missing; refuse refuses them, and writes a line
	// before a request is let out and another at its end. Needs a file for refuse.
	OnFailure string `yaml:"on_failure" jsonschema:"enum=serve,enum=refuse,default=serve"`

	// How long after a gate was killed Envoys may still tell how its requests ended, from 1s to 1h, before those of which nothing is
	// known are counted as missing.
	Grace time.Duration `yaml:"grace" jsonschema:"default=2m"`

	// Print each line to the gate's standard output too.
	Stdout bool `yaml:"stdout"`

	// A program of yours that gets each line too.
	Webhook AuditWebhook `yaml:"webhook"`

	// Send each line to the collector of telemetry too, as a log of OpenTelemetry.
	OTLP bool `yaml:"otlp"`

	// How lines are written to stdout, the webhook and the collector: wayleave, as in the file, or ocsf, by the Open Cybersecurity Schema
	// Framework.
	Format string `yaml:"format" jsonschema:"enum=wayleave,enum=ocsf,default=wayleave"`
}

// Values of Audit.OnFailure and Audit.Format.
const (
	AuditServe    = "serve"
	AuditRefuse   = "refuse"
	AuditWayleave = "wayleave"
	AuditOCSF     = "ocsf"
)

// An AuditWebhook is sent up to 500 lines at once, signed by the Standard Webhooks specification, and again until it takes them.
type AuditWebhook struct {
	// https:// address. Default: nobody is called.
	URL string `yaml:"url"`

	// File that holds the key that messages are signed with: whsec_ and 24 to 64 bytes in base64.
	SecretFile string `yaml:"secret_file"`

	// PEM file of authorities that may sign the server's certificate, in addition to the system's. Default: none.
	CAFile string `yaml:"ca_file"`

	// Key is filled by LoadSecrets.
	Key secret.Text `yaml:"-"`
}

func (a *Audit) applyDefaults(given func(string) bool) {
	if a.MaxMB == 0 && !given("audit.max_mb") {
		a.MaxMB = 500
	}
	if a.Keep == 0 && !given("audit.keep") {
		a.Keep = 1
	}
	if a.Grace == 0 && !given("audit.grace") {
		a.Grace = 2 * time.Minute
	}
	fill(&a.OnFailure, AuditServe)
	fill(&a.Format, AuditWayleave)
}

func (k *checker) audit() {
	a := k.Audit
	k.megabytes("audit.max_mb", a.MaxMB)
	if a.File != "" && a.File == k.Record.File {
		k.fault("audit.file", "is record.file too", "give each a file of its own")
	}
	if a.Keep < 1 || a.Keep > 100 {
		k.fault("audit.keep", fmt.Sprint(a.Keep)+" is out of range", "write a number from 1 to 100")
	}
	if a.Grace < time.Second || a.Grace > time.Hour {
		k.fault("audit.grace", a.Grace.String()+" is out of range", "write a time from 1s to 1h")
	}
	if a.OTLP && k.Telemetry.OTLP.Endpoint == "" {
		k.fault("audit.otlp", "has no collector to go to", "write telemetry.otlp.endpoint")
	}
	if err := k.signedWebhook("audit.webhook", a.Webhook.URL, a.Webhook.SecretFile, a.Webhook.CAFile); err != nil {
		k.fault("audit.webhook.url", err.Error(), "write https://audit.example.com/wayleave")
	}
}

// signedWebhook checks an address to which signed messages go, and the files that go with it. The error is of the address.
func (k *checker) signedWebhook(path, address, secretFile, caFile string) error {
	if address == "" {
		for _, key := range []struct{ name, value string }{{"secret_file", secretFile}, {"ca_file", caFile}} {
			if key.value != "" {
				k.fault(path+"."+key.name, "has no use without url", "write url, or remove it")
			}
		}
		return nil
	}
	if secretFile == "" {
		k.fault(path, "has no secret_file: whoever gets its messages could not tell them from anybody else's", "write a key into a file and name it: echo whsec_$(openssl rand -base64 32)")
	}
	return webhook.CheckURL(address)
}

// megabytes checks how much a gate's file may take.
func (k *checker) megabytes(path string, n int) {
	if n < 1 || n > 100_000 {
		k.fault(path, fmt.Sprint(n)+" is out of range", "write a number from 1 to 100000")
	}
}
