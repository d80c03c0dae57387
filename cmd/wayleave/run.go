package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"wayleave/secret"
	"wayleave/worker"
)

func newRun() *cobra.Command {
	var transparent, isolated, keepSession bool
	c := &cobra.Command{
		Use:        "run [flags] -- COMMAND [ARG…]",
		SuggestFor: []string{"exec"},
		Short:      "Run a worker with placeholders in its environment and the gate as its way out",
		Long: `Run enrols at the gate, gives the command an environment in which its credentials are
placeholders, its proxy is the gate and its trust store knows the gate's CA, and passes signals and the exit code through.
It renews the session while the command runs, and ends it afterwards.

The gate is --gate or WAYLEAVE_GATE. Who the worker is, the first of these says: --token-file, or --cert and --key; the
variables WAYLEAVE_TOKEN_FILE, WAYLEAVE_TOKEN, WAYLEAVE_ID_TOKEN (of GitLab), WAYLEAVE_CERT and WAYLEAVE_KEY; a token that
GitHub Actions makes for the gate. Without them gate and token are those of a 'wayleave up' on this machine. None of these
variables is passed on. A gate that is reached over TLS and has its certificate from its own authority, or from
another that this machine does not know, needs the file of that authority once: --gate-ca or WAYLEAVE_GATE_CA.

With --isolate (Linux) the command runs in a network of its own, whose only way out is the gate: programs that ignore proxy
variables are led there too, and what the gate does not let through is refused. It needs no root where the machine allows
user namespaces. Services on this machine's loopback addresses cannot be reached from there.`,
		Example: `  wayleave run -- claude -p "hello"
  wayleave run -- python worker.py
  WAYLEAVE_GATE=http://gate.internal:3128 WAYLEAVE_TOKEN=… wayleave run -- make release
  wayleave run --isolate -- java -jar agent.jar
  wayleave run --transparent -- ./agent
  WAYLEAVE_GATE=https://gate.internal:3129 WAYLEAVE_GATE_CA=ca.pem WAYLEAVE_TOKEN=… wayleave run -- make release`,
		Args: cobra.ArbitraryArgs,
	}
	me := addEnrolFlags(c)
	c.Flags().BoolVar(&transparent, "transparent", false, "set no proxy: the network redirects this worker's connections to the gate (listen.transparent)")
	c.Flags().BoolVar(&isolated, "isolate", false, "give the command a network of its own whose only way out is the gate")
	direct := addDirectFlag(c)
	c.MarkFlagsMutuallyExclusive("transparent", "isolate", "no-proxy")
	c.Flags().BoolVar(&keepSession, "keep-session", false, "leave the session and its files as they are when the command has ended, for what the command has left running")
	// Everything after the command's name is the command's own.
	c.Flags().SetInterspersed(false)
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError{errors.New("run wants a command: wayleave run -- COMMAND [ARG…]")}
		}
		enrolment, err := me.enrol(c.Context())
		if err != nil {
			return err
		}
		enrolment.Transparent, enrolment.Direct = transparent, *direct
		if err := enrolment.CheckDirect(); err != nil {
			return usageError{err}
		}
		mayRead := enrolment
		if isolated { // the relay logs in
			mayRead.Password = secret.Text{}
		}
		files, remove, err := writeWorkerFiles(mayRead)
		if err != nil {
			return err
		}
		if !keepSession { // which is of no use to what needs the files and lacks them
			defer remove()
		}
		// The child lives as long as it wants, and the signals that would end us are its own.
		child := command(context.WithoutCancel(c.Context()), args)
		say := func(format string, args ...any) { fmt.Fprintf(c.ErrOrStderr(), "wayleave: "+format+"\n", args...) }
		environment := func() []string {
			if enrolment.ProofIn(os.Getenv) {
				worker.Hide() // not before: with --isolate we have written by then what only a visible process can
			}
			env, report := worker.Environment(enrolment, os.Environ(), files)
			env, preferred := worker.Preferences(env, enrolment.Credentials, thisMachine())
			for _, line := range report {
				say("%s", line)
			}
			for _, p := range preferred {
				say("%v", p)
			}
			return env
		}
		done := keepAlive(c.Context(), enrolment, me.roots.pool, filepath.Dir(files.CA), say)
		var end worker.End
		if isolated {
			end, err = runIsolated(child, &enrolment, me.roots, environment, say)
		} else {
			child.Env = environment()
			end, err = worker.RunChild(child)
		}
		if err != nil {
			say("%v", err)
		}
		if done(!keepSession); keepSession {
			say("its files stay in %s until somebody removes them", filepath.Dir(files.CA))
		}
		return commandEnd(end)
	}
	return c
}

