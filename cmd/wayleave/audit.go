package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave/audit"
	"wayleave/config"
	"wayleave/console"
	"wayleave/extproc"
	"wayleave/journal"
)

// account is the audit of a gate. The zero account keeps nothing.
type account struct {
	file *journal.File[audit.Record]
	gate string
}

// auditOf is the file of the configuration; empty: there is none.
func auditOf(cfg *config.Config) string {
	if cfg.Audit.File == "" {
		return ""
	}
	return absolute(cfg.Path(cfg.Audit.File))
}

// auditFile is the same for a gate of `wayleave up`, which has one without being asked.
func (s state) auditFile(cfg *config.Config) string {
	return cmp.Or(auditOf(cfg), s.path("audit.jsonl"))
}

// openAudit opens the gate's audit.
func (g gate) openAudit() (account, error) {
	if g.audit == "" {
		return account{}, nil
	}
	path := replicaFile(g.audit, g.replica)
	f, err := journal.Open[audit.Record]("audit.file", path, int64(g.cfg.Audit.MaxMB)<<20, g.log)
	if err != nil {
		return account{}, err
	}
	return account{file: f, gate: gateName(g.replica)}, nil
}

// replicaFile is the file that a replica has for what a gate alone calls file.
func replicaFile(file, replica string) string {
	return filepath.Join(filepath.Dir(file), ofReplica(replica, filepath.Base(file)))
}

// auditFiles are those of every gate of the configuration, each the newest one first.
func auditFiles(cfg *config.Config, file string) (gates [][]string) {
	replicas := cfg.Listen.Replicas
	if len(replicas) == 0 {
		replicas = []string{""}
	}
	for _, replica := range replicas {
		name := replicaFile(file, replica)
		gates = append(gates, []string{name, name + ".1"})
	}
	return gates
}

// became is what became of a request.
func became(d extproc.Decided) audit.Outcome {
	switch {
	case d.Reason != "":
		return audit.Refused
	case d.Swapped:
		return audit.Swapped
	case d.Answered:
		return audit.Answered
	}
	return audit.Passed
}

// request keeps what became of a request.
func (a account) request(d extproc.Decided) error {
	if a.file == nil {
		return nil
	}
	r := audit.Record{
		Time: d.At, Kind: audit.Request, Gate: a.gate, Outcome: became(d), Reason: d.Reason, Worker: d.Worker, Session: d.Session, Grant: d.Grant,
		Route: d.Route, Host: strings.TrimSuffix(d.Host, ":443"), Method: d.Method, Path: d.Path, Request: d.RequestID, Source: d.Source, Revision: d.Revision, Token: d.Token,
	}
	if d.Method == "CONNECT" {
		r.Kind = audit.Tunnel
	}
	a.file.Add(r)
	return nil
}

// operators keeps what operators do; nil when there is no audit.
func (a account) operators() func(console.Event) {
	if a.file == nil {
		return nil
	}
	return func(e console.Event) {
		r := audit.Record{
			Time: e.At, Kind: audit.Operator, Gate: a.gate, Outcome: audit.Done, Actor: e.Actor, Role: string(e.Role), Via: e.Via, From: e.From, Action: e.Action, Target: e.Target,
		}
		if e.Err != nil {
			r.Outcome, r.Reason = audit.Failed, e.Err.Error()
		}
		a.file.Add(r)
	}
}

// search looks through the audit of all gates of this machine.
func (a account) search(g gate) func(context.Context, audit.Filter, int) (audit.Found, error) {
	if a.file == nil {
		return nil
	}
	files := auditFiles(g.cfg, g.audit)
	return func(ctx context.Context, f audit.Filter, limit int) (audit.Found, error) {
		return audit.SearchAll(ctx, files, f, limit)
	}
}

func newAudit() *cobra.Command {
	return group(&cobra.Command{
		Use:   "audit",
		Short: "Search the account of what was done through the gates of this machine",
		Long: `The audit has a line for each request, for each connection that was refused, and for each thing that an operator changed in
the console: who, where, with which grant, what came of it and why. It has paths, and no query, header or body.`,
	}, newAuditQuery(), newAuditTail())
}

