package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/google/go-cmp/cmp"

	"wayleave/oauth"
	"wayleave/secret"
	"wayleave/webhook"
)

var sample = Message{
	ID: "msg_1", At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Others: 2,
	Firing: []Alert{
		{Key: "grant/claude/scope_missing", Kind: Grant, Subject: "claude", Severity: Warning, Title: "claude needs one reconnect", Text: "It lacks a & <b>.", Next: "run `wayleave grant connect claude`", URL: "https://gate.example.com/grants/claude"},
		{Key: "vault", Kind: Vault, Subject: "vault", Severity: Critical, Title: "the vault does not answer"},
	},
	Over: []Alert{{Key: "ca/root", Kind: CA, Title: "the CA ends"}},
}

func TestWebhookCarriesTheMessage(t *testing.T) {
	var got struct {
		Type      string
		Timestamp time.Time
		Data      Message
	}
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	if err := Webhook(webhook.New(secret.New(srv.URL), webhook.Key{}, oauth.NewHTTPClient(nil), nil)).Send(t.Context(), sample); err != nil {
		t.Fatal(err)
	}
	if got.Type != "wayleave.alerts" || !got.Timestamp.Equal(sample.At) || !cmp.Equal(got.Data, sample) {
		t.Errorf("got %+v", got)
	}
}

func TestSlackText(t *testing.T) {
	want := ":warning: *claude needs one reconnect*\nIt lacks a &amp; &lt;b&gt;.\nrun `wayleave grant connect claude`\n<https://gate.example.com/grants/claude|Open it in the console>\n" +
		":red_circle: *the vault does not answer*\n:white_check_mark: over: the CA ends\nStill so: 2 more that you know of."
	var body map[string]string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewDecoder(r.Body).Decode(&body)
		_, _ = io.WriteString(w, "ok")
	}))
	defer srv.Close()
	if err := Slack(webhook.New(secret.New(srv.URL), webhook.Key{}, oauth.NewHTTPClient(nil), nil)).Send(t.Context(), sample); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, body["text"]); diff != "" {
		t.Error(diff)
	}
}

// A message that is told of everything at once is one that a person reads, and that the target takes.
func TestLongMessage(t *testing.T) {
	var long Message
	for i := range 1000 {
		long.Firing = append(long.Firing, Alert{Kind: Configuration, Title: fmt.Sprintf("fault %03d", i), Text: strings.Repeat("ä", 5000)})
		long.Over = append(long.Over, Alert{Title: fmt.Sprintf("mended %03d", i)})
	}
	for name, text := range map[string]string{"mail": long.Text(), "slack": slackText(long)} {
		if !strings.Contains(text, "fault 019") || strings.Contains(text, "fault 020") || !strings.Contains(text, "mended 019") || strings.Contains(text, "mended 020") || !strings.Contains(text, "980 more in trouble, and 980 more over") {
			t.Errorf("%s: %.200s… of %d bytes", name, text, len(text))
		}
		if len(text) > 40_000 || !utf8.ValidString(text) {
			t.Errorf("%s has %d bytes", name, len(text))
		}
	}
	if long.Subject() != "Wayleave: fault 000, and 999 more" || len(long.Firing[0].Text) != 10_000 {
		t.Errorf("subject %q, and a text of %d bytes", long.Subject(), len(long.Firing[0].Text))
	}
}

// Which answers say that it is of no use to try again.
func TestPermanence(t *testing.T) {
	for code, permanent := range map[int]bool{400: true, 401: true, 404: true, 410: true, 307: true, 408: false, 425: false, 429: false, 500: false, 503: false} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
		err := Slack(webhook.New(secret.New(srv.URL), webhook.Key{}, oauth.NewHTTPClient(nil), nil)).Send(t.Context(), sample)
		srv.Close()
		var p Permanent
		if err == nil || errors.As(err, &p) != permanent {
			t.Errorf("%d: %v, permanent is %v", code, err, !permanent)
		}
	}
}

func TestText(t *testing.T) {
	want := `WARNING: claude needs one reconnect
  It lacks a & <b>.
  Next: run ` + "`wayleave grant connect claude`" + `
  https://gate.example.com/grants/claude

CRITICAL: the vault does not answer

OVER: the CA ends

Still so: 2 more that you know of.
`
	if diff := cmp.Diff(want, sample.Text()); diff != "" {
		t.Error(diff)
	}
	for want, m := range map[string]Message{
		"Wayleave: claude needs one reconnect, and 1 more": sample,
		"Wayleave: over: the CA ends":                      {Over: sample.Over},
		"Wayleave: a test, nothing is wrong":               Test(sample.At),
	} {
		if got := m.Subject(); got != want {
			t.Errorf("subject %q, want %q", got, want)
		}
	}
}

