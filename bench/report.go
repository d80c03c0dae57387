package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"wayleave/envoy"
	"wayleave/program"
)

// report is what one run of a scenario found.
type report struct {
	Scenario   string            `json:"scenario"`
	Machine    machine           `json:"machine"`
	Parameters map[string]string `json:"parameters"`
	Tables     []*table          `json:"tables"`

	progress io.Writer
}

// machine is where it was found.
type machine struct {
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	System string `json:"system"`
	Envoy  string `json:"envoy"`
	Go     string `json:"go"`

	Others map[string]string `json:"others,omitempty"` // versions of what else was measured
}

func (m machine) String() string {
	s := fmt.Sprintf("%d × %s, %s, Envoy %s, %s", m.CPUs, m.CPU, m.System, m.Envoy, m.Go)
	for _, name := range slices.Sorted(maps.Keys(m.Others)) {
		s += ", " + name + " " + m.Others[name]
	}
	return s
}

// table is the samples of one set of metrics. In each case, base is what the other variants are compared with.
type table struct {
	Title   string   `json:"title"`
	Base    string   `json:"base"`
	Metrics []metric `json:"metrics"`
	Samples []sample `json:"samples"`
	Chart   *chart   `json:"chart,omitempty"` // nil: it has none
}

// metric is one thing that is measured, in a unit. Of some the ratio to the base says nothing.
type metric struct {
	Name    string `json:"name"`
	NoRatio bool   `json:"no_ratio,omitempty"`
}

// sample is what one round measured of one variant in one case; values are by metric.
type sample struct {
	Case    string             `json:"case"`
	Variant string             `json:"variant"`
	Round   int                `json:"round"`
	Values  map[string]float64 `json:"values"`
}

func (r *report) table(title, base string, metrics ...metric) *table {
	t := &table{Title: title, Base: base, Metrics: metrics}
	r.Tables = append(r.Tables, t)
	return t
}

func (t *table) add(of, variant string, round int, values map[string]float64) {
	t.Samples = append(t.Samples, sample{of, variant, round, values})
}

// say tells how far it is.
func (r *report) say(format string, a ...any) { fmt.Fprintf(r.progress, format+"\n", a...) }

func (r *report) print(out io.Writer) error {
	m := r.Machine
	_, err := fmt.Fprintln(out, m)
	for _, t := range r.Tables {
		if err == nil {
			_, err = fmt.Fprintf(out, "\n%s. Median of the rounds [least–most]; × is the ratio to %q in the same round.\n\n%s", t.Title, t.Base, markdown(t.rows()))
		}
	}
	return err
}

// rows is the table as text, its head first. Cases and variants are in the order in which they came.
func (t *table) rows() [][]string {
	head := []string{"", ""}
	for _, m := range t.Metrics {
		head = append(head, m.Name)
	}
	rows := [][]string{head}
	seen := map[[2]string]bool{}
	last := ""
	for _, c := range t.cases() {
		for _, s := range t.Samples {
			if s.Case != c || seen[[2]string{c, s.Variant}] {
				continue
			}
			seen[[2]string{c, s.Variant}] = true
			row := []string{c, s.Variant}
			if c == last {
				row[0] = ""
			}
			last = c
			for _, m := range t.Metrics {
				row = append(row, t.cell(c, s.Variant, m))
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// cases are in the order in which they came.
func (t *table) cases() (cases []string) {
	for _, s := range t.Samples {
		if !slices.Contains(cases, s.Case) {
			cases = append(cases, s.Case)
		}
	}
	return cases
}

// values are those of a metric, and their ratios to the base in the same round.
func (t *table) values(of, variant, metric string) (all, ratios []float64) {
	for _, s := range t.Samples {
		v, ok := s.Values[metric]
		if s.Case != of || s.Variant != variant || !ok {
			continue
		}
		all = append(all, v)
		for _, b := range t.Samples {
			if base := b.Values[metric]; b.Case == of && b.Variant == t.Base && b.Round == s.Round && base > 0 {
				ratios = append(ratios, v/base)
			}
		}
	}
	return all, ratios
}

// cell is a metric's median, its spread, and the median of its ratios to the base in the same round.
func (t *table) cell(of, variant string, m metric) string {
	all, ratios := t.values(of, variant, m.Name)
	if len(all) == 0 {
		return ""
	}
	text := short(median(all))
	if low, high := short(slices.Min(all)), short(slices.Max(all)); low != high {
		text += fmt.Sprintf(" [%s–%s]", low, high)
	}
	if variant != t.Base && len(ratios) > 0 && !m.NoRatio {
		text += fmt.Sprintf(" ×%.2f", median(ratios))
	}
	return text
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// quantile is the value that the part q of the values does not pass. There is at least one.
func quantile[V cmp.Ordered](values []V, q float64) V {
	s := slices.Sorted(slices.Values(values))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// short is a number with three digits that count.
func short(v float64) string {
	switch {
	case v >= 100 || v == float64(int(v)):
		return grouped(int(v + 0.5))
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// grouped writes a number as 12,345.
func grouped(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// markdown is a table with its columns aligned.
func markdown(rows [][]string) string {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, c := range row {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	var b strings.Builder
	for n, row := range rows {
		for i, c := range row {
			b.WriteString("| " + c + strings.Repeat(" ", width[i]-len([]rune(c))+1))
		}
		b.WriteString("|\n")
		if n == 0 {
			b.WriteString(strings.Repeat("|---", len(row)) + "|\n")
		}
	}
	return b.String()
}

var modelName = regexp.MustCompile(`(?m)^model name\s*: (.+)$`)

func thisMachine(ctx context.Context) machine {
	m := machine{CPU: runtime.GOARCH, CPUs: runtime.NumCPU(), System: runtime.GOOS, Go: runtime.Version()}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if found := modelName.FindSubmatch(text); found != nil {
			m.CPU = string(found[1])
		}
	}
	if out, err := exec.CommandContext(ctx, "uname", "-sr").Output(); err == nil {
		m.System = strings.TrimSpace(string(out))
	}
	if b, err := findEnvoy(ctx); err == nil {
		m.Envoy = b.Version
	}
	return m
}

func findEnvoy(ctx context.Context) (program.Binary, error) {
	return program.Find(ctx, envoy.Program, os.Getenv("WAYLEAVE_ENVOY"), "")
}
