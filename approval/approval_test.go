package approval

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// house is some gates that share a store.
type house struct {
	t    *testing.T
	docs *vaulttest.Memory
	log  logged
	to   *slog.Logger
	wg   sync.WaitGroup
}

// gate starts one; stop ends it as a gate that is told to stop ends.
func (h *house) gate(o Options) (b *Board, stop func()) {
	o.Log = h.to
	b = NewBoard(h.docs, o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	h.wg.Go(func() { b.Run(ctx); close(done) })
	stop = sync.OnceFunc(func() { cancel(); <-done })
	h.t.Cleanup(stop)
	return b, stop
}

// logged is what the gates have logged.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// inHouse runs a test with a clock of its own.
func inHouse(t *testing.T, f func(t *testing.T, h *house)) {
	synctest.Test(t, func(t *testing.T) {
		h := &house{t: t, docs: vaulttest.NewMemory()}
		h.to = slog.New(slog.NewTextHandler(&h.log, nil))
		f(t, h)
	})
}

// hold has a board hold a request, and returns what comes of it.
func (h *house) hold(ctx context.Context, b *Board, worker, session string) <-chan Result {
	got := make(chan Result, 1)
	h.wg.Go(func() {
		got <- b.Hold(ctx, Request{Worker: worker, Session: session, Rule: "deletes", Method: "DELETE", Host: "api.test", Path: "/" + strings.Repeat("x", 600)}, 5*time.Minute)
	})
	time.Sleep(2 * every)
	return got
}

// waiting are the ids of those that wait, as operators see them.
func (h *house) waiting() (ids []string) {
	held, err := List(context.Background(), h.docs, time.Now())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, a := range held.Approvals {
		if a.State == Waiting {
			ids = append(ids, a.ID)
		}
	}
	return ids
}

// became is what became of an approval, as operators see it.
func (h *house) became(id string) State {
	held, err := List(context.Background(), h.docs, time.Now())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, a := range held.Approvals {
		if a.ID == id {
			return a.State
		}
	}
	return "gone"
}

func (h *house) decide(id string, v Verdict, d time.Duration) error {
	decision := Decision{Verdict: v, By: "ann", From: "desk", At: time.Now()}
	if d > 0 {
		decision.Until = time.Now().Add(d)
	}
	_, err := Decide(context.Background(), h.docs, id, decision, time.Now)
	time.Sleep(2 * every)
	return err
}

func expect(t *testing.T, what string, got <-chan Result, want State, because error) {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-got:
		if r.State != want || !errors.Is(r.Err, because) {
			t.Errorf("%s: %+v, want %q, %v", what, r, want, because)
		}
	default:
		t.Errorf("%s: it still waits", what)
	}
}

func TestDecisions(t *testing.T) {
	inHouse(t, func(t *testing.T, h *house) {
		one, _ := h.gate(Options{Gate: "one"})
		two, _ := h.gate(Options{Gate: "two"})
		a, b := h.hold(t.Context(), one, "ci", "s1"), h.hold(t.Context(), two, "ci", "s2")
		ids := h.waiting()
		if len(ids) != 2 {
			t.Fatalf("%d wait", len(ids))
		}
		if here := one.Waiting(); len(here) != 1 || here[0].Session != "s1" || !slices.Contains(ids, here[0].ID) {
			t.Errorf("at one gate wait %+v", here)
		}
		if err := errors.Join(h.decide(ids[0], Allow, 0), h.decide(ids[1], Deny, 0)); err != nil {
			t.Fatal(err)
		}
		expect(t, "allowed", a, Allowed, nil)
		expect(t, "denied", b, Denied, nil)
		if here := one.Waiting(); len(here) != 0 {
			t.Errorf("decided, and at one gate wait %+v", here)
		}
		if h.became(ids[0]) != Allowed || h.became(ids[1]) != Denied {
			t.Errorf("operators see %s, %s", h.became(ids[0]), h.became(ids[1]))
		}
		if err := h.decide(ids[0], Deny, 0); !errors.Is(err, ErrOver) {
			t.Errorf("decided twice: %v", err)
		}
		if err := h.decide("none", Deny, 0); !errors.Is(err, ErrNoSuch) {
			t.Errorf("nothing decided: %v", err)
		}
		for _, want := range []string{"request held", "state=allowed", "state=denied", "by=ann", "from=desk", "approval=" + ids[0]} {
			if !strings.Contains(h.log.String(), want) {
				t.Errorf("no %s in the log:\n%s", want, h.log.String())
			}
		}
		time.Sleep(keepFinished + skew)
		c := h.hold(t.Context(), one, "ci", "s1") // whoever writes next tidies up
		if h.became(ids[0]) != "gone" || len(h.waiting()) != 1 {
			t.Error("what is over is kept for ever")
		}
		time.Sleep(5 * time.Minute)
		expect(t, "nobody decided", c, TimedOut, nil)
	})
}

