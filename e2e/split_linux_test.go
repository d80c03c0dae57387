package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// The network of a cluster that is cut: each node of Vault's is in a network namespace of its own, and reaches the others through that of
// the gates, which is the test's.
//
//	bao-0 10.98.0.1 ── 10.98.0.254 ┐
//	bao-1 10.98.1.1 ── 10.98.1.254 ┼ gates, Envoys, workers
//	bao-2 10.98.2.1 ── 10.98.2.254 ┘

func nodeAddress(i int) string { return fmt.Sprintf("10.98.%d.1", i) }

// newNodeHosts makes it, and skips the test where that is not permitted.
func newNodeHosts(t *testing.T) (hosts [3]nodeHost) {
	t.Helper()
	run := func(c *exec.Cmd) {
		t.Helper()
		if out, err := c.CombinedOutput(); err != nil {
			t.Skipf("no network can be made: %q: %v: %s", c.Args, err, out)
		}
	}
	ip := func(args string) *exec.Cmd { return exec.Command("ip", strings.Fields(args)...) }
	run(ip("link set lo up"))
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600); err != nil {
		t.Skipf("no network can be made: %v", err)
	}
	for i := range hosts {
		holder := exec.CommandContext(t.Context(), "sleep", "infinity")
		holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if err := holder.Start(); err != nil {
			t.Skipf("no network namespace can be made: %v", err)
		}
		n := &network{pid: holder.Process.Pid}
		here, there := fmt.Sprint("node", i), "eth0"
		run(ip("link add " + here + " type veth peer name " + there + " netns " + strconv.Itoa(n.pid)))
		run(ip(fmt.Sprintf("addr add 10.98.%d.254/24 dev %s", i, here)))
		run(ip("link set " + here + " up"))
		run(n.command(ip("link set lo up")))
		run(n.command(ip("addr add " + nodeAddress(i) + "/24 dev " + there)))
		run(n.command(ip("link set " + there + " up")))
		run(n.command(ip(fmt.Sprintf("route add default via 10.98.%d.254", i))))
		hosts[i] = nodeHost{nodeAddress(i), n.command}
	}
	return hosts
}

// cut drops what gates send to these nodes, and what these nodes and the others send to each other, as said, until mended.
func cut(t *testing.T, fromGates, fromNodes []int) (mend func()) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Skipf("no nftables: %v", err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "cut"})
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
	}
	const source, destination = 12, 16 // in the header of IPv4
	drop := func(chain *nftables.Chain, node int, field uint32) {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: field, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: net.ParseIP(nodeAddress(node)).To4()},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	out, through := chain("out", nftables.ChainHookOutput), chain("through", nftables.ChainHookForward)
	for _, n := range fromGates {
		drop(out, n, destination)
	}
	for _, n := range fromNodes {
		drop(through, n, source)
		drop(through, n, destination)
	}
	if err := c.Flush(); err != nil {
		t.Skipf("no packets can be dropped: %v", err)
	}
	return func() {
		c.DelTable(table)
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
	}
}

// Whatever part of Vault's cluster the gates cannot reach, workers do not notice, and tokens are refreshed as long as one node can be
// reached that can reach the active one.
func TestSplit(t *testing.T) {
	soaking(t)
	if !namespaced(t) {
		return
	}
	c := newCluster(t, clusterSettings{life: time.Hour, log: "debug", hosts: newNodeHosts(t)})
	l := c.startTraffic(t, 30)
	l.more(t, 40)
	index := func(n *node) int {
		for i := range c.nodes {
			if c.nodes[i] == n {
				return i
			}
		}
		return -1
	}
	for i, s := range []struct {
		what    string
		gates   func(active, standby int) []int
		nodes   func(active int) []int
		nothing bool // can be refreshed
	}{
		{what: "gates cut off from Vault's active node", gates: func(active, _ int) []int { return []int{active} }},
		{what: "gates cut off from the active node and a standby", gates: func(active, standby int) []int { return []int{active, standby} }},
		{what: "the active node cut off from the others, and not from gates", nodes: func(active int) []int { return []int{active} }},
		{what: "gates cut off from all nodes", gates: func(int, int) []int { return []int{0, 1, 2} }, nothing: true},
	} {
		l.meanwhile(t, s.what, func(t *testing.T) {
			active, standby := index(c.leader(t)), index(c.standby(t))
			var fromGates, fromNodes []int
			if s.gates != nil {
				fromGates = s.gates(active, standby)
			}
			if s.nodes != nil {
				fromNodes = s.nodes(active)
			}
			mend := cut(t, fromGates, fromNodes)
			defer mend()
			if s.nothing {
				c.forgetGates()
				for _, g := range c.gates {
					if err := g.waitOutput("state=degraded"); err != nil {
						t.Error(err)
					}
				}
				l.more(t, 200)
				return
			}
			c.patiently(t, "wayleave", "grant", "refresh", grantName(i))
		})
		for _, n := range c.nodes {
			c.healthy(t, n)
		}
		c.patiently(t, "wayleave", "grant", "refresh", grantName(i))
		l.more(t, 40)
	}
	l.conclude(t, "split")
}

func (c *cluster) forgetGates() {
	for _, g := range c.gates {
		g.forget()
	}
}
