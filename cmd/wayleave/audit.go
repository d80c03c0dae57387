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
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave/audit"
	"wayleave/config"
	"wayleave/journal"
	"wayleave/secret"
	"wayleave/vault"
)

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
		gates = append(gates, journal.Files(name, cfg.Audit.Keep))
	}
	return gates
}

func newAudit() *cobra.Command {
	return group(&cobra.Command{
		Use:   "audit",
		Short: "Search the account of what was done through the gates of this machine",
		Long: `The audit has a line for each request, for each connection that was refused, and for each thing that an operator changed in
the console: who, where, with which grant, what came of it and why. It has paths, and no query, header or body.`,
	}, newAuditQuery(), newAuditTail(), newAuditVerify(), newAuditFingerprint())
}

// auditCommand makes a command that reads the audit of the configuration, or of the gate in --state.
func auditCommand(f func(c *cobra.Command, gates [][]string, filter audit.Filter, asJSON bool) error) *cobra.Command {
	var filter audit.Filter
	var kind, outcome, since, status string
	var asJSON bool
	c := &cobra.Command{Args: exactArgs()}
	st := addStateFlag(c)
	path := addConfigOrGateFlag(c, st)
	flags := c.Flags()
	flags.StringVar(&kind, "kind", "", "only request, tunnel or operator; or gap: where records are missing")
	flags.StringVar(&outcome, "outcome", "", "only swapped, passed, answered or refused; of operators' actions done or failed")
	flags.StringVar(&filter.Reason, "reason", "", "only refusals for this reason")
	flags.StringVar(&filter.Worker, "worker", "", "only this worker's")
	flags.StringVar(&filter.Session, "session", "", "only this session's")
	flags.StringVar(&filter.Grant, "grant", "", "only for this grant")
	flags.StringVar(&filter.Host, "host", "", "only where the host has this in it")
	flags.StringVar(&filter.Actor, "actor", "", "only what this operator did")
	flags.StringVar(&filter.Request, "request", "", "only the request with this id")
	flags.StringVar(&filter.Fingerprint, "fingerprint", "", "only with the token that has this fingerprint (wayleave audit fingerprint)")
	flags.StringVar(&status, "status", "", "only what was answered with this status, such as 429, or a class of them, such as 5xx")
	flags.BoolVar(&filter.Open, "open", false, "only requests whose end is not known")
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
		if filter.Status, err = audit.ParseStatuses(status); err != nil {
			return usageError{fmt.Errorf("--status %w", err)}
		}
		if filter.From, err = sinceOf(since, time.Now()); err != nil {
			return err
		}
		gates, err := existingAudit(cfg, file)
		if err != nil {
			return err
		}
		return f(c, gates, filter, asJSON)
	}
	return c
}

