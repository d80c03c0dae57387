package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"wayleave/isolate"
	"wayleave/worker"
)

// isolatedCommand is how run starts itself again, inside the command's network.
const isolatedCommand = "isolated"

// runIsolated is worker.RunChild in a network whose only way out is the gate. It adds the way there to the enrolment, before
// it calls environment.
func runIsolated(child *exec.Cmd, e *worker.Enrolment, roots authority, environment func() []string, say func(string, ...any)) (worker.End, error) {
	resolv, _ := os.ReadFile("/etc/resolv.conf")                                                 // without one there is no search list
	hosts, _ := os.ReadFile("/etc/hosts")                                                        // nor are there names in it
	search, dots := isolate.SearchList(append(resolv, "\noptions "+os.Getenv("RES_OPTIONS")...)) // resolver(5): which counts before the file
	var known []string
	for _, c := range e.Credentials {
		known = append(known, c.Names()...)
	}
	network, err := isolate.Prepare(child, []string{isolatedCommand}, isolate.Way{
		Gate: e.Gate, Roots: roots.pool, User: e.Session.ID, Password: e.Password,
		Ports: e.Ports.TLS, PlainPorts: e.Ports.Plain, Search: search, Dots: dots, Known: known, Hosts: isolate.HostsFile(hosts),
		Refused: func(destination, why string) { say("%s was refused: %s", destination, why) },
	})
	if err != nil {
		return worker.End{Code: exitFailure}, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- network.Serve(ctx, func(relay netip.AddrPort) []string {
			e.Relay = relay
			return environment()
		})
	}()
	end, err := worker.RunChild(child)
	network.Close()
	cancel()
	if failed := <-served; err == nil && end.Code == 0 && failed != nil {
		err = fmt.Errorf("the way to the gate: %w", failed)
	}
	return end, isolate.Explain(err)
}

// newIsolated is the other half of run --isolate, which nobody calls by hand.
func newIsolated() *cobra.Command {
	return &cobra.Command{
		Use: isolatedCommand, Hidden: true, DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			code, err := isolate.Enter(args)
			fmt.Fprintf(c.ErrOrStderr(), "wayleave: %v\n", err)
			return exitCode(code)
		},
	}
}
