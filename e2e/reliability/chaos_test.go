package reliability

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"wayleave/grant"
)

// Processes are killed at any moment and start again. At a provider with a grace nothing is lost; at a strict one, only an
// answer that was not written down yet, and then the grant says so.
func TestRandomKills(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	defer w.searched()
	w.strict.latency, w.grace.latency = 200*time.Millisecond, 200*time.Millisecond // so that kills hit it
	s := settings{Lease: 2 * leaseLife, Reread: reread}                            // longer than a start takes, or others take over
	for i := range 6 {
		for _, a := range []*authority{w.strict, w.grace} {
			s.Grants = append(s.Grants, w.connect(a, fmt.Sprintf("%s-%d", a.name, i), shortLife))
		}
	}
	const replicas = 3
	var all [replicas][]*replica // each with its predecessors
	spools := [replicas]string{}
	begin := func(i int) {
		s := s
		s.Spool = spools[i]
		all[i] = append(all[i], w.start(s))
	}
	for i := range all {
		spools[i] = w.spool()
		begin(i)
	}
	kills, rotations, tokens, lost := 0, 0, 0, map[string]string{} // the fingerprint of what was lost → grant
	settle := func(g minded) {
		f := w.authority(g).tally(g.Name)
		rotations, tokens = rotations+f.rotations, tokens+f.tokens
		if f.most > 2 {
			t.Errorf("%s: a refresh token was presented %d times", g.Name, f.most)
		}
		if !f.dead {
			return
		}
		if g.Provider == w.grace.name {
			t.Errorf("%s is lost", g.Name)
		}
		lost[f.lost] = g.Name
	}

	began := time.Now()
	for end := time.After(size(20*time.Second, 5*time.Minute)); ; {
		select {
		case <-time.After(time.Duration(200+rand.IntN(600)) * time.Millisecond): // any moment is right
			i := rand.IntN(replicas)
			all[i][len(all[i])-1].kill()
			kills++
			begin(i)
			for _, g := range s.Grants {
				if !w.authority(g).tally(g.Name).dead {
					continue
				}
				st := w.status(g)
				if st.State != grant.NeedsReconnect { // not noticed yet
					continue
				}
				if !strings.Contains(st.LastError, "an earlier refresh got no answer") {
					t.Errorf("%s needs to be reconnected because of %q", g.Name, st.LastError)
				}
				settle(g)
				w.connect(w.authority(g), g.Name, shortLife)
			}
			continue
		case <-end:
		}
		break
	}
	// All that survived goes on.
	last := all[0][len(all[0])-1]
	w.settled(last, s.Grants, w.rotations(s.Grants))
	for i := range all {
		all[i][len(all[i])-1].stop()
	}
	for _, g := range s.Grants {
		settle(g)
	}
	t.Logf("%.0f s, %d processes, %d grants at each provider: %d kills, %d refreshes; %d grants were lost at the strict provider, none of which could be saved",
		time.Since(began).Seconds(), replicas, len(s.Grants)/2, kills, rotations, len(lost))
	if rotations < len(s.Grants) || kills < 10 {
		t.Error("too few to show anything")
	}
	for _, incarnations := range all {
		for _, r := range incarnations {
			for _, e := range r.all() {
				if g, is := lost[e.Token]; is && (e.What == "kept" || e.What == "stored") {
					t.Errorf("%s was lost after its answer was written down (%s)", g, e.What)
				}
			}
		}
	}
}