// existingAudit are the files of every gate, of which some must be there.
func existingAudit(cfg *config.Config, file string) ([][]string, error) {
	gates := auditFiles(cfg, file)
	for _, files := range gates {
		if _, err := os.Stat(files[0]); err == nil {
			return gates, nil
		}
	}
	return nil, fmt.Errorf("there is no audit at %s: a 'wayleave serve' keeps one where audit.file says, and 'wayleave up' in its --state", file)
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
	var ocsf bool
	c := auditCommand(func(c *cobra.Command, gates [][]string, f audit.Filter, asJSON bool) error {
		if limit < 1 {
			return usageError{errors.New("--limit is not a number above zero")}
		}
		found, err := audit.SearchAll(c.Context(), gates, f, limit)
		if err != nil {
			return err
		}
		for _, r := range found.Records {
			if ocsf {
				_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", audit.OCSF(r, version()))
			} else {
				err = printRecord(c.OutOrStdout(), r, asJSON)
			}
			if err != nil {
				return err
			}
		}
		if found.Missing > 0 {
			fmt.Fprintf(c.ErrOrStderr(), "wayleave: %d records are missing; where and why: wayleave audit query --kind gap\n", found.Missing)
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
  wayleave audit query -c wayleave.yaml --status 5xx --since 1h
  wayleave audit query -c wayleave.yaml --fingerprint 9f86d081884c7d65
  wayleave audit query -c wayleave.yaml --kind operator --limit 1000`
	c.Flags().IntVar(&limit, "limit", limit, "how many at most")
	c.Flags().BoolVar(&ocsf, "ocsf", false, "print a line of JSON for each, by the Open Cybersecurity Schema Framework")
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
	switch r.Kind {
	case audit.Gap:
		add("", fmt.Sprintf("%d records are missing", r.Dropped+r.Undelivered))
		add("cause=", r.Cause)
		add("sink=", r.Sink)
		add("run=", r.Run)
	case audit.Operator:
		add("", r.Actor)
		add("", r.Action)
		add("", r.Target)
		add("from=", r.From)
	case audit.Request, audit.Tunnel:
		if r.Open {
			add("", "open")
		}
		if r.Status > 0 {
			add("", strconv.Itoa(r.Status))
		}
		add("", orDash(r.Worker))
		add("", r.Method)
		add("", r.Host+r.Path)
		add("grant=", r.Grant)
		if r.DurationMS > 0 {
			add("took=", r.Took().Round(time.Millisecond).String())
			add("bytes=", fmt.Sprintf("%d/%d", r.Received, r.Sent))
		}
		add("request=", r.Request)
	}
	add("reason=", r.Reason)
	_, err := fmt.Fprintln(w, printable(strings.Join(parts, " ")))
	return err
}

func newAuditVerify() *cobra.Command {
	var head string
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify",
		Short: "See whether lines of the audit were changed or taken away",
		Long: `Verify reads all lines of the audit. In each run of a gate they are numbered: one that was taken away leaves a gap. With audit.chain
each has the hash of the one before too, so that a change breaks the chain. What is taken away at the end shows only with --head: the
hash of a line that the gate logged, or that was kept elsewhere, and that must be there.

It ends with 1 when something does not fit. Records that the gate itself counted as missing are told, and are no fault.`,
		Example: `  wayleave audit verify -c wayleave.yaml
  wayleave audit verify -c wayleave.yaml --head 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef`,
		Args: exactArgs(),
	}
	st := addStateFlag(c)
	path := addConfigOrGateFlag(c, st)
	c.Flags().StringVar(&head, "head", "", "hash of a line that must be there")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := checkConfig(c, path())
		if err != nil {
			return err
		}
		gates, err := existingAudit(cfg, st.auditFile(cfg))
		if err != nil {
			return err
		}
		return verifyAudit(c, gates, head, asJSON)
	}
	return c
}

func verifyAudit(c *cobra.Command, gates [][]string, head string, asJSON bool) error {
	var broken error
	found := head == ""
	all := make([]audit.Checked, len(gates))
	for i, files := range gates {
		one, err := audit.Verify(c.Context(), files, head)
		if err != nil {
			return err
		}
		if one.Broken != nil && one.Broken.Line == 0 { // the head may be another gate's
			one.Broken = nil
		} else if one.Broken == nil {
			found = true
		}
		if b := one.Broken; b != nil && broken == nil {
			broken = fmt.Errorf("the audit was changed: %s, line %d: %s", b.File, b.Line, b.Why)
		}
		all[i] = one
	}
	if asJSON {
		if err := printJSON(c.OutOrStdout(), all); err != nil {
			return err
		}
	} else {
		for i, one := range all {
			printChecked(c.OutOrStdout(), gates[i][0], one)
		}
	}
	if broken == nil && !found {
		broken = fmt.Errorf("no line has the hash %s: lines were taken away at the end, or changed", head)
	}
	return broken
}

func printChecked(w io.Writer, file string, c audit.Checked) {
	fmt.Fprintf(w, "%s: %d lines, %d of them chained", file, c.Lines, c.Chained)
	if c.Unreadable > 0 {
		fmt.Fprintf(w, ", %d no records", c.Unreadable)
	}
	if c.Before > 0 {
		fmt.Fprintf(w, ", %d without a number", c.Before)
	}
	fmt.Fprintln(w)
	for _, r := range c.Runs {
		fmt.Fprintf(w, "  run %s: %d lines, %d to %d", r.Run, r.Lines, r.From, r.Last)
		if r.Missing > 0 {
			fmt.Fprintf(w, ", %d records missing by its own count", r.Missing)
		}
		fmt.Fprintln(w)
	}
	if c.Chained > 0 {
		fmt.Fprintf(w, "  head %s\n", c.Head)
	}
}

func newAuditFingerprint() *cobra.Command {
	c := &cobra.Command{
		Use:   "fingerprint",
		Short: "Print the fingerprint of a token that somebody has found",
		Long: `Fingerprint reads a token from its standard input, and prints by which fingerprint the audit knows it: a keyed hash, whose key is in
Vault. So who found a token learns which worker used it, and when, and the audit alone is no help to whoever tries out tokens. The token
is not printed, stored or sent.`,
		Example: `  wayleave audit fingerprint -c wayleave.yaml < found.txt
  wayleave audit query -c wayleave.yaml --fingerprint 9f86d081884c7d65`,
		Args: exactArgs(),
	}
	flags := addDeskFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		d, leave, err := flags.open(c, vault.Operator)
		if err != nil {
			return err
		}
		defer leave()
		key, err := vault.ReadKey(c.Context(), d.Docs, auditKey)
		if errors.Is(err, vault.ErrNotFound) {
			return errors.New("there is no key of fingerprints yet: a gate makes it when it starts")
		}
		if err != nil {
			return fmt.Errorf("reading the key of fingerprints: %w", err)
		}
		token, err := readToken(c)
		if err != nil {
			return err
		}
		fingerprint := fingerprints(key)(token)
		if flags.json {
			return printJSON(c.OutOrStdout(), map[string]string{"fingerprint": fingerprint})
		}
		fmt.Fprintln(c.OutOrStdout(), fingerprint)
		return nil
	}
	return c
}

// readToken reads one line, which a terminal does not show.
func readToken(c *cobra.Command) (secret.Text, error) {
	const most = 64 << 10
	var data []byte
	var err error
	if tty := terminalOf(c.InOrStdin()); tty != nil {
		fmt.Fprint(c.ErrOrStderr(), "The token, which is not shown: ")
		data, err = readUnseen(c.Context(), tty)
		fmt.Fprintln(c.ErrOrStderr())
	} else {
		data, err = readAll(c.Context(), io.LimitReader(c.InOrStdin(), most+1))
	}
	text := strings.TrimSpace(string(data))
	switch {
	case err != nil:
		return secret.Text{}, err
	case text == "":
		return secret.Text{}, usageError{errors.New("there is no token on the standard input")}
	case len(data) > most || strings.ContainsAny(text, "\r\n"):
		return secret.Text{}, usageError{errors.New("the standard input has more than a token in one line")}
	}
	return secret.New(text), nil
}
