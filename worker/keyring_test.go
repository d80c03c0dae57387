package worker

import (
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

// isPlaceholder reports whether value is the session's placeholder.
func isPlaceholder(k *Keyring, value string, s Session, credential, prefix string) bool {
	_, why := k.Recognize(value, s, credential, prefix)
	return why == ""
}

func issue(t testing.TB, k *Keyring, worker, profile string) (Session, secret.Text) {
	t.Helper()
	s, token, err := k.IssueTo("repo:acme/app", worker, profile, time.Hour, now)
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
		if got, err := k.Verify(s.ID, token); err != nil || got != s {
			t.Errorf("replica %d: Verify = %v, %v", i, got, err)
		}
		if !isPlaceholder(k, p, s, "claude", "sk-") {
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
		"id too large":    map[string]any{"current": "256", "next": "1", "keys": map[string]string{"256": good}},
		"id not a number": map[string]any{"current": "1", "keys": map[string]string{"1": good, "x": good}},
		"short key":       map[string]any{"current": "1", "keys": map[string]string{"1": "c2hvcnQ="}},
		"next missing":    map[string]any{"current": "1", "next": "2", "keys": map[string]string{"1": good}},
		"next current":    map[string]any{"current": "1", "next": "1", "keys": map[string]string{"1": good}},
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
		want  error
	}{
		{"right", s.ID, token, nil},
		{"another session's id", other.ID, token, ErrUnknown},
		{"another session's token", s.ID, otherToken, ErrUnknown},
		{"no id", "", token, ErrUnknown},
		{"no token", s.ID, secret.Text{}, ErrUnknown},
		{"another gate's", foreign.ID, foreignToken, ErrUnknown},
		{"MAC cut", s.ID, secret.New(token.Reveal()[:len(token.Reveal())-2]), ErrUnknown},
		{"no MAC", s.ID, secret.New(parts[0] + "." + parts[1] + "."), ErrUnknown},
		{"another version", s.ID, secret.New("wls2." + parts[1] + "." + parts[2]), ErrUnknown},
		{"one part more", s.ID, secret.New(token.Reveal() + ".x"), ErrUnknown},
		{"another worker", s.ID, forged(strings.Replace(string(payload), "|ci|", "|root|", 1)), ErrUnknown},
		{"longer life", s.ID, forged(string(payload) + "0"), ErrUnknown},
		{"another key id", s.ID, forged("2" + string(payload)[1:]), ErrUnknown},
		{"key id not a number", s.ID, forged("x" + string(payload)[1:]), ErrUnknown},
		{"a placeholder", s.ID, secret.New(k.Placeholder(s, "claude", "")), ErrUnknown},
	} {
		got, err := k.Verify(c.id, c.token)
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

func TestIdentity(t *testing.T) {
	s := Session{ID: "abcdefghijklmnopqrstuvwx", Worker: "ci", Profile: "default", Expires: now}
	for _, s.Subject = range []string{"", "repo:acme/app|ref:refs/heads/main", "spiffe://example.org/ä"} {
		if got, err := ParseIdentity(s.Identity()); err != nil || got != s {
			t.Errorf("there and back: %v, %v", got, err)
		}
	}
	for _, bad := range []string{
		"", "|||", "abcdefghijklmnopqrstuvwx|ci|default", "abcdefghijklmnopqrstuvwx|ci|default|", "abcdefghijklmnopqrstuvwx|ci|default|x",
		"abcdefghijklmnopqrstuvwx|ci|default|+5", "abcdefghijklmnopqrstuvwx|ci|default|05", "abcdefghijklmnopqrstuvwx|ci|default|5|6",
		"ABCDEFGHIJKLMNOPQRSTUVWX|ci|default|5", "abcdefghijklmnopqrstuvw|ci|default|5", "abcdefghijklmnopqrstuvwx|CI|default|5",
		"abcdefghijklmnopqrstuvwx||default|5", "abcdefghijklmnopqrstuvwx|ci|de fault|5", "abcdefghijklmnopqrstuvwx|ci|default|5 ",
		"abcdefghijklmnopqrstuvwx|ci|default|5|", "abcdefghijklmnopqrstuvwx|ci|default|5|YQ==", "abcdefghijklmnopqrstuvwx|ci|default|5|YR",
		"abcdefghijklmnopqrstuvwx|ci|default|5|YQ|YQ",
	} {
		if got, err := ParseIdentity(bad); err == nil {
			t.Errorf("ParseIdentity(%q) = %+v", bad, got)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("abcdefghijklmnopqrstuvwx|ci|default|1772366400")
	f.Add("abcdefghijklmnopqrstuvwx|ci|default|-1")
	f.Add("abcdefghijklmnopqrstuvwx|ci|default|5|cmVwbzphY21lL2FwcA")
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
		if _, err := k.Verify(s.ID, secret.New(in)); err == nil && in != token.Reveal() {
			t.Errorf("%q is accepted", in)
		}
	})
}
