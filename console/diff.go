package console

import (
	"strings"

	"github.com/rogpeppe/go-internal/diff"
)

// textDiff is what changed from one text to another, line by line, as `diff -u` shows it without its headers; "" for nothing.
func textDiff(before, after string) string {
	lines := strings.SplitAfter(string(diff.Diff("before", []byte(before), "after", []byte(after))), "\n")
	return strings.TrimSuffix(strings.Join(lines[min(len(lines), 3):], ""), "\n")
}
