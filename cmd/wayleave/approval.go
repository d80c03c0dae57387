package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wayleave/approval"
	"wayleave/operate"
	"wayleave/vault"
)

func newApproval() *cobra.Command {
	return group(&cobra.Command{
		Use:   "approval",
		Short: "List, show, allow and deny requests that wait for an operator, and take a decision back",
		Long: `A rule of a profile with hold makes requests wait until an operator allows or denies them. These commands talk to Vault, or
to a gate with --api, as 'wayleave grant' does; every gate of that Vault acts on them.`,
	}, newApprovalList(), newApprovalShow(), newApprovalDecide(approval.Allow), newApprovalDecide(approval.Deny), newApprovalForget())
}

// plainCommand is an operatorCommand whose arguments are no grants.
func plainCommand(role vault.Role, f func(context.Context, operator, []string) error) *cobra.Command {
	c := operatorCommand(role, f)
	c.ValidArgsFunction = cobra.NoFileCompletions
	return c
}

func newApprovalList() *cobra.Command {
	var all bool
	c := plainCommand(vault.Viewer, func(ctx context.Context, d operator, _ []string) error { return d.listApprovals(ctx, all) })
	c.Use = "list"
	c.Short = "List the requests that wait for an operator"
	c.Long = `List shows the requests that wait, the oldest first, and the decisions that hold for later requests of a session. With --all it
shows what became of the requests of the last hour too.`
	c.Example = `  wayleave approval list -c wayleave.yaml
  wayleave approval list -c wayleave.yaml --all
  wayleave approval list -c wayleave.yaml --json`
	c.Args = exactArgs()
	c.Flags().BoolVar(&all, "all", false, "also those that do not wait any more")
	return c
}

func (d operator) listApprovals(ctx context.Context, all bool) error {
	held, err := d.Approvals(ctx)
	if err != nil {
		return err
	}
	if !all {
		waiting := []approval.Approval{}
		for _, a := range held.Approvals {
			if a.State == approval.Waiting {
				waiting = append(waiting, a)
			}
		}
		held.Approvals = waiting
	}
	if d.json {
		return printJSON(d.out, held)
	}
	if len(held.Approvals) == 0 {
		fmt.Fprintln(d.out, "No request waits for an operator.")
	} else if err := d.printApprovals(held.Approvals); err != nil {
		return err
	}
	if len(held.Kept) == 0 {
		return nil
	}
	fmt.Fprintln(d.out, "\nDecisions that hold for later requests:")
	rows := [][]string{{"ID", "WORKER", "SESSION", "RULE", "DECISION", "BY", "ENDS"}}
	for _, k := range held.Kept {
		rows = append(rows, []string{k.Approval, k.Worker, k.Session, k.Rule, string(k.Verdict), short(printable(k.By), 28), "in " + span(k.Until.Sub(d.now()))})
	}
	return printTable(d.out, rows, func(int) []note { return nil }, widthOf(d.out))
}

func (d operator) printApprovals(all []approval.Approval) error {
	rows := [][]string{{"ID", "WORKER", "REQUEST", "RULE", "STATE", "SINCE"}}
	for _, a := range all {
		rows = append(rows, []string{
			a.ID, a.Worker, short(printable(a.Method+" "+a.Host+a.Path), 48), a.Rule, stateOf(a, d.now()), ago(a.Since, d.now()),
		})
	}
	return printTable(d.out, rows, func(i int) []note {
		if i == 0 {
			return nil
		}
		return []note{{"why", printable(all[i-1].Words)}}
	}, widthOf(d.out))
}

// stateOf is the state of an approval in words.
func stateOf(a approval.Approval, now time.Time) string {
	if a.State == approval.Waiting && a.Decision == nil {
		return "waits " + span(a.Until.Sub(now)) + " more"
	}
	return strings.ReplaceAll(string(a.State), "_", " ")
}

func newApprovalShow() *cobra.Command {
	c := plainCommand(vault.Viewer, func(ctx context.Context, d operator, args []string) error {
		a, err := d.Approval(ctx, args[0])
		if err != nil {
			return err
		}
		return d.showApproval(a)
	})
	c.Use = "show ID"
	c.Short = "Show one request that waits, or waited in the last hour"
	c.Long = `Show prints all that is known of a request: who sent it, what it is, which rule holds it, and who decided what. Its query, its
headers and its body are not known.`
	c.Example = `  wayleave approval show 4k7vq2mzru -c wayleave.yaml
  wayleave approval show 4k7vq2mzru -c wayleave.yaml --json`
	c.Args = exactArgs("ID")
	return c
}