func TestWorkerGone(t *testing.T) {
	inHouse(t, func(t *testing.T, h *house) {
		b, _ := h.gate(Options{})
		ctx, leave := context.WithCancel(t.Context())
		got := h.hold(ctx, b, "ci", "s1")
		id := h.waiting()[0]
		leave()
		time.Sleep(every)
		expect(t, "gone", got, Withdrawn, nil)
		if s := h.became(id); s != Withdrawn {
			t.Errorf("operators see %s", s)
		}
	})
}

// A decision may hold for later requests of the same session and rule, at every gate, and for no others.
func TestKept(t *testing.T) {
	inHouse(t, func(t *testing.T, h *house) {
		one, _ := h.gate(Options{})
		two, _ := h.gate(Options{})
		first := h.hold(t.Context(), one, "ci", "s1")
		if err := h.decide(h.waiting()[0], Allow, time.Hour); err != nil {
			t.Fatal(err)
		}
		expect(t, "the first", first, Allowed, nil)
		expect(t, "the next, elsewhere", h.hold(t.Context(), two, "ci", "s1"), Allowed, nil)
		other := h.hold(t.Context(), two, "ci", "s2")
		nameless := h.hold(t.Context(), two, "ci", "")
		if n := len(h.waiting()); n != 2 {
			t.Errorf("%d wait, want those of another session and of none", n)
		}
		held, err := List(t.Context(), h.docs, time.Now())
		if err != nil || len(held.Kept) != 1 || held.Kept[0].Session != "s1" || held.Kept[0].By != "ann" {
			t.Errorf("%+v, %v", held.Kept, err)
		}
		if i := slices.IndexFunc(held.Approvals, func(a Approval) bool { return a.Session == "" }); h.decide(held.Approvals[i].ID, Allow, time.Hour) == nil {
			t.Error("a decision holds for a session that nobody knows")
		}
		kept, err := Forget(t.Context(), h.docs, held.Kept[0].Approval, time.Now)
		if _, again := Forget(t.Context(), h.docs, held.Kept[0].Approval, time.Now); err != nil || kept.Session != "s1" || !errors.Is(again, ErrNoSuch) {
			t.Errorf("forgotten: %+v, %v, again: %v", kept, err, again)
		}
		last := h.hold(t.Context(), one, "ci", "s1")
		if n := len(h.waiting()); n != 3 {
			t.Errorf("a decision holds that was taken back: %d wait", n)
		}
		for _, a := range mustList(t, h).Approvals {
			if a.Session == "s1" && a.State == Waiting {
				if err := h.decide(a.ID, Allow, time.Hour); err != nil {
					t.Error(err)
				}
			}
		}
		expect(t, "decided again", last, Allowed, nil)
		time.Sleep(time.Hour)
		expect(t, "another session", other, TimedOut, nil)
		expect(t, "no session", nameless, TimedOut, nil)
		h.hold(t.Context(), one, "ci", "s1")
		if len(h.waiting()) != 1 {
			t.Error("a decision holds beyond its end")
		}
		time.Sleep(time.Hour)
	})
}

