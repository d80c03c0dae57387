package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// inbox is a target that keeps what it gets.
type inbox struct {
	mu   sync.Mutex
	got  []Message
	fail []error // of the next tries
}

func (i *inbox) Send(_ context.Context, m Message) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.fail) > 0 {
		err := i.fail[0]
		i.fail = i.fail[1:]
		return err
	}
	i.got = append(i.got, m)
	return nil
}

func (i *inbox) said() (all []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, m := range i.got {
		all = append(all, say(m))
	}
	return all
}

// seen are troubles that a test changes.
type seen struct {
	mu  sync.Mutex
	all []Alert
}

func (s *seen) set(all ...Alert) { s.mu.Lock(); defer s.mu.Unlock(); s.all = all }
func (s *seen) get() []Alert     { s.mu.Lock(); defer s.mu.Unlock(); return s.all }

// begin runs a gate's notifier until the test, or what it returns, ends it.
func begin(t *testing.T, holder string, docs Documents, see *seen, log *slog.Logger, to ...Target) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	n := New(Options{Holder: holder, Docs: docs, Alerts: see.get, Targets: to, Timing: timing, Log: log})
	go func() { defer close(ended); n.Run(ctx) }()
	return func() { cancel(); <-ended }
}

func expect(t *testing.T, i *inbox, want ...string) {
	t.Helper()
	if got := i.said(); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("said %q, want %q", got, want)
	}
}

func TestGatesTellTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		docs, see, all, few := vaulttest.NewMemory(), new(seen), new(inbox), new(inbox)
		to := []Target{{Name: "all", Sender: all}, {Name: "few", Sender: few, Kinds: []Kind{CA}}}
		stop := begin(t, "a", docs, see, nil, to...)
		defer begin(t, "b", docs, see, nil, to...)()
		see.set(trouble("grant/x/s", 0))
		time.Sleep(time.Minute)
		expect(t, all, "+grant/x/s")
		stop()
		defer begin(t, "a", docs, see, nil, to...)()
		see.set(trouble("grant/x/s", 0), trouble("ca/root", 0))
		time.Sleep(time.Minute)
		see.set()
		time.Sleep(time.Minute)
		expect(t, all, "+grant/x/s", "+ca/root ~1", "-ca/root -grant/x/s")
		expect(t, few, "+ca/root ~1", "-ca/root")
		ids := map[string]bool{}
		for _, m := range all.got {
			ids[m.ID] = true
		}
		if len(ids) != 3 {
			t.Errorf("messages have the ids %v", ids)
		}
	})
}

// crowd has some who get a message at once, and some who never do, though they are tried for long.
type crowd struct{ *inbox }

func (c crowd) Send(ctx context.Context, m Message) error {
	_ = c.inbox.Send(ctx, m)
	return Partial{errors.New("not yet"), never{}}
}

type never struct{}

func (never) Send(context.Context, Message) error { return Partial{errors.New("not yet"), never{}} }

// Whoever gets a message late keeps the next from nobody.
func TestNobodyWaitsForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		docs, see, box := vaulttest.NewMemory(), new(seen), new(inbox)
		defer begin(t, "a", docs, see, nil, Target{Name: "all", Sender: crowd{box}})()
		see.set(trouble("grant/x/s", 0))
		time.Sleep(time.Minute)
		see.set(trouble("grant/x/s", 0), trouble("ca/root", 0))
		time.Sleep(time.Minute)
		expect(t, box, "+grant/x/s", "+ca/root ~1")
	})
}

// A cause with many effects, as a scope that all grants of a provider lack, is told once by all gates and not again after a restart, as
// one with few is.
func TestManyTroubles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		docs, see, box := vaulttest.NewMemory(), new(seen), new(inbox)
		to := Target{Name: "all", Sender: box}
		stopA, stopB := begin(t, "a", docs, see, nil, to), begin(t, "b", docs, see, nil, to)
		var all []Alert
		for i := range 500 {
			all = append(all, trouble(fmt.Sprintf("grant/%03d/scope_missing", i), 0))
		}
		see.set(all...)
		time.Sleep(time.Minute)
		stopA()
		stopB()
		defer begin(t, "a", docs, see, nil, to)()
		time.Sleep(time.Minute)
		see.set()
		time.Sleep(time.Minute)
		if box.mu.Lock(); len(box.got) != 2 || len(box.got[0].Firing) != 500 || len(box.got[1].Over) != 500 {
			t.Errorf("%d messages", len(box.got))
		}
		box.mu.Unlock()
	})
}

// Without the store everybody is told, by each gate, and once it is back not again.
func TestStoreDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		docs, see, box := vaulttest.NewMemory(), new(seen), new(inbox)
		defer begin(t, "a", docs, see, nil, Target{Name: "all", Sender: box})()
		time.Sleep(5 * time.Second)
		docs.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
		see.set(trouble("vault", 0))
		time.Sleep(10 * time.Minute)
		expect(t, box, "+vault")
		docs.Inject(nil)
		time.Sleep(10 * time.Minute)
		expect(t, box, "+vault")
		docs.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{After: vault.ErrUnavailable} })
		see.set()
		time.Sleep(5 * time.Minute)
		docs.Inject(nil)
		time.Sleep(time.Hour)
		expect(t, box, "+vault", "-vault")
	})
}

func TestTargetsAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		docs, see := vaulttest.NewMemory(), new(seen)
		slow := &inbox{fail: []error{errors.New("busy"), errors.New("busy"), errors.New("busy")}}
		never := &inbox{fail: []error{Permanent{errors.New("no such hook")}}}
		stop := begin(t, "a", docs, see, slog.New(slog.NewTextHandler(&log, nil)), Target{Name: "slow", Sender: slow}, Target{Name: "never", Sender: never})
		see.set(trouble("grant/x/s", 0))
		time.Sleep(30 * time.Minute)
		stop()
		expect(t, slow, "+grant/x/s")
		expect(t, never)
		if !strings.Contains(log.String(), "no such hook") || !strings.Contains(log.String(), "wayleave notify test") {
			t.Errorf("the log does not say what failed and what to do:\n%s", &log)
		}
	})
}

// A target that takes nothing does not end the gate's watch over the others, and is told when it is back.
func TestTargetDownForHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		docs, see, box := vaulttest.NewMemory(), new(seen), new(inbox)
		for range 100 {
			box.fail = append(box.fail, errors.New("refused"))
		}
		defer begin(t, "a", docs, see, nil, Target{Name: "all", Sender: box})()
		see.set(trouble("grant/x/s", 0))
		for len(box.said()) == 0 {
			time.Sleep(time.Minute)
		}
		expect(t, box, "+grant/x/s")
	})
}
