package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// What an operator's backup of Vault is worth. Gates that run through a restore store what they know again, and nothing is lost. When all
// is lost but the backup, what was not refreshed since goes on, and the rest says that it has to be connected again.
func TestBackup(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterSettings{life: time.Hour, log: "debug"})
	l := c.startTraffic(t, 20)
	snapshot := c.saved("wayleave.snap")
	c.atLeader(t, "bao", "operator", "raft", "snapshot", "save", snapshot)
	c.patiently(t, "wayleave", "grant", "refresh", grantName(0))

	l.meanwhile(t, "Vault set back to a backup", func(t *testing.T) {
		c.atLeader(t, "bao", "operator", "raft", "snapshot", "restore", snapshot)
		c.isAt(t, grantName(0), 1) // and not 0, as the backup has it
	})
	for _, name := range []string{"a", "b"} {
		l.meanwhile(t, "a gate killed", func(t *testing.T) { c.killGate(t, name) }) // what it knew is gone
		c.asked(t, name)
	}
	c.patiently(t, "wayleave", "grant", "refresh", grantName(0))
	l.more(t, 20)
	l.stop()
	l.judge(t)
	if s := c.Provider.Stats(); s.Reuses != 0 || s.MaxPresented() != 1 {
		t.Errorf("%+v", s)
	}

	// Three new machines, the seal's key, and the backup.
	for _, g := range c.gates {
		g.kill()
	}
	for _, n := range c.nodes {
		n.kill()
		if err := errors.Join(os.RemoveAll(n.data), os.Mkdir(n.data, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range c.nodes {
		c.startNode(t, n)
		if i == 0 {
			c.initialize(t)
		}
	}
	for _, n := range c.nodes {
		c.healthy(t, n)
	}
	c.voting(t)
	c.atLeader(t, "bao", "operator", "raft", "snapshot", "restore", "-force", snapshot)
	for _, name := range []string{"a", "b"} {
		c.serve(t, name)
	}
	for i := range clusterGrants {
		refresh := c.command("wayleave", "grant", "refresh", grantName(i))
		out, err := refresh.CombinedOutput()
		if spent := i == 0; spent != (err != nil) || spent && !strings.Contains(string(out), "wayleave grant connect "+grantName(i)) {
			t.Errorf("%s: %v\n%s", grantName(i), err, out)
		}
	}
	for i, reason := range map[int]string{0: "needs_reconnect", 1: ""} {
		w := (&gate{world: c.with("WAYLEAVE_TOKEN=" + workerToken(i))}).enrol(t, workerName(i), "ANTHROPIC_AUTH_TOKEN")
		a, err := do(w.client(t, true), w.request(http.MethodGet, "https://api.demo.test/echo", nil))
		if err != nil || a.reason != reason {
			t.Errorf("%s: %v %v; want %q", workerName(i), a, err, reason)
		}
	}
	c.owners.mu.Lock()
	c.owners.connecting = grantName(0)
	c.owners.mu.Unlock()
	c.patiently(t, "wayleave", "grant", "connect", grantName(0))
	c.patiently(t, "wayleave", "grant", "refresh", grantName(0))
}

// atLeader runs a command at the active node, until it succeeds.
func (c *cluster) atLeader(t *testing.T, name string, args ...string) {
	t.Helper()
	there := *c.fleet
	there.world = c.with("BAO_ADDR=" + c.leader(t).address)
	(&cluster{fleet: &there}).patiently(t, name, args...)
}

// isAt waits until a grant is listed with so many refreshes.
func (c *cluster) isAt(t *testing.T, name string, generation int) {
	t.Helper()
	if err := eventually(func() error {
		all, err := c.listed()
		if err == nil && all[name].Generation != generation {
			err = fmt.Errorf("%s has generation %d", name, all[name].Generation)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
