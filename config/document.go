package config

import (
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// place is a position in the file, both numbers 1-based.
type place struct{ line, column int }

// document is one file being read: where each key is, and what is wrong so far.
type document struct {
	file   string
	data   []byte
	skip   func(key string) bool // nil, or which top-level keys are as if they were not there
	local  *document             // nil, or the file that the local part comes from
	at     map[string]place      // by key path
	broken map[string]bool       // key paths whose value could not be read
	faults Faults
}

func newDocument(file string, data []byte) *document {
	return &document{file: file, data: data, at: map[string]place{"": {1, 1}}, broken: map[string]bool{}}
}

// merge makes the local part of another file part of d.
func (d *document) merge(local *document) {
	delete(local.at, "")
	maps.Copy(d.at, local.at)
	maps.Copy(d.broken, local.broken)
	d.faults = append(d.faults, local.faults...)
	d.local = local
}

// of is the file that path is in.
func (d *document) of(path string) *document {
	if d.local != nil && !d.local.skip(section(path)) {
		return d.local
	}
	return d
}

func (d *document) fault(path string, at place, what, fix string) {
	d.faults = append(d.faults, Fault{File: d.of(path).file, Line: max(at.line, 1), Column: max(at.column, 1), Key: path, What: what, Fix: fix})
}

// badValue reports a value that cannot be used, and remembers that later checks need not look at it.
func (d *document) badValue(path string, n *yaml.Node, what, fix string) {
	d.broken[path] = true
	d.fault(path, placeOf(n), what, fix)
}

// given reports whether the file has a value at path.
func (d *document) given(path string) bool {
	_, ok := d.at[path]
	return ok
}

// find returns where path is, or where the nearest section around it is.
func (d *document) find(path string) place {
	for {
		if p, ok := d.at[path]; ok {
			return p
		}
		path = parent(path)
	}
}

// inside returns where a line and column, from 1, of the text at path are in the file; where the text starts, when YAML has
// changed it too much to say.
func (d *document) inside(path, text string, line, column int) place {
	start := d.find(path)
	lines := strings.Split(string(d.of(path).data), "\n")
	var wanted string
	if all := strings.Split(text, "\n"); line <= len(all) {
		wanted = all[line-1]
	}
	// A text begins where its key has it, or on the next line when it is a block.
	for n := start.line + line - 1; wanted != "" && n <= min(start.line+line, len(lines)); n++ {
		if at := strings.Index(lines[n-1], wanted); at >= 0 {
			return place{n, utf8.RuneCountInString(lines[n-1][:at]) + column}
		}
	}
	return start
}

// isBroken reports whether path, or a section around it, could not be read.
func (d *document) isBroken(path string) bool {
	for {
		if d.broken[path] {
			return true
		}
		if path == "" {
			return false
		}
		path = parent(path)
	}
}

// isBrokenWithin reports whether something below path could not be read.
func (d *document) isBrokenWithin(path string) bool {
	for p := range d.broken {
		if rest, ok := strings.CutPrefix(p, path); ok && (strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "[")) {
			return true
		}
	}
	return false
}

// parent cuts the last key or index off a path; the parent of a top-level key is "".
func parent(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// join appends a key to a path; keys that would make the path hard to read are quoted.
func join(path, key string) string {
	switch {
	case !plainKey.MatchString(key):
		return path + "[" + quote(key) + "]"
	case path == "":
		return key
	}
	return path + "." + key
}

// item appends an index to a path.
func item(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// quote shows a string of the file in a message, cut when it is long.
func quote(s string) string {
	if r := []rune(s); len(r) > 64 {
		s = string(r[:64]) + "…"
	}
	return strconv.Quote(s)
}

func placeOf(n *yaml.Node) place { return place{n.Line, n.Column} }

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }
