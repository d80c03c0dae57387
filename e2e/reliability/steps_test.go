package reliability

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave/grant"
)

// Shorter than a gate's own, so that a run takes a minute. Two scenarios, in which time itself matters, have a gate's own.
const (
	leaseLife   = 4 * time.Second // a lease that is not renewed is left alone for one more second
	callTimeout = 6 * time.Second
	reread      = 500 * time.Millisecond
	shortLife   = 3 * time.Second  // of tokens: others take over after the expiry
	longLife    = 60 * time.Second // of tokens: workers have one all the time
	outage      = 30 * time.Second
	stall       = 20 * time.Second
)

var quick = settings{CallTimeout: callTimeout, Lease: leaseLife, Reread: reread}

func (s settings) of(grants []minded) settings {
	s.Grants = grants
	return s
}

// scenario is what happens to a process in the middle of a refresh of a grant at each kind of provider, and what follows.
type scenario struct {
	event, then string
	life        time.Duration // of the first token
	run         func(w *world, grants []minded)
	outcome     outcome
}

// outcome is what may come of a scenario, at worst.
type outcome int

const (
	kept    outcome = iota // each refresh token is presented once, and nothing is lost
	twice                  // one is presented twice, which a strict provider does not forgive
	givenUp                // one is presented twice, and the gate has had no answer either time
)

func atWorst(twiceIf bool) outcome {
	if twiceIf {
		return twice
	}
	return kept
}

var steps = []point{beforeLease, afterLease, afterMark, inFlight, afterAnswer, afterSpool, afterCommit}

// scenarios is the table of docs/reliability.md, and the promise: between the provider's commit and the first durable write
// a crash loses the answer, and nothing else does.
func scenarios() (all []scenario) {
	window := func(p point) bool { return p == inFlight || p == afterAnswer }
	for _, p := range steps {
		all = append(all, scenario{"killed " + string(p), "starts again", shortLife, killed(p, restart), atWorst(window(p))})
	}
	all = append(all,
		scenario{"killed " + string(afterLease) + ", twice in a row", "starts again", shortLife, killedTwice(afterLease), kept},
		scenario{"killed " + string(inFlight) + ", twice in a row", "starts again", shortLife, killedTwice(inFlight), givenUp},
	)
	for _, p := range steps { // the spool is gone with the machine
		all = append(all, scenario{"killed " + string(p), "never comes back", shortLife, killed(p, takeover), atWorst(window(p) || p == afterSpool)})
	}
	for _, p := range steps {
		all = append(all, scenario{"stopped " + string(p), "goes on after the lease", longLife, stopped(p), kept})
	}
	for _, p := range steps { // workers wait, and others cannot know
		all = append(all, scenario{"stopped " + string(p), "goes on after a takeover", shortLife, stoppedLong(p), atWorst(window(p) || p == afterSpool)})
	}
	return append(all,
		scenario{"clock 10 min ahead", "is killed", shortLife, wrongClock(10 * time.Minute), kept},
		scenario{"clock 10 min behind", "is killed", shortLife, wrongClock(-10 * time.Minute), kept},
		scenario{"clock jumps by 10 min, both ways", "jumps back", shortLife, jumpingClock, kept},
		scenario{"store refuses for 30 s after the answer", "comes back", longLife, cutOff("refused", true), kept},
		scenario{"store is silent for 30 s after the answer", "comes back", longLife, cutOff("silent", true), kept},
		scenario{"store refuses for 30 s after the answer, token expires", "comes back", shortLife, cutOff("refused", false), kept},
		scenario{"store is silent for 30 s after the answer, token expires", "comes back", shortLife, cutOff("silent", false), kept},
		scenario{"provider stalls for 20 s after the commit", "answers", longLife, stalled(settings{Reread: reread}, stall), kept},
		scenario{"provider stalls for longer than a call may take", "answers nobody", 4 * callTimeout, stalled(quick, 2*callTimeout), twice},
	)
}

