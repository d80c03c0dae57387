package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave/operate"
	"wayleave/rollout"
	"wayleave/vault"
)

// Exit codes of `rollout status --exit-code` and of what is watched with --watch.
const (
	exitUnderWay = 20
	exitHalted   = 21 // rolled back, or aborted
)

const followEvery = time.Second // that a rollout is looked at

func newRollout() *cobra.Command {
	return group(&cobra.Command{
		Use:   "rollout",
		Short: "Roll out a configuration, and see, pause, promote and abort rollouts",
		Long: `A rollout leads the Envoys of all gates from one revision of the configuration to the next, in the steps of the section
rollout, and back by itself when something is wrong. These commands talk to Vault, or to a gate with --api, as 'wayleave
grant' does; the gates do the work.`,
	}, newRolloutStart(), newRolloutStatus(), newRolloutLead(pauseRollout), newRolloutLead(resumeRollout), newRolloutLead(promoteRollout), newRolloutLead(abortRollout), newRolloutHistory())
}

func newRolloutStart() *cobra.Command {
	var q operate.RolloutRequest
	var watch bool
	c := plainCommand(vault.Operator, func(ctx context.Context, d operator, args []string) error {
		if len(args) == 1 {
			q.File = args[0]
		} else if _, gate := d.operations.(atGate); gate {
			return usageError{errors.New("which configuration? name its file: wayleave rollout start FILE")}
		} else {
			q.File = d.config
		}
		return d.startRollout(ctx, q, watch)
	})
	c.Use = "start [FILE]"
	c.Short = "Begin to roll out a configuration"
	c.Long = `Start makes the configuration a revision and begins to roll it out. FILE is the one of -c if it is not said; with --api it
must be. Only the part that gates share is rolled out; the steps are those of the section rollout in the file of -c, or in
the gate's own file with --api.

Nothing is begun of what a live worker or a connected grant would lose by, or Envoy refuses (code 3), unless it is meant:
--force names what is overruled. docs/rollouts.md explains each.`
	c.Example = `  wayleave rollout start -c wayleave.yaml --note ticket-4711
  wayleave rollout start -c wayleave.yaml --watch                  # until the end; 21 when it was rolled back
  wayleave rollout start -c wayleave.yaml new.yaml --force drops_worker
  wayleave rollout start --api https://gate.example.com new.yaml`
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usageError{fmt.Errorf("%s wants at most one FILE; see '%s --help'", c.CommandPath(), c.CommandPath())}
		}
		return nil
	}
	c.ValidArgsFunction = nil
	c.Flags().StringVar(&q.Note, "note", "", "why; it is kept with the rollout")
	c.Flags().StringSliceVar(&q.Force, "force", nil, "objections that are overruled, by name")
	c.Flags().BoolVar(&watch, "watch", false, "show how it goes until its end")
	return c
}

func (d operator) startRollout(ctx context.Context, q operate.RolloutRequest, watch bool) error {
	if err := operate.CheckNote(q.Note); err != nil {
		return err
	}
	var err error
	if q.Text, err = os.ReadFile(q.File); err != nil {
		return fmt.Errorf("reading the configuration: %w; name its file with -c, or after start", err)
	}
	q.Author, _ = whoami()
	s, err := d.StartRollout(ctx, q)
	switch objections, are := errors.AsType[*operate.Objections](err); {
	case are:
		return refusal{objections}
	case err != nil:
		return counted(err)
	}
	for _, o := range s.Forced {
		d.say("overruled: %s: %s", o.Name, printable(o.Words))
	}
	switch r := s.Rollout; {
	case watch:
		d.say("Rollout %s of revision %s has begun.", r.ID, rollout.Short(r.To))
		return d.watchRollout(ctx, r.ID)
	case d.json:
		return printJSON(d.out, s)
	case r.Phase == rollout.Succeeded:
		_, err = fmt.Fprintf(d.out, "Revision %s is the first one; every Envoy has it.\n", rollout.Short(r.To))
	default:
		_, err = fmt.Fprintf(d.out, "Rollout %s of revision %s has begun, in %s; see how it goes with: wayleave rollout status --watch\n", r.ID, rollout.Short(r.To), plural(len(r.Plan.Steps), "step"))
	}
	return err
}

