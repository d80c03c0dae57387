package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wayleave/operate"
	"wayleave/vault"
	"wayleave/worker"
)

func newSession() *cobra.Command {
	return group(&cobra.Command{
		Use:   "session",
		Short: "Make, list and revoke workers' sessions, and rotate the keys they are made with",
		Long: `A session is one worker's permission for a time. 'wayleave run' makes, renews and ends one by itself. To list and to revoke
sessions is an operator's business: those commands talk to Vault, or with --api to a gate, as 'wayleave grant' does.`,
	}, newSessionCreate(), newSessionList(), newSessionRevoke(), newSessionRotateKeys())
}

func newSessionCreate() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "create",
		Short: "Enrol a worker and print its session: the proxy and the placeholders",
		Long: `Create enrols like 'wayleave run', and prints what the session consists of, for a program that brings its own way to use a
proxy. What a worker's environment should be, 'wayleave env' prints.

The session lasts as long as its profile says. Whoever has it can renew and end it, with the proxy's user and password:

  curl -u USER:PASSWORD -X POST GATE/.wayleave/v1/sessions/renew
  curl -u USER:PASSWORD -X DELETE GATE/.wayleave/v1/sessions`,
		Example: `  wayleave session create
  WAYLEAVE_GATE=http://gate.internal:3128 WAYLEAVE_TOKEN=… wayleave session create --json`,
		Args: exactArgs(),
	}
	me := addEnrolFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the gate's CA in it")
	c.RunE = func(c *cobra.Command, _ []string) error {
		e, err := me.enrol(c.Context())
		if err != nil {
			return err
		}
		proxy := e.ProxyURL()
		if asJSON {
			return printJSON(c.OutOrStdout(), createdSession(e, proxy))
		}
		t := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
		fmt.Fprintf(t, "session\t%s\nworker\t%s\nprofile\t%s\nends\t%s\nproxy\t%s\n", e.Session.ID, e.Session.Worker, e.Session.Profile, when(e.Session.Expires), proxy)
		for _, c := range e.Credentials {
			fmt.Fprintf(t, "%s\t%s\n", c.Grant, c.Placeholder)
		}
		return t.Flush()
	}
	return c
}

// session is one as `session create --json` prints it.
type session struct {
	Session      string            `json:"session"`
	Worker       string            `json:"worker"`
	Profile      string            `json:"profile"`
	Ends         time.Time         `json:"ends"`
	Proxy        string            `json:"proxy"`
	CAPEM        string            `json:"ca_pem"`
	Placeholders map[string]string `json:"placeholders"` // by grant
}

func createdSession(e worker.Enrolment, proxy string) session {
	s := session{
		Session: e.Session.ID, Worker: e.Session.Worker, Profile: e.Session.Profile, Ends: e.Session.Expires,
		Proxy: proxy, CAPEM: string(e.CA), Placeholders: map[string]string{},
	}
	for _, c := range e.Credentials {
		s.Placeholders[c.Grant] = c.Placeholder
	}
	return s
}

func newSessionList() *cobra.Command {
	var name string
	c := operatorCommand(vault.Viewer, func(ctx context.Context, d operator, _ []string) error { return d.listSessions(ctx, name) })
	c.Use = "list"
	c.Short = "List the live sessions"
	c.Long = `List shows every session that lives: its worker, where it came from, what its worker proved to be, and when it ends if it is
not renewed. A session appears within seconds of its start.`
	c.Example = `  wayleave session list -c wayleave.yaml
  wayleave session list -c wayleave.yaml --worker ci
  wayleave session list -c wayleave.yaml --json
  wayleave session list --api https://gate.example.com --api-token-file api.token`
	c.Args = exactArgs()
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.Flags().StringVar(&name, "worker", "", "only those of this worker")
	return c
}

