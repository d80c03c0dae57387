package config

import (
	"errors"
	"fmt"
	"net"
	"time"

	"wayleave/secret"
)

// Notify says who is told when something needs an operator: a grant that has to be connected again or lacks a scope, a certificate
// authority that ends, an Envoy that refuses its configuration, a vault that does not answer. What happens at once is one message;
// what lasts is told again, each time after twice as long; what is over is said to be.
type Notify struct {
	// Where messages go, by name. Default: nowhere.
	Targets map[string]NotifyTarget `yaml:"targets"`

	// How long a message waits for what else has the same cause, from 0s to 10m.
	GroupWait time.Duration `yaml:"group_wait" jsonschema:"default=10s"`

	// After how long something that lasts is told for the second time, from 10m to 168h.
	RepeatInterval time.Duration `yaml:"repeat_interval" jsonschema:"default=1h"`
}

// Values of NotifyTarget.Type.
const (
	NotifyWebhook = "webhook"
	NotifySlack   = "slack"
	NotifySMTP    = "smtp"
)

// A NotifyTarget is where messages go. `wayleave notify test` tries it out.
type NotifyTarget struct {
	// webhook: JSON for a program of yours, signed by the Standard Webhooks specification.
	// slack: an incoming webhook of Slack, or of a service that takes the same, such as Mattermost.
	// smtp: mail.
	Type string `yaml:"type" jsonschema:"required,enum=webhook,enum=slack,enum=smtp"`

	// What it is told of. Default: everything.
	Kinds []string `yaml:"kinds" jsonschema:"uniqueItems=true,enum=grant,enum=ca,enum=envoy,enum=vault,enum=configuration,enum=approval,enum=rollout"`

	// https:// address, for type webhook.
	URL string `yaml:"url"`

	// File that holds the address, for types slack, where whoever knows it may write, and webhook.
	URLFile string `yaml:"url_file"`

	// File that holds the key that messages are signed with, for type webhook: whsec_ and 24 to 64 bytes in base64.
	SecretFile string `yaml:"secret_file"`

	// Mail server with its port, for type smtp, such as mail.example.com:587.
	Address string `yaml:"address"`

	// How the connection to the mail server is encrypted: starttls (usual for port 587), tls from its first byte (port 465), or none,
	// for a server on this machine. Default: tls for port 465, else starttls.
	Encryption string `yaml:"encryption" jsonschema:"enum=starttls,enum=tls,enum=none"`

	// Who logs in to the mail server. Default: nobody.
	Username string `yaml:"username"`

	// File that holds the password.
	PasswordFile string `yaml:"password_file"`

	// Address the mail is from.
	From string `yaml:"from"`

	// Addresses the mail is for.
	To []string `yaml:"to" jsonschema:"uniqueItems=true"`

	// PEM file of authorities that may sign the server's certificate, in addition to the system's. Default: none.
	CAFile string `yaml:"ca_file"`

	// Secrets are filled by LoadSecrets: the address of url or url_file, the key, the password.
	Secrets NotifySecrets `yaml:"-"`
}

// NotifySecrets are what LoadSecrets finds for a target.
type NotifySecrets struct{ URL, Key, Password secret.Text }

func (n *Notify) applyDefaults(given func(string) bool) {
	if !given("notify.group_wait") {
		n.GroupWait = 10 * time.Second
	}
	if !given("notify.repeat_interval") {
		n.RepeatInterval = time.Hour
	}
	for name, t := range n.Targets {
		switch _, port, _ := net.SplitHostPort(t.Address); {
		case t.Type != NotifySMTP:
		case port == "465": // whose servers say nothing before the connection is encrypted (RFC 8314 section 3.3)
			fill(&t.Encryption, "tls")
		default:
			fill(&t.Encryption, "starttls")
		}
		n.Targets[name] = t
	}
}

// LoadNotify reads the secrets of the targets, for whoever needs no other secret.
func (c *Config) LoadNotify() error {
	var errs []error
	read := func(key, name string, into *secret.Text) {
		if name == "" {
			return
		}
		s, err := readSecret(c.Path(name))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
		*into = s
	}
	for _, name := range keys(c.Notify.Targets) {
		t, path := c.Notify.Targets[name], join("notify.targets", name)
		t.Secrets.URL = secret.New(t.URL)
		read(path+".url_file", t.URLFile, &t.Secrets.URL)
		read(path+".secret_file", t.SecretFile, &t.Secrets.Key)
		read(path+".password_file", t.PasswordFile, &t.Secrets.Password)
		c.Notify.Targets[name] = t
	}
	return errors.Join(errs...)
}
