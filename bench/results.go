package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// results is where `make bench` keeps what it found, a file for each scenario, and where publish and check find it.
const results = "bench/results"

// kept is a report as it is in a file: what a table has of one variant in one case is one line.
type kept struct {
	*report
	Tables []keptTable `json:"tables"`
}

type keptTable struct {
	table
	Samples []series `json:"samples"`
}

type series struct {
	Case    string                `json:"case"`
	Variant string                `json:"variant"`
	Rounds  []int                 `json:"rounds,omitempty"` // of the values; none: each is of the next round
	Values  map[string][]*float64 `json:"values"`           // by metric; null: not measured
}

// save writes the report to a file, its numbers with the digits that count.
func (r *report) save(path string) error {
	k := kept{report: r}
	for _, t := range r.Tables {
		k.Tables = append(k.Tables, t.keep())
	}
	text, err := json.Marshal(k)
	if err != nil {
		return err
	}
	for _, begin := range []string{`{"title":`, `{"case":`} { // within a text, quotes are escaped
		text = bytes.ReplaceAll(text, []byte(begin), []byte("\n"+begin))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func (t *table) keep() keptTable {
	k := keptTable{table: *t}
	at := map[[2]string]int{}
	for _, s := range t.Samples {
		key := [2]string{s.Case, s.Variant}
		i, ok := at[key]
		if !ok {
			i = len(k.Samples)
			at[key] = i
			k.Samples = append(k.Samples, series{Case: s.Case, Variant: s.Variant, Values: map[string][]*float64{}})
		}
		k.Samples[i].Rounds = append(k.Samples[i].Rounds, s.Round)
		for _, m := range t.Metrics {
			var v *float64
			if of, ok := s.Values[m.Name]; ok {
				of = rounded(of)
				v = &of
			}
			k.Samples[i].Values[m.Name] = append(k.Samples[i].Values[m.Name], v)
		}
	}
	for i, s := range k.Samples {
		if inOrder(s.Rounds) {
			k.Samples[i].Rounds = nil
		}
	}
	return k
}

func inOrder(rounds []int) bool {
	for i, r := range rounds {
		if r != i {
			return false
		}
	}
	return true
}

// rounded has four digits: more are chance.
func rounded(v float64) float64 {
	r, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 4, 64), 64)
	if err != nil {
		return v
	}
	return r
}

func readReport(text []byte) (*report, error) {
	k := kept{report: &report{}}
	if err := json.Unmarshal(text, &k); err != nil {
		return nil, err
	}
	for _, t := range k.Tables {
		of := t.table
		for _, s := range t.Samples {
			n := len(s.Rounds)
			for _, v := range s.Values {
				n = max(n, len(v))
			}
			for i := range n {
				round, values := i, map[string]float64{}
				if i < len(s.Rounds) {
					round = s.Rounds[i]
				}
				for name, v := range s.Values {
					if i < len(v) && v[i] != nil {
						values[name] = *v[i]
					}
				}
				of.add(s.Case, s.Variant, round, values)
			}
		}
		k.report.Tables = append(k.report.Tables, &of)
	}
	return k.report, nil
}

// readResults returns what is in the files of a directory, by scenario. Without one there is nothing.
func readResults(dir fs.FS) (map[string]*report, error) {
	found := map[string]*report{}
	files, err := fs.Glob(dir, "*.json")
	if err != nil {
		return nil, err
	}
	for _, name := range files {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, err
		}
		r, err := readReport(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if want := strings.TrimSuffix(name, ".json"); r.Scenario != want {
			return nil, fmt.Errorf("%s is of the scenario %q", name, r.Scenario)
		}
		found[r.Scenario] = r
	}
	return found, nil
}
