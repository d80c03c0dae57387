// Command bench measures what the gate costs: the real Envoy with our configuration, asked by real connections, and our
// services in a process of their own. It owns how to measure; what is measured is a scenario, each in a file of its own.
//
//	bench ── CONNECT, TLS, requests ──▶ Envoy ──▶ upstream (in bench)
//	  └── starts, asks ──▶ bench gate ◀── xDS, ext_authz, ext_proc
//
// Machines differ and this one may be busy. So every figure has a named alternative, measured in turn with it in each round,
// and what counts is the ratio within a round. No test depends on a time.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// scenario is one benchmark. flags declares its parameters and returns what measures.
type scenario struct {
	name, about string
	flags       func(*flag.FlagSet) func(context.Context, *report) error
}

var scenarios = []scenario{
	{"compare", "what other ways to have a credential set cost", compareFlags},
	{"grants", "what it costs to keep many grants, and to refresh all at once", grantsFlags},
	{"names", "memory and handshakes for many names below wildcards", namesFlags},
	{"nodes", "how soon a change of the configuration is in all Envoys, and what many of them cost", nodesFlags},
	{"observe", "what it costs to see what is done: metrics, the audit, traces", observeFlags},
	{"routes", "what a request costs by how many routes there are", routesFlags},
	{"sessions", "what it costs to know whose a request is, with many live sessions", sessionsFlags},
	{"start", "how long it takes from the start of the programs until a worker has an answer", startFlags},
	{"swap", "what each part of the way of a request costs", swapFlags},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is the command. Results go to out, and how far it is to progress.
func run(ctx context.Context, args []string, out, progress io.Writer) error {
	if len(args) > 0 && args[0] == gateCommand {
		return serveGate(ctx, os.Stdin, out)
	}
	if len(args) > 0 && args[0] == mitmCommand {
		return serveMITM(ctx, os.Stdin, out)
	}
	if len(args) > 0 && args[0] == "check" {
		return check(ctx, args[1:], out, progress)
	}
	if len(args) == 1 && args[0] == "publish" {
		return publish()
	}
	m, err := measured(ctx, args, progress)
	if err != nil {
		return err
	}
	if m.file != "" {
		if err := m.save(m.file); err != nil {
			return err
		}
	}
	if m.raw {
		return json.NewEncoder(out).Encode(m.report)
	}
	return m.print(out)
}

// measurement is a report and what is to be done with it.
type measurement struct {
	*report
	raw  bool   // to print what each round measured
	file string // to write that to as well
}

// measured runs the scenario that args name.
func measured(ctx context.Context, args []string, progress io.Writer) (measurement, error) {
	for _, s := range scenarios {
		if len(args) == 0 || s.name != args[0] {
			continue
		}
		m := measurement{report: &report{Scenario: s.name, Machine: thisMachine(ctx), Parameters: map[string]string{}, progress: progress}}
		f := flag.NewFlagSet(s.name, flag.ContinueOnError)
		f.SetOutput(progress)
		measure := s.flags(f)
		f.VisitAll(func(p *flag.Flag) { m.Parameters[p.Name] = "" })
		f.BoolVar(&m.raw, "json", false, "print what each round measured, as JSON, in place of tables")
		f.StringVar(&m.file, "out", "", "write what each round measured to this file")
		if err := f.Parse(args[1:]); err != nil {
			return m, err
		}
		if f.NArg() > 0 {
			return m, fmt.Errorf("%q is no parameter of %s: see bench %s -h", f.Arg(0), s.name, s.name)
		}
		for name := range m.Parameters {
			m.Parameters[name] = f.Lookup(name).Value.String()
		}
		if err := measure(ctx, m.report); ctx.Err() != nil {
			return m, fmt.Errorf("ended before everything was measured: %w", context.Cause(ctx))
		} else if err != nil {
			return m, err
		}
		return m, nil
	}
	for _, s := range scenarios {
		fmt.Fprintf(progress, "  bench %-8s %s\n", s.name, s.about)
	}
	fmt.Fprintf(progress, "  bench %-8s %s\n  bench %-8s %s\n", "check", "which ratios have moved since what is in "+results, "publish", "write what is in "+results+" into "+performancePage)
	return measurement{}, errors.New("name one of the scenarios")
}
