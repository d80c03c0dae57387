package isolate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wayleave/program"
)

// Exit codes of a shell for a command that did not start.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// Ports that are captured in any case: the web's, and that of names.
var usualPorts = []int{namesPort, webPort, 443}

const namesPort = 53

// A Child is a program prepared to start in a network of its own.
type Child struct {
	way          Way
	ours, theirs *os.File // the two ends of a socket
}

// Prepare changes cmd to start in a network of its own. It is our own executable that starts, with the arguments entry
// before the program's; it is to call Enter with what follows entry.
// cmd must be started once or not at all; then Close.
func Prepare(cmd *exec.Cmd, entry []string, way Way) (*Child, error) {
	if cmd.Err != nil { // not found: Start says so
		return &Child{}, nil
	}
	program, err := filepath.Abs(cmd.Path)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a socket for the program's network: %w", err)
	}
	c := &Child{way: way, ours: os.NewFile(uintptr(pair[0]), "network"), theirs: os.NewFile(uintptr(pair[1]), "network")}
	var ports []string
	for _, p := range slices.Concat(way.Ports, way.PlainPorts) {
		ports = append(ports, strconv.Itoa(int(p)))
	}
	cmd.Args = append(slices.Concat(cmd.Args[:1], entry, []string{strings.Join(ports, ","), program}), cmd.Args...)
	cmd.Path = self
	cmd.ExtraFiles = []*os.File{c.theirs} // its descriptor 3
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE}, // until Enter drops them
	}
	cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings, err = sameIDs()
	return c, err
}

// sameIDs are mappings in which everybody is who they are outside: all of them for root, who may say so, else the user.
func sameIDs() (users, groups []syscall.SysProcIDMap, err error) {
	if os.Geteuid() != 0 {
		return []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}},
			[]syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}, nil
	}
	if users, err = knownIDs("/proc/self/uid_map"); err == nil {
		groups, err = knownIDs("/proc/self/gid_map")
	}
	return users, groups, err
}

// knownIDs are the ids that exist here, user_namespaces(7).
func knownIDs(path string) ([]syscall.SysProcIDMap, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []syscall.SysProcIDMap
	for line := range strings.Lines(string(data)) {
		var inside, outside, count int
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		out = append(out, syscall.SysProcIDMap{ContainerID: inside, HostID: inside, Size: count})
	}
	return out, nil
}

// Close ends what the program has not taken.
func (c *Child) Close() {
	if c.ours != nil {
		c.ours.Close()
		c.theirs.Close()
	}
}

// Explain returns the error of a program that did not start, in words where the machine does not let us make its network.
func Explain(err error) error {
	// SELinux, and AppArmor with a profile around us, say EACCES.
	for _, no := range []error{syscall.EPERM, syscall.EACCES, syscall.ENOSPC, syscall.EUSERS, syscall.EINVAL, syscall.ENOSYS} {
		if errors.Is(err, no) && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w (%w): allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone or kernel.apparmor_restrict_unprivileged_userns; what AppArmor or SELinux has for this program; in a container its seccomp profile), "+
				"or leave --isolate away and keep the network from letting workers out", ErrNotPermitted, no)
		}
	}
	return err
}

func (c *Child) serve(ctx context.Context, environment func(netip.AddrPort) []string) error {
	if c.ours == nil {
		return nil
	}
	conn, err := net.FileConn(c.ours)
	c.ours.Close() // conn has its own, and the program waits for the last to be closed
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	s, err := receive(conn.(*net.UnixConn))
	if err != nil {
		return err
	}
	proxy, err := netip.ParseAddrPort(s.proxy.Addr().String())
	if err == nil {
		err = json.NewEncoder(conn).Encode(environment(proxy))
	}
	conn.Close()
	if err != nil {
		s.close()
		return fmt.Errorf("giving the program its environment: %w", err)
	}
	return newRelay(c.way).serve(ctx, s)
}

// Enter is the other half of Prepare, inside: it makes the network, hands its sockets out, and becomes the program. It
// returns only with the exit code to end with, and why.
func Enter(args []string) (code int, err error) {
	if len(args) < 3 {
		return exitNotExecutable, errors.New("this is a part of `wayleave run --isolate` and not for use by hand")
	}
	runtime.LockOSThread() // capabilities are a thread's
	env, err := enter(args[0])
	if err != nil {
		return exitNotExecutable, Explain(err)
	}
	err = syscall.Exec(args[1], args[2:], env)
	if shell, with, script := program.Shell(err, args[1], args[2:]); script {
		err = syscall.Exec(shell, with, env)
	}
	code = exitNotExecutable
	if errors.Is(err, fs.ErrNotExist) {
		code = exitNotFound
	}
	return code, fmt.Errorf("starting %s: %w", args[1], err)
}

