package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestStories runs the scripts in testdata. Beside testscript's own commands they have:
//
//	configure FILE           write the configuration, $NAMES filled in
//	up                       start the gate and wait until it is ready
//	down [SIGNAL]            stop the gate (INT) and wait until it ended
//	prints TEXT              wait until the gate has printed TEXT
//	provider ttl D | down | back | allow SCOPE… | all-scopes | revoke-all | expire | fail N STATUS BODY | rotate on|off
//	provider refreshes N     check how many refreshes succeeded, and that no refresh token came twice
//	provider revoked N       check how many consents were ended, none of them by reuse
//	received PATH REGEXP     check the credential, masked, of the last request that arrived at PATH
//	[!] saw TEXT             check whether any request that arrived carried TEXT
//	eventually COMMAND…      run a command until it succeeds; its output is then stdout
//	hook                     start an operators' server for messages: see hookCmd
//	leakcheck                look for real tokens on disk, in Envoy's admin interface, and in what /proc shows
//	signal NAME PIDFILE      send a signal to the process in a PID file
//	[!] alive PIDFILE        check whether the process in a PID file runs
func TestStories(t *testing.T) {
	t.Parallel()
	testscript.RunT(searchedScript{t}, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			// testscript's own directory is too deep for socket names.
			dir, err := os.MkdirTemp("", "wl")
			if err != nil {
				return err
			}
			e.Defer(func() { _ = os.RemoveAll(dir) })
			w, err := newWorld(dir)
			if err != nil {
				return err
			}
			e.Defer(func() {
				_ = w.Close()
				if err := stands(errors.Join(w.leaks(), leaksBelow(e.WorkDir, 0))); err != nil {
					e.T().Fatal(err)
				}
			})
			s := &stage{world: w}
			e.Defer(func() {
				if err := s.end(); err != nil {
					e.T().Fatal(err)
				}
			})
			e.Values[stageKey{}] = s
			e.Vars = append(e.Vars, w.env...)
			e.Vars = append(e.Vars, "DIR="+dir, "STATE="+w.getenv("WAYLEAVE_STATE"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"configure":  onStage((*stage).configureFrom),
			"up":         onStage((*stage).upCmd),
			"down":       onStage((*stage).downCmd),
			"prints":     onStage((*stage).printsCmd),
			"provider":   onStage((*stage).providerCmd),
			"received":   onStage((*stage).receivedCmd),
			"saw":        sawCmd,
			"eventually": eventuallyCmd,
			"hook":       onStage((*stage).hookCmd),
			"leakcheck":  onStage((*stage).leakCmd),
			"signal":     onStage((*stage).signalCmd),
			"alive":      aliveCmd,
		},
	})
}

type stageKey struct{}

// stage is one script's world and gate.
type stage struct {
	*world
	gate *gate
}

// searchedScript is a script's test whose log, which has all that its commands printed, is searched for secrets.
type searchedScript struct{ *testing.T }

func (s searchedScript) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(searchedScript{t}) })
}

// Verbose keeps testscript from dropping from the log what went well.
func (s searchedScript) Verbose() bool { return true }

func (s searchedScript) Log(args ...any) {
	text := fmt.Sprint(args...)
	if err := stands(leaksIn("what the script printed", []byte(text))); err != nil {
		s.Error(err)
	}
	if testing.Verbose() || s.Failed() {
		s.T.Log(text)
	}
}

func (s *stage) end() error {
	if s.gate == nil {
		return nil
	}
	return s.gate.stop()
}

// onStage makes a command that succeeds or fails the script.
func onStage(f func(*stage, *testscript.TestScript, []string) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("this command cannot be negated")
		}
		ts.Check(f(ts.Value(stageKey{}).(*stage), ts, args))
	}
}

func (s *stage) configureFrom(ts *testscript.TestScript, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: configure FILE")
	}
	return s.configure(ts.ReadFile(args[0]))
}

func (s *stage) upCmd(ts *testscript.TestScript, _ []string) (err error) {
	s.gate, err = s.with("WAYLEAVE_LOG=" + ts.Getenv("WAYLEAVE_LOG")).up() // a script may want its gate to log less
	return err
}

func (s *stage) downCmd(_ *testscript.TestScript, args []string) error {
	if len(args) == 1 && args[0] == "KILL" {
		return s.gate.signal(syscall.SIGKILL)
	}
	return s.gate.stop()
}