func mustList(t *testing.T, h *house) Held {
	t.Helper()
	held, err := List(t.Context(), h.docs, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return held
}

func TestBounds(t *testing.T) {
	inHouse(t, func(t *testing.T, h *house) {
		one, _ := h.gate(Options{})
		two, _ := h.gate(Options{})
		for i := range MaxWaiting {
			h.wg.Go(func() {
				[]*Board{one, two}[i%2].Hold(t.Context(), Request{Worker: fmt.Sprint(i % (MaxWaiting / MaxPerWorker)), Session: fmt.Sprint(i)}, 5*time.Minute)
			})
		}
		time.Sleep(2 * every)
		if n := len(h.waiting()); n != MaxWaiting {
			t.Fatalf("%d wait", n)
		}
		expect(t, "too many", h.hold(t.Context(), one, "another", "s"), "", errFullHere)
		id := h.waiting()[0]
		held, err := List(t.Context(), h.docs, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := h.decide(id, Deny, 0); err != nil {
			t.Fatal(err)
		}
		full := held.Approvals[slices.IndexFunc(held.Approvals, func(a Approval) bool { return a.Worker != held.Approvals[0].Worker })].Worker
		expect(t, "too many of this worker", h.hold(t.Context(), two, full, "s"), "", errFullOf)
		last := h.hold(t.Context(), one, "another", "s")
		if n := len(h.waiting()); n != MaxWaiting {
			t.Errorf("%d wait", n)
		}
		time.Sleep(5 * time.Minute)
		expect(t, "the last", last, TimedOut, nil)
	})
}

// A store that fails allows nothing: what is new is refused, and what waits goes on waiting for it.
func TestStoreFails(t *testing.T) {
	inHouse(t, func(t *testing.T, h *house) {
		b, _ := h.gate(Options{})
		first := h.hold(t.Context(), b, "ci", "s1")
		h.docs.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
		time.Sleep(2 * every)
		expect(t, "new", h.hold(t.Context(), b, "ci", "s2"), "", errVault)
		h.docs.Inject(nil)
		time.Sleep(2 * every)
		if err := h.decide(h.waiting()[0], Allow, 0); err != nil {
			t.Fatal(err)
		}
		expect(t, "what waited", first, Allowed, nil)

		last := h.hold(t.Context(), b, "ci", "s3")
		h.docs.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
		time.Sleep(5 * time.Minute)
		expect(t, "until its end", last, "", errVault)
		h.docs.Inject(nil)
		time.Sleep(2 * every)
		if n := len(h.waiting()); n != 0 {
			t.Errorf("%d wait", n)
		}
		if n := strings.Count(h.log.String(), "level=WARN"); n != 2 {
			t.Errorf("%d warnings:\n%s", n, h.log.String())
		}
	})
}

// An answer of the store that got lost leaves nothing that nobody waits for.
func TestAnswerLost(t *testing.T) {
	inHouse(t, func(t *testing.T, h *house) {
		b, _ := h.gate(Options{})
		h.docs.Inject(func(op, _ string) vaulttest.Fault {
			if op == "put" {
				return vaulttest.Fault{After: vault.ErrUnavailable}
			}
			return vaulttest.Fault{}
		})
		expect(t, "refused", h.hold(t.Context(), b, "ci", "s1"), "", errVault)
		h.docs.Inject(nil)
		time.Sleep(2 * every)
		if n := len(h.waiting()); n != 0 {
			t.Errorf("%d wait", n)
		}
	})
}

// A gate that is stopped says so to whoever waits there, and one that was killed leaves nothing for long.
func TestGateEnds(t *testing.T) {
	inHouse(t, func(t *testing.T, h *house) {
		b, stop := h.gate(Options{})
		got := h.hold(t.Context(), b, "ci", "s1")
		id := h.waiting()[0]
		stop()
		expect(t, "stopped", got, Stopped, errStopping)
		if s := h.became(id); s != Stopped {
			t.Errorf("operators see %s", s)
		}
		if r := b.Hold(t.Context(), Request{Worker: "ci"}, time.Minute); !errors.Is(r.Err, errStopping) {
			t.Errorf("after its end: %+v", r)
		}

		killed, _ := h.gate(Options{})
		lost := h.hold(t.Context(), killed, "ci", "s1")
		id = h.waiting()[0]
		h.docs.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} }) // it writes no more
		time.Sleep(5 * time.Minute)
		<-lost
		time.Sleep(2 * skew)
		h.docs.Inject(nil)
		if s := h.became(id); s != Lost {
			t.Errorf("operators see %s", s)
		}
	})
}

func TestAsked(t *testing.T) {
	inHouse(t, func(t *testing.T, h *house) {
		answers := map[string]*Decision{"yes": {Verdict: Allow, By: "hook"}, "no": {Verdict: Deny, By: "hook", Note: "no"}}
		b, _ := h.gate(Options{Ask: func(_ context.Context, a Approval) *Decision { return answers[a.Session] }})
		expect(t, "yes", h.hold(t.Context(), b, "ci", "yes"), Allowed, nil)
		expect(t, "no", h.hold(t.Context(), b, "ci", "no"), Denied, nil)
		held, err := List(t.Context(), h.docs, time.Now())
		if err != nil || len(held.Approvals) != 2 || held.Approvals[0].Decision.By != "hook" {
			t.Errorf("operators see %+v, %v", held, err)
		}
		open := h.hold(t.Context(), b, "ci", "?")
		if err := h.decide(h.waiting()[0], Allow, 0); err != nil {
			t.Fatal(err)
		}
		expect(t, "an operator, where the hook has no answer", open, Allowed, nil)

		hanging, stop := h.gate(Options{Ask: func(ctx context.Context, _ Approval) *Decision { <-ctx.Done(); return answers["yes"] }})
		got := h.hold(t.Context(), hanging, "ci", "s")
		stop()
		expect(t, "a hook that hangs", got, Stopped, errStopping)
	})
}

// A full document fits what OpenBao takes of one request.
func TestFullDocumentFits(t *testing.T) {
	d := document{Approvals: map[string]Approval{}, Kept: map[string]Kept{}}
	words := strings.Repeat("w", 500)
	for i := range MaxWaiting + maxFinished {
		id := fmt.Sprint(i)
		d.Approvals[id] = Approval{ID: id, Request: Request{Worker: words[:63], Session: words[:30], Rule: words[:63], Words: words, Path: words, Host: words[:253]}}
	}
	for i := range maxKept {
		d.Kept[fmt.Sprint(i)] = Kept{Worker: words[:63], Session: words[:30], Rule: words[:63], Decision: Decision{Note: words[:300], By: words[:100]}}
	}
	raw, err := vault.Encode(vault.Packed{Value: d})
	if err != nil || len(raw) > 512<<10 || strings.Count(string(raw), `"`) > 10 {
		t.Errorf("%d bytes, %v", len(raw), err)
	}
}