func TestSteps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	defer w.searched()
	w.strict.life, w.grace.life = shortLife, shortLife
	var mu sync.Mutex
	lines := map[int]string{}
	all := scenarios()
	order := make([]int, len(all)) // the slowest, which wait most, first
	for i := range order {
		order[i] = len(all) - 1 - i
	}
	t.Run("every", func(t *testing.T) {
		for _, i := range order {
			t.Run(strings.ReplaceAll(all[i].event+", "+all[i].then, " ", "_"), func(t *testing.T) {
				t.Parallel()
				line := w.in(t).play(all[i], i)
				mu.Lock()
				defer mu.Unlock()
				lines[i] = line
			})
		}
	})
	var table strings.Builder
	for i := range all {
		table.WriteString(lines[i])
	}
	t.Log("\n" + table.String())
	if len(lines) == len(all) { // not only some, by -run
		page(t, "steps", "| what happens | then | strict provider | provider with a grace |\n|---|---|---|---|\n"+table.String())
	}
}

// play runs a scenario, judges it, and returns its line of the table.
func (w *world) play(s scenario, i int) string {
	w.Helper()
	var grants []minded
	for _, a := range []*authority{w.strict, w.grace} {
		name := fmt.Sprintf("%s-%02d", a.name, i)
		if s.life != shortLife {
			a.set(func() { a.lives[name] = s.life })
		}
		grants = append(grants, w.connect(a, name, s.life))
	}
	s.run(w, grants)

	line := fmt.Sprintf("| %s | %s |", s.event, s.then)
	for _, g := range grants {
		t, st := w.authority(g).tally(g.Name), w.status(g)
		strict := g.Provider == w.strict.name
		most, state, dead := 1, grant.Healthy, s.outcome != kept && strict
		if s.outcome != kept {
			most = 2
		}
		if dead || s.outcome == givenUp {
			state = grant.NeedsReconnect
		}
		if t.most != most || t.dead != dead || st.State != state {
			w.Errorf("%s: revoked %v, a refresh token was presented %d times, and the grant is %s (%s); want %v, %d, %s",
				g.Provider, t.dead, t.most, st.State, st.LastError, dead, most, state)
		}
		cell := string(st.State)
		if st.State == grant.NeedsReconnect {
			cell = "**lost**: " + cell
			if !told(st.LastError) || !strings.Contains(st.Next, "`wayleave grant connect "+g.Name+"`") {
				w.Errorf("%s: the reason is %q, and next is %q", g.Provider, st.LastError, st.Next)
			}
		}
		line += fmt.Sprintf(" %s, %s |", []string{"never", "once", "twice"}[min(t.most, 2)], cell)
	}
	return line + "\n"
}

// told reports whether the text says why a grant is lost.
func told(text string) bool {
	return strings.Contains(text, "the refresh token was presented 2 times without an answer") ||
		strings.Contains(text, "an earlier refresh got no answer, so the provider may have taken this one for a reuse") ||
		strings.Contains(text, "was presented twice, the second time while the gateway that held the answer was stopped or cut off")
}

// settled waits until each grant is refreshed more often than before, or given up, and usable as it should be.
func (w *world) settled(r *replica, grants []minded, before []int) {
	w.Helper()
	for i, g := range grants {
		var st grant.Summary
		eventually(w.T, g.Name+" is refreshed, or given up", func() bool {
			t := w.authority(g).tally(g.Name)
			st = w.status(g)
			return st.State == grant.NeedsReconnect || t.rotations > before[i] && !t.dead && st.State == grant.Healthy
		})
		if st.State != grant.NeedsReconnect {
			e := r.use(g.Name)
			if e.Code == 401 { // the next refresh ended this token just now; a gate asks once more then, with another
				eventually(w.T, g.Name+" is usable again", func() bool { e = r.use(g.Name); return e.Code != 401 })
			}
			if e.Code != 200 {
				w.Errorf("%s: a worker's request ended with %d %s", g.Name, e.Code, e.Error)
			}
			continue
		}
		// The last token may serve to its end. Then workers are told.
		eventually(w.T, g.Name+" is refused to workers", func() bool { return r.use(g.Name).Error != "" })
		if e := r.use(g.Name); !strings.Contains(e.Error, "invalid_grant") && !strings.Contains(e.Error, "without an answer") || !strings.Contains(e.Error, "wayleave grant connect") {
			w.Errorf("%s: workers are told %q", g.Name, e.Error)
		}
	}
}

