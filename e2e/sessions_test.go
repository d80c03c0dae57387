package e2e

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const twoCredentials = `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
  github: {client_id: x, auth_style: none}
grants:
  claude: {provider: anthropic}
  github: {provider: github}
routes:
  - {hosts: [api.demo.test], grant: claude, connect_to: "$API"}
  - {hosts: [other.demo.test], grant: github, connect_to: "$API"}
profiles:
  default: {grants: [claude, github], session_ttl: 1m, max_session: 1m}
workers:
  a: {profile: default}
  b: {profile: default}
audit: {file: audit.jsonl}
`

// created is what 'wayleave session create --json' prints.
type created struct {
	worker
	session string
	ends    time.Time
	others  map[string]string // placeholders by grant
}

func (w *world) createSession(t *testing.T, args ...string) created {
	t.Helper()
	out, err := w.command("wayleave", append([]string{"session", "create", "--json"}, args...)...).Output()
	var said struct {
		Session, Proxy string
		Ends           time.Time
		CA             string `json:"ca_pem"`
		Placeholders   map[string]string
	}
	if err = errors.Join(err, json.Unmarshal(out, &said)); err != nil {
		t.Fatalf("creating a session: %v\n%s", err, out)
	}
	c := created{session: said.Session, ends: said.Ends, others: said.Placeholders}
	c.roots, c.placeholder = x509.NewCertPool(), said.Placeholders["claude"]
	if c.proxy, err = url.Parse(said.Proxy); err != nil || !c.roots.AppendCertsFromPEM([]byte(said.CA)) {
		t.Fatalf("a session that cannot be used: %v\n%s", err, out)
	}
	return c
}

// waitLine waits until the gate has printed a line with all of these in it.
func (g *gate) waitLine(parts ...string) error {
	return eventually(func() error {
		for line := range strings.Lines(g.out.String()) {
			if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
				return nil
			}
		}
		return fmt.Errorf("no line has %q", parts)
	})
}

