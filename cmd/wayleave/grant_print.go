package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"wayleave/grant"
)

// This file is how grants look to people. Programs get JSON of the same.

// Widths that text is wrapped to: that of the terminal within limits, and a plain one for files.
const (
	narrowest, widest = 80, 120
	plainWidth        = 100
)

func widthOf(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil { //nolint:gosec // a file descriptor is small
			return min(max(width, narrowest), widest)
		}
	}
	return plainWidth
}

// printGrants prints a table with a line for each grant, and what there is to say about it below.
func printGrants(w io.Writer, all []grant.Summary, now time.Time, width int) error {
	rows := [][]string{{"GRANT", "PROVIDER", "ACCOUNT", "STATE", "EXPIRES", "SCOPES"}}
	for _, s := range all {
		rows = append(rows, []string{s.Name, s.Provider, short(orDash(s.Account), 28), string(s.State), expires(s, now), orDash(held(s))})
	}
	notes := func(i int) []note {
		if i == 0 {
			return nil
		}
		s := all[i-1]
		var out []note
		for _, m := range missing(s.Gap) {
			out = append(out, note{"missing", m.scope + ": " + m.why})
		}
		if s.ErrorKind != "" {
			out = append(out, note{"last error", string(s.ErrorKind) + ", " + ago(s.UpdatedAt, now)})
		} else if s.LastError != "" {
			out = append(out, note{"last error", s.LastError})
		}
		if s.Next != "" {
			out = append(out, note{"next", s.Next})
		}
		return out
	}
	return printTable(w, rows, notes, width)
}

// printEvents prints a history, with what failed below its line.
func printEvents(w io.Writer, events []grant.Event, width int) error {
	rows := [][]string{{"WHEN", "WHAT", "BY", "GENERATION", "TOOK"}}
	for _, e := range events {
		took := "-"
		if e.Took > 0 {
			took = e.Took.Round(time.Millisecond).String()
		}
		rows = append(rows, []string{when(e.At), string(e.What), short(cmp.Or(e.By, "an operator"), 28), fmt.Sprint(e.Generation), took})
	}
	notes := func(i int) []note {
		if i == 0 {
			return nil
		}
		var out []note
		if events[i-1].Rejected {
			out = append(out, note{"why", "the provider rejected the token before it"})
		}
		if len(events[i-1].Lost) > 0 {
			out = append(out, note{"no longer granted", strings.Join(events[i-1].Lost, ", ")})
		}
		if e := events[i-1]; e.Error != "" {
			out = append(out, note{cmp.Or(string(e.ErrorKind), "error"), e.Error})
		}
		return out
	}
	return printTable(w, rows, notes, width)
}

// note is something to say below a line of a table.
type note struct{ what, text string }

// printTable prints rows in columns, the first one being the heads, and notes below them, wrapped.
func printTable(w io.Writer, rows [][]string, notes func(row int) []note, width int) error {
	var columns strings.Builder
	t := tabwriter.NewWriter(&columns, 0, 4, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	var b strings.Builder
	for i, line := range strings.Split(strings.TrimSuffix(columns.String(), "\n"), "\n") {
		b.WriteString(strings.TrimRight(line, " ") + "\n")
		for _, n := range notes(i) {
			label := "  " + n.what + ": "
			b.WriteString(label + wrap(n.text, width-len(label), "    ") + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printGrant prints all of one grant but its history.
func printGrant(w io.Writer, s grant.Summary, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	row := func(name string, values ...string) {
		for _, v := range values {
			if v != "" {
				for line := range strings.Lines(wrap(v, widthOf(w)-18, "")) {
					fmt.Fprintf(t, "%s\t%s\n", name, strings.TrimSuffix(line, "\n"))
					name = ""
				}
			}
		}
	}
	var lacks []string
	for _, m := range missing(s.Gap) {
		lacks = append(lacks, m.scope+": "+m.why)
	}
	row("grant", s.Name)
	row("provider", s.Provider)
	row("kind", kindWords[s.Kind])
	row("account", s.Account)
	row("state", string(s.State))
	row("scopes held", strings.Join(s.Granted, " "))
	row("scopes missing", lacks...)
	if e := expires(s, now); e != "-" && !s.Expires.IsZero() {
		row("token expires", e+", at "+when(s.Expires))
	} else if e != "-" {
		row("token expires", e)
	}
	if !s.ConsentEnds.IsZero() {
		row("consent ends", when(s.ConsentEnds)+"; connect it again before")
	}
	if !s.UpdatedAt.IsZero() {
		row("last change", ago(s.UpdatedAt, now))
	}
	if s.Generation > 0 {
		row("refreshes", fmt.Sprint(s.Generation))
	}
	lastError := s.LastError
	if s.ErrorKind != "" {
		lastError = string(s.ErrorKind) + ": " + lastError
	}
	row("last error", lastError)
	row("next step", s.Next)
	return t.Flush()
}

// printLast prints the end of a grant's history.
func printLast(w io.Writer, s grant.Summary) error {
	if len(s.History) == 0 {
		return nil
	}
	const shown = 5
	last := s.History[max(0, len(s.History)-shown):]
	fmt.Fprintf(w, "\nWhat happened last ('wayleave grant history %s' has more):\n\n", s.Name)
	return printEvents(w, last, widthOf(w))
}

var kindWords = map[grant.Kind]string{
	grant.Machine: "the gate gets its tokens by itself",
	grant.Static:  "a value that an operator imported",
}

// lack is a missing scope and why it is missing.
type lack struct{ scope, why string }

func missing(g grant.Gap) []lack {
	var out []lack
	for _, reason := range []struct {
		scopes []string
		why    string
	}{
		{g.NotRequested, "never requested: the configuration asks for it since the last connect"},
		{g.NotGranted, "requested and not granted"},
		{g.Withdrawn, "granted once and withdrawn since"},
	} {
		for _, s := range reason.scopes {
			out = append(out, lack{s, reason.why})
		}
	}
	return out
}

// held says how many of the scopes that are asked for a grant holds.
func held(s grant.Summary) string {
	if len(s.Requested) == 0 || s.State == grant.NeverConnected {
		return ""
	}
	return fmt.Sprintf("%d of %d", len(s.Requested)-len(s.Missing), len(s.Requested))
}

// expires says when a token ends, as people do.
func expires(s grant.Summary, now time.Time) string {
	switch {
	case s.Expires.IsZero() && (s.Epoch == "" || s.State == grant.NeverConnected):
		return "-"
	case s.Expires.IsZero():
		return "never"
	case now.After(s.Expires):
		return "expired " + ago(s.Expires, now)
	}
	return "in " + span(s.Expires.Sub(now))
}

func ago(t, now time.Time) string { return span(now.Sub(t)) + " ago" }

// span is a duration in its two largest units.
func span(d time.Duration) string {
	d = max(d, 0)
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// short cuts what is too long for a column.
func short(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// wrap breaks text at spaces into lines of at most width, but for longer words; all lines but the first begin with indent.
func wrap(text string, width int, indent string) string {
	var b strings.Builder
	length := 0
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case length+1+len(word) > width:
			b.WriteString("\n" + indent)
			length = len(indent)
		default:
			b.WriteByte(' ')
			length++
		}
		b.WriteString(word)
		length += len(word)
	}
	return b.String()
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// when is a time as the terminal's machine has it; with its zone, as the console and notifications have UTC.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05 -0700")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