func (d operator) listSessions(ctx context.Context, name string) error {
	all, err := d.Sessions(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(s worker.Live) bool { return name != "" && s.Worker != name })
	switch {
	case d.json:
		return printJSON(d.out, append([]worker.Live{}, all...)) // [] and not null
	case len(all) == 0 && name != "":
		_, err = fmt.Fprintf(d.out, "Worker %s has no live session.\n", name)
		return err
	case len(all) == 0:
		_, err = fmt.Fprintln(d.out, "There are no live sessions.")
		return err
	}
	rows := [][]string{{"SESSION", "WORKER", "PROFILE", "FROM", "SUBJECT", "ISSUED", "ENDS"}}
	for _, s := range all {
		rows = append(rows, []string{
			s.ID, s.Worker, s.Profile, orDash(printable(s.Source)), orDash(short(printable(s.Subject), 40)), ago(s.Issued, d.now()), "in " + span(s.Ends.Sub(d.now())),
		})
	}
	return printTable(d.out, rows, func(int) []note { return nil }, widthOf(d.out))
}

// printable is text from elsewhere as it fits on a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func newSessionRevoke() *cobra.Command {
	var q revokeFlags
	c := operatorCommand(vault.Operator, func(ctx context.Context, d operator, args []string) error { return d.revokeSessions(ctx, q, args) })
	c.Use = "revoke [ID…]"
	c.Short = "End sessions before their time, at every gate within five seconds"
	c.Long = `Revoke ends sessions: those with the given ids, all that a worker has, or all there are. Every gate that reaches Vault
refuses them within five seconds, with the reason session_revoked. The workers may enrol again, unless they are taken out of
the configuration. What is under way is not cut off.

With --worker and --all, the sessions issued before this moment end, and with --not-before those issued before another one.`
	c.Example = `  wayleave session revoke -c wayleave.yaml nyrpqmtk2vsxuaz5kd7gjb3e
  wayleave session revoke -c wayleave.yaml --worker ci
  wayleave session revoke -c wayleave.yaml --worker ci --not-before 2026-03-01T12:00:00Z
  wayleave session revoke -c wayleave.yaml --all --yes`
	c.Args = cobra.ArbitraryArgs
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.Flags().StringSliceVar(&q.workers, "worker", nil, "end the sessions of this worker")
	c.Flags().BoolVar(&q.all, "all", false, "end all sessions")
	c.Flags().StringVar(&q.notBefore, "not-before", "", "end only those issued before this time, as in 2026-03-01T12:00:00Z (default now)")
	c.Flags().BoolVar(&q.yes, "yes", false, "do not ask whether --all is meant")
	return c
}

type revokeFlags struct {
	workers   []string
	all, yes  bool
	notBefore string
}

func (d operator) revokeSessions(ctx context.Context, q revokeFlags, ids []string) error {
	many := q.all || len(q.workers) > 0
	switch {
	case len(ids) == 0 && !many:
		return usageError{errors.New("say which sessions: ids as 'wayleave session list' shows them, --worker NAME, or --all")}
	case len(ids) > 0 && many:
		return usageError{errors.New("ids, --worker and --all exclude one another; revoke them one after the other")}
	case q.all && len(q.workers) > 0:
		return usageError{errors.New("--all has every worker's sessions in it; leave --worker out")}
	case q.notBefore != "" && !many:
		return usageError{errors.New("--not-before goes with --worker or --all")}
	}
	end := operate.SessionsToEnd{Sessions: ids, Workers: q.workers, All: q.all}
	if q.notBefore != "" {
		var err error
		if end.NotBefore, err = time.Parse(time.RFC3339, q.notBefore); err != nil {
			return usageError{fmt.Errorf("--not-before %s is no time; write it as in 2026-03-01T12:00:00Z", q.notBefore)}
		}
	}
	if q.all && !q.yes && terminalOf(d.in) != nil {
		live, err := d.Sessions(ctx)
		if err != nil {
			return err
		}
		if !d.confirm(ctx, fmt.Sprintf("%s, and every worker has to be started again. End all sessions? [y/N] ", liveCount(len(live)))) {
			return errors.New("nothing was changed")
		}
	}
	ended, err := d.EndSessions(ctx, end)
	if err != nil {
		return err
	}
	for _, name := range ended.Unconfigured {
		d.say("wayleave: the configuration has no worker %s; sessions of one that had this name end all the same", name)
	}
	if d.json {
		return printJSON(d.out, ended)
	}
	for _, id := range ended.Unlisted {
		d.say("wayleave: no live session %s is listed; if it lives, it ends all the same", id)
	}
	_, err = fmt.Fprintf(d.out, "Revoked: every gate that reaches Vault refuses them within five seconds (%s).\n", liveCount(len(ended.Ended)))
	return err
}