func enter(ports string) ([]string, error) {
	conn, err := inherited(3)
	if err != nil {
		return nil, fmt.Errorf("this is a part of `wayleave run --isolate` and not for use by hand: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := everywhereIsHere(); err != nil {
		return nil, err
	}
	files, kinds, err := listen(ports)
	if err != nil {
		return nil, err
	}
	descriptors := make([]int, len(files))
	for i, f := range files {
		descriptors[i] = int(f.Fd())
	}
	if _, _, err := conn.WriteMsgUnix([]byte(kinds), unix.UnixRights(descriptors...), nil); err != nil {
		return nil, fmt.Errorf("handing the sockets of the network out: %w", err)
	}
	for _, f := range files {
		f.Close()
	}
	data, err := io.ReadAll(conn)
	var env []string
	if err == nil {
		err = json.Unmarshal(data, &env)
	}
	if err != nil {
		return nil, fmt.Errorf("getting the program's environment: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("dropping the rights over the network: %w", err)
	}
	return env, nil
}

func inherited(descriptor uintptr) (*net.UnixConn, error) {
	f := os.NewFile(descriptor, "network")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("not a socket of ours")
	}
	return unixConn, nil
}

// everywhereIsHere makes every address one of this network's own, so that a connection to any is one to us.
func everywhereIsHere() error {
	loopback, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(loopback)
	}
	if err != nil {
		return fmt.Errorf("starting the loopback device: %w", err)
	}
	for _, everything := range []string{"0.0.0.0/0", "::/0"} {
		_, network, err := net.ParseCIDR(everything)
		if err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: loopback.Attrs().Index, Dst: network, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL}
		if err := netlink.RouteAdd(route); err != nil && network.IP.To4() != nil { // a kernel may be without IPv6
			return fmt.Errorf("leading every address here: %w", err)
		}
	}
	return nil
}

// Kinds of sockets, one byte each, in the order of the descriptors.
const (
	kindProxy       = 'p'
	kindCaptured    = 'c'
	kindResolverTCP = 't'
	kindResolver4   = '4'
	kindResolver6   = '6'
)

// listen makes the sockets; ports is a list, separated by commas.
func listen(ports string) (files []*os.File, kinds string, err error) {
	add := func(kind byte, l interface{ File() (*os.File, error) }, err error) error {
		if err != nil {
			return fmt.Errorf("listening in the program's network: %w", err)
		}
		f, err := l.File()
		if err != nil {
			return err
		}
		files, kinds = append(files, f), kinds+string(kind)
		return nil
	}
	proxy, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err := add(kindProxy, proxy, err); err != nil {
		return nil, "", err
	}
	for _, p := range capturedPorts(ports) {
		kind := byte(kindCaptured)
		if p == namesPort {
			kind = kindResolverTCP
		}
		l, err := net.ListenTCP("tcp", &net.TCPAddr{Port: p})
		if err := add(kind, l, err); err != nil {
			return nil, "", err
		}
	}
	udp4, err := net.ListenUDP("udp4", &net.UDPAddr{Port: namesPort})
	if err := add(kindResolver4, udp4, err); err != nil {
		return nil, "", err
	}
	if udp6, err := net.ListenUDP("udp6", &net.UDPAddr{Port: namesPort}); err == nil { // a kernel may be without IPv6
		if err := add(kindResolver6, udp6, nil); err != nil {
			return nil, "", err
		}
	}
	return files, kinds, nil
}

// capturedPorts are those where connections to any address are taken: the usual ones and the list.
func capturedPorts(list string) []int {
	ports := slices.Clone(usualPorts)
	for item := range strings.SplitSeq(list, ",") {
		if p, err := strconv.Atoi(item); err == nil && p > 0 && p < 1<<16 {
			ports = append(ports, p)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// receive takes what enter has sent.
func receive(conn *net.UnixConn) (s sockets, err error) {
	const most = 250 // the kernel passes no more descriptors at once (SCM_MAX_FD)
	kinds, rights := make([]byte, most), make([]byte, unix.CmsgSpace(4*most))
	n, rightsLength, _, _, err := conn.ReadMsgUnix(kinds, rights)
	if err != nil || n == 0 {
		return s, errors.New("the program's network was not made") // its own end says why
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rightsLength])
	if err != nil || len(messages) != 1 {
		return s, fmt.Errorf("the program's network came without its sockets: %w", err)
	}
	descriptors, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return s, err
	}
	for i, d := range descriptors {
		f := os.NewFile(uintptr(d), "network")
		if err == nil && i < n {
			err = s.add(kinds[i], f)
		}
		f.Close()
	}
	if err == nil && s.proxy == nil {
		err = errors.New("the program's network came without a proxy")
	}
	if err != nil {
		s.close()
	}
	return s, err
}

func (s *sockets) add(kind byte, f *os.File) error {
	if bytes.IndexByte([]byte{kindResolver4, kindResolver6}, kind) >= 0 {
		c, err := net.FilePacketConn(f)
		if err != nil {
			return err
		}
		r, err := newResolver(c, kind == kindResolver6)
		if err != nil {
			c.Close()
			return err
		}
		s.resolverUDP = append(s.resolverUDP, r)
		return nil
	}
	l, err := net.FileListener(f)
	if err != nil {
		return err
	}
	switch kind {
	case kindProxy:
		s.proxy = l
	case kindResolverTCP:
		s.resolverTCP = append(s.resolverTCP, l)
	default:
		s.captured = append(s.captured, l)
	}
	return nil
}
