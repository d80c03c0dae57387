// Package supervise owns child processes that must keep running: it starts one, sees whether it is ready, starts it
// again when it ends, and stops it in order. What the process is, and what to do about an event, is left to the caller.
//
// A child never outlives us unnoticed. On Linux the kernel ends it when we die, however we die; elsewhere, and for
// whatever escapes that, the PID file lets the next run recognise and end what an earlier one left behind. A child has a
// process group of its own, so that Ctrl-C in a terminal reaches only us and we decide the order of stopping.
package supervise

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Process is one child to keep running.
type Process struct {
	Name string // for events and errors
	// Command returns a new command for each start. Its Stdout, Stderr and SysProcAttr are set by Run.
	Command func() *exec.Cmd
	// Ready returns nil once the process can do its work; it is asked again until then, for each start, with a context
	// that ends when the process does. Nil: a process is ready once it was started.
	Ready func(context.Context) error
	// Log receives the process's output, both streams, in whole lines. Nil: only events carry the last lines.
	Log io.Writer
	// PIDFile names the process across our own crashes, and is locked while Run runs: a second Run for the same file
	// fails. Empty: neither.
	PIDFile string
	// Slow is how long the process may take to be ready before a Waiting event says why it is not; one more follows each
	// time that long passes again. Default 5 s.
	Slow time.Duration
	// Drain lets the process finish what it has begun before SIGTERM. Its context ends with the process; how long it may
	// take is its own affair. Nil: SIGTERM at once.
	Drain func(context.Context)
	// StopTimeout is how long the process has to end after SIGTERM before SIGKILL; default 10 s.
	StopTimeout time.Duration
	// OnEvent is told what happens, in order, from one goroutine; it must not block. May be nil.
	OnEvent func(Event)
}

// Kind is what happened to a process.
type Kind string

const (
	Orphan  Kind = "orphan"  // one left by an earlier run was ended; PID is its own
	Started Kind = "started" // it runs
	Waiting Kind = "waiting" // it runs, but is not ready; Err says why
	Ready   Kind = "ready"   // it can do its work
	Exited  Kind = "exited"  // it ended; Err and Tail say how
	Restart Kind = "restart" // it will be started again after Delay
)

// Event is one thing that happened.
type Event struct {
	Process string
	Kind    Kind
	PID     int
	Err     error         // Exited: why, nil for status 0; Waiting: why; Restart after a failed start: why
	Tail    []string      // Exited: the last lines of output, oldest first
	Delay   time.Duration // Restart
}

// Run keeps the process running until ctx ends, then stops it and returns nil. It returns an error at once when the
// process cannot be started the first time, or another Run has the PID file. Later failures to start are tried again:
// the binary may just be being replaced.
func Run(ctx context.Context, p Process) error {
	if p.OnEvent == nil {
		p.OnEvent = func(Event) {}
	}
	if p.Log == nil {
		p.Log = io.Discard
	}
	p.StopTimeout = cmp.Or(p.StopTimeout, 10*time.Second)
	p.Slow = cmp.Or(p.Slow, 5*time.Second)

	file, err := openPIDFile(p.PIDFile)
	if err != nil {
		return fmt.Errorf("supervising %s: %w", p.Name, err)
	}
	defer file.close()
	if pid, err := file.endOrphan(p.StopTimeout); err != nil {
		return fmt.Errorf("ending the %s an earlier run left behind: %w", p.Name, err)
	} else if pid != 0 {
		p.OnEvent(Event{Process: p.Name, Kind: Orphan, PID: pid})
	}

	// Linux delivers the parent-death signal when the *thread* that forked dies, and Go ends idle threads. So one thread
	// is ours for as long as there may be a child.
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		result <- p.keep(ctx, file)
	}()
	return <-result
}