func (s *stage) printsCmd(_ *testscript.TestScript, args []string) error {
	return s.gate.waitOutput(strings.Join(args, " "))
}

func (s *stage) providerCmd(_ *testscript.TestScript, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: provider WHAT…")
	}
	p := s.Provider
	switch what, rest := args[0], args[1:]; what {
	case "ttl":
		d, err := time.ParseDuration(rest[0])
		p.SetAccessTTL(d)
		return err
	case "down", "back":
		p.SetDown(what == "down")
	case "allow":
		p.AllowScopes(rest...)
	case "all-scopes":
		p.AllowScopes()
	case "revoke-all":
		p.RevokeAll()
	case "expire":
		p.ExpireAccess()
	case "rotate":
		p.SetRotation(rest[0] == "on")
	case "fail":
		n, err1 := strconv.Atoi(rest[0])
		status, err2 := strconv.Atoi(rest[1])
		if err1 != nil || err2 != nil {
			return fmt.Errorf("usage: provider fail N STATUS BODY")
		}
		p.FailNext(n, status, rest[2])
	case "refreshes":
		st := p.Stats()
		if strconv.Itoa(st.Refreshes) != rest[0] || st.MaxPresented() > 1 {
			return fmt.Errorf("%d refreshes, and a refresh token was presented %d times", st.Refreshes, st.MaxPresented())
		}
	case "revoked":
		if st := p.Stats(); strconv.Itoa(st.Revoked) != rest[0] || st.Reuses > 0 {
			return fmt.Errorf("%d consents ended, %d refresh tokens reused", st.Revoked, st.Reuses)
		}
	default:
		return fmt.Errorf("unknown: provider %s", what)
	}
	return nil
}

func (s *stage) receivedCmd(ts *testscript.TestScript, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: received PATH REGEXP")
	}
	want, err := regexp.Compile(args[1])
	if err != nil {
		return err
	}
	requests := s.API.Requests()
	for i := len(requests) - 1; i >= 0; i-- {
		if r := requests[i]; r.Path == args[0] {
			ts.Logf("[%s %s arrived with %q]", r.Method, r.Path, r.Authorization)
			if !want.MatchString(r.Authorization) {
				return fmt.Errorf("the last request at %s arrived with %q", r.Path, r.Authorization)
			}
			return nil
		}
	}
	return fmt.Errorf("no request arrived at %s", args[0])
}

func sawCmd(ts *testscript.TestScript, neg bool, args []string) {
	text := strings.Join(args, " ")
	if saw := ts.Value(stageKey{}).(*stage).API.Saw(text); saw == neg {
		ts.Fatalf("arrived with %q: %v", text, saw)
	}
}

func eventuallyCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: eventually COMMAND…")
	}
	s := ts.Value(stageKey{}).(*stage)
	var last []byte
	err := eventually(func() (err error) {
		last, err = s.command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	fmt.Fprintf(ts.Stdout(), "%s", last)
	ts.Check(err)
}

func (s *stage) leakCmd(ts *testscript.TestScript, _ []string) error {
	return stands(errors.Join(s.gate.adminLeaks(), s.gate.liveLeaks(), s.leaks()))
}

func (s *stage) signalCmd(ts *testscript.TestScript, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: signal NAME PIDFILE")
	}
	signals := map[string]syscall.Signal{"KILL": syscall.SIGKILL, "TERM": syscall.SIGTERM, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}
	pid, err := pidIn(ts.ReadFile(args[1]))
	if err != nil {
		return err
	}
	return syscall.Kill(pid, signals[args[0]])
}

func aliveCmd(ts *testscript.TestScript, neg bool, args []string) {
	pid, err := pidIn(ts.ReadFile(args[0]))
	ts.Check(err)
	if alive := syscall.Kill(pid, 0) == nil; alive == neg {
		ts.Fatalf("process %d is alive: %v", pid, alive)
	}
}

func pidIn(file string) (int, error) {
	var p struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(file), &p); err != nil {
		return 0, fmt.Errorf("no process id in %q: %w", file, err)
	}
	if p.PID <= 1 {
		return 0, fmt.Errorf("no process id in %q", file)
	}
	return p.PID, nil
}
