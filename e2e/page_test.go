package e2e

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what clients did into the documentation")

// parallel is t.Parallel for tests that make a table of a page: they write it one after the other.
func parallel(t *testing.T) {
	if !*update {
		t.Parallel()
	}
}

// table is one on a page of the documentation that a test makes.
type table struct {
	path, test   string
	before, rest string // the text around it
	first        string // the heading of the first column
	columns      []string
	names        []string                     // of the rows, their first cells
	cells        map[string]map[string]string // row → column
}

// Columns that are only recorded: what is in them differs from machine to machine.
const (
	recordedWith = "recorded with"
	after        = "after" // how long something took, roughly
)

func readTable(t *testing.T, path, test string) *table {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begins, ends := "<!-- made by 'go test ./e2e -run "+test+" -update' -->\n", "<!-- end -->\n"
	p := &table{path: path, test: test, cells: map[string]map[string]string{}}
	before, text, ok1 := strings.Cut(string(b), begins)
	text, rest, ok2 := strings.Cut(text, ends)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table of %s", path, test)
	}
	p.before, p.rest = before+begins, ends+rest
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case p.columns == nil:
			p.first, p.columns = cells[0], cells[1:]
		case cells[0] == "---":
		default:
			row := map[string]string{}
			for i, cell := range cells[1:] {
				row[p.columns[i]] = cell
			}
			p.names = append(p.names, cells[0])
			p.cells[cells[0]] = row
		}
	}
	return p
}

// record compares a row with what the page says, or takes it up, with its version where the table has a column for that. What was not run
// stays as it was recorded, and a row that the page does not know, of another version, is no fault of the page.
func (p *table) record(t *testing.T, name string, row map[string]string, version func() string) {
	t.Helper()
	known := p.cells[name]
	if *update && len(row) > 0 {
		if known == nil {
			known = map[string]string{}
			p.insert(name)
			p.cells[name] = known
		}
		if slices.Contains(p.columns, recordedWith) {
			known[recordedWith] = version()
		}
		maps.Copy(known, row)
		return
	}
	for column, cell := range row {
		if column == after {
			continue
		}
		if known == nil {
			t.Logf("%s is not on the page", name)
		} else if known[column] != cell {
			t.Errorf("%s, %s: %s, and %s says %q; run 'go test ./e2e -run %s -update'", name, column, cell, p.path, known[column], p.test)
		}
	}
}

// insert puts a new row below those of the same kind.
func (p *table) insert(name string) {
	kind, _, _ := strings.Cut(name, " ")
	at := len(p.names)
	for i, n := range p.names {
		if strings.HasPrefix(n, kind) {
			at = i + 1
		}
	}
	p.names = slices.Insert(p.names, at, name)
}

func (p *table) write(t *testing.T) {
	t.Helper()
	if !*update {
		return
	}
	var b strings.Builder
	line := func(first string, cells func(column string) string) {
		fmt.Fprintf(&b, "| %s |", first)
		for _, column := range p.columns {
			fmt.Fprintf(&b, " %s |", cells(column))
		}
		b.WriteString("\n")
	}
	line(p.first, func(column string) string { return column })
	b.WriteString("|---" + strings.Repeat("|---", len(p.columns)) + "|\n")
	for _, name := range p.names {
		line(name, func(column string) string { return cmp.Or(p.cells[name][column], "–") })
	}
	if err := os.WriteFile(p.path, []byte(p.before+b.String()+p.rest), 0o644); err != nil {
		t.Fatal(err)
	}
}
