package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"wayleave/operate"
	"wayleave/rollout"
	"wayleave/vault"
)

func newFleet() *cobra.Command {
	return group(&cobra.Command{
		Use:   "fleet",
		Short: "List and show the Envoys of all gates, and drain them",
		Long: `The fleet is every Envoy that is connected to a gate. Gates report their Envoys in Vault; these commands talk to Vault, or to a
gate with --api, as 'wayleave grant' does.`,
	}, newFleetList(), newFleetShow(), newFleetDrain(true), newFleetDrain(false))
}

func newFleetList() *cobra.Command {
	c := plainCommand(vault.Viewer, func(ctx context.Context, d operator, _ []string) error {
		f, err := d.Envoys(ctx)
		if err != nil {
			return err
		}
		if d.json {
			return printJSON(d.out, f)
		}
		return d.printFleet(f)
	})
	c.Use = "list"
	c.Short = "List the Envoys: group, version, revision and how each is"
	c.Long = `List shows every Envoy that is connected to a gate, what it says of what it refuses, and gates that cannot serve a revision.
ERRORS are the requests that failed at the provider or on the way there, since the last rollout began.`
	c.Example = `  wayleave fleet list -c wayleave.yaml
  wayleave fleet list --api https://gate.example.com --json`
	c.Args = exactArgs()
	return c
}

func (d operator) printFleet(f operate.Fleet) error {
	if len(f.Envoys) == 0 {
		fmt.Fprintln(d.out, "No Envoy is connected to a gate.")
	} else {
		rows := [][]string{{"ENVOY", "GROUP", "VERSION", "GATE", "REVISION", "STATE", "ERRORS", "SEEN"}}
		for _, e := range f.Envoys {
			rows = append(rows, []string{
				printable(e.ID), orDash(printable(e.Group)), e.Version, e.Gate, orDash(rollout.Short(e.Has)), e.State.Words(), operate.Share(e.Traffic.Errors, e.Traffic.Requests), ago(e.Seen, d.now()),
			})
		}
		if err := printTable(d.out, rows, func(i int) []note {
			if i == 0 || f.Envoys[i-1].Refused == "" {
				return nil
			}
			return []note{{"says", printable(f.Envoys[i-1].Refused)}}
		}, widthOf(d.out)); err != nil {
			return err
		}
	}
	for _, g := range f.Gates {
		for _, id := range slices.Sorted(maps.Keys(g.Unable)) {
			fmt.Fprintf(d.out, "The gate %s cannot serve revision %s: %s\n", g.Name, rollout.Short(id), printable(g.Unable[id]))
		}
	}
	for _, id := range f.Drained {
		if !slices.ContainsFunc(f.Envoys, func(e operate.EnvoyStatus) bool { return e.ID == id }) {
			fmt.Fprintf(d.out, "The Envoy %s is drained, and not connected.\n", printable(id))
		}
	}
	return nil
}

func newFleetShow() *cobra.Command {
	c := plainCommand(vault.Viewer, func(ctx context.Context, d operator, args []string) error {
		e, err := d.Envoy(ctx, args[0])
		if err != nil {
			return err
		}
		if d.json {
			return printJSON(d.out, e)
		}
		return d.printEnvoy(e)
	})
	c.Use = "show ENVOY"
	c.Short = "Show one Envoy, with what it has of each kind of resource"
	c.Long = `Show prints all that is known of one Envoy: what it is told and what it has, kind by kind, and what it said when it refused
something.`
	c.Example = `  wayleave fleet show envoy-1 -c wayleave.yaml
  wayleave fleet show envoy-1 -c wayleave.yaml --json`
	c.Args = exactArgs("ENVOY")
	return c
}

func (d operator) printEnvoy(e operate.EnvoyStatus) error {
	t := tabwriter.NewWriter(d.out, 0, 4, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, printable(value))
		}
	}
	row("envoy", e.ID)
	row("group", orDash(e.Group))
	row("version", e.Version)
	row("state", e.State.Words())
	row("says", e.Refused)
	row("told revision", e.Revision)
	row("has revision", orDash(e.Has))
	row("gate", e.Gate)
	row("connected", ago(e.Since, d.now()))
	row("last seen", ago(e.Seen, d.now()))
	row("errors", operate.Share(e.Traffic.Errors, e.Traffic.Requests))
	row("refusals", operate.Share(e.Traffic.Refusals, e.Traffic.Requests))
	if err := t.Flush(); err != nil || len(e.Parts) == 0 {
		return err
	}
	fmt.Fprintln(d.out)
	rows := [][]string{{"KIND", "SENT", "HAS", "REFUSED"}}
	for _, p := range e.Parts {
		rows = append(rows, []string{p.Type, orDash(p.Sent), orDash(p.Acked), orDash(p.Refused)})
	}
	return printTable(d.out, rows, func(i int) []note {
		if i == 0 || e.Parts[i-1].Error == "" {
			return nil
		}
		return []note{{"says", printable(e.Parts[i-1].Error)}}
	}, widthOf(d.out))
}

func newFleetDrain(drained bool) *cobra.Command {
	var force bool
	c := plainCommand(vault.Operator, func(ctx context.Context, d operator, args []string) error {
		s, err := d.Drain(ctx, operate.DrainRequest{Envoy: args[0], Drained: drained, Force: force})
		if err != nil {
			return err
		}
		if d.json {
			return printJSON(d.out, map[string][]string{"drained": append([]string{}, s.Drained...)})
		}
		if drained {
			_, err = fmt.Fprintf(d.out, "The Envoy %s closes its listeners. What is under way there ends by itself; see with: wayleave fleet show %s\n", args[0], args[0])
		} else {
			_, err = fmt.Fprintf(d.out, "The Envoy %s opens its listeners again.\n", args[0])
		}
		return err
	})
	if drained {
		c.Use = "drain ENVOY"
		c.Short = "Have an Envoy close its listeners, so that workers go elsewhere"
		c.Long = `Drain has an Envoy close the listeners that workers come by; requests and tunnels that are under way end by themselves. It
lasts until it is taken back with undrain, also when the Envoy or its gate restarts. The last Envoy that is not drained is
drained with --force only.`
		c.Example = "  wayleave fleet drain envoy-1 -c wayleave.yaml\n  wayleave fleet drain envoy-1 -c wayleave.yaml --force"
		c.Flags().BoolVar(&force, "force", false, "also the last Envoy that is not drained: no worker can connect then")
	} else {
		c.Use = "undrain ENVOY"
		c.Short = "Have a drained Envoy open its listeners again"
		c.Long = `Undrain takes a drain back. It works for an Envoy that is not connected too.`
		c.Example = "  wayleave fleet undrain envoy-1 -c wayleave.yaml"
	}
	c.Args = exactArgs("ENVOY")
	return c
}
