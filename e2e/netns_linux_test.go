package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The network of the tests in transparent mode: a test runs again as a process in a network namespace of its own, where
// the gate is too; its workers are in a second namespace, whose only way out leads to the first.
//
//	workers 10.99.0.1 …, fd99::1 … ── veth ── 10.99.0.254, fd99::fe  nftables: redirect ──▶ the gate
//
// Both namespaces end with their processes. Nothing of the machine's own network is touched.

// inNamespace says where the test binary runs, and where it finds what it has built.
const inNamespace = "WAYLEAVE_E2E_NAMESPACE"

const (
	gateSide  = "10.99.0.254"
	gateSide6 = "fd99::fe"
	bogus     = "198.51.100.9" // what workers take the hosts' address to be (RFC 5737)
	bogus6    = "2001:db8::9"

	sidecarUser = 4242
)

// namespaced runs the calling test again in a namespace and reports whether this is that run.
func namespaced(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNamespace) != "" {
		return true
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skipf("no network can be made: %v", err)
	}
	c := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	if *update {
		c.Args = append(c.Args, "-update")
	}
	c.Env = append(os.Environ(), inNamespace+"="+binDir)
	c.SysProcAttr = newNetwork()
	out, err := c.CombinedOutput()
	switch {
	case bytes.Contains(out, []byte("\n--- SKIP")):
		t.Skipf("%s", out)
	case err != nil && c.Process == nil:
		t.Skipf("no network namespace can be made: %v", err)
	case err != nil:
		t.Errorf("in its namespace: %v\n%s", err, out)
	default:
		t.Logf("%s", out)
	}
	return false
}

// newNetwork starts a process in a network namespace of its own. Who is not root may do so in a user namespace, where that
// is allowed.
func newNetwork() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		a.Cloneflags |= syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	return a
}

// network is the workers' namespace, seen from the gate's.
type network struct {
	pid int // of a process that lives there
}

// newNetworkOf makes the network with this many workers, and skips the test where that is not permitted.
func newNetworkOf(t *testing.T, workers int) *network {
	t.Helper()
	holder := exec.CommandContext(t.Context(), "sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		t.Skipf("no second network namespace can be made: %v", err)
	}
	n := &network{pid: holder.Process.Pid}
	run := func(c *exec.Cmd) {
		t.Helper()
		if out, err := c.CombinedOutput(); err != nil {
			t.Skipf("no network can be made: %q: %v: %s", c.Args, err, out)
		}
	}
	ip := func(args string) { t.Helper(); run(exec.Command("ip", strings.Fields(args)...)) }
	there := func(args string) { t.Helper(); run(n.command(exec.Command("ip", strings.Fields(args)...))) }
	ip("link set lo up")
	ip("link add gate type veth peer name worker netns " + strconv.Itoa(n.pid))
	ip("addr add " + gateSide + "/24 dev gate")
	ip("-6 addr add " + gateSide6 + "/64 dev gate nodad")
	ip("link set gate up")
	ip("route add default dev gate") // the filter decides before anybody is looked for there
	there("link set lo up")
	for i := range workers {
		there("addr add " + n.source(i) + "/24 dev worker")
		there("-6 addr add " + n.source6(i) + "/64 dev worker nodad")
	}
	there("link set worker up")
	there("route add default via " + gateSide)
	there("-6 route add default via " + gateSide6)
	return n
}

func (n *network) source(i int) string  { return fmt.Sprintf("10.99.0.%d", i+1) }
func (n *network) source6(i int) string { return fmt.Sprintf("fd99::%x", i+1) }

// command makes c run where the workers are.
func (n *network) command(c *exec.Cmd) *exec.Cmd {
	args := append([]string{"-t", strconv.Itoa(n.pid), "-n", "--", c.Path}, c.Args[1:]...)
	there := exec.Command("nsenter", args...)
	there.Dir, there.Env = c.Dir, c.Env
	return there
}

// dial connects from a worker's address to an address, both as ip:port or, for the source, ip.
func (n *network) dial(ctx context.Context, source, address string) (net.Conn, error) {
	runtime.LockOSThread() // a thread has a network namespace, and a socket keeps that of the thread that made it
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer home.Close()
	there, err := os.Open("/proc/" + strconv.Itoa(n.pid) + "/ns/net")
	if err != nil {
		return nil, err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	conn, dialErr := d.DialContext(ctx, "tcp", address)
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err // the thread ends with this goroutine
	}
	runtime.UnlockOSThread()
	return conn, dialErr
}

// redirect sends what comes from the workers for these TCP ports to a port of this namespace, as
//
//	nft add rule inet wayleave in iifname gate tcp dport PORT redirect to :TO
//
// and what this namespace's own user sidecarUser sends for port 443 too, as a sidecar does:
//
//	nft add rule inet wayleave out meta skuid USER tcp dport 443 redirect to :TO
func redirect(t *testing.T, to uint16, ports ...uint16) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Skipf("no nftables: %v", err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "wayleave"})
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest})
	}
	rule := func(chain *nftables.Chain, key expr.MetaKey, is []byte, port uint16) {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: key, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: is},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
			&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(to)},
			&expr.Redir{RegisterProtoMin: 1},
		}})
	}
	in, out := chain("in", nftables.ChainHookPrerouting), chain("out", nftables.ChainHookOutput)
	for _, port := range ports {
		rule(in, expr.MetaKeyIIFNAME, []byte("gate\x00"), port)
	}
	rule(out, expr.MetaKeySKUID, binaryutil.NativeEndian.PutUint32(sidecarUser), 443)
	if err := c.Flush(); err != nil {
		t.Skipf("no redirect can be made: %v", err)
	}
}