// auditCommand makes a command that reads the audit of the configuration, or of the gate in --state.
func auditCommand(f func(c *cobra.Command, gates [][]string, filter audit.Filter, asJSON bool) error) *cobra.Command {
	var filter audit.Filter
	var kind, outcome, since string
	var asJSON bool
	c := &cobra.Command{Args: exactArgs()}
	st := addStateFlag(c)
	path := addConfigOrGateFlag(c, st)
	flags := c.Flags()
	flags.StringVar(&kind, "kind", "", "only request, tunnel or operator")
	flags.StringVar(&outcome, "outcome", "", "only swapped, passed, answered or refused; of operators' actions done or failed")
	flags.StringVar(&filter.Reason, "reason", "", "only refusals for this reason")
	flags.StringVar(&filter.Worker, "worker", "", "only this worker's")
	flags.StringVar(&filter.Session, "session", "", "only this session's")
	flags.StringVar(&filter.Grant, "grant", "", "only for this grant")
	flags.StringVar(&filter.Host, "host", "", "only where the host has this in it")
	flags.StringVar(&filter.Actor, "actor", "", "only what this operator did")
	flags.StringVar(&filter.Request, "request", "", "only the request with this id")
	flags.StringVar(&filter.Text, "text", "", "only where some text has this in it, whatever its case")
	flags.StringVar(&since, "since", "", "only from this time (RFC 3339), or from so long ago, such as 24h")
	flags.BoolVar(&asJSON, "json", false, "print a line of JSON for each")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := checkConfig(c, path())
		if err != nil {
			return err
		}
		file := st.auditFile(cfg)
		filter.Kind, filter.Outcome = audit.Kind(kind), audit.Outcome(outcome)
		if filter.From, err = sinceOf(since, time.Now()); err != nil {
			return err
		}
		gates := auditFiles(cfg, file)
		found := false
		for _, files := range gates {
			if _, err := os.Stat(files[0]); err == nil {
				found = true
			}
		}
		if !found {
			return fmt.Errorf("there is no audit at %s: a 'wayleave serve' keeps one where audit.file says, and 'wayleave up' in its --state", file)
		}
		return f(c, gates, filter, asJSON)
	}
	return c
}

// sinceOf reads a time, or how long ago one was.
func sinceOf(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, usageError{fmt.Errorf("--since %s is neither a time such as 2026-01-31T12:00:00Z nor one such as 24h", text)}
	}
	return at, nil
}

func newAuditQuery() *cobra.Command {
	limit := 100
	c := auditCommand(func(c *cobra.Command, gates [][]string, f audit.Filter, asJSON bool) error {
		if limit < 1 {
			return usageError{errors.New("--limit is not a number above zero")}
		}
		found, err := audit.SearchAll(c.Context(), gates, f, limit)
		if err != nil {
			return err
		}
		for _, r := range found.Records {
			if err := printRecord(c.OutOrStdout(), r, asJSON); err != nil {
				return err
			}
		}
		if found.Missing > 0 {
			fmt.Fprintf(c.ErrOrStderr(), "wayleave: %d records are missing: they came faster than they could be written, or the disk was full\n", found.Missing)
		}
		if found.Unreadable > 0 {
			fmt.Fprintf(c.ErrOrStderr(), "wayleave: %d lines are no records\n", found.Unreadable)
		}
		if len(found.Records) == limit {
			fmt.Fprintf(c.ErrOrStderr(), "wayleave: these are the latest %d; --limit shows more\n", limit)
		}
		return nil
	})
	c.Use = "query"
	c.Short = "Print what was done, the newest first"
	c.Example = `  wayleave audit query -c wayleave.yaml --since 24h --outcome refused
  wayleave audit query -c wayleave.yaml --worker ci --grant github --json
  wayleave audit query -c wayleave.yaml --kind operator --limit 1000`
	c.Flags().IntVar(&limit, "limit", limit, "how many at most")
	return c
}

func newAuditTail() *cobra.Command {
	c := auditCommand(func(c *cobra.Command, gates [][]string, f audit.Filter, asJSON bool) error {
		out := make(chan audit.Record)
		ctx, stop := context.WithCancel(c.Context())
		defer stop()
		failed := make(chan error, len(gates))
		for _, files := range gates {
			go func() {
				failed <- audit.Follow(ctx, files[0], f, func(r audit.Record) {
					select {
					case out <- r:
					case <-ctx.Done():
					}
				})
			}()
		}
		for {
			select {
			case r := <-out:
				if err := printRecord(c.OutOrStdout(), r, asJSON); err != nil {
					return err
				}
			case err := <-failed:
				return err
			}
		}
	})
	c.Use = "tail"
	c.Short = "Print what is done from now on, until Ctrl-C"
	c.Example = `  wayleave audit tail -c wayleave.yaml
  wayleave audit tail -c wayleave.yaml --outcome refused --json`
	return c
}

// printRecord prints one record as a line.
func printRecord(w io.Writer, r audit.Record, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	var parts []string
	add := func(label, value string) {
		if value != "" {
			parts = append(parts, label+value)
		}
	}
	add("", when(r.Time))
	add("", fmt.Sprintf("%-8s", r.Outcome))
	if r.Kind == audit.Operator {
		add("", r.Actor)
		add("", r.Action)
		add("", r.Target)
		add("from=", r.From)
	} else {
		add("", orDash(r.Worker))
		add("", r.Method)
		add("", r.Host+r.Path)
		add("grant=", r.Grant)
		add("request=", r.Request)
	}
	add("reason=", r.Reason)
	_, err := fmt.Fprintln(w, strings.Join(parts, " "))
	return err
}