func (d operator) showApproval(a approval.Approval) error {
	if d.json {
		return printJSON(d.out, a)
	}
	t := tabwriter.NewWriter(d.out, 0, 4, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, printable(value))
		}
	}
	row("approval", a.ID)
	row("state", stateOf(a, d.now()))
	row("request", a.Method+" "+a.Host+a.Path)
	row("credential", orDash(a.Credential))
	row("rule", a.Rule)
	row("why", a.Words)
	row("worker", a.Worker)
	row("profile", a.Profile)
	row("session", orDash(a.Session))
	row("from", a.Source)
	row("since", when(a.Since))
	row("until", when(a.Until))
	row("gate", a.Gate)
	row("request id", a.RequestID)
	if e := a.Decision; e != nil {
		row("decision", string(e.Verdict)+", "+when(e.At))
		row("by", strings.TrimSuffix(e.By+" from "+e.From, " from "))
		row("note", e.Note)
		row("holds until", when(e.Until))
	}
	row("ended", when(a.Ended))
	return t.Flush()
}

func newApprovalDecide(verdict approval.Verdict) *cobra.Command {
	r := operate.Ruling{Verdict: verdict}
	c := plainCommand(vault.Operator, func(ctx context.Context, d operator, args []string) error {
		r.By, r.From = whoami()
		return d.decideApproval(ctx, args[0], r)
	})
	c.Use = string(verdict) + " ID"
	c.Args = exactArgs("ID")
	c.Flags().DurationVar(&r.For, "for", 0, "how long it holds for later requests of the session that meet the same rule, at most 24h (default: for this request only)")
	c.Flags().StringVar(&r.Note, "note", "", "why; it is kept with the decision, and shown to a worker that is denied")
	if verdict == approval.Allow {
		c.Short = "Let a request that waits go on"
		c.Long = `Allow lets a request go on, with the credential of its route. The gate that holds it does so within two seconds; its worker's
session, and the configuration, are looked at again before. What --for decides for later requests ends with the session,
and with 'wayleave approval forget'.`
		c.Example = `  wayleave approval allow 4k7vq2mzru -c wayleave.yaml
  wayleave approval allow 4k7vq2mzru -c wayleave.yaml --for 1h --note planned`
	} else {
		c.Short = "Refuse a request that waits"
		c.Long = `Deny refuses a request: its worker gets approval_denied, with the note if there is one.`
		c.Example = `  wayleave approval deny 4k7vq2mzru -c wayleave.yaml
  wayleave approval deny 4k7vq2mzru -c wayleave.yaml --note unreviewed`
	}
	return c
}

func (d operator) decideApproval(ctx context.Context, id string, r operate.Ruling) error {
	a, err := d.Rule(ctx, id, r)
	if err != nil {
		return err
	}
	if d.json {
		return printJSON(d.out, a)
	}
	fmt.Fprintf(d.out, "%s: %s %s%s of worker %s.\n", map[approval.State]string{approval.Allowed: "Allowed", approval.Denied: "Denied"}[a.State], a.Method, a.Host, printable(a.Path), a.Worker)
	if e := a.Decision; e != nil && !e.Until.IsZero() {
		fmt.Fprintf(d.out, "The same holds until %s for what rule %s holds of session %s.\n", when(e.Until), a.Rule, a.Session)
	}
	return nil
}

func newApprovalForget() *cobra.Command {
	c := plainCommand(vault.Operator, func(ctx context.Context, d operator, args []string) error {
		k, err := d.Forget(ctx, args[0])
		if err != nil {
			return err
		}
		if d.json {
			return printJSON(d.out, k)
		}
		_, err = fmt.Fprintf(d.out, "Forgotten: what rule %s holds of session %s waits for an operator again.\n", k.Rule, k.Session)
		return err
	})
	c.Use = "forget ID"
	c.Short = "Take back a decision that holds for later requests"
	c.Long = `Forget ends what --for decided for the later requests of a session: they wait for an operator again. What goes on already is not
cut off. The id is that of the approval in which it was decided, as list shows it.`
	c.Example = `  wayleave approval forget 4k7vq2mzru -c wayleave.yaml`
	c.Args = exactArgs("ID")
	return c
}

// whoami names who runs this command, and where. Whose rights were used is in Vault's own audit log.
func whoami() (by, from string) {
	by = "an operator"
	if u, err := user.Current(); err == nil {
		by = cmp.Or(u.Username, by)
	}
	from, _ = os.Hostname()
	return by, from
}