// liveCount says how many sessions live.
func liveCount(n int) string {
	if n == 1 {
		return "1 session was live"
	}
	return fmt.Sprintf("%d sessions were live", n)
}

// rotationTime is how long gates are given: they look every few seconds, and wait a minute between two rotations.
const rotationTime = 90 * time.Second

func newSessionRotateKeys() *cobra.Command {
	var endSessions, yes bool
	var timeout time.Duration
	c := deskCommand(vault.Operator, func(ctx context.Context, d desk, _ []string) error {
		return d.rotateKeys(ctx, endSessions, yes, timeout)
	})
	c.Use = "rotate-keys"
	c.Short = "Ask a running gate to make a new key for sessions and placeholders"
	c.Long = `Rotate-keys has a gate make a new key for sessions and placeholders. Sessions made with the earlier one go on until their end,
and can be renewed as before. Two rotations are at least a minute apart.

With --end-sessions, which is for keys that somebody else may know, all sessions are revoked and no earlier key is accepted
any more: every worker has to be started again. Sessions issued in the seconds until every gate has the new key may be
refused by some.`
	c.Example = `  wayleave session rotate-keys -c wayleave.yaml
  wayleave session rotate-keys -c wayleave.yaml --end-sessions --yes`
	c.Args = exactArgs()
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.Flags().BoolVar(&endSessions, "end-sessions", false, "accept nothing that was made with an earlier key")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask whether --end-sessions is meant")
	c.Flags().DurationVar(&timeout, "timeout", rotationTime, "how long to wait for a gate")
	return c
}

func (d desk) rotateKeys(ctx context.Context, endSessions, yes bool, timeout time.Duration) error {
	if endSessions {
		if !yes && terminalOf(d.in) != nil && !d.confirm(ctx, "Every worker has to be started again. End all sessions? [y/N] ") {
			return errors.New("nothing was changed")
		}
		now := d.Now()
		if err := worker.Revoke(ctx, d.Docs, worker.Revocation{All: true, NotBefore: now.Truncate(time.Second).Add(time.Second)}, now); err != nil {
			return err
		}
	}
	id, err := worker.AskRotation(ctx, d.Docs, endSessions, d.Now())
	if err != nil {
		return err
	}
	if !d.json {
		d.say("Waiting for a gate…")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, operate.ErrNotInTime)
	defer cancel()
	tick := time.NewTicker(d.Every)
	defer tick.Stop()
	for {
		s, err := worker.ReadKeyStatus(ctx, d.Docs)
		switch {
		case err == nil && s.Rotated == id && d.json:
			return printJSON(d.out, s)
		case err == nil && s.Rotated == id && endSessions:
			_, err = fmt.Fprintf(d.out, "Rotated: key %s makes sessions now, and no earlier one is accepted.\n", s.Current)
			return err
		case err == nil && s.Rotated == id:
			_, err = fmt.Fprintf(d.out, "Rotated: key %s makes sessions now, and live sessions go on (keys accepted: %s).\n", s.Current, strings.Join(s.Accepted, ", "))
			return err
		case err != nil && ctx.Err() == nil && !errors.Is(err, vault.ErrUnavailable):
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), operate.ErrNotInTime) {
				return fmt.Errorf("no gate has rotated the keys within %v: see whether one runs ('wayleave doctor'); the request stands for ten minutes", timeout)
			}
			return context.Cause(ctx)
		}
	}
}