func (w *world) rotations(grants []minded) (n []int) {
	for _, g := range grants {
		n = append(n, w.authority(g).tally(g.Name).rotations)
	}
	return n
}

func (w *world) presented(grants []minded) (n []int) {
	for _, g := range grants {
		n = append(n, w.authority(g).tally(g.Name).times)
	}
	return n
}

// more waits until each grant was refreshed so often since before.
func (w *world) more(grants []minded, before []int, n int) {
	w.Helper()
	for i, g := range grants {
		eventually(w.T, g.Name+" is refreshed", func() bool { return w.authority(g).tally(g.Name).rotations >= before[i]+n })
	}
}

// caught starts a replica and returns when all its grants are held at the point.
func (w *world) caught(p point, s settings) (r *replica, release func()) {
	w.Helper()
	s.Hold = p
	var held []chan struct{}
	var frees []func()
	if p == inFlight {
		for _, g := range s.Grants {
			h, free := w.authority(g).holdNext(g.Name)
			held, frees = append(held, h), append(frees, free)
		}
	}
	r = w.start(s)
	release = func() {
		for _, free := range frees {
			free()
		}
		r.send(order{Do: "go"})
	}
	w.Cleanup(release)
	for i, g := range s.Grants {
		if p != inFlight {
			r.awaitAt(g.Name, p)
			continue
		}
		select {
		case <-held[i]:
		case <-r.ended:
			w.Fatalf("it ended\n%s", r.said.tail())
		case <-time.After(patience):
			w.Fatalf("no call for %s\n%s", g.Name, r.said.tail())
		}
	}
	if p == inFlight {
		before, free := w.presented(s.Grants), release
		release = func() {
			free()
			for i, g := range s.Grants {
				eventually(w.T, "the provider decides about "+g.Name, func() bool { return w.authority(g).tally(g.Name).times > before[i] })
			}
		}
	}
	return r, release
}

// bystander is a replica that minds the grants too and leaves refreshes to others for as long as tokens live.
func (w *world) bystander(s settings) *replica {
	w.Helper()
	s.Ahead = time.Millisecond
	r := w.start(s)
	for _, g := range s.Grants {
		r.use(g.Name)
	}
	return r
}

// ask is an operator's `grant refresh`.
func (w *world) ask(grants []minded) {
	w.Helper()
	w.asking.Lock() // all requests are in one document
	defer w.asking.Unlock()
	for _, g := range grants {
		if _, err := grant.Ask(w.Context(), w.bao.Operator, g.Name, grant.AskRefresh, time.Now()); err != nil {
			w.Fatal(err)
		}
	}
}

const (
	restart  = true
	takeover = false
)

// killed is kill -9 exactly there.
func killed(p point, again bool) func(*world, []minded) {
	return func(w *world, grants []minded) {
		s := quick.of(grants)
		s.Spool = w.spool()
		var next *replica
		if !again {
			next = w.bystander(quick.of(grants))
		}
		r, release := w.caught(p, s)
		r.kill()
		release()
		before := w.rotations(grants)
		if again {
			next = w.start(s)
		}
		w.settled(next, grants, before)
	}
}

func killedTwice(p point) func(*world, []minded) {
	return func(w *world, grants []minded) {
		s := quick.of(grants)
		s.Spool = w.spool()
		for range 2 {
			r, release := w.caught(p, s)
			r.kill()
			release()
		}
		w.settled(w.start(s), grants, w.rotations(grants))
	}
}

// stopped is SIGSTOP for longer than a lease, and than a call may take, while the old token serves.
func stopped(p point) func(*world, []minded) {
	return func(w *world, grants []minded) {
		w.ask(grants)
		r, release := w.caught(p, quick.of(grants))
		r.freeze()
		release()
		other := w.bystander(quick.of(grants))
		<-time.After(callTimeout + 2*time.Second) // is what this is about
		r.thaw()
		w.stored(grants)
		before := w.rotations(grants)
		w.ask(grants)
		w.settled(r, grants, before)
		w.settled(other, grants, before)
	}
}

