package reliability

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"wayleave/grant"
)

// Processes are killed at any moment and start again. What is lost is an answer that was not written down yet, and the grant
// says so.
func TestRandomKills(t *testing.T) {
	t.Parallel()
	const replicas, each = 3, 6
	w := newWorld(t)
	defer w.searched()
	c := &chaos{world: w, lost: map[string]string{}}
	w.strict.latency, w.grace.latency = 200*time.Millisecond, 200*time.Millisecond // so that kills hit it
	for i := range each {
		for _, a := range []*authority{w.strict, w.grace} {
			c.grants = append(c.grants, w.connect(a, fmt.Sprintf("%s-%d", a.name, i), shortLife))
		}
	}
	s := settings{Grants: c.grants, Lease: 2 * leaseLife, Reread: reread} // longer than a start takes, or others take over
	spools, running := make([]string, replicas), make([]*replica, replicas)
	var all []*replica
	begin := func(i int) {
		s.Spool = spools[i]
		running[i] = w.start(s)
		all = append(all, running[i])
	}
	for i := range running {
		spools[i] = w.spool()
		begin(i)
	}

	began, kills := time.Now(), size(20, 400)
	for n := range kills {
		<-time.After(time.Duration(300+rand.IntN(600)) * time.Millisecond) // any moment is right
		i := rand.IntN(replicas)
		running[i].kill()
		begin(i)
		for _, g := range c.grants {
			dead := w.authority(g).tally(g.Name).dead
			if (dead || n%10 == 9) && c.ended(g) { // a look at each takes a while
				w.connect(w.authority(g), g.Name, shortLife)
			}
		}
	}
	w.settled(running[0], c.grants, w.rotations(c.grants)) // all that is there goes on
	for _, r := range running {
		r.stop()
	}
	for _, g := range c.grants {
		if !c.ended(g) {
			c.count(g)
		}
	}
	t.Logf("%.0f s, %d processes, %d grants at each provider: %d kills, %d refreshes; lost at the strict provider: %d, killed before the answer was written down; given up: %d, killed so twice in a row",
		time.Since(began).Seconds(), replicas, each, kills, c.rotations, len(c.lost), c.givenUp)
	if c.rotations < len(c.grants) {
		t.Error("too few refreshes to show anything")
	}
	for _, r := range all {
		for _, e := range r.all() {
			if g, is := c.lost[e.Token]; is && (e.What == "kept" || e.What == "stored") {
				t.Errorf("%s was lost after its answer was written down (%s)", g, e.What)
			}
		}
	}
}

type chaos struct {
	*world
	grants             []minded
	rotations, givenUp int
	lost               map[string]string // fingerprint of the refresh token that was lost → grant
}

func (c *chaos) count(g minded) tally {
	f := c.authority(g).tally(g.Name)
	c.rotations += f.rotations
	if f.most > 2 {
		c.Errorf("%s: a refresh token was presented %d times", g.Name, f.most)
	}
	return f
}

// ended reports whether a grant needs to be reconnected, and judges why.
func (c *chaos) ended(g minded) bool {
	c.Helper()
	st := c.status(g)
	if st.State != grant.NeedsReconnect {
		return false
	}
	switch f := c.count(g); {
	case f.dead && g.Provider == c.strict.name && told(st.LastError):
		c.lost[f.lost] = g.Name
	case !f.dead && strings.Contains(st.LastError, "presented 2 times without an answer"):
		c.givenUp++
	default:
		c.Errorf("%s: revoked %v, a refresh token was presented %d times, and it needs to be reconnected because of %q", g.Name, f.dead, f.most, st.LastError)
	}
	return true
}
