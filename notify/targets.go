package notify

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	netmail "net/mail"
	"net/textproto"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail"

	"wayleave/secret"
	"wayleave/webhook"
)

// Target is where operators are told.
type Target struct {
	Name   string
	Kinds  []Kind // what it is told of; none: everything
	Sender Sender
}

// Sender sends one message, and is tried again when it fails, unless the error is Permanent; after a Partial one, its Rest is.
type Sender interface {
	Send(ctx context.Context, m Message) error
}

// Permanent is a failure that does not mend itself.
type Permanent struct{ Err error }

// Error implements error.
func (p Permanent) Error() string { return p.Err.Error() }

// Unwrap is for errors.As.
func (p Permanent) Unwrap() error { return p.Err }

// Partial says that a message has reached somebody, and whom it did not.
type Partial struct {
	Err error
	// Rest sends it to those who may get it later; nil when there are none.
	Rest Sender
}

// Error implements error.
func (p Partial) Error() string { return p.Err.Error() }

// Unwrap is for errors.As.
func (p Partial) Unwrap() error { return p.Err }

// poster is a [webhook.Client].
type poster interface {
	Post(ctx context.Context, id string, message any) ([]byte, error)
}

// Webhook sends a message as it is: {"type": "wayleave.alerts", "timestamp": …, "data": Message}, signed by client.
func Webhook(client poster) Sender { return hook{client} }

type hook struct{ client poster }

func (h hook) Send(ctx context.Context, m Message) error {
	_, err := h.client.Post(ctx, m.ID, struct {
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"`
		Data      Message   `json:"data"`
	}{"wayleave.alerts", m.At.UTC(), m})
	return judged(err)
}

// Slack sends a message to an incoming webhook of Slack's, or of a service that takes the same.
func Slack(client poster) Sender { return slack{client} }

type slack struct{ client poster }

var slackEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

func (s slack) Send(ctx context.Context, m Message) error {
	_, err := s.client.Post(ctx, m.ID, map[string]any{"text": slackText(m)})
	return judged(err)
}

// slackText is m in the markup of Slack.
func slackText(m Message) string {
	m, more := m.short()
	var lines []string
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	if m.Test {
		say("%s", slackEscapes.Replace(m.Text()))
	}
	for _, a := range m.Firing {
		mark := ":warning:"
		if a.Severity == Critical {
			mark = ":red_circle:"
		}
		say("%s *%s*", mark, slackEscapes.Replace(a.Title))
		for _, text := range []string{a.Text, a.Next} {
			if text != "" {
				say("%s", slackEscapes.Replace(text))
			}
		}
		if a.URL != "" {
			say("<%s|Open it in the console>", slackEscapes.Replace(a.URL))
		}
	}
	for _, a := range m.Over {
		say(":white_check_mark: over: %s", slackEscapes.Replace(a.Title))
	}
	if more != "" {
		say("Beside these: %s.", more)
	}
	if m.Others > 0 {
		say("Still so: %d more that you know of.", m.Others)
	}
	return strings.Join(lines, "\n")
}

// judged says whether it is of use to call again (RFC 9110 section 15).
func judged(err error) error {
	var status *webhook.StatusError
	if errors.As(err, &status) && status.Code/100 != 5 && status.Code != 408 && status.Code != 425 && status.Code != 429 {
		return Permanent{err}
	}
	return err
}

// Encryption is how a connection to a mail server is kept from being read.
type Encryption string

// Encryptions.
const (
	StartTLS Encryption = "starttls" // it begins in clear, and nothing is sent before it is encrypted (RFC 3207)
	TLS      Encryption = "tls"      // from the first byte (RFC 8314)
	Plain    Encryption = "none"     // never; for a server on this machine
)

// SMTP is a mail server, and who gets mail.
type SMTP struct {
	Address    string // host:port
	Encryption Encryption
	TLS        *tls.Config // nil: the system's roots
	Username   string      // empty: nobody logs in
	Password   secret.Text
	From       string
	To         []string
}

const mailTime = 30 * time.Second

// client is for a connection to the server.
func (s SMTP) client() (*mail.Client, error) {
	host, port, err := net.SplitHostPort(s.Address)
	if err != nil {
		return nil, err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return nil, err
	}
	options := []mail.Option{mail.WithPort(number), mail.WithTimeout(mailTime), mail.WithTLSPolicy(mail.TLSMandatory)}
	if machine, err := os.Hostname(); err == nil {
		options = append(options, mail.WithHELO(s.greeting(machine)))
	}
	switch s.Encryption {
	case TLS:
		options = append(options, mail.WithSSL())
	case Plain:
		options = append(options, mail.WithTLSPolicy(mail.NoTLS))
	case StartTLS:
	}
	if s.TLS != nil {
		options = append(options, mail.WithTLSConfig(s.TLS))
	}
	if s.Username != "" {
		options = append(options, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(s.Username), mail.WithPassword(s.Password.Reveal()))
	}
	return mail.NewClient(host, options...)
}