// keep starts the process again and again until ctx ends.
func (p Process) keep(ctx context.Context, file *pidFile) error {
	var delay backoff
	for first := true; ; first = false {
		began := time.Now()
		err := p.once(ctx, file)
		if ctx.Err() != nil {
			return nil
		}
		if first && err != nil {
			return fmt.Errorf("starting %s: %w", p.Name, err)
		}
		wait := delay.next(time.Since(began))
		p.OnEvent(Event{Process: p.Name, Kind: Restart, Err: err, Delay: wait})
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// once runs the process from start to end. The error is that of the start; how it ended is an event.
func (p Process) once(ctx context.Context, file *pidFile) error {
	out := &lines{to: p.Log}
	cmd := p.Command()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = childAttributes()
	// A grandchild that keeps the output open must not keep us from seeing the end.
	cmd.WaitDelay = cmp.Or(cmd.WaitDelay, time.Second)
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	exited := make(chan struct{})
	go func() { awaitExit(pid); close(exited) }()
	if err := file.record(pid); err != nil {
		signalGroup(pid, syscall.SIGKILL)
		_ = cmd.Wait() // killed; what matters is why
		return err
	}
	p.OnEvent(Event{Process: p.Name, Kind: Started, PID: pid})

	alive, dead := context.WithCancel(ctx)
	defer dead()
	why := make(chan error, 1)
	ready := make(chan bool, 1)
	go func() { ready <- p.untilReady(alive, why) }()
	slow := time.NewTicker(p.Slow)
	defer slow.Stop()
	for running := true; running; {
		select {
		case ok := <-ready:
			ready = nil
			slow.Stop()
			if ok {
				p.OnEvent(Event{Process: p.Name, Kind: Ready, PID: pid})
			}
		case <-slow.C:
			p.OnEvent(Event{Process: p.Name, Kind: Waiting, PID: pid, Err: latest(why)})
		case <-exited:
			running = false
		case <-ctx.Done():
			p.end(pid, exited)
			running = false
		}
	}
	dead()
	if ready != nil {
		<-ready
	}
	// What the process started itself must not hold its sockets when the next one comes. It is signalled before we collect
	// the process, since until then nobody else can have the number.
	signalGroup(pid, syscall.SIGKILL)
	err := cmd.Wait()
	file.clear()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	p.OnEvent(Event{Process: p.Name, Kind: Exited, PID: pid, Err: err, Tail: out.tail()})
	return nil
}

// end asks the process to end, makes it, and returns when it has.
func (p Process) end(pid int, exited <-chan struct{}) {
	if p.Drain != nil {
		ctx, cancel := context.WithCancel(context.Background())
		drained := make(chan struct{})
		go func() { defer close(drained); p.Drain(ctx) }()
		select {
		case <-drained:
		case <-exited:
		}
		cancel()
		<-drained
	}
	signalGroup(pid, syscall.SIGTERM)
	select {
	case <-exited:
	case <-time.After(p.StopTimeout):
		signalGroup(pid, syscall.SIGKILL)
		<-exited
	}
}

// untilReady asks until the answer is yes, and reports whether it was. why holds the last answer that was not.
func (p Process) untilReady(ctx context.Context, why chan error) bool {
	if p.Ready == nil {
		return true
	}
	const first, last = 10 * time.Millisecond, 500 * time.Millisecond
	for wait := first; ; wait = min(2*wait, last) {
		err := p.Ready(ctx)
		if err == nil {
			return ctx.Err() == nil
		}
		_ = latest(why)
		why <- err
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false
		}
	}
}

// latest takes what is in the channel.
func latest(why <-chan error) error {
	select {
	case err := <-why:
		return err
	default:
		return errors.New("it does not answer")
	}
}

// awaitExit returns when our child has ended, and leaves it to be collected: so its number stays its own.
func awaitExit(pid int) {
	var info [128]byte // siginfo_t
	for {
		_, _, e := unix.Syscall6(unix.SYS_WAITID, idPID, uintptr(pid), uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT, 0, 0)
		if e != unix.EINTR {
			return
		}
	}
}

const idPID = 1 // P_PID of waitid(2)

// signalGroup signals the process, which we have not collected yet, and what it started.
func signalGroup(pid int, s syscall.Signal) {
	_ = syscall.Kill(-pid, s) // ESRCH: nothing is left, which is what we want
}

// stable is how long a process must have run for its next failure to count as a first one.
const stable = 30 * time.Second

// backoff is the pause before a restart: short after the first failure, doubling while the process keeps failing.
type backoff struct{ last time.Duration }

func (b *backoff) next(ran time.Duration) time.Duration {
	const first, most = 200 * time.Millisecond, 30 * time.Second
	if ran >= stable {
		b.last = 0
	}
	b.last = min(max(2*b.last, first), most)
	return b.last
}
