package reliability

import (
	"fmt"
	"testing"
	"time"
)

const (
	processes = 8
	fleet     = 20 // grants
)

// run has processes refresh grants until each family was refreshed so often, or is dead.
func (w *world) runFleet(refreshes int, unchecked bool) (t tally, dead int) {
	w.Helper()
	w.strict.life = time.Second
	var grants []minded
	for i := range fleet {
		grants = append(grants, w.connect(w.strict, fmt.Sprintf("grant-%02d", i), 3*time.Second))
	}
	var all []*replica
	for range processes {
		all = append(all, w.start(settings{Grants: grants, Reread: time.Second, Unchecked: unchecked}))
	}
	within(w.T, patience+time.Duration(refreshes)*3*time.Second, "refreshed that often", func() bool {
		for _, g := range grants {
			if t := w.strict.tally(g.Name); t.rotations < refreshes && !t.dead {
				return false
			}
		}
		return true
	})
	for _, r := range all {
		if unchecked {
			r.kill()
		} else {
			r.stop()
		}
	}
	for _, g := range grants {
		f := w.strict.tally(g.Name)
		t.tokens, t.most, t.rotations = t.tokens+f.tokens, max(t.most, f.most), t.rotations+f.rotations
		if f.dead {
			dead++
		}
	}
	return t, dead
}

func TestFleet(t *testing.T) {
	w := newWorld(t)
	defer w.searched()
	began := time.Now()
	sum, dead := w.runFleet(size(15, 200), false)
	t.Logf("%d processes, %d grants: %d refreshes in %.0f s, %d refresh tokens presented, the most presented one %d times, %d of %d families revoked",
		processes, fleet, sum.rotations, time.Since(began).Seconds(), sum.tokens, sum.most, dead, fleet)
	if sum.most != 1 || sum.tokens != sum.rotations || dead > 0 {
		t.Error("a refresh token was presented twice, or a family revoked")
	}
}

// The same with a store that takes every write loses families: the harness can fail.
func TestFleetWithoutLease(t *testing.T) {
	w := newWorld(t)
	defer w.searched()
	sum, dead := w.runFleet(5, true)
	t.Logf("%d processes, %d grants, a store without check-and-set: %d refreshes, the most presented refresh token %d times, %d of %d families revoked",
		processes, fleet, sum.rotations, sum.most, dead, fleet)
	if dead == 0 {
		t.Error("no family was revoked: what TestFleet shows is worth nothing")
	}
}