// greeting is what a machine calls itself to the server: in full, as many servers take nothing else (RFC 5321 section 4.1.4). A container, whose
// name has no domain, is in that of the sender.
func (s SMTP) greeting(machine string) string {
	from, err := netmail.ParseAddress(s.From)
	if err != nil || strings.Contains(machine, ".") {
		return machine
	}
	_, domain, _ := strings.Cut(from.Address, "@")
	return machine + "." + domain
}

// Send implements [Sender].
func (s SMTP) Send(ctx context.Context, m Message) error {
	client, err := s.client()
	if err != nil {
		return Permanent{err}
	}
	msg, err := s.write(m, s.To...)
	if err != nil {
		return Permanent{err}
	}
	err = deliver(ctx, client, msg)
	refusal, refused := errors.AsType[*mail.SendError](err)
	switch {
	case err == nil:
		return nil
	case refused && refusal.Reason == mail.ErrSMTPRcptTo && len(s.To) > 1:
		return mailing{SMTP: s}.Send(ctx, m)
	case code(err) >= 500:
		return Permanent{err}
	}
	return fmt.Errorf("sending mail by %s: %w", s.Address, err)
}

// code is that of a server's refusal, of a mail or of whoever wants to send one; 5xx does not mend itself (RFC 5321 section 4.2.1). 0: the server
// refused nothing.
func code(err error) int {
	if stranger, ok := errors.AsType[*textproto.Error](err); ok {
		return stranger.Code
	}
	refusal, _ := errors.AsType[*mail.SendError](err)
	return refusal.ErrorCode()
}

// mailing sends a message to each recipient by itself, so that one whom the server refuses keeps it from no other. Who is refused only
// for now, as by a server that wants to see whether we come again, is tried again without those who have it.
type mailing struct {
	SMTP
	got  bool     // somebody has it
	lost []string // who never will
	why  error    // the last refusal of these
}

// Send implements [Sender].
func (l mailing) Send(ctx context.Context, m Message) error {
	client, err := l.client()
	if err != nil {
		return Permanent{err}
	}
	var later []string
	var busy error
sending:
	for i, to := range l.To {
		msg, err := l.write(m, to)
		if err == nil {
			err = deliver(ctx, client, msg)
		}
		switch {
		case err == nil:
			l.got = true
		case code(err) >= 500:
			l.lost, l.why = append(slices.Clip(l.lost), to), err
		case code(err) > 0:
			later, busy = append(later, to), err
		default: // the server is away, and each would be waited for
			later, busy = append(later, l.To[i:]...), err
			break sending
		}
	}
	l.To = later
	switch {
	case len(later)+len(l.lost) == 0:
		return nil
	case !l.got && len(later) == 0:
		return Permanent{l.why}
	case !l.got:
		return fmt.Errorf("sending mail by %s: %w", l.Address, busy)
	}
	p := Partial{Err: fmt.Errorf("mail by %s does not reach %s: %w", l.Address, strings.Join(slices.Concat(l.lost, later), ", "), cmp.Or(busy, l.why))}
	if len(later) > 0 {
		p.Rest = l
	}
	return p
}

// write makes the mail.
func (s SMTP) write(m Message, to ...string) (*mail.Msg, error) {
	msg := mail.NewMsg(mail.WithNoDefaultUserAgent())
	if err := errors.Join(msg.From(s.From), msg.To(to...)); err != nil {
		return nil, err
	}
	msg.Subject(m.Subject())
	msg.SetDateWithValue(m.At)
	msg.SetMessageIDWithValue(m.ID + "@wayleave")
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: nobody's holiday answers it
	msg.SetBodyString(mail.TypeTextPlain, m.Text())
	return msg, nil
}

// deliver sends a mail. Once the server has taken it, how the connection ends is of no matter: some servers answer no QUIT.
func deliver(ctx context.Context, client *mail.Client, msg *mail.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, mailTime)
	defer cancel()
	if err := client.DialAndSendWithContext(ctx, msg); !msg.IsDelivered() {
		return err
	}
	return nil
}

// Pauses between tries of one message: ten minutes in all.
var pauses = []time.Duration{5 * time.Second, 15 * time.Second, 40 * time.Second, 2 * time.Minute, 3 * time.Minute, 4 * time.Minute}

// persist sends until somebody has the message, it is of no use, or ten minutes are over; a server that asks for a longer pause gets it.
func persist(ctx context.Context, s Sender, m Message) error {
	for _, pause := range pauses {
		err := s.Send(ctx, m)
		_, permanent := errors.AsType[Permanent](err)
		_, some := errors.AsType[Partial](err)
		if err == nil || permanent || some {
			return err
		}
		var status *webhook.StatusError
		if errors.As(err, &status) {
			pause = max(pause, min(status.RetryAfter, 5*time.Minute))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	return s.Send(ctx, m)
}

// finish sends the message to those who may get it later, until there are none, or the pauses are over.
func (p Partial) finish(ctx context.Context, m Message) error {
	for _, pause := range pauses {
		if p.Rest == nil {
			return p
		}
		select {
		case <-ctx.Done():
			return p
		case <-time.After(pause):
		}
		err := p.Rest.Send(ctx, m)
		next, some := errors.AsType[Partial](err)
		if !some {
			return err
		}
		p = next
	}
	return p
}