// command is the command that a shell starts for args, with our input and output.
func command(ctx context.Context, args []string) *exec.Cmd {
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	if errors.Is(c.Err, exec.ErrDot) { // shells start what is in a relative directory of PATH, as ./node_modules/.bin
		c.Err = nil
	}
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	return c
}

// thisMachine is where we were started, for what we start.
func thisMachine() worker.Machine {
	here, _ := os.Getwd() // without one there are no settings of a project
	ask := func(env []string, name string, args ...string) ([]byte, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c := exec.CommandContext(ctx, name, args...)
		c.Env = env
		return c.Output()
	}
	m := worker.Machine{Dir: here, Files: os.DirFS("/"), Listens: listens, Git: func(env []string, args ...string) ([]byte, error) { return ask(env, "git", args...) }}
	if runtime.GOOS == "darwin" {
		m.Keychain = func(service string) bool { // without -w, which asks the user
			_, err := ask([]string{"HOME=" + os.Getenv("HOME")}, "/usr/bin/security", "find-generic-password", "-s", service)
			return err == nil
		}
	}
	return m
}

// listens reports whether a program of this machine's listens at a socket, which a file that was left behind does not say.
func listens(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

// startersEnv is the environment that we were started in, with where the machine's git has its settings.
func startersEnv(name string) string {
	value := os.Getenv(name)
	if name == "GIT_CONFIG_SYSTEM" && value == "" {
		return thisMachine().GitSystem(os.Environ())
	}
	return value
}

// keepAlive renews a session, and keeps its files in dir, until done is called, which ends it if that is wanted. A gate that cannot be reached then is no
// failure of the command: the session ends by itself.
func keepAlive(ctx context.Context, e worker.Enrolment, roots *x509.CertPool, dir string, say func(string, ...any)) (done func(end bool)) {
	ctx = context.WithoutCancel(ctx) // the child decides when it is over
	keep, stop := context.WithCancel(ctx)
	var kept sync.WaitGroup
	kept.Go(func() { e.KeepAlive(keep, roots, say) })
	kept.Go(func() { worker.KeepFiles(keep, dir) })
	return func(end bool) {
		stop()
		kept.Wait()
		if !end {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_ = e.End(ctx, roots)
	}
}

// workerFiles is what the directory of a worker's files is called like.
const workerFiles = "wayleave-run-"

// writeWorkerFiles writes the CA files and what else the environment points to, in a directory of this worker's own.
func writeWorkerFiles(e worker.Enrolment) (worker.Files, func(), error) {
	roots, _, err := worker.SystemRoots(os.Getenv)
	if err != nil {
		return worker.Files{}, nil, err
	}
	dir, err := os.MkdirTemp("", workerFiles)
	if err != nil {
		return worker.Files{}, nil, fmt.Errorf("making a directory for the worker's files: %w; name one that can be written to with TMPDIR", err)
	}
	remove := func() { _ = os.RemoveAll(dir) }
	files, err := worker.WriteFiles(dir, "", e, roots, startersEnv)
	if err != nil {
		remove()
		return worker.Files{}, nil, err
	}
	return files, remove, nil
}
