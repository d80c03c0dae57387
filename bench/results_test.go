package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// found is a report of seven rounds, in which fast takes half as long as slow.
func found(fast float64) *report {
	r := &report{Scenario: "swap", Machine: machine{CPUs: 2, CPU: "x"}, Parameters: map[string]string{"rounds": "7"}}
	t := r.table("A <thing>", "slow", metric{Name: perSecond}, metric{Name: p50us}, metric{Name: p99us}, metric{Name: "n", NoRatio: true})
	t.Chart = &chart{"1", p50us}
	for round, took := range []float64{10, 12.34567, 11, 11, 11, 11, 11} {
		t.add("1", "slow", round, map[string]float64{perSecond: 1000 / took, p50us: took, p99us: took, "n": 1})
		t.add("1", "fast", round, map[string]float64{perSecond: 1000 / took / fast, p50us: took * fast, p99us: took * fast})
	}
	return r
}

func TestResultsAreKept(t *testing.T) {
	dir := t.TempDir()
	r := found(0.5)
	r.Tables = append(r.Tables, &table{Title: "several in a round", Base: "a", Metrics: []metric{{Name: "ms"}}, Samples: []sample{
		{"", "a", 0, map[string]float64{"ms": 1}}, {"", "a", 0, map[string]float64{"ms": 2}}, {"", "a", 1, map[string]float64{"ms": 3}},
	}})
	if err := r.save(filepath.Join(dir, "swap.json")); err != nil {
		t.Fatal(err)
	}
	all, err := readResults(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	r.Tables[0].Samples[2].Values = map[string]float64{perSecond: 81, p50us: 12.35, p99us: 12.35, "n": 1} // four digits
	r.Tables[0].Samples[3].Values = map[string]float64{perSecond: 162, p50us: 6.173, p99us: 6.173}
	sort := cmpopts.SortSlices(func(a, b sample) bool { return fmt.Sprint(a.Variant, a.Round) < fmt.Sprint(b.Variant, b.Round) })
	if diff := cmp.Diff(r, all["swap"], sort, cmpopts.IgnoreUnexported(report{}), cmpopts.EquateApprox(0, 0.1)); diff != "" {
		t.Error(diff)
	}
	text, err := os.ReadFile(filepath.Join(dir, "swap.json"))
	if err != nil || strings.Count(string(text), "\n{\"case\"") != 3 {
		t.Errorf("not a line for each variant: %v\n%s", err, text)
	}

	if err := os.Rename(filepath.Join(dir, "swap.json"), filepath.Join(dir, "names.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := readResults(os.DirFS(dir)); err == nil || !strings.Contains(err.Error(), `names.json is of the scenario "swap"`) {
		t.Error(err)
	}
}

func TestPublished(t *testing.T) {
	page := "# Title\n<!-- bench:swap:machine -->\nold\n<!-- /bench -->\nwords\n<!-- bench:swap:1 -->\n<!-- /bench -->\n<!-- bench:names:1 -->\nnot measured\n<!-- /bench -->\n"
	want := "# Title\n<!-- bench:swap:machine -->\nMeasured with 2 × x, , Envoy , : rounds 7.\n<!-- /bench -->\nwords\n<!-- bench:swap:1 -->\n" +
		"![A <thing>; 1: p50 µs](images/bench-swap-1.svg)\n\n" +
		"|  |  | requests/s | p50 µs | p99 µs | n |\n|---|---|---|---|---|---|\n" +
		"| 1 | slow | 90.9 [81.0–100] | 11 [10–12.3] | 11 [10–12.3] | 1 |\n|  | fast | 182 [162–200] ×2.00 | 5.50 [5–6.17] ×0.50 | 5.50 [5–6.17] ×0.50 |  |\n" +
		"<!-- /bench -->\n<!-- bench:names:1 -->\nnot measured\n<!-- /bench -->\n"
	all := map[string]*report{"swap": found(0.5)}
	for range 2 { // and once more the same
		got, err := published(page, all)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Fatal(err, diff)
		}
		page = got
	}
	if _, err := published("<!-- bench:swap:0 -->\n<!-- /bench -->", all); err == nil || !strings.Contains(err.Error(), "bench:swap:0: there is no table 0") {
		t.Error(err)
	}
	if got, err := published("<!-- bench:swap:2 -->\n<!-- /bench -->", all); err != nil || got != "<!-- bench:swap:2 -->\nNot measured yet.\n<!-- /bench -->" {
		t.Error(got, err)
	}
}

// The page says what is in the files that are committed, and has a place for every table.
func TestPageSaysWhatWasFound(t *testing.T) {
	all, err := readResults(os.DirFS("results"))
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	text, err := published(string(page), all)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(text, string(page)); diff != "" {
		t.Errorf("run: go run ./bench publish\n%s", diff)
	}
	for name, svg := range charts(all) {
		if is, err := os.ReadFile(filepath.Join("../docs", name)); err != nil || string(is) != svg {
			t.Errorf("%s is not what go run ./bench publish makes: %v", name, err)
		}
	}
	for name, r := range all {
		for i := range r.Tables {
			if want := fmt.Sprintf("<!-- bench:%s:%d -->", name, i+1); !strings.Contains(text, want) {
				t.Errorf("docs/performance.md has no place for %s", want)
			}
		}
	}
	for _, s := range scenarios {
		if !strings.Contains(text, "<!-- bench:"+s.name+":machine -->") {
			t.Errorf("docs/performance.md does not say where %s was measured", s.name)
		}
	}
}

func TestChart(t *testing.T) {
	tbl := found(0.5).Tables[0]
	svg := tbl.Chart.svg(tbl)
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err, svg)
		}
	}
	for _, want := range []string{"A &lt;thing&gt;; 1: p50 µs", ">slow<", ">fast<", "5.50 ×0.50<", "less is better"} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %q in\n%s", want, svg)
		}
	}
	if empty := (chart{"another case", p50us}).svg(tbl); strings.Contains(empty, "NaN") || strings.Contains(empty, "Inf") {
		t.Error(empty)
	}
}

// Only what differs by more than the rounds do counts, and which way it went.
func TestMoved(t *testing.T) {
	for is, want := range map[float64][]string{
		0.5:  nil,
		0.53: nil, // not clearly
		0.7:  {"worse: A <thing>, 1, fast: requests/s was ×2.00, is ×1.43", "worse: A <thing>, 1, fast: p50 µs was ×0.50, is ×0.70"},
		0.3:  {"better: A <thing>, 1, fast: requests/s was ×2.00, is ×3.33", "better: A <thing>, 1, fast: p50 µs was ×0.50, is ×0.30"},
	} {
		var got []string
		for _, m := range moved(found(0.5), found(is)) {
			got = append(got, m.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("×%v: %s", is, diff)
		}
	}
	if apart([]float64{1, 2, 3, 4, 5, 6, 7}, []float64{2, 3, 4, 5, 6, 7, 8}) {
		t.Error("what overlaps is told apart")
	}
	for rounds, want := range map[[2]int]bool{{11, 11}: true, {11, 5}: true, {7, 7}: true, {5, 5}: false, {11, 1}: false} {
		if got := enough(rounds[0], rounds[1]); got != want {
			t.Errorf("%d rounds: enough: %t", rounds, got)
		}
	}
}