func newRolloutStatus() *cobra.Command {
	var watch, code bool
	c := plainCommand(vault.Viewer, func(ctx context.Context, d operator, _ []string) error {
		if watch {
			return d.watchRollout(ctx, "")
		}
		r, err := d.Rollouts(ctx)
		if err != nil {
			return err
		}
		if d.json {
			err = printJSON(d.out, r)
		} else {
			err = printRollout(d.out, r, d.now())
		}
		if err == nil && code {
			return outcomeCode(r)
		}
		return err
	})
	c.Use = "status"
	c.Short = "Show how far the rollout is, or how the last one ended"
	c.Long = `Status shows the rollout that is under way: its step, which part of its Envoys have the new revision, how long they are still
watched, and what went wrong with the new revision and without it.

With --exit-code, and with --watch, the exit code says it too: 0 when there was none or the last one was completed, 20
while one is under way, 21 when the last one was rolled back or aborted.`
	c.Example = `  wayleave rollout status -c wayleave.yaml
  wayleave rollout status -c wayleave.yaml --watch
  wayleave rollout status -c wayleave.yaml --json --exit-code`
	c.Args = exactArgs()
	c.Flags().BoolVar(&watch, "watch", false, "go on showing it until its end; with --json print the end only")
	c.Flags().BoolVar(&code, "exit-code", false, "exit with 20 while one is under way, 21 when the last one was halted")
	return c
}

// outcomeCode is the exit code that says how the last rollout ended; nil: well.
func outcomeCode(r operate.Rollouts) error {
	switch {
	case r.Current != nil:
		return exitCode(exitUnderWay)
	case len(r.History) > 0 && r.History[0].Phase != rollout.Succeeded:
		return exitCode(exitHalted)
	}
	return nil
}

