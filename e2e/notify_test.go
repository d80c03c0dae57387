package e2e

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// listeners are where a gate tells operators: a program that verifies signatures, a chat and a mail server. Whatever arrives is kept in files of
// the world, which are searched for secrets.
type listeners struct {
	dir      string
	verifier *standardwebhooks.Webhook

	mu  sync.Mutex
	got map[string][]string // by listener, the text of each message
}

const (
	hookKey      = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
	mailPassword = "mail-password-7Kq2vX9dLw4bRz"
)

func (l *listeners) took(name, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got[name] = append(l.got[name], text)
	_ = os.WriteFile(fmt.Sprintf("%s/%s-%d.message", l.dir, name, len(l.got[name])), []byte(text), 0o600)
}

// all waits until each of the listeners has a message with all of the texts.
func (l *listeners) all(t *testing.T, texts ...string) {
	t.Helper()
	for _, name := range []string{"hook", "chat", "mail"} {
		l.one(t, name, texts...)
	}
}

// one waits until a listener has a message with all of the texts.
func (l *listeners) one(t *testing.T, name string, texts ...string) {
	t.Helper()
	if err := eventually(func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !slices.ContainsFunc(l.got[name], func(m string) bool {
			return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(m, text) })
		}) {
			return fmt.Errorf("%s has no message with %q: %q", name, texts, l.got[name])
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func (l *listeners) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	name := strings.TrimPrefix(r.URL.Path, "/")
	if err == nil && name == "hook" {
		err = l.verifier.Verify(body, r.Header)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	var text any
	_ = json.Unmarshal(body, &text) // as a program has it, without escapes
	l.took(name, fmt.Sprint(text))
}

// NewSession implements [smtp.Backend].
func (l *listeners) NewSession(*smtp.Conn) (smtp.Session, error) { return &mailSession{of: l}, nil }

// mailSession takes mail from whoever has logged in, which go-smtp allows under TLS alone.
type mailSession struct {
	of *listeners
	in bool
}

func (s *mailSession) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *mailSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if s.in = user == "wayleave" && password == mailPassword; !s.in {
			return smtp.ErrAuthFailed
		}
		return nil
	}), nil
}

func (s *mailSession) Mail(string, *smtp.MailOptions) error {
	if !s.in {
		return smtp.ErrAuthRequired
	}
	return nil
}

func (s *mailSession) Rcpt(string, *smtp.RcptOptions) error { return nil }

func (s *mailSession) Data(r io.Reader) error {
	m, err := mail.ReadMessage(r)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
	s.of.took("mail", m.Header.Get("Subject")+"\n"+string(body))
	return err
}

func (s *mailSession) Reset()        {}
func (s *mailSession) Logout() error { return nil }

// listen starts the listeners, and has NOTIFY in the world's configuration name them.
func listen(t *testing.T, w *world) *listeners {
	handedOut.add("a key of messages", hookKey)
	handedOut.add("a mail password", mailPassword)
	verifier, err := standardwebhooks.NewWebhook(hookKey)
	if err != nil {
		t.Fatal(err)
	}
	l := &listeners{dir: w.dir, verifier: verifier, got: map[string][]string{}}
	srv := httptest.NewServer(l)
	t.Cleanup(srv.Close)
	certs := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(certs.Close)
	mails := smtp.NewServer(l)
	mails.TLSConfig = &tls.Config{Certificates: certs.TLS.Certificates}
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = mails.Serve(at) }()
	t.Cleanup(func() { _ = mails.Close() })
	write := func(name, text string) error { return os.WriteFile(w.saved(name), []byte(text), 0o600) }
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certs.Certificate().Raw})
	if err := errors.Join(write("hook.key", hookKey+"\n"), write("hook.url", srv.URL+"/chat\n"), write("mail.key", mailPassword+"\n"), write("mail-ca.pem", string(ca))); err != nil {
		t.Fatal(err)
	}
	w.env = append(w.env, "HOOK="+srv.URL+"/hook", "MAIL="+at.Addr().String())
	return l
}

// A provider that refuses a refresh, and is as careless as to name the tokens in its answer, is told of by webhook, in a chat and by mail, with
// the page where the grant is connected again and without a token; and that it is over, once somebody has.
func TestNotifications(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	l := listen(t, w)
	startIn(t, w, `
listen: {proxy: $PROXY}
notify:
  group_wait: 0s
  targets:
    program: {type: webhook, url: "$HOOK", secret_file: hook.key}
    chat: {type: slack, url_file: hook.url}
    mail: {type: smtp, address: "$MAIL", username: wayleave, password_file: mail.key, from: gate@example.com, to: [ops@example.com], ca_file: mail-ca.pem}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
grants:
  claude: {provider: anthropic}
routes:
  - {hosts: [api.demo.test], grant: claude, connect_to: "$API"}
profiles:
  default: {grants: [claude]}
workers:
  w: {profile: default}
`, "claude")
	if out, err := w.command("wayleave", "notify", "test").CombinedOutput(); err != nil || strings.Count(string(out), " took it\n") != 3 {
		t.Fatalf("%v: %s", err, out)
	}
	l.one(t, "hook", "test:true")
	l.one(t, "chat", "wayleave notify test")
	l.one(t, "mail", "a test, nothing is wrong", "wayleave notify test")

	echoed := ""
	w.Provider.FailCalls(func(rw http.ResponseWriter, params map[string]string) bool {
		echoed = params["refresh_token"]
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(rw).Encode(map[string]string{"error": "invalid_grant", "error_description": "the refresh token " + echoed + " was revoked"})
		return true
	})
	if out, err := w.command("wayleave", "grant", "refresh", "claude").CombinedOutput(); err == nil {
		t.Fatalf("%s", out)
	}
	l.all(t, "claude needs to be connected again", "invalid_grant", "/grants/claude")
	w.Provider.FailCalls(nil)
	if !strings.HasPrefix(echoed, "demo-rt-") {
		t.Fatalf("the provider did not get a refresh token, so that it had none to name")
	}
	if out, err := w.command("wayleave", "grant", "connect", "claude").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l.all(t, "claude needs to be connected again", "over")

	// The world's files are searched when it ends, these messages too; that they could be found is seen here.
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.got["mail"]) < 3 || leaksIn("a message", []byte(l.got["mail"][1]+echoed)) == nil {
		t.Errorf("a token in a message would not be found")
	}
}
