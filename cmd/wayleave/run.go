package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"wayleave/secret"
	"wayleave/worker"
)

func newRun() *cobra.Command {
	var gateURL, gateCA, workerName string
	var transparent, isolated bool
	c := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG…]",
		Short: "Run a worker with placeholders in its environment and the gate as its way out",
		Long: `Run enrols at the gate with a worker token, gives the command an environment in which its credentials are
placeholders, its proxy is the gate and its trust store knows the gate's CA, and passes signals and the exit code through.

The gate is --gate or WAYLEAVE_GATE, the token WAYLEAVE_TOKEN; without them, those of a 'wayleave up' on this machine.
WAYLEAVE_TOKEN is not passed on. A gate that is reached over TLS and has its certificate from its own authority, or from
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
	st := addStateFlag(c)
	c.Flags().StringVar(&gateURL, "gate", os.Getenv("WAYLEAVE_GATE"), "URL of the gate's proxy, such as http://gate.internal:3128 (default $WAYLEAVE_GATE)")
	sayDefaultInWords(c, "gate")
	c.Flags().StringVar(&gateCA, "gate-ca", os.Getenv("WAYLEAVE_GATE_CA"), "PEM file of the authority of an https gate's certificate (default $WAYLEAVE_GATE_CA, else the system's)")
	sayDefaultInWords(c, "gate-ca")
	c.Flags().StringVar(&workerName, "worker", "", "which of this machine's workers to be, when 'wayleave up' knows several")
	c.Flags().BoolVar(&transparent, "transparent", false, "set no proxy: the network redirects this worker's connections to the gate (listen.transparent)")
	c.Flags().BoolVar(&isolated, "isolate", false, "give the command a network of its own whose only way out is the gate")
	c.MarkFlagsMutuallyExclusive("transparent", "isolate")
	// Everything after the command's name is the command's own.
	c.Flags().SetInterspersed(false)
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError{errors.New("run wants a command: wayleave run -- COMMAND [ARG…]")}
		}
		gate, err := gateAddress(gateURL, *st)
		if err != nil {
			return err
		}
		token := secret.New(strings.TrimSpace(os.Getenv("WAYLEAVE_TOKEN")))
		if token.IsZero() {
			if token, err = st.workerToken(workerName); err != nil {
				return err
			}
		}
		roots, err := gateRoots(gateCA)
		if err != nil {
			return err
		}
		enrolment, err := enrol(c.Context(), gate, roots, token)
		if err != nil {
			return err
		}
		enrolment.Transparent = transparent
		files, remove, err := writeWorkerFiles(enrolment)
		if err != nil {
			return err
		}
		defer remove()
		// The child lives as long as it wants, and the signals that would end us are its own.
		child := exec.CommandContext(context.WithoutCancel(c.Context()), args[0], args[1:]...)
		child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
		say := func(format string, args ...any) { fmt.Fprintf(c.ErrOrStderr(), "wayleave: "+format+"\n", args...) }
		environment := func() []string {
			env, report := worker.Environment(enrolment, os.Environ(), files)
			for _, line := range report {
				say("%s", line)
			}
			return env
		}
		var code int
		if isolated {
			code, err = runIsolated(child, &enrolment, roots, environment, say)
		} else {
			child.Env = environment()
			code, err = worker.RunChild(child)
		}
		if err != nil {
			say("%v", err)
		}
		if code != 0 {
			return exitCode(code)
		}
		return nil
	}
	return c
}

// authority is whom to believe that a gate over TLS is the one: the system's roots, and those of a file.
type authority struct {
	pool *x509.CertPool // nil: the system's
	file []byte         // PEM
}

func gateRoots(caFile string) (authority, error) {
	if caFile == "" {
		return authority{}, nil
	}
	file, err := os.ReadFile(caFile)
	if err != nil {
		return authority{}, fmt.Errorf("reading the authority of the gate: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return authority{}, fmt.Errorf("reading the system's root certificates: %w", err)
	}
	if !pool.AppendCertsFromPEM(file) {
		return authority{}, fmt.Errorf("%s holds no PEM certificate: name the file of the gate's authority", caFile)
	}
	return authority{pool, file}, nil
}

// enrol becomes a worker of the gate. The authority of a file is then one the worker's programs trust too, since the gate is
// their proxy.
func enrol(ctx context.Context, gate *url.URL, roots authority, token secret.Text) (worker.Enrolment, error) {
	enrolment, err := worker.Enrol(ctx, gate, roots.pool, token)
	if err == nil && len(roots.file) > 0 {
		enrolment.CA = worker.Bundle(enrolment.CA, roots.file)
	}
	return enrolment, err
}

// gateAddress is the URL of the proxy listener: as given, or as `up` on this machine wrote it down.
func gateAddress(given string, st state) (*url.URL, error) {
	if given == "" {
		g, err := st.readGate()
		if err != nil {
			return nil, err
		}
		given = g.Proxy
	}
	u, err := url.Parse(given)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, usageError{fmt.Errorf("%q is not a gate's URL; it looks like http://host:3128", given)}
	}
	return u, nil
}

// writeWorkerFiles writes the CA files and what else the environment points to, in a directory of this worker's own.
func writeWorkerFiles(e worker.Enrolment) (worker.Files, func(), error) {
	roots, _, err := worker.SystemRoots(os.Getenv)
	if err != nil {
		return worker.Files{}, nil, err
	}
	dir, err := os.MkdirTemp("", "wayleave-run-")
	if err != nil {
		return worker.Files{}, nil, fmt.Errorf("making a directory for the worker's files: %w", err)
	}
	remove := func() { _ = os.RemoveAll(dir) }
	files, err := worker.WriteFiles(dir, e, roots)
	if err != nil {
		remove()
		return worker.Files{}, nil, err
	}
	return files, remove, nil
}
