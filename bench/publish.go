package main

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// publish writes into docs/performance.md what the files of results say. There a place for it is
//
//	<!-- bench:SCENARIO:WHAT -->
//	<!-- /bench -->
//
// where WHAT is the number of a table, or "machine". A table that is newer than the file says that it was not measured yet. What stands about it in words is for whoever has looked at it to write.

const (
	performancePage = "docs/performance.md"
	performanceDocs = "docs"
)

var place = regexp.MustCompile(`(?s)<!-- bench:([a-z]+):([a-z0-9]+) -->\n(.*?)<!-- /bench -->`)

func publish() error {
	found, err := readResults(os.DirFS(results))
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("there is nothing in %s: make bench fills it", results)
	}
	page, err := os.ReadFile(performancePage)
	if err != nil {
		return err
	}
	text, err := published(string(page), found)
	if err != nil {
		return fmt.Errorf("%s: %w", performancePage, err)
	}
	for name, svg := range charts(found) {
		if err := os.WriteFile(path.Join(performanceDocs, name), []byte(svg), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(performancePage, []byte(text), 0o644)
}

// published is the page with what was found. Where nothing was, it stays as it is.
func published(page string, found map[string]*report) (string, error) {
	var fault error
	text := place.ReplaceAllStringFunc(page, func(old string) string {
		m := place.FindStringSubmatch(old)
		r := found[m[1]]
		if r == nil {
			return old
		}
		content, err := r.section(m[2])
		if err != nil {
			fault = fmt.Errorf("bench:%s:%s: %w", m[1], m[2], err)
		}
		return fmt.Sprintf("<!-- bench:%s:%s -->\n%s\n<!-- /bench -->", m[1], m[2], content)
	})
	return text, fault
}

// section is what stands at one place of the page.
func (r *report) section(what string) (string, error) {
	if what == "machine" {
		return fmt.Sprintf("Measured with %s: %s.", r.Machine, r.parameters()), nil
	}
	n, err := strconv.Atoi(what)
	if err != nil || n < 1 {
		return "", fmt.Errorf("there is no table %s", what)
	}
	if n > len(r.Tables) {
		return "Not measured yet.", nil
	}
	t := r.Tables[n-1]
	var b strings.Builder
	if t.Chart != nil {
		fmt.Fprintf(&b, "![%s; %s](%s)\n\n", t.Title, t.Chart.what(), r.chartFile(n))
	}
	for i, row := range t.rows() {
		b.WriteString("| " + strings.Join(row, " | ") + " |\n")
		if i == 0 {
			b.WriteString(strings.Repeat("|---", len(row)) + "|\n")
		}
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// parameters are those of the run, in words.
func (r *report) parameters() string {
	var words []string
	for _, name := range sortedKeys(r.Parameters) {
		words = append(words, name+" "+r.Parameters[name])
	}
	return strings.Join(words, ", ")
}

// chartFile is where the chart of a table is, from the page.
func (r *report) chartFile(n int) string { return fmt.Sprintf("images/bench-%s-%d.svg", r.Scenario, n) }

// charts are all that belong to the page, by file.
func charts(found map[string]*report) map[string]string {
	all := map[string]string{}
	for _, r := range found {
		for i, t := range r.Tables {
			if t.Chart != nil {
				all[r.chartFile(i+1)] = t.Chart.svg(t)
			}
		}
	}
	return all
}