// mailServer is an SMTP server that wants a log-in, under TLS.
type mailServer struct {
	address string
	roots   *x509.CertPool
	open    bool // nobody needs to log in
	refuses string

	mu    sync.Mutex
	got   []string       // from, to, and the mail
	later map[string]int // how often a recipient is refused for now
}

func newMailServer(t *testing.T, implicit, withTLS bool) *mailServer {
	certs := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(certs.Close)
	m := &mailServer{roots: x509.NewCertPool(), open: !withTLS, later: map[string]int{}}
	m.roots.AddCert(certs.Certificate())
	srv := smtp.NewServer(m)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.address = l.Addr().String()
	secure := &tls.Config{Certificates: certs.TLS.Certificates}
	switch {
	case implicit:
		l = tls.NewListener(l, secure)
	case withTLS:
		srv.TLSConfig = secure
	}
	if !withTLS {
		l = rude{l}
	}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return m
}

// rude is a listener of a server that answers no QUIT, but goes.
type rude struct{ net.Listener }

func (r rude) Accept() (net.Conn, error) {
	c, err := r.Listener.Accept()
	return rudeConn{c}, err
}

type rudeConn struct{ net.Conn }

func (c rudeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if bytes.Equal(p[:n], []byte("QUIT\r\n")) {
		_ = c.Close()
		return 0, io.EOF
	}
	return n, err
}

func (m *mailServer) NewSession(c *smtp.Conn) (smtp.Session, error) {
	if !strings.Contains(c.Hostname(), ".") {
		return nil, &smtp.SMTPError{Code: 504, EnhancedCode: smtp.EnhancedCode{5, 5, 2}, Message: "need fully-qualified hostname"}
	}
	return &mailSession{server: m}, nil
}

type mailSession struct {
	server *mailServer
	in     bool
}

func (s *mailSession) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *mailSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if s.in = user == "wayleave" && password == "correct"; !s.in {
			return smtp.ErrAuthFailed
		}
		return nil
	}), nil
}

func (s *mailSession) Mail(from string, _ *smtp.MailOptions) error {
	if !s.in && !s.server.open {
		return smtp.ErrAuthRequired
	}
	s.server.add(from)
	return nil
}

func (s *mailSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	if s.server.notYet(to) {
		return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 7, 1}, Message: "come again"}
	}
	if strings.Contains(s.server.refuses, to) {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "nobody of that name"}
	}
	s.server.add(to)
	return nil
}

func (s *mailSession) Data(r io.Reader) error {
	text, err := io.ReadAll(r)
	s.server.add(string(text))
	return err
}

func (s *mailSession) Reset()        {}
func (s *mailSession) Logout() error { return nil }

func (m *mailServer) notYet(to string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.later[to]--
	return m.later[to] >= 0
}

func (m *mailServer) add(s string) { m.mu.Lock(); defer m.mu.Unlock(); m.got = append(m.got, s) }

func TestGreeting(t *testing.T) {
	for _, tt := range []struct{ machine, from, want string }{
		{"wayleave-0", "Wayleave <gate@example.com>", "wayleave-0.example.com"},
		{"0391926cb167", "gate@mail.example.com", "0391926cb167.mail.example.com"},
		{"gate.internal.example", "gate@example.com", "gate.internal.example"},
		{"gate", "nobody", "gate"}, // which the configuration does not let through
	} {
		if got := (SMTP{From: tt.from}).greeting(tt.machine); got != tt.want {
			t.Errorf("%s, from %s: %s, want %s", tt.machine, tt.from, got, tt.want)
		}
	}
}