// watchRollout shows a rollout until its end, a line for each thing that is new; an empty id is the one that is under way. A Vault or a
// gate that does not answer for a while is waited out.
func (d operator) watchRollout(ctx context.Context, id string) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	var last string
	for {
		r, err := d.Rollouts(ctx)
		switch {
		case err != nil && (ctx.Err() != nil || !d.passes(err)):
			return err
		case err != nil:
			if words := err.Error(); words != last {
				d.say("waiting: %v", err)
				last = words
			}
		case r.Current != nil && (id == "" || r.Current.ID == id):
			id = r.Current.ID
			if line := progressLine(r); line != last && !d.json {
				fmt.Fprintln(d.out, d.now().Format("15:04:05"), line)
				last = line
			}
		default:
			return d.endOf(id, r)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// progressLine says what is new without what only counts down.
func progressLine(r operate.Rollouts) string {
	p := *r.Progress
	if p.Watching && p.LeftSeconds > 0 {
		p.LeftSeconds = int(r.Current.Plan.Steps[r.Current.Step].Dwell.Seconds()) // as it was when the watching began
	}
	words := p.Sentence(r.Current.Phase)
	if r.Current.Phase == rollout.Paused {
		words += " " + printable(r.Current.Reason)
	}
	return words
}

// endOf shows how a rollout has ended.
func (d operator) endOf(id string, r operate.Rollouts) error {
	for i, h := range r.History {
		if h.ID == id {
			r.History = r.History[i:]
		}
	}
	var err error
	if d.json {
		err = printJSON(d.out, r)
	} else {
		err = printRollout(d.out, r, d.now())
	}
	if err != nil {
		return err
	}
	r.Current = nil // a later one
	return outcomeCode(r)
}

// printRollout prints the current rollout, or how the last one ended.
func printRollout(w io.Writer, r operate.Rollouts, now time.Time) error {
	var b strings.Builder
	line := func(format string, args ...any) { b.WriteString(printable(fmt.Sprintf(format, args...)) + "\n") }
	switch c := r.Current; {
	case c != nil:
		line("rollout %s: revision %s in place of %s", c.ID, rollout.Short(c.To), rollout.Short(c.From))
		line("  begun %s%s%s", ago(c.Began, now), by(*c), noted(*c))
		if c.Phase == rollout.Paused {
			line("  paused %s", c.Reason)
		}
		line("  %s", r.Progress.Sentence(c.Phase))
		for _, f := range r.Progress.Figures() {
			line("  %s", f)
		}
	case len(r.History) > 0:
		h := r.History[0]
		line("nothing is under way; every Envoy has, or is to have, revision %s", rollout.Short(r.Stable))
		line("  the last rollout, %s of revision %s, was %s", h.ID, rollout.Short(h.To), h.Outcome())
		line("  ended %s%s%s", ago(h.Ended, now), by(h), noted(h))
	case r.Stable != "":
		line("nothing is under way; every Envoy has, or is to have, revision %s", rollout.Short(r.Stable))
	default:
		line("nothing has been rolled out yet")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func by(r rollout.Rollout) string {
	if r.Author == "" {
		return ""
	}
	return ", by " + r.Author
}

func noted(r rollout.Rollout) string {
	if r.Note == "" {
		return ""
	}
	return ": " + r.Note
}

// leadRollout is a command that does something to the rollout that is under way.
type leadRollout struct {
	name, short, long, done string
	do                      func(o operations, ctx context.Context, by, note string) (rollout.State, error)
}

var (
	pauseRollout = leadRollout{
		"pause", "Keep the rollout at its step", `Pause keeps a rollout at its step until somebody resumes it. While it is paused it still goes back by itself when something is
wrong.`, "Paused.", operations.PauseRollout,
	}
	resumeRollout  = leadRollout{"resume", "Let a paused rollout go on", `Resume lets a rollout go on; its step is watched anew.`, "Resumed.", operations.ResumeRollout}
	promoteRollout = leadRollout{
		"promote", "End the rollout with every Envoy on the new revision", `Promote gives every Envoy the new revision at once, whatever is left of the rollout, and ends it. Nothing goes back by itself
afterwards.`, "Every Envoy gets the new revision now.", operations.PromoteRollout,
	}
	abortRollout = leadRollout{
		"abort", "End the rollout with every Envoy on the old revision", `Abort has every Envoy go back to the old revision, and ends the rollout. The gates do so within a second or two.`,
		"Every Envoy goes back to the old revision.", operations.AbortRollout,
	}
)

func newRolloutLead(l leadRollout) *cobra.Command {
	var note string
	c := plainCommand(vault.Operator, func(ctx context.Context, d operator, _ []string) error {
		who, _ := whoami()
		if _, err := l.do(d.operations, ctx, who, note); err != nil {
			return err
		}
		r, err := d.Rollouts(ctx)
		if err != nil {
			return err
		}
		if d.json {
			return printJSON(d.out, r)
		}
		fmt.Fprintln(d.out, l.done)
		return printRollout(d.out, r, d.now())
	})
	c.Use, c.Short, c.Long = l.name, l.short, l.long
	c.Example = fmt.Sprintf("  wayleave rollout %s -c wayleave.yaml\n  wayleave rollout %s -c wayleave.yaml --note ticket-4711", l.name, l.name)
	c.Args = exactArgs()
	c.Flags().StringVar(&note, "note", "", "why; it is kept with the rollout")
	return c
}

func newRolloutHistory() *cobra.Command {
	c := plainCommand(vault.Viewer, func(ctx context.Context, d operator, _ []string) error {
		r, err := d.Rollouts(ctx)
		if err != nil {
			return err
		}
		if d.json {
			return printJSON(d.out, r.History)
		}
		return printRollouts(d.out, r)
	})
	c.Use = "history"
	c.Short = "List the rollouts that were, and how each ended"
	c.Long = `History lists the last 50 rollouts, the latest first. Their revisions can be compared: wayleave config diff.`
	c.Example = `  wayleave rollout history -c wayleave.yaml
  wayleave rollout history -c wayleave.yaml --json
  wayleave config diff -c wayleave.yaml 3f2a9c01d4e5 stable`
	c.Args = exactArgs()
	return c
}

func printRollouts(w io.Writer, r operate.Rollouts) error {
	if len(r.History) == 0 {
		_, err := fmt.Fprintln(w, "Nothing has been rolled out yet.")
		return err
	}
	rows := [][]string{{"ENDED", "ROLLOUT", "FROM", "TO", "OUTCOME", "BY"}}
	for _, h := range r.History {
		bare := h
		bare.Reason = ""
		rows = append(rows, []string{when(h.Ended), h.ID, orDash(rollout.Short(h.From)), rollout.Short(h.To), bare.Outcome(), short(printable(orDash(h.Author)), 28)})
	}
	return printTable(w, rows, func(i int) []note {
		if i == 0 {
			return nil
		}
		var out []note
		if h := r.History[i-1]; h.Reason != "" {
			out = append(out, note{"why", printable(h.Reason)})
		}
		if h := r.History[i-1]; h.Note != "" {
			out = append(out, note{"note", printable(h.Note)})
		}
		return out
	}, widthOf(w))
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
