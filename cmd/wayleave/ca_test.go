package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/ca"
	"wayleave/config"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
	"wayleave/worker"
)

// changer is an administrator who replaces a root, in virtual time.
type changer struct {
	*vaulttest.Memory
	t *testing.T
}

func (c changer) desk(out *bytes.Buffer) caDesk {
	cfg := &config.Config{Profiles: map[string]config.Profile{"default": {MaxSession: 48 * time.Hour}}}
	return caDesk{cfg: cfg, store: c.Memory, now: time.Now, out: out}
}

// does runs a step that must succeed and say text.
func (c changer) does(step func(caDesk) error, text ...string) {
	c.t.Helper()
	var out bytes.Buffer
	if err := step(c.desk(&out)); err != nil {
		c.t.Errorf("%v; want %q", err, text)
	}
	for _, want := range text {
		if !strings.Contains(out.String(), want) {
			c.t.Errorf("said %q; want %q", out.String(), want)
		}
	}
}

// refuses runs a step that must change nothing.
func (c changer) refuses(step func(caDesk) error, text string) {
	c.t.Helper()
	before, out := c.roots(), bytes.Buffer{}
	err := step(c.desk(&out))
	if _, refused := errors.AsType[refusal](err); !refused || !strings.Contains(err.Error(), text) {
		c.t.Errorf("%v, said %q; want a refusal: %q", err, &out, text)
	}
	if !bytes.Equal(ca.PEM(before), ca.PEM(c.roots())) {
		c.t.Error("it changed the roots")
	}
}

func (c changer) roots() []*x509.Certificate {
	c.t.Helper()
	roots, err := c.Roots(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	return roots
}

// works begins a worker's session of eight hours, which gates write down.
func (c changer) works(name string) (s worker.Session) {
	c.t.Helper()
	keys, err := worker.LoadKeyring(c.t.Context(), c.Memory)
	if err == nil {
		s, _, err = keys.Issue(name, "default", 8*time.Hour, time.Now())
	}
	c.written(err, func(l *worker.Ledger) { l.Issued(s, "", "") })
	return s
}

// written has a gate write something down.
func (c changer) written(err error, do func(*worker.Ledger)) {
	c.t.Helper()
	ledger, openErr := worker.OpenLedger(c.t.Context(), c.Memory, worker.LedgerOptions{})
	if err := errors.Join(err, openErr); err != nil {
		c.t.Fatal(err)
	}
	do(ledger)
	ended, cancel := context.WithCancel(c.t.Context())
	cancel()
	ledger.Run(ended) // which writes what there is to write
}

// gate starts one that makes certificates.
func (c changer) gate() {
	c.t.Helper()
	a, err := ca.New(c.t.Context(), c.Memory, ca.Config{Domains: []string{"api.example.com"}})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	c.t.Cleanup(func() { cancel(); <-done })
}

func TestReplaceRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, c := t.Context(), changer{vaulttest.NewMemory(), t}
		show := func(d caDesk) error { return d.show(ctx) }
		prepare := func(d caDesk) error { return d.prepare(ctx) }
		activate := func(now bool, which ...string) func(caDesk) error {
			return func(d caDesk) error { return d.activate(ctx, strings.Join(which, ""), activation{now: now}) }
		}
		retire := func(now bool, which ...string) func(caDesk) error {
			return func(d caDesk) error { return d.retire(ctx, strings.Join(which, ""), now) }
		}
		const one, two, three = vault.RootName, vault.RootName + " 2", vault.RootName + " 3"
		c.gate()

		first := c.roots()[0]
		c.does(show, one, "signs", ca.Fingerprint(first), "nothing before "+first.NotAfter.AddDate(0, 0, -90).Format(time.DateOnly))
		c.refuses(activate(false), "wayleave ca prepare")
		c.does(retire(false), "nothing to remove")
		c.refuses(retire(true, ca.Fingerprint(first)), "signs")
		c.does(activate(true, ca.Fingerprint(first)[:8]), "signs already")

		time.Sleep(time.Hour)
		c.does(prepare, two, "signs nothing yet", "wayleave ca print", "wayleave ca activate")
		made := time.Now()
		second := c.roots()[1]
		c.refuses(prepare, "2 roots already; wait before")
		c.does(show, "trusted only", "gates may not give it to workers before "+when(made.Add(ca.LookTime)))
		c.refuses(activate(false), when(made.Add(ca.LookTime)))

		// Two workers began before, one of them a moment after the root was made, and one began later.
		early := c.works("early")
		time.Sleep(ca.LookTime / 2)
		c.works("also")
		time.Sleep(ca.LookTime)
		c.works("late")
		c.does(show, "wait before", "workers: 2 (also, early)", when(made.Add(ca.LookTime/2+8*time.Hour)), "wayleave ca activate")
		c.refuses(activate(false), when(made.Add(ca.LookTime/2+48*time.Hour))+" at most")
		time.Sleep(7 * time.Hour)
		c.written(nil, func(l *worker.Ledger) { l.Renew(early, time.Now().Add(8*time.Hour)) })
		time.Sleep(time.Hour)
		c.refuses(activate(false), "began before gates gave it to workers: 1 (early)")
		c.written(nil, func(l *worker.Ledger) { l.End(early) })
		c.does(show, "make \""+two+"\" sign: wayleave ca activate")
		c.does(activate(false), "signs from now on", "wayleave ca retire")

		c.refuses(retire(false), "no gate has an intermediate")
		time.Sleep(ca.LookTime / 2)
		c.refuses(retire(false), "gates may serve")
		c.does(activate(false), one, "signs from now on") // back, without waiting
		time.Sleep(ca.LookTime)
		c.does(activate(false, ca.Fingerprint(second)[:12]), two)
		c.refuses(retire(false), "no gate has an intermediate") // since: what it had the first time does not count
		time.Sleep(ca.LookTime + ca.LookTime/2)
		c.does(retire(false), "removed the root", "can forget it")
		if left := c.roots(); len(left) != 1 || !left[0].Equal(second) {
			t.Errorf("%d roots are left", len(left))
		}

		// In a hurry, and a change that is given up.
		c.does(prepare, three)
		c.does(activate(true), three)
		c.does(activate(true), two)
		c.does(retire(false), "removed the root \""+three)

		// With roots that somebody else has made.
		for range 2 {
			if _, err := c.PrepareRoot(ctx); err != nil {
				t.Fatal(err)
			}
		}
		c.does(show, "wayleave ca retire FINGERPRINT")
		for _, which := range []string{"", "no such", "f0f0f0f0f0"} {
			var out bytes.Buffer
			err := retire(false, which)(c.desk(&out))
			if _, usage := errors.AsType[usageError](err); !usage || !strings.Contains(err.Error(), ca.Fingerprint(c.roots()[1])[:12]) {
				t.Errorf("retire %q of three: %v; want them listed", which, err)
			}
		}
		colons := strings.ToUpper(ca.Fingerprint(c.roots()[2]))
		c.does(retire(false, colons[:2]+":"+colons[2:4]+":"+colons[4:8]), "removed")

		var out bytes.Buffer
		d := c.desk(&out)
		d.json = true
		if err := d.show(ctx); err != nil {
			t.Fatal(err)
		}
		var said struct {
			Roots []struct {
				SHA256 string `json:"sha256"`
				Signs  bool   `json:"signs"`
			} `json:"roots"`
			Next string `json:"next"`
		}
		if err := json.Unmarshal(out.Bytes(), &said); err != nil || len(said.Roots) != 2 || !said.Roots[0].Signs || said.Roots[1].Signs ||
			said.Roots[1].SHA256 != ca.Fingerprint(c.roots()[1]) || said.Next == "" {
			t.Errorf("%+v, %v", said, err)
		}
	})
}