func TestMail(t *testing.T) {
	message := sample
	message.Firing = append([]Alert{{Kind: Grant, Title: "grün ist es nicht\r\nBcc: eve@example.com", Text: ".\r\n.\r\nQUIT"}}, message.Firing...)
	for name, c := range map[string]struct {
		implicit, withTLS bool
		encryption        Encryption
		password          string
		fails             string // what the error says
	}{
		"starttls":                {withTLS: true, encryption: StartTLS, password: "correct"},
		"tls":                     {implicit: true, withTLS: true, encryption: TLS, password: "correct"},
		"none":                    {encryption: Plain}, // and nobody logs in
		"wrong password":          {withTLS: true, encryption: StartTLS, password: "wrong", fails: "auth"},
		"a server that has none":  {encryption: StartTLS, password: "correct", fails: "STARTTLS"},
		"a server we do not know": {withTLS: true, encryption: StartTLS, password: "correct", fails: "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newMailServer(t, c.implicit, c.withTLS)
			s := SMTP{
				Address: srv.address, Encryption: c.encryption, TLS: &tls.Config{RootCAs: srv.roots, ServerName: "example.com"},
				From: "Wayleave <gate@example.com>", To: []string{"a@example.com", "b@example.com"},
			}
			if c.password != "" {
				s.Username, s.Password = "wayleave", secret.New(c.password)
			}
			if c.fails == "certificate" {
				s.TLS.RootCAs = x509.NewCertPool()
			}
			err := s.Send(t.Context(), message)
			if c.fails != "" {
				if err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(c.fails)) || strings.Contains(err.Error(), c.password) {
					t.Errorf("err %v, want one about %s", err, c.fails)
				}
				if len(srv.got) > 0 {
					t.Errorf("the server got %q", srv.got)
				}
				if _, permanent := errors.AsType[Permanent](err); permanent != (c.password == "wrong") { // which is not tried until the account is locked
					t.Errorf("%v, permanent is %v", err, permanent)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"gate@example.com", "a@example.com", "b@example.com"}, srv.got[:len(srv.got)-1]); diff != "" {
				t.Error(diff)
			}
			got, err := mail.ReadMessage(bytes.NewReader([]byte(srv.got[len(srv.got)-1])))
			if err != nil {
				t.Fatal(err)
			}
			if got.Header.Get("Bcc") != "" || got.Header.Get("Auto-Submitted") != "auto-generated" || got.Header.Get("Message-Id") != "<msg_1@wayleave>" {
				t.Errorf("headers %v", got.Header)
			}
			body, _ := io.ReadAll(got.Body)
			if !strings.Contains(string(body), "https://gate.example.com/grants/claude") {
				t.Errorf("the mail has no link:\n%s", body)
			}
		})
	}
}

// counted is a Sender that counts its tries, and those of its Rest.
type counted struct {
	Sender
	tries *int
}

func (c counted) Send(ctx context.Context, m Message) error {
	*c.tries++
	err := c.Sender.Send(ctx, m)
	if some, ok := errors.AsType[Partial](err); ok && some.Rest != nil {
		return Partial{some.Err, counted{some.Rest, c.tries}}
	}
	return err
}

// Who is refused keeps a message from no other; who is refused for now gets it later, and what somebody got is not sent again.
func TestMailToSome(t *testing.T) {
	was := pauses
	t.Cleanup(func() { pauses = was })
	pauses = make([]time.Duration, 3)
	const a, b, c = "a@example.com", "b@example.com", "c@example.com"
	for name, tt := range map[string]struct {
		refuses string
		later   map[string]int
		got     []string // in this order
		tries   int
		lacks   string // who the error says did not get it; empty: there is none
		all     bool   // that is everybody, for good
	}{
		"nobody is refused":                   {got: []string{a, b, c}, tries: 1},
		"one is":                              {refuses: b, got: []string{a, c}, tries: 1, lacks: b},
		"all are":                             {refuses: a + b + c, tries: 1, lacks: c, all: true},
		"one for now":                         {later: map[string]int{b: 2}, got: []string{a, c, b}, tries: 2},
		"all for now":                         {later: map[string]int{a: 2, b: 2, c: 2}, got: []string{a, b, c}, tries: 2},
		"one for now, another for good":       {refuses: a, later: map[string]int{b: 2}, got: []string{c, b}, tries: 2, lacks: a},
		"one for now, all others for good":    {refuses: a + c, later: map[string]int{b: 2}, got: []string{b}, tries: 2, lacks: a + ", " + c},
		"one for longer than anybody tries":   {later: map[string]int{b: 99}, got: []string{a, c}, tries: 4, lacks: b},
		"two for now, and one for good later": {refuses: b, later: map[string]int{b: 2, c: 2}, got: []string{a, c}, tries: 2, lacks: b},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newMailServer(t, false, false)
			srv.refuses = tt.refuses
			for to, n := range tt.later {
				srv.later[to] = n
			}
			s := SMTP{Address: srv.address, Encryption: Plain, From: "gate@example.com", To: []string{a, b, c}}
			tries := 0
			err := persist(t.Context(), counted{s, &tries}, sample)
			if some, ok := errors.AsType[Partial](err); ok {
				err = some.finish(t.Context(), sample)
			}
			_, permanent := errors.AsType[Permanent](err)
			if tries != tt.tries || permanent != tt.all || (err == nil) != (tt.lacks == "") {
				t.Errorf("after %d tries: %v", tries, err)
			}
			if tt.lacks != "" && !tt.all && !strings.Contains(err.Error(), "does not reach "+tt.lacks+": ") {
				t.Errorf("%v does not say whom it does not reach", err)
			}
			var got []string // whoever a mail came to
			var to []string
			for _, said := range srv.got {
				switch {
				case said == s.From:
					to = nil
				case strings.Contains(said, "Message-ID:"):
					got = append(got, to...)
				default:
					to = append(to, said)
				}
			}
			if diff := cmp.Diff(tt.got, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