// A placeholder is worth nothing in any other hand: each way to replay one is refused, with its own reason in the log.
func TestReplays(t *testing.T) {
	t.Parallel()
	g := start(t, twoCredentials, "claude")
	mine, second, third, theirs := g.createSession(t, "--worker", "a"), g.createSession(t, "--worker", "a"), g.createSession(t, "--worker", "a"), g.createSession(t, "--worker", "b")
	if _, err := arrived(mine.client(t, true), mine.worker); err != nil {
		t.Fatal(err)
	}
	due := map[string]string{} // what the audit is to say of each request
	// refused sends a placeholder over the connection of a session.
	refused := func(t *testing.T, c *http.Client, host, placeholder, reason, cause string) {
		t.Helper()
		req := worker{placeholder: placeholder}.request(http.MethodGet, "https://"+host+"/echo", nil)
		a, err := do(c, req)
		if err != nil || a.reason != reason || !a.explained() {
			t.Errorf("%v, %v; want %s", a, err, reason)
		}
		id := a.header.Get("X-Request-Id")
		if err := g.waitLine("request_id="+id, "reason="+reason, cause); err != nil {
			t.Error(err)
		}
		if !strings.HasPrefix(cause, "cause=") {
			cause = ""
		}
		due[id] = strings.TrimSpace("reason=" + reason + " " + cause)
	}
	t.Run("another session", func(t *testing.T) {
		refused(t, second.client(t, true), "api.demo.test", mine.placeholder, "not_your_placeholder", "cause=other_session placeholder_of="+mine.session)
	})
	t.Run("another worker's connection", func(t *testing.T) {
		refused(t, theirs.client(t, true), "api.demo.test", mine.placeholder, "not_your_placeholder", "cause=other_worker placeholder_of="+mine.session)
	})
	t.Run("another host", func(t *testing.T) {
		refused(t, mine.client(t, true), "other.demo.test", mine.placeholder, "not_your_placeholder", "cause=other_credential placeholder_of="+mine.session)
		refused(t, mine.client(t, true), "api.demo.test", mine.others["github"], "not_your_placeholder", "cause=other_credential placeholder_of="+mine.session)
	})
	t.Run("one character altered", func(t *testing.T) {
		c := mine.client(t, true)
		for i := range mine.placeholder {
			with := "a"
			if mine.placeholder[i] == 'a' {
				with = "b"
			}
			refused(t, c, "api.demo.test", mine.placeholder[:i]+with+mine.placeholder[i+1:], "not_your_placeholder", "cause=altered")
		}
	})
	t.Run("a key that nobody has", func(t *testing.T) {
		at := len(second.placeholder) - 66
		refused(t, mine.client(t, true), "api.demo.test", second.placeholder[:at]+"74"+second.placeholder[at+2:], "not_your_placeholder", "cause=unknown_key")
	})
	t.Run("after revocation", func(t *testing.T) {
		open := third.client(t, true)
		if _, err := arrived(open, third.worker); err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		if out, err := g.command("wayleave", "session", "revoke", third.session).CombinedOutput(); err != nil || !strings.Contains(string(out), "1 session was live") {
			t.Fatalf("%v: %s", err, out)
		}
		if err := eventually(func() error {
			if _, err := arrived(open, third.worker); err == nil || !strings.Contains(err.Error(), "session_revoked") {
				return fmt.Errorf("on its open connection: %w", err)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		t.Logf("refused %v after the command was given", time.Since(before))
		refused(t, open, "api.demo.test", third.placeholder, "session_revoked", "session="+third.session)
		refused(t, second.client(t, true), "api.demo.test", third.placeholder, "not_your_placeholder", "cause=other_session placeholder_of="+third.session)
		if _, err := arrived(third.client(t, true), third.worker); err == nil || !strings.Contains(err.Error(), "Proxy Authentication Required") {
			t.Errorf("a new connection: %v", err)
		}
	})
	t.Run("after expiry", func(t *testing.T) {
		open := mine.client(t, true)
		if _, err := arrived(open, mine.worker); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(theirs.ends) - 10*time.Second) // which ends last
		busy := theirs.keepBusy(t, "api.demo.test")
		g.awaitFast(t, 20)
		busy.answered(t, false, 20)
		busy.stop()
		if late := busy.last.Sub(theirs.ends); late > staleness || !strings.Contains(busy.other, "session_expired") {
			t.Errorf("in the fast lane it was served for %v after its end, then %s", late, busy.other)
		}
		refused(t, open, "api.demo.test", mine.placeholder, "session_expired", "session="+mine.session)
		if _, err := arrived(mine.client(t, true), mine.worker); err == nil || !strings.Contains(err.Error(), "Proxy Authentication Required") {
			t.Errorf("a new connection: %v", err)
		}
	})
	if err := eventually(func() error {
		said := map[string]string{}
		for _, l := range auditLines(t, g.saved("audit.jsonl")) {
			if _, asked := due[l.Request]; asked {
				said[l.Request] = "reason=" + l.Reason
				if l.Cause != "" {
					said[l.Request] += " cause=" + l.Cause
				}
				if l.PlaceholderOf != "" && l.Cause != "altered" { // where what was altered is not what says whose it is
					said[l.Request] += " placeholder_of=" + l.PlaceholderOf
				}
			}
		}
		if diff := cmp.Diff(due, said); diff != "" {
			return errors.New(diff)
		}
		return nil
	}); err != nil {
		t.Errorf("the audit: %v", err)
	}
	if g.API.Saw(placeholderMarker) || g.API.Saw(strings.TrimPrefix(mine.placeholder, "sk-ant-oat01-")[14:]) {
		t.Error("a placeholder, or what is left of one, reached the API")
	}
}

// Gates share what is known of sessions: each serves what another issued and renewed, and refuses what an operator revoked.
func TestSessionsAcrossReplicas(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.config = strings.Replace(fleetConfig, "default: {grants: [claude]}", "default: {grants: [claude], session_ttl: 1m}", 1)
	a, b := f.replica(t), f.replica(t)
	f.connect(t, time.Hour)
	// at is the session at another gate than the one that issued it.
	at := func(g *replica, c created) worker {
		w := c.worker
		elsewhere := *w.proxy
		elsewhere.Host = g.getenv("PROXY")
		w.proxy = &elsewhere
		return w
	}
	served := func(t *testing.T, c created) {
		t.Helper()
		for i, g := range []*replica{a, b} {
			w := at(g, c)
			if _, err := arrived(w.client(t, true), w); err != nil {
				t.Errorf("replica %d: %v", i, err)
			}
		}
	}
	renew := func(t *testing.T, g *replica, c created, method, path string, want int) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+g.getenv("PROXY")+"/.wayleave/v1/sessions"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		password, _ := c.proxy.User.Password()
		req.SetBasicAuth(c.proxy.User.Username(), password)
		if r, err := do(http.DefaultClient, req); err != nil || r.status != want {
			t.Errorf("%s %s: %v, %v; want %d", method, path, r, err, want)
		}
	}

	renewed := a.createSession(t)
	served(t, renewed)
	renew(t, a, renewed, http.MethodPost, "/renew", 200)
	command := f.start(t, a.world, "long.log", "wayleave", "run", "--", "sh", "-c",
		`sleep 75; curl -sS -H "Authorization: Bearer $ANTHROPIC_AUTH_TOKEN" https://api.demo.test/echo`)

	t.Run("listed", func(t *testing.T) {
		if err := eventually(func() error {
			if out := f.must(t, "wayleave", "session", "list", "--worker", "w"); !strings.Contains(out, renewed.session) || !strings.Contains(out, " default ") {
				return fmt.Errorf("listed:\n%s", out)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})

	t.Run("revoked", func(t *testing.T) {
		one, other := a.createSession(t), b.createSession(t)
		one1, one2 := at(a, one), at(b, one)
		open := []*http.Client{one1.client(t, true), one2.client(t, false)}
		served(t, other)
		for i, w := range []worker{one1, one2} {
			if _, err := arrived(open[i], w); err != nil {
				t.Fatal(err)
			}
		}
		before := time.Now()
		f.must(t, "wayleave", "session", "revoke", one.session)
		for i, c := range open {
			if err := eventually(func() error {
				if _, err := arrived(c, one1); err == nil || !strings.Contains(err.Error(), "session_revoked") {
					return fmt.Errorf("still served, or refused otherwise: %w", err)
				}
				return nil
			}); err != nil {
				t.Errorf("replica %d: %v", i, err)
			}
			t.Logf("replica %d refuses %v after the command was given", i, time.Since(before))
		}
		served(t, other)
		renew(t, b, one, http.MethodPost, "/renew", 403)
	})

	t.Run("ended by its worker", func(t *testing.T) {
		c := a.createSession(t)
		served(t, c)
		renew(t, a, c, http.MethodDelete, "", 204)
		renew(t, a, c, http.MethodPost, "/renew", 403)
		w := at(b, c)
		if err := eventually(func() error {
			if _, err := arrived(w.client(t, true), w); err == nil {
				return errors.New("another gate still serves it")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})

	t.Run("Vault is away", func(t *testing.T) {
		c := a.createSession(t)
		f.must(t, "bao", "operator", "seal")
		served(t, c)
		served(t, renewed)
		renew(t, a, c, http.MethodPost, "/renew", 200)
		fresh := b.createSession(t)
		served(t, fresh)
		f.must(t, "bao", "operator", "unseal", f.unseal)
		if err := eventually(func() error {
			if out, err := f.command("wayleave", "session", "list").Output(); err != nil || !strings.Contains(string(out), fresh.session) {
				return fmt.Errorf("not written down yet: %w\n%s", err, out)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})

	t.Run("keys rotated", func(t *testing.T) {
		l := startLoad(t, 5, a, b)
		before := a.createSession(t)
		if out := f.must(t, "wayleave", "session", "rotate-keys"); !strings.Contains(out, "live sessions go on") {
			t.Errorf("said %s", out)
		}
		after := b.createSession(t)
		l.more(t, 50)
		for range 2 { // before and after the other gate has heard of it
			served(t, before)
			served(t, after)
			served(t, renewed)
			renew(t, b, before, http.MethodPost, "/renew", 200)
			if err := eventually(func() error {
				if strings.Contains(a.out.String()+b.out.String(), "session keys rotated") {
					return nil
				}
				return errors.New("no gate says that it rotated the keys")
			}); err != nil {
				t.Error(err)
			}
		}
		l.stop(t)
	})

	t.Run("renewed", func(t *testing.T) {
		renew(t, b, renewed, http.MethodPost, "/renew", 200) // by the other gate, under another key
		<-command.done
		if out := command.out.String(); !strings.Contains(out, "authorization_sha256") || strings.Contains(out, "wayleave: the session") {
			t.Errorf("a command that runs longer than its first session: %s", out)
		}
		if !time.Now().After(renewed.ends) {
			t.Error("the first end is to come: the test is not looking")
		}
	})

	t.Run("all end", func(t *testing.T) {
		one := a.createSession(t)
		served(t, one)
		if out := f.must(t, "wayleave", "session", "rotate-keys", "--end-sessions", "--yes"); !strings.Contains(out, "no earlier one is accepted") {
			t.Errorf("said %s", out)
		}
		for i, g := range []*replica{a, b} {
			w := at(g, one)
			if err := eventually(func() error {
				if _, err := arrived(w.client(t, true), w); err == nil {
					return errors.New("still served")
				}
				fresh := g.createSession(t)
				if _, err := arrived(fresh.client(t, true), fresh.worker); err != nil {
					return err
				}
				return nil
			}); err != nil {
				t.Errorf("replica %d: %v", i, err)
			}
		}
		if err := eventually(func() error {
			fresh := a.createSession(t)
			w := at(b, fresh)
			_, err := arrived(w.client(t, true), w)
			return err
		}); err != nil {
			t.Errorf("a gate does not know the other's new key: %v", err)
		}
	})
}