// Without a gate nothing is served, and without Vault nothing is done.
func TestReplaceRootWithoutGates(t *testing.T) {
	ctx, c := t.Context(), changer{vaulttest.NewMemory(), t}
	c.does(func(d caDesk) error { return d.prepare(ctx) }, "made")
	c.does(func(d caDesk) error { return d.activate(ctx, "", activation{now: true}) }, "signs from now on")
	c.does(func(d caDesk) error { return d.retire(ctx, "", false) }, "removed")
	c.Inject(func(op, _ string) vaulttest.Fault {
		if op == "prepare" {
			return vaulttest.Fault{Before: vault.ErrUnavailable}
		}
		return vaulttest.Fault{}
	})
	if err := c.desk(new(bytes.Buffer)).prepare(ctx); !errors.Is(err, vault.ErrUnavailable) {
		t.Errorf("without Vault: %v", err)
	}
}

func TestFileLacksRoot(t *testing.T) {
	m := vaulttest.NewMemory()
	if _, err := m.PrepareRoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	roots, err := m.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first, second, both := ca.PEM(roots[:1]), ca.PEM(roots[1:]), ca.PEM(roots)
	for _, c := range []struct {
		what       string
		file, gate []byte
		lacks      bool
	}{
		{"no change", first, first, false},
		{"the old one alone", first, both, true},
		{"both", append(second, first...), both, false},
		{"more than there are", both, second, false},
		{"another authority", []byte("none"), both, false},
		{"no file", nil, both, false},
	} {
		if got := (authority{file: c.file}).lacks(c.gate); got != c.lacks {
			t.Errorf("%s: %v, want %v", c.what, got, c.lacks)
		}
	}
}