// stored waits until the store has an answer, or knows that it will have none.
func (w *world) stored(grants []minded) {
	w.Helper()
	for _, g := range grants {
		eventually(w.T, g.Name+" is stored", func() bool {
			st := w.status(g)
			return st.Generation > 0 || st.State == grant.NeedsReconnect
		})
	}
}

// stoppedLong is SIGSTOP until another replica has taken over, because the old token has expired.
func stoppedLong(p point) func(*world, []minded) {
	return func(w *world, grants []minded) {
		other := w.bystander(quick.of(grants))
		r, release := w.caught(p, quick.of(grants))
		r.freeze()
		release()
		w.settled(other, grants, w.rotations(grants))
		r.thaw()
		w.settled(r, grants, w.rotations(grants))
	}
}

// wrongClock is a replica whose clock is wrong from its start, and that is killed after it has refreshed.
func wrongClock(by time.Duration) func(*world, []minded) {
	return func(w *world, grants []minded) {
		other := w.bystander(quick.of(grants))
		s := quick.of(grants)
		s.Jump = by
		r, _ := w.caught(afterCommit, s)
		r.kill()
		w.serving(grants, w.rotations(grants), 2, other)
		w.settled(other, grants, w.rotations(grants))
	}
}

func jumpingClock(w *world, grants []minded) {
	other, r := w.start(quick.of(grants)), w.start(quick.of(grants))
	for _, by := range []time.Duration{10 * time.Minute, -10 * time.Minute, 0} {
		r.send(order{Do: "jump", By: by})
		w.serving(grants, w.rotations(grants), 2, r, other)
	}
	w.settled(r, grants, w.rotations(grants))
}

// serving has workers use the grants until each was refreshed so often since before. None may be refused. The API may
// refuse a token that its issuer's clock had live for too long: others see that it has ended as late as they saw it first.
func (w *world) serving(grants []minded, before []int, n int, replicas ...*replica) {
	w.Helper()
	eventually(w.T, "refreshed that often", func() bool {
		for _, g := range grants {
			for _, r := range replicas {
				if e := r.use(g.Name); e.Code == 0 {
					w.Errorf("%s: a worker's request ended with %s", g.Name, e.Error)
					return true
				}
			}
		}
		now := w.rotations(grants)
		for i := range grants {
			if now[i] < before[i]+n {
				return false
			}
		}
		return true
	})
}

// cutOff is a store that nobody reaches for a while, from right after the answer on.
func cutOff(how string, long bool) func(*world, []minded) {
	return func(w *world, grants []minded) {
		way, s := w.newWay(), quick.of(grants)
		s.CallTimeout, s.Lease = 0, 0 // a gate's own: what is held counts as a call
		s.Vault = w.login
		s.Vault.Address = way.address
		var other *replica
		if !long { // later it would wait for the refresh
			other = w.bystander(s)
		} else { // a refresh does not come by itself
			w.ask(grants)
		}
		r, release := w.caught(afterAnswer, s)
		if long {
			other = w.bystander(s)
		}
		way.cut(how)
		release()
		for _, g := range grants {
			r.await(g.Name+" is spooled", func(e event) bool { return e.What == "kept" && e.Grant == g.Name })
		}
		<-time.After(outage) // is what this is about
		for _, g := range grants {
			if !long {
				break
			}
			if e := r.use(g.Name); e.Code != 200 { // from memory
				w.Errorf("%s: a worker's request ended with %d %s", g.Name, e.Code, e.Error)
			}
		}
		way.mend()
		w.stored(grants)
		before := w.rotations(grants)
		w.ask(grants)
		w.settled(r, grants, before)
		w.settled(other, grants, before)
	}
}

// stalled is a provider that commits and answers so much later.
func stalled(s settings, by time.Duration) func(*world, []minded) {
	return func(w *world, grants []minded) {
		for _, g := range grants {
			a := w.authority(g)
			a.set(func() { a.stall[g.Name] = by })
		}
		w.ask(grants)
		r := w.start(s.of(grants))
		w.more(grants, make([]int, len(grants)), 1)
		other := w.bystander(s.of(grants))
		w.stored(grants)
		before := w.rotations(grants)
		w.ask(grants)
		w.settled(r, grants, before)
		w.settled(other, grants, before)
	}
}
