package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Fault is one thing wrong with a configuration: where it is, what is wrong, and what to write instead.
// Faults never repeat a value that may be a secret.
type Fault struct {
	File   string `json:"file"`
	Line   int    `json:"line"`   // 1-based; a missing key is reported where the section that lacks it starts
	Column int    `json:"column"` // 1-based
	Key    string `json:"key"`    // path of the key, such as routes[0].hosts[1]; empty for the file as a whole
	What   string `json:"what"`   // what is wrong
	Fix    string `json:"fix"`    // what to do about it
}

// Error implements error: file:line:column: key: what is wrong; the fix.
func (f Fault) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: ", f.File, f.Line, f.Column)
	if f.Key != "" {
		b.WriteString(f.Key + ": ")
	}
	b.WriteString(f.What)
	if f.Fix != "" {
		b.WriteString("; " + f.Fix)
	}
	return b.String()
}

// Faults is everything wrong with one file, in the order of its lines; or with two files, of its local part and of its shared one.
type Faults []Fault

// Error implements error: one fault a line.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns each fault as an error.
func (fs Faults) Unwrap() []error {
	errs := make([]error, len(fs))
	for i, f := range fs {
		errs[i] = f
	}
	return errs
}

func (fs Faults) sort() {
	slices.SortStableFunc(fs, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Key, b.Key), cmp.Compare(a.What, b.What))
	})
}
