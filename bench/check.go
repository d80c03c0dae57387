package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
)

// check measures again what is in the files of results, with the same parameters, and says which ratios have moved: times are of a
// machine, ratios of what runs on it.

// clearly is the least change of a ratio that is looked at. Less is not worth a look, were it certain.
const clearly = 0.10

func check(ctx context.Context, args []string, out, progress io.Writer) error {
	f := flag.NewFlagSet("check", flag.ContinueOnError)
	f.SetOutput(progress)
	rounds := f.Int("rounds", 0, "how many in place of as many as were measured before")
	if err := f.Parse(args); err != nil {
		return err
	}
	before, err := readResults(os.DirFS(results))
	if err != nil {
		return err
	}
	if len(before) == 0 {
		return fmt.Errorf("there is nothing to compare with in %s: make bench fills it", results)
	}
	only := f.Args()
	if len(only) == 0 {
		only = sortedKeys(before)
	}
	worse := 0
	for _, name := range only {
		old := before[name]
		if old == nil {
			return fmt.Errorf("there is nothing of %q in %s to compare with", name, results)
		}
		was, err := strconv.Atoi(old.Parameters["rounds"])
		if is := cmp.Or(*rounds, was); err != nil || !enough(was, is) {
			return fmt.Errorf("%s: nothing can be told from %d rounds before and %d now: measure more of them", name, was, is)
		}
		parameters := []string{name}
		for _, p := range sortedKeys(old.Parameters) {
			if p == "rounds" && *rounds > 0 {
				continue
			}
			parameters = append(parameters, "--"+p+"="+old.Parameters[p])
		}
		if *rounds > 0 {
			parameters = append(parameters, fmt.Sprintf("--rounds=%d", *rounds))
		}
		now, err := measured(ctx, parameters, progress)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		moves := moved(old, now.report)
		fmt.Fprintf(out, "%s: %d ratios have moved\n", name, len(moves))
		for _, m := range moves {
			fmt.Fprintf(out, "  %s\n", m)
			if m.worse {
				worse++
			}
		}
	}
	if worse > 0 {
		return fmt.Errorf("%d ratios are worse than in %s", worse, results)
	}
	return nil
}

// move is a ratio that is not what it was.
type move struct {
	table, of, variant, metric string
	was, is                    float64
	worse                      bool
}

func (m move) String() string {
	word := "better"
	if m.worse {
		word = "worse"
	}
	of := m.table
	if m.of != "" {
		of += ", " + m.of
	}
	return fmt.Sprintf("%s: %s, %s: %s was ×%.2f, is ×%.2f", word, of, m.variant, m.metric, m.was, m.is)
}

// moved says which ratios are not what they were. p99 is left out, since it is what else the machine did.
func moved(old, now *report) (moves []move) {
	for _, before := range old.Tables {
		for _, after := range now.Tables {
			if after.Title != before.Title || after.Base != before.Base {
				continue
			}
			for _, m := range before.Metrics {
				if m.NoRatio || strings.HasPrefix(m.Name, "p99") {
					continue
				}
				for _, of := range before.cases() {
					for _, variant := range before.variants(of) {
						_, was := before.values(of, variant, m.Name)
						_, is := after.values(of, variant, m.Name)
						if variant == before.Base || len(was) == 0 || len(is) == 0 {
							continue
						}
						if !apart(was, is) {
							continue
						}
						more := median(is) > median(was)
						moves = append(moves, move{before.Title, of, variant, m.Name, median(was), median(is), more != (m.Name == perSecond)})
					}
				}
			}
		}
	}
	return moves
}

// apart is whether two sets of ratios differ clearly, and by more than chance.
func apart(a, b []float64) bool {
	change := median(b)/median(a) - 1
	return math.Abs(change) >= clearly && distance(a, b) >= surely
}

// surely is how many standard deviations are no chance, among some hundred ratios.
const surely = 3

// distance is how many standard deviations the ranks of a among both are from those that chance gives (Mann and Whitney's test).
func distance(a, b []float64) float64 {
	above := 0.0
	for _, x := range a {
		for _, y := range b {
			switch {
			case x > y:
				above++
			case x == y:
				above += 0.5
			}
		}
	}
	n, m := float64(len(a)), float64(len(b))
	return math.Abs(above-n*m/2) / deviation(n, m)
}

func deviation(n, m float64) float64 { return math.Sqrt(n * m * (n + m + 1) / 12) }

// enough says whether so many rounds before and now can show anything.
func enough(before, now int) bool {
	n, m := float64(before), float64(now)
	return n*m/2 >= surely*deviation(n, m)
}
