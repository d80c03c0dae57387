package worker

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// testRotation is one suite over both stores: gates with their rights, and an operator with theirs.
func testRotation(t *testing.T, gates, operator Documents) {
	load := func() *Keyring {
		k, err := LoadKeyring(t.Context(), gates)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	rotating, lagging := load(), load()
	at := now
	tend := func(k *Keyring, want bool) {
		t.Helper()
		if rotated, err := k.Tend(t.Context(), at); err != nil || rotated != want {
			t.Fatalf("rotated %v, %v; want %v", rotated, err, want)
		}
	}
	ask := func(endSessions bool) (id string) {
		t.Helper()
		id, err := AskRotation(t.Context(), operator, endSessions, at)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	done := func(id string, want bool) {
		t.Helper()
		if s, err := ReadKeyStatus(t.Context(), operator); err != nil || (s.Rotated == id) != want {
			t.Errorf("%+v, %v; want it done: %v", s, err, want)
		}
	}
	type held struct {
		s           Session
		token       secret.Text
		placeholder string
	}
	hold := func(k *Keyring) held {
		s, token := issue(t, k, "ci", "default")
		return held{s, token, k.Placeholder(s, "claude", "")}
	}
	good := func(what string, k *Keyring, h held, want bool) {
		t.Helper()
		_, err := k.Verify(h.s.ID, h.token)
		if (err == nil) != want {
			t.Errorf("%s: the token: %v", what, err)
		}
		_, why := k.Recognize(h.placeholder, h.s, "claude", "")
		if (why == "") != want {
			t.Errorf("%s: the placeholder: %q", what, why)
		}
		if _, why := k.Recognize(h.placeholder, Session{Worker: "ci"}, "claude", ""); !want && why != UnknownKey {
			t.Errorf("%s: the placeholder: %q, want unknown_key", what, why)
		}
	}

	tend(rotating, false)
	first := hold(rotating)
	id := ask(false)
	done(id, false)
	tend(rotating, true)
	done(id, true)
	tend(rotating, false)
	second := hold(rotating)
	if first.placeholder == rotating.Placeholder(first.s, "claude", "") {
		t.Error("the key is the same")
	}
	good("a replica that has not heard of the rotation", lagging, second, true)
	good("a session of the earlier key", rotating, first, true)
	tend(lagging, false)
	good("a session of the earlier key, there", lagging, first, true)

	// A second one waits until every replica knows the key that is next.
	at = at.Add(rotationGap - time.Second)
	id = ask(false)
	tend(rotating, false)
	done(id, false)
	at = at.Add(time.Second)
	tend(lagging, true)
	done(id, true)
	tend(rotating, false)
	third := hold(lagging)
	for _, h := range []held{first, second, third} {
		good("after two rotations", rotating, h, true)
	}
	if s, err := ReadKeyStatus(t.Context(), operator); err != nil || len(s.Accepted) != 3 || !slices.Contains(s.Accepted, s.Current) || !s.At.Equal(at) {
		t.Errorf("status %+v, %v", s, err)
	}

	// Keys are forgotten when no session of theirs can live any more.
	at = at.Add(LongestSession - 30*time.Second)
	ask(false)
	tend(rotating, true)
	good("the first key, after its sessions have ended", rotating, first, false)
	good("the second key", rotating, second, true)

	// What somebody else may know is forgotten at once, the next key with it.
	next := hold(rotating.ahead())
	good("made with the next key", lagging.reloaded(t), next, true)
	id = ask(true)
	tend(lagging, true)
	done(id, true)
	tend(rotating, false)
	for _, h := range []held{second, third, next} {
		good("after the end of all sessions", lagging, h, false)
		good("after the end of all sessions, at another", rotating, h, false)
	}
	good("one issued since", rotating, hold(lagging), true)

	// A request that nobody carried out in time is not carried out.
	id = ask(false)
	at = at.Add(rotationLife + time.Second)
	tend(rotating, false)
	done(id, false)
}

// ahead is a ring that issues with the key that is to be next.
func (k *Keyring) ahead() *Keyring {
	next := *k.keys.Load()
	next.current = next.next
	out := &Keyring{docs: k.docs}
	out.keys.Store(&next)
	return out
}

func (k *Keyring) reloaded(t *testing.T) *Keyring {
	t.Helper()
	if err := k.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	return k
}

func TestRotation(t *testing.T) {
	docs := vaulttest.NewMemory()
	testRotation(t, docs, docs)
}

func TestRotationOverOpenBao(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	testRotation(t, s.Gateway, s.Operator)
	if _, err := LoadKeyring(t.Context(), s.Operator); !errors.Is(err, vault.ErrDenied) {
		t.Errorf("an operator reads keys: %v", err)
	}
}

// Two replicas that hear of one request make one step and agree on it.
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
	if _, err := AskRotation(t.Context(), docs, false, now); err != nil {
		t.Fatal(err)
	}
	raced := false
	docs.Inject(func(op, path string) vaulttest.Fault {
		if op == "put" && path == keyPath && !raced {
			raced = true
			if rotated, err := b.Tend(context.Background(), now); err != nil || !rotated {
				t.Error(rotated, err)
			}
		}
		return vaulttest.Fault{}
	})
	if rotated, err := a.Tend(t.Context(), now); err != nil || rotated {
		t.Error(rotated, err)
	}
	if x, y := a.keys.Load().current, b.keys.Load().current; x != 2 || y != 2 {
		t.Errorf("current keys are %d and %d, want 2 and 2", x, y)
	}
}

// A gate that dies after a rotation, before it could say so, leaves that to another.
func TestRotationIsSaidByAnother(t *testing.T) {
	docs := vaulttest.NewMemory()
	a, err := LoadKeyring(t.Context(), docs)
	if err != nil {
		t.Fatal(err)
	}
	id, err := AskRotation(t.Context(), docs, false, now)
	if err != nil {
		t.Fatal(err)
	}
	docs.Inject(func(op, path string) vaulttest.Fault {
		if path == keyStatusPath {
			return vaulttest.Fault{Before: vault.ErrUnavailable}
		}
		return vaulttest.Fault{}
	})
	if rotated, err := a.Tend(t.Context(), now); !rotated || !errors.Is(err, vault.ErrUnavailable) {
		t.Error(rotated, err)
	}
	docs.Inject(nil)
	b, err := LoadKeyring(t.Context(), docs)
	if err != nil {
		t.Fatal(err)
	}
	if rotated, err := b.Tend(t.Context(), now); rotated || err != nil {
		t.Error(rotated, err)
	}
	if s, err := ReadKeyStatus(t.Context(), docs); err != nil || s.Rotated != id || s.Current != "2" {
		t.Errorf("%+v, %v", s, err)
	}
}

// Ids wrap around, none is given twice while its key is kept, and too many are refused.
func TestManyRotations(t *testing.T) {
	docs := vaulttest.NewMemory()
	k, err := LoadKeyring(t.Context(), docs)
	if err != nil {
		t.Fatal(err)
	}
	at, refused := now, 0
	for range 600 {
		if _, err := AskRotation(t.Context(), docs, false, at); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Tend(t.Context(), at); err != nil {
			refused++
		}
		at = at.Add(LongestSession / 300)
	}
	if n := len(k.keys.Load().byID); n > 255 || refused == 0 || refused > 200 {
		t.Errorf("the ring has %d keys, %d rotations were refused", n, refused)
	}
	s, token := issue(t, k, "ci", "default")
	if _, err := k.Verify(s.ID, token); err != nil {
		t.Error(err)
	}
	// A ring of the form before there was more than one earlier key.
	old := vaulttest.NewMemory()
	if _, err := old.Put(t.Context(), keyPath, map[string]any{"current": "255", "keys": map[string][]byte{"254": newKey(), "255": newKey(), "1": newKey()}}, 0); err != nil {
		t.Fatal(err)
	}
	if k, err = LoadKeyring(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if _, err := AskRotation(t.Context(), old, false, at); err != nil {
		t.Fatal(err)
	}
	if rotated, err := k.Tend(t.Context(), at); err != nil || !rotated || k.keys.Load().current != 1 || len(k.keys.Load().byID) != 4 {
		t.Errorf("%v, %v, %+v", rotated, err, k.keys.Load())
	}
}
