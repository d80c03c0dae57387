package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/ca"
	"wayleave/config"
	"wayleave/fleet"
	"wayleave/rollout"
	"wayleave/vault/vaulttest"
)

// pair is a gate with two Envoys; at the canary, handshakes fail with the root of this name.
type pair struct {
	mu       sync.Mutex
	state    rollout.State
	distrust string
}

func (p *pair) look() (all []fleet.Envoy) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range []string{"canary", "main"} {
		all = append(all, fleet.Envoy{ID: id, Group: id, Gate: "g", Revision: p.state.Revision(id), Has: p.state.Revision(id), Listening: true})
	}
	return all
}

func (p *pair) counted() (all []fleet.Traffic) {
	for _, e := range p.look() {
		t := fleet.Traffic{Envoy: e.ID, Revision: e.Has, Counts: rollout.Counts{Requests: 20}}
		p.mu.Lock()
		if e.ID == "canary" && p.distrust != "" && fleet.Root(e.Has) == p.distrust {
			t.Errors = t.Requests
		}
		p.mu.Unlock()
		all = append(all, t)
	}
	return all
}

func (p *pair) set(distrust string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.distrust = distrust
}

// serve runs it until what it returns is called.
func (p *pair) serve(t *testing.T, docs fleet.Documents) (stop func()) {
	t.Helper()
	begun := time.Now()
	m := fleet.Join(fleet.Options{
		Docs: docs, Gate: "g", Now: time.Now, Running: func() time.Duration { return time.Since(begun) }, Look: p.look, Counted: p.counted,
		Apply: func(_ context.Context, s rollout.State) map[string]error {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.state = s
			return nil
		},
	})
	if _, err := m.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.Run(ctx) }()
	return func() { cancel(); <-done }
}

func TestRootIsRolledOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, c, p := t.Context(), changer{vaulttest.NewMemory(), t}, &pair{}
		cfg := &config.Config{
			Profiles: map[string]config.Profile{"default": {MaxSession: 48 * time.Hour}},
			Rollout: config.Rollout{MinRequests: 50, TakeTime: time.Minute, Steps: []config.RolloutStep{
				{Group: "canary", Dwell: 20 * time.Second}, {Share: 100, Dwell: 10 * time.Second},
			}},
		}
		configuration := strings.Repeat("c0ffee42", 8)
		change := func(f func(rollout.State) (rollout.State, error)) {
			t.Helper()
			if _, err := fleet.Change(ctx, c.Memory, f); err != nil {
				t.Fatal(err)
			}
		}
		change(func(s rollout.State) (rollout.State, error) {
			return s.Start(rollout.Rollout{ID: "first", To: configuration, Plan: cfg.Plan()}, time.Now())
		})
		defer p.serve(t, c.Memory)()
		c.roots()
		time.Sleep(time.Hour)
		if _, err := c.PrepareRoot(ctx); err != nil {
			t.Fatal(err)
		}
		c.works("early") // which trusts the first root alone
		first, second := c.roots()[0], c.roots()[1]
		one, two := fleet.Named(configuration, ca.Name(first)), fleet.Named(configuration, ca.Name(second))
		time.Sleep(ca.LookTime)

		activate := func(ctx context.Context, fingerprint string, how activation) (string, error) {
			var out bytes.Buffer
			d := c.desk(&out)
			d.cfg = cfg
			err := d.activate(ctx, fingerprint, how)
			return out.String(), err
		}
		is := func(what, stable string, signs *x509.Certificate) {
			t.Helper()
			s, _, err := fleet.ReadState(ctx, c.Memory)
			if err != nil || s.Stable != stable || s.Current != nil || !c.roots()[0].Equal(signs) {
				t.Errorf("%s: stable is %s, under way %v, %v, and %s signs by itself", what, s.Stable, s.Current != nil, err, c.roots()[0].Subject)
			}
		}
		says := func(out, want string) {
			t.Helper()
			if !strings.Contains(out, want) {
				t.Errorf("it says %q, want %q", out, want)
			}
		}

		out, err := activate(ctx, "", activation{})
		if _, refused := errors.AsType[refusal](err); !refused || !strings.Contains(err.Error(), "--force") {
			t.Errorf("although a worker has the old root alone: %q, %v", out, err)
		}
		is("refused", configuration, first)

		// Forced, the canary tells.
		p.set(ca.Name(second))
		out, err = activate(ctx, "", activation{force: true})
		if exit, is := errors.AsType[exitCode](err); !is || exit != exitHalted {
			t.Errorf("rolled back: %v", err)
		}
		says(out, "step 1 of 2 (group canary)")
		says(out, "requests failed with it")
		says(out, "wayleave ca activate")
		is("rolled back", configuration, first)
		p.set("")

		// Given up in the middle, it goes on, and whoever waits again sees the end.
		brief, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err = activate(brief, "", activation{force: true})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("given up: %v", err)
		}
		var show bytes.Buffer
		if err := c.desk(&show).show(ctx); err != nil {
			t.Fatal(err)
		}
		says(show.String(), "signs for some")
		says(show.String(), "wayleave rollout abort")
		if _, err := activate(ctx, ca.Fingerprint(first)[:8], activation{now: true}); !errors.Is(err, rollout.ErrUnderWay) {
			t.Errorf("another root during the rollout: %v", err)
		}
		c.refuses(func(d caDesk) error { return d.retire(ctx, ca.Fingerprint(second), true) }, "signs")
		out, err = activate(ctx, "", activation{}) // the worker of before does not matter any more
		if err != nil {
			t.Error(err)
		}
		says(out, "step 2 of 2 (100 %)")
		says(out, "signs from now on")
		is("rolled out", two, second)
		out, err = activate(ctx, ca.Fingerprint(second)[:8], activation{})
		if err != nil {
			t.Error(err)
		}
		says(out, "signs already")
		c.refuses(func(d caDesk) error { return d.retire(ctx, "", false) }, "gates may serve")

		// Between its end and what Vault does by itself, one that is run again does the rest.
		if err := c.ActivateRoot(ctx, first); err != nil {
			t.Fatal(err)
		}
		show.Reset()
		if err := c.desk(&show).show(ctx); err != nil {
			t.Fatal(err)
		}
		says(show.String(), "let \""+second.Subject.CommonName+"\" sign by itself")
		if out, err = activate(ctx, "", activation{}); err != nil || !c.roots()[0].Equal(second) {
			t.Errorf("%s, %v", out, err)
		}

		// Back, then forth at once.
		if out, err = activate(ctx, "", activation{}); err != nil || !c.roots()[0].Equal(first) {
			t.Errorf("%s, %v", out, err)
		}
		is("back", one, first)
		if out, err = activate(ctx, "", activation{now: true}); err != nil || strings.Contains(out, "step") || !c.roots()[0].Equal(second) {
			t.Errorf("%s, %v", out, err)
		}
		is("at once", two, second)
		time.Sleep(ca.LookTime + time.Second)
		c.does(func(d caDesk) error { return d.retire(ctx, "", false) }, "removed the root")
	})
}
