package grant

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"wayleave/secret"
)

// Spool keeps, for a crash, what a provider answered and the store does not have yet: one entry for each grant, on this
// machine, encrypted. A [spool.Dir] is one.
type Spool interface {
	// Keep returns when the entry would survive the end of this process. It replaces an earlier one.
	Keep(name string, data []byte) error
	// Read fails with [fs.ErrNotExist] when there is none.
	Read(name string) ([]byte, error)
	// Drop removes the entry; none is no error.
	Drop(name string) error
}

// spooled is an entry: that a refresh token is being presented, and later the outcome.
type spooled struct {
	Presented  string // id of the lease
	Base, Next stored // zero while there is no outcome
	Version    int
}

// mark spools that the refresh token is about to be presented, and reports whether it may be. A process that follows a
// crash then knows that a lease without a mark cost nothing. If the spool fails, the next lease does without.
func (m *minder) mark() bool {
	if !m.rec.Lease.Marked {
		return true
	}
	err := m.toSpool(spooled{Presented: m.rec.Lease.ID})
	m.blind = err != nil
	return err == nil
}

func (m *minder) toSpool(s spooled) error {
	data, err := json.Marshal(s)
	if err == nil {
		err = m.spool.Keep(m.spec.Name, data)
	}
	if err != nil {
		m.log.Warn("the spool fails: a new token would be lost if the gateway crashed before the store has it", "err", err)
	}
	return err
}

// keep spools an outcome whose tokens are nowhere else. Without a spool, or when that fails, they are in memory only until
// the store has them.
func (m *minder) keep(o *outcome) {
	if m.spool == nil || !o.rotated() {
		return
	}
	o.spooled = m.toSpool(spooled{Presented: leaseID(o.base), Base: store(o.base), Next: store(o.next), Version: o.ver}) == nil
	m.blind = !o.spooled
}

// dropSpooled forgets what the store has, or no longer needs.
func (m *minder) dropSpooled() {
	if m.spool == nil {
		return
	}
	if err := m.spool.Drop(m.spec.Name); err != nil {
		m.log.Warn("spooled token not removed", "err", err)
	}
}

// restore takes up what an earlier process of this machine spooled and may not have stored. Whether it is still worth
// something is for save to find out, by the rules for any outcome.
func (m *minder) restore() {
	if m.spool == nil {
		return
	}
	data, err := m.spool.Read(m.spec.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var s spooled
	if err == nil && json.Unmarshal(data, &s) != nil {
		err = errors.New("it is not what a gateway of this version writes")
	}
	if err != nil {
		m.blind = true
		m.log.Error("a token spooled before a crash cannot be read; it stays where it is",
			"err", err, "next", fmt.Sprintf("if the grant cannot be refreshed any more, run `wayleave grant connect %s`", m.spec.Name))
		return
	}
	if m.marked = s.Presented; s.Next.Epoch == "" {
		return
	}
	m.log.Info("found a token that was spooled before a crash")
	m.unsaved = &outcome{base: s.Base.record(), next: s.Next.record(), ver: s.Version, doubtful: true, spooled: true}
}

// store is r with its tokens in clear; record is the way back.
func store(r record) stored { return stored{r.details, r.Access.Reveal(), r.Refresh.Reveal()} }

func (s stored) record() record {
	return record{details: s.details, Access: secret.New(s.AccessToken), Refresh: secret.New(s.RefreshToken)}
}
