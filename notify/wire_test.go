package notify

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"mime/quotedprintable"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"wayleave/oauth"
	"wayleave/secret"
	"wayleave/vault/vaulttest"
	"wayleave/webhook"
)

// wire is a notifier with targets that listen: a webhook that verifies signatures, a chat, and a mail server that wants a log-in under
// TLS. Its clock is the test's.
type wire struct {
	t     *testing.T
	see   seen
	mail  *mailServer
	busy  int // so many of the next webhooks are answered with 503; guarded by mu
	mu    sync.Mutex
	skew  time.Duration
	hooks []Message
	ids   []string // of all calls of the webhook
	chats []string
}

func newWire(t *testing.T) *wire {
	const key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
	w := &wire{t: t, mail: newMailServer(t, false, true)}
	verifier, err := standardwebhooks.NewWebhook(key)
	if err != nil {
		t.Fatal(err)
	}
	hook := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var got struct{ Data Message }
		if err := verifier.Verify(body, r.Header); err != nil || json.Unmarshal(body, &got) != nil {
			t.Errorf("%v: %s", err, body)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ids = append(w.ids, r.Header.Get("Webhook-Id"))
		if w.busy > 0 {
			w.busy--
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.hooks = append(w.hooks, got.Data)
	}))
	t.Cleanup(hook.Close)
	chat := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var body map[string]string
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || len(body) != 1 {
			t.Errorf("%v: %v", err, body)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.chats = append(w.chats, body["text"])
	}))
	t.Cleanup(chat.Close)
	signing, err := webhook.ParseKey(secret.New(key))
	if err != nil {
		t.Fatal(err)
	}
	client := oauth.NewHTTPClient(nil)
	n := New(Options{Holder: "a", Docs: vaulttest.NewMemory(), Alerts: w.see.get, Timing: timing, Now: w.now, Targets: []Target{
		{Name: "program", Sender: Webhook(webhook.New(secret.New(hook.URL), signing, client, nil))},
		{Name: "chat", Sender: Slack(webhook.New(secret.New(chat.URL), webhook.Key{}, client, nil))},
		{Name: "mail", Sender: SMTP{
			Address: w.mail.address, Encryption: StartTLS, TLS: &tls.Config{RootCAs: w.mail.roots, ServerName: "example.com"}, Username: "wayleave", Password: secret.New("correct"),
			From: "gate@example.com", To: []string{"a@example.com"},
		}},
	}})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); n.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	return w
}

func (w *wire) now() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return time.Now().Add(w.skew) }

func (w *wire) later(d time.Duration) { w.mu.Lock(); defer w.mu.Unlock(); w.skew += d }

// mails are the messages that the mail server has, as subject and body.
func (w *wire) mails() (all []string) {
	w.mail.mu.Lock()
	defer w.mail.mu.Unlock()
	for i := 2; i < len(w.mail.got); i += 3 { // after sender and recipient
		m, err := mail.ReadMessage(strings.NewReader(w.mail.got[i]))
		if err != nil {
			w.t.Fatal(err)
		}
		body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, m.Header.Get("Subject")+"\n"+strings.ReplaceAll(string(body), "\r\n", "\n"))
	}
	return all
}

// hears waits until the nth message is at every target, and compares it. The clock goes on while nothing is there, as time does.
func (w *wire) hears(n int, step time.Duration, want string) {
	w.t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(time.Minute); ; {
		w.mu.Lock()
		hooks, chats := slices.Clone(w.hooks), slices.Clone(w.chats)
		w.mu.Unlock()
		mails := w.mails()
		if len(hooks) >= n && len(chats) >= n && len(mails) >= n {
			m := hooks[n-1]
			if got := say(m); got != want {
				w.t.Fatalf("message %d is %q, want %q", n, got, want)
			}
			if got := slackText(m); chats[n-1] != got {
				w.t.Errorf("the chat has %q, want %q", chats[n-1], got)
			}
			if got := m.Subject() + "\n" + m.Text(); strings.TrimSpace(mails[n-1]) != strings.TrimSpace(got) {
				w.t.Errorf("the mail is %q, want %q", mails[n-1], got)
			}
			return
		}
		select {
		case <-tick.C:
		case <-late:
			w.t.Fatalf("no message %d (%s): the webhook has %d, the chat %d, the mail server %d", n, want, len(hooks), len(chats), len(mails))
		}
		w.later(step)
	}
}

// One cause is one message; what lasts is told again, ever less often; what is over is said to be, and then nothing more: by a webhook, in
// a chat and by mail, each over its own connection. A message that is sent again is the same.
func TestOverTheWire(t *testing.T) {
	w := newWire(t)
	about := func(key string) Alert {
		a := trouble(key, 0)
		a.Title, a.Text, a.Next, a.URL = key+" is in trouble", "Nobody is amused.", "run `wayleave doctor`", "https://gate.example.com/"+key
		return a
	}
	x, y := about("grant/x/s"), about("grant/y/s")
	w.mu.Lock()
	w.busy = 1
	w.mu.Unlock()
	w.see.set(x, y)
	w.hears(1, time.Second, "+grant/x/s +grant/y/s")
	w.mu.Lock()
	if len(w.ids) != 2 || w.ids[0] != w.ids[1] || w.ids[0] == "" {
		t.Errorf("sent again, a message has the ids %q", w.ids)
	}
	w.mu.Unlock()

	// What is told is not told again with what is new, until its time has come: an hour, and then two.
	n := 1
	told := func(want string) { t.Helper(); n++; w.hears(n, time.Second, want) }
	news := 0
	another := func() string { // a trouble of a moment, which shows that nothing else was to be told
		t.Helper()
		news++
		key := fmt.Sprintf("ca/%d", news)
		w.see.set(x, y, about(key))
		return key
	}
	w.later(30 * time.Minute)
	key := another()
	told("+" + key + " ~2")
	w.see.set(x, y)
	told("-" + key + " ~2")
	w.later(35 * time.Minute)
	told("+grant/x/s +grant/y/s")
	w.later(time.Hour + 30*time.Minute)
	key = another()
	told("+" + key + " ~2")
	w.see.set(x, y)
	told("-" + key + " ~2")
	w.later(30 * time.Minute)
	told("+grant/x/s +grant/y/s")

	// One is over: it is said, and only the other goes on.
	w.see.set(y)
	told("-grant/x/s ~1")
	w.later(4 * time.Hour)
	told("+grant/y/s")
	w.see.set()
	told("-grant/y/s")
	w.later(30 * 24 * time.Hour)
	w.see.set(about("ca/last"))
	told("+ca/last")
}
