package config

import (
	"net"
	"net/mail"
	"slices"
	"strconv"
	"strings"
	"time"

	"wayleave/loopback"
	"wayleave/webhook"
)

// This file checks who is told when something needs an operator.

// notifyKeys are the keys of a target that not every type has, in the order of the manual.
var notifyKeys = []struct {
	key   string
	types []string // that use it
	given func(NotifyTarget) bool
}{
	{"url", []string{NotifyWebhook}, func(t NotifyTarget) bool { return t.URL != "" }},
	{"url_file", []string{NotifyWebhook, NotifySlack}, func(t NotifyTarget) bool { return t.URLFile != "" }},
	{"secret_file", []string{NotifyWebhook}, func(t NotifyTarget) bool { return t.SecretFile != "" }},
	{"address", []string{NotifySMTP}, func(t NotifyTarget) bool { return t.Address != "" }},
	{"encryption", []string{NotifySMTP}, func(t NotifyTarget) bool { return t.Encryption != "" }},
	{"username", []string{NotifySMTP}, func(t NotifyTarget) bool { return t.Username != "" }},
	{"password_file", []string{NotifySMTP}, func(t NotifyTarget) bool { return t.PasswordFile != "" }},
	{"from", []string{NotifySMTP}, func(t NotifyTarget) bool { return t.From != "" }},
	{"to", []string{NotifySMTP}, func(t NotifyTarget) bool { return len(t.To) > 0 }},
}

func (k *checker) notify() {
	k.within("notify.group_wait", k.Notify.GroupWait, 0, 10*time.Minute)
	k.within("notify.repeat_interval", k.Notify.RepeatInterval, 10*time.Minute, 168*time.Hour)
	for _, name := range keys(k.Notify.Targets) {
		t, path := k.Notify.Targets[name], join("notify.targets", name)
		k.name(path, name)
		if t.Type == "" || k.doc.isBroken(path+".type") {
			continue
		}
		for _, key := range notifyKeys {
			if !slices.Contains(key.types, t.Type) && key.given(t) {
				k.fault(path+"."+key.key, "is not used by type "+t.Type, "set type: "+strings.Join(key.types, " or ")+", or remove it")
			}
		}
		if t.Type == NotifySMTP {
			k.mail(path, t)
		} else {
			k.hook(path, t)
		}
	}
}

// hook checks a target that is called.
func (k *checker) hook(path string, t NotifyTarget) {
	switch {
	case t.Type == NotifySlack && t.URLFile == "" && t.URL == "":
		k.fault(path, "has no url_file", "write the address that Slack gave out into a file of its own and name it")
	case t.Type == NotifySlack:
	case t.URL == "" && t.URLFile == "":
		k.fault(path, "has no url", "write url, or url_file when the address is a secret")
	case t.URL != "" && t.URLFile != "":
		k.fault(path+".url_file", "written beside url", "keep one of the two")
	case t.URL != "":
		if err := webhook.CheckURL(t.URL); err != nil {
			k.fault(path+".url", err.Error(), "write https://hooks.example.com/wayleave")
		}
	}
	if t.Type == NotifyWebhook && t.SecretFile == "" {
		k.fault(path, "has no secret_file: whoever gets its messages could not tell them from anybody else's", "write a key into a file and name it: echo whsec_$(openssl rand -base64 32)")
	}
}

// mail checks a target that gets mail.
func (k *checker) mail(path string, t NotifyTarget) {
	host, port, err := net.SplitHostPort(t.Address)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || host == "" || n < 1 || n > 65535 {
		what := "is missing"
		if t.Address != "" {
			what = quote(t.Address) + " is not a host and a port"
		}
		k.fault(path+".address", what, "write mail.example.com:587")
	} else if t.Encryption == "none" && !loopback.Host(host) {
		k.fault(path+".encryption", "is none for a server beyond this machine", "write starttls or tls")
	}
	if t.Username != "" && t.Encryption == "none" {
		k.fault(path+".username", "would be sent with its password in clear text", "write encryption: starttls or tls")
	}
	if t.Username == "" && t.PasswordFile != "" {
		k.fault(path+".password_file", "is not used without username", "write username too")
	}
	if t.Username != "" && t.PasswordFile == "" {
		k.fault(path+".username", "has no password", "name its file in password_file")
	}
	address := func(key, value string) {
		if a, err := mail.ParseAddress(value); err != nil || strings.ContainsAny(value, "\r\n") || !strings.Contains(a.Address, "@") {
			k.fault(path+"."+key, quote(value)+" is not a mail address", "write operators@example.com")
		}
	}
	if t.From == "" {
		k.fault(path+".from", "is missing", "write the address mail is from, such as wayleave@example.com")
	} else {
		address("from", t.From)
	}
	if len(t.To) == 0 {
		k.fault(path+".to", "is missing", "write who gets mail, such as [operators@example.com]")
	}
	k.unique(path+".to", t.To)
	for i, to := range t.To {
		address(item("to", i), to)
	}
}
