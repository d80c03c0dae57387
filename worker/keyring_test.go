package worker

import (
	"context"
	"encoding/base64"
	"errors"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newKeyring(t testing.TB) *Keyring {
	t.Helper()
	k, err := LoadKeyring(t.Context(), vaulttest.NewMemory())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func issue(t testing.TB, k *Keyring, worker, profile string) (Session, secret.Text) {
	t.Helper()
	s, token, err := k.Issue(worker, profile, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	return s, token
}

// Replicas that start together must accept each other's sessions from the first one on.
func TestReplicasShareOneRing(t *testing.T) {
	docs := vaulttest.NewMemory()
	const replicas = 8
	rings := make([]*Keyring, replicas)
	var wg sync.WaitGroup
	for i := range rings {
		wg.Go(func() {
			k, err := LoadKeyring(t.Context(), docs)
			if err != nil {
				t.Error(err)
			}
			rings[i] = k
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	s, token := issue(t, rings[0], "ci", "default")
	p := rings[0].Placeholder(s, "claude", "sk-")
	for i, k := range rings {
		if got, err := k.Verify(s.ID, token, now); err != nil || got != s {
			t.Errorf("replica %d: Verify = %v, %v", i, got, err)
		}
		if !k.IsPlaceholder(p, s, "claude", "sk-") {
			t.Errorf("replica %d does not know the placeholder", i)
		}
	}
}

func TestLoadKeyringAfterASoftDelete(t *testing.T) {
	docs := vaulttest.NewMemory()
	if _, err := LoadKeyring(t.Context(), docs); err != nil {
		t.Fatal(err)
	}
	docs.SoftDelete(keyPath)
	if _, err := LoadKeyring(t.Context(), docs); err != nil {
		t.Fatal(err)
	}
}

// A store that fails, or a document that is not a ring, must never lead to a new ring: that would end every session.
func TestLoadKeyringKeepsWhatItCannotRead(t *testing.T) {
	good := base64.StdEncoding.EncodeToString(newKey())
	for name, doc := range map[string]any{
		"empty":           map[string]any{},
		"no current":      map[string]any{"keys": map[string]string{"1": good}},
		"current missing": map[string]any{"current": "2", "keys": map[string]string{"1": good}},
		"current zero":    map[string]any{"current": "0", "keys": map[string]string{"0": good}},
		"id too large":    map[string]any{"current": "256", "keys": map[string]string{"256": good}},
		"id not a number": map[string]any{"current": "1", "keys": map[string]string{"1": good, "x": good}},
		"short key":       map[string]any{"current": "1", "keys": map[string]string{"1": "c2hvcnQ="}},
		"not base64":      map[string]any{"current": "1", "keys": map[string]string{"1": "%%%"}},
	} {
		t.Run(name, func(t *testing.T) {
			docs := vaulttest.NewMemory()
			if _, err := docs.Put(t.Context(), keyPath, doc, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadKeyring(t.Context(), docs); err == nil {
				t.Error("loaded")
			}
			if v, err := docs.Version(t.Context(), keyPath); v != 1 || err != nil {
				t.Errorf("the document is at version %d (%v): it was overwritten", v, err)
			}
		})
	}
	t.Run("unavailable", func(t *testing.T) {
		docs := vaulttest.NewMemory()
		docs.Inject(func(op, _ string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
		if _, err := LoadKeyring(t.Context(), docs); !errors.Is(err, vault.ErrUnavailable) {
			t.Errorf("err = %v", err)
		}
	})
}

func TestRotate(t *testing.T) {
	docs := vaulttest.NewMemory()
	load := func() *Keyring {
		k, err := LoadKeyring(t.Context(), docs)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	rotating, lagging := load(), load()
	rotate := func() {
		if err := rotating.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	first, firstToken := issue(t, rotating, "ci", "default")
	placeholder := rotating.Placeholder(first, "claude", "")

	rotate()
	second, secondToken := issue(t, rotating, "ci", "default")
	if _, err := lagging.Verify(second.ID, secondToken, now); err != nil {
		t.Errorf("a replica that has not reloaded refuses a session made with the next key: %v", err)
	}
	if _, err := rotating.Verify(first.ID, firstToken, now); err != nil {
		t.Errorf("a session of the previous key: %v", err)
	}
	if !rotating.IsPlaceholder(placeholder, first, "claude", "") {
		t.Error("a placeholder of the previous key is not recognised")
	}

	rotate()
	if _, err := rotating.Verify(first.ID, firstToken, now); !errors.Is(err, ErrUnknown) {
		t.Errorf("a session two keys old: %v", err)
	}
	if rotating.IsPlaceholder(placeholder, first, "claude", "") {
		t.Error("a placeholder two keys old is recognised")
	}
	if err := lagging.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := lagging.Verify(first.ID, firstToken, now); !errors.Is(err, ErrUnknown) {
		t.Errorf("after reloading, a session two keys old: %v", err)
	}
	for range 600 { // ids wrap around and the ring stays small
		rotate()
	}
	if n := len(rotating.keys.Load().byID); n != 3 {
		t.Errorf("the ring has %d keys", n)
	}
	s, token := issue(t, rotating, "ci", "default")
	if _, err := rotating.Verify(s.ID, token, now); err != nil {
		t.Error(err)
	}
}

// Two replicas that rotate at the same moment make one step and agree on it.
func TestRotateTogether(t *testing.T) {
	docs := vaulttest.NewMemory()
	a, err := LoadKeyring(t.Context(), docs)
	if err != nil {
		t.Fatal(err)
	}
	b, err := LoadKeyring(t.Context(), docs)
	if err != nil {
		t.Fatal(err)
	}
	raced := false
	docs.Inject(func(op, _ string) vaulttest.Fault {
		if op == "put" && !raced {
			raced = true
			if err := b.Rotate(context.Background()); err != nil {
				t.Error(err)
			}
		}
		return vaulttest.Fault{}
	})
	if err := a.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if x, y := a.keys.Load().current, b.keys.Load().current; x != 2 || y != 2 {
		t.Errorf("current keys are %d and %d, want 2 and 2", x, y)
	}
}

func TestIssueRefusesNames(t *testing.T) {
	k := newKeyring(t)
	for _, name := range []string{"", "CI", "a|b", "-a", "a b", "ä", strings.Repeat("a", 64)} {
		if _, _, err := k.Issue(name, "default", time.Hour, now); err == nil {
			t.Errorf("worker %q accepted", name)
		}
		if _, _, err := k.Issue("ci", name, time.Hour, now); err == nil {
			t.Errorf("profile %q accepted", name)
		}
	}
}

func TestVerify(t *testing.T) {
	k := newKeyring(t)
	s, token := issue(t, k, "ci", "default")
	other, otherToken := issue(t, k, "ci", "default")
	foreign, foreignToken := issue(t, newKeyring(t), "ci", "default")
	parts := strings.Split(token.Reveal(), ".")
	payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
	forged := func(payload string) secret.Text {
		return secret.New("wls1." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + "." + parts[2])
	}
	for _, c := range []struct {
		name  string
		id    string
		token secret.Text
		at    time.Time
		want  error
	}{
		{"right", s.ID, token, now, nil},
		{"last moment", s.ID, token, s.Expires.Add(-1), nil},
		{"over", s.ID, token, s.Expires, ErrExpired},
		{"another session's id", other.ID, token, now, ErrUnknown},
		{"another session's token", s.ID, otherToken, now, ErrUnknown},
		{"no id", "", token, now, ErrUnknown},
		{"no token", s.ID, secret.Text{}, now, ErrUnknown},
		{"another gate's", foreign.ID, foreignToken, now, ErrUnknown},
		{"MAC cut", s.ID, secret.New(token.Reveal()[:len(token.Reveal())-2]), now, ErrUnknown},
		{"no MAC", s.ID, secret.New(parts[0] + "." + parts[1] + "."), now, ErrUnknown},
		{"another version", s.ID, secret.New("wls2." + parts[1] + "." + parts[2]), now, ErrUnknown},
		{"one part more", s.ID, secret.New(token.Reveal() + ".x"), now, ErrUnknown},
		{"another worker", s.ID, forged(strings.Replace(string(payload), "|ci|", "|root|", 1)), now, ErrUnknown},
		{"longer life", s.ID, forged(string(payload) + "0"), now, ErrUnknown},
		{"another key id", s.ID, forged("2" + string(payload)[1:]), now, ErrUnknown},
		{"key id not a number", s.ID, forged("x" + string(payload)[1:]), now, ErrUnknown},
		{"a placeholder", s.ID, secret.New(k.Placeholder(s, "claude", "")), now, ErrUnknown},
	} {
		got, err := k.Verify(c.id, c.token, c.at)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: err = %v, want %v", c.name, err, c.want)
		}
		if c.want == nil && got != s || c.want != nil && got != (Session{}) {
			t.Errorf("%s: session = %+v", c.name, got)
		}
	}
}

// Clients put these into URLs, headers and shells, some without escaping.
func TestAlphabet(t *testing.T) {
	k := newKeyring(t)
	s, token := issue(t, k, strings.Repeat("w", 63), "a.b_c-d")
	plain := regexp.MustCompile(`^[A-Za-z0-9._~-]+$`)
	for what, v := range map[string]string{"id": s.ID, "token": token.Reveal(), "placeholder": k.Placeholder(s, "claude", "sk-ant-oat01-")} {
		if !plain.MatchString(v) {
			t.Errorf("the %s holds a character outside [A-Za-z0-9._~-]", what)
		}
	}
}

func TestPlaceholder(t *testing.T) {
	k := newKeyring(t)
	s, _ := issue(t, k, "ci", "default")
	other, _ := issue(t, k, "ci", "default")
	p := k.Placeholder(s, "claude", "sk-ant-oat01-")
	if !strings.HasPrefix(p, "sk-ant-oat01-"+Marker) {
		t.Errorf("shape of the placeholder: %.30s…", p)
	}
	if again := k.Placeholder(s, "claude", "sk-ant-oat01-"); again != p {
		t.Error("the placeholder is not the same the second time")
	}
	for _, c := range []struct {
		name, value        string
		session            Session
		credential, prefix string
		want               bool
	}{
		{"right", p, s, "claude", "sk-ant-oat01-", true},
		{"another session", p, other, "claude", "sk-ant-oat01-", false},
		{"another worker's", p, Session{ID: s.ID, Worker: "laptop"}, "claude", "sk-ant-oat01-", false},
		{"another credential", p, s, "github", "sk-ant-oat01-", false},
		{"another prefix", p, s, "claude", "ghp_", false},
		{"no prefix", strings.TrimPrefix(p, "sk-ant-oat01-"), s, "claude", "sk-ant-oat01-", false},
		{"one more", p + "a", s, "claude", "sk-ant-oat01-", false},
		{"one less", p[:len(p)-1], s, "claude", "sk-ant-oat01-", false},
		{"last changed", p[:len(p)-1] + "!", s, "claude", "sk-ant-oat01-", false},
		{"space behind", p + " ", s, "claude", "sk-ant-oat01-", false},
		{"new line inside", p[:30] + "\n" + p[30:], s, "claude", "sk-ant-oat01-", false},
		{"upper case", strings.ToUpper(p), s, "claude", "sk-ant-oat01-", false},
		{"marker only", "sk-ant-oat01-" + Marker, s, "claude", "sk-ant-oat01-", false},
		{"marker and key id", p[:len("sk-ant-oat01-")+len(Marker)+2], s, "claude", "sk-ant-oat01-", false},
		{"empty", "", s, "claude", "sk-ant-oat01-", false},
		{"empty session", k.Placeholder(Session{}, "claude", ""), s, "claude", "", false},
	} {
		if got := k.IsPlaceholder(c.value, c.session, c.credential, c.prefix); got != c.want {
			t.Errorf("%s: IsPlaceholder = %v, want %v", c.name, got, c.want)
		}
	}
	// The boundaries of session id, worker and credential are inside what the MAC covers.
	if k.Placeholder(Session{ID: s.ID, Worker: "a"}, "bc", "") == k.Placeholder(Session{ID: s.ID, Worker: "ab"}, "c", "") {
		t.Error("worker and credential run into each other")
	}
}

// Where only a worker is known, its placeholder says which of its sessions it is of, and until when that lasts.
func TestPlaceholderOf(t *testing.T) {
	k := newKeyring(t)
	s, _ := issue(t, k, "ci", "default")
	p := k.Placeholder(s, "claude", "sk-")
	got, ok := k.PlaceholderOf(p, "ci", "claude", "sk-")
	if want := (Session{ID: s.ID, Worker: "ci", Expires: s.Expires}); !ok || got != want {
		t.Errorf("got %+v, %v; want %+v", got, ok, want)
	}
	for name, c := range map[string]struct{ value, worker, credential, prefix string }{
		"another worker":     {p, "laptop", "claude", "sk-"},
		"no worker":          {p, "", "claude", "sk-"},
		"another credential": {p, "ci", "github", "sk-"},
		"another prefix":     {p, "ci", "claude", ""},
		"one more":           {p + "a", "ci", "claude", "sk-"},
		"one less":           {p[:len(p)-1], "ci", "claude", "sk-"},
		"another end":        {"sk-" + Marker + "aaaa" + p[len("sk-")+len(Marker)+4:], "ci", "claude", "sk-"},
		"another ring's":     {newKeyring(t).Placeholder(s, "claude", "sk-"), "ci", "claude", "sk-"},
		"nothing":            {"", "ci", "claude", "sk-"},
	} {
		if _, ok := k.PlaceholderOf(c.value, c.worker, c.credential, c.prefix); ok {
			t.Errorf("%s: accepted", name)
		}
	}
	if end := endOf("0189xxxxxxxxxxxx"); !end.IsZero() { // no base32
		t.Errorf("an id that is none ends at %v", end)
	}
}

func TestIdentity(t *testing.T) {
	s := Session{ID: "0123456789abcdef", Worker: "ci", Profile: "default", Expires: now}
	if got, err := ParseIdentity(s.Identity()); err != nil || got != s {
		t.Errorf("there and back: %v, %v", got, err)
	}
	for _, bad := range []string{
		"", "|||", "0123456789abcdef|ci|default", "0123456789abcdef|ci|default|", "0123456789abcdef|ci|default|x",
		"0123456789abcdef|ci|default|+5", "0123456789abcdef|ci|default|05", "0123456789abcdef|ci|default|5|6",
		"0123456789ABCDEF|ci|default|5", "0123456789abcde|ci|default|5", "0123456789abcdef|CI|default|5",
		"0123456789abcdef||default|5", "0123456789abcdef|ci|de fault|5", "0123456789abcdef|ci|default|5 ",
	} {
		if got, err := ParseIdentity(bad); err == nil {
			t.Errorf("ParseIdentity(%q) = %+v", bad, got)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("0123456789abcdef|ci|default|1772366400")
	f.Add("0123456789abcdef|ci|default|-1")
	f.Add("|||")
	f.Fuzz(func(t *testing.T, in string) {
		if s, err := ParseIdentity(in); err == nil && s.Identity() != in {
			t.Errorf("%q was accepted and is written as %q", in, s.Identity())
		}
	})
}

func FuzzVerify(f *testing.F) {
	k := newKeyring(f)
	s, token := issue(f, k, "ci", "default")
	f.Add(token.Reveal())
	f.Add("wls1..")
	f.Add("wls1.MQ.MQ")
	f.Fuzz(func(t *testing.T, in string) {
		if _, err := k.Verify(s.ID, secret.New(in), now); err == nil && in != token.Reveal() {
			t.Errorf("%q is accepted", in)
		}
	})
}

func FuzzIsPlaceholder(f *testing.F) {
	k := newKeyring(f)
	s, _ := issue(f, k, "ci", "default")
	p := k.Placeholder(s, "claude", "sk-")
	f.Add(p)
	f.Add("sk-" + Marker + "ae")
	f.Fuzz(func(t *testing.T, in string) {
		if k.IsPlaceholder(in, s, "claude", "sk-") && in != p {
			t.Errorf("%q is accepted", in)
		}
	})
}
