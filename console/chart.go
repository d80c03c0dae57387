package console

import (
	"fmt"
	"math"
	"time"

	"wayleave/grant"
	"wayleave/operate"
	"wayleave/rollout"
)

// This file lays charts out; the templates draw them as SVG.

// bar is one of a chart, in its units.
type bar struct {
	X, Y, W, H float64
	Kind       string // its class
	Title      string // what it says when it is pointed at
}

// refreshChart is how long the last refreshes of a grant took, and which of them failed.
type refreshChart struct {
	Bars          []bar
	Width, Height float64
	Words         string // the same for whoever does not see it
	Max           string // what the height stands for
}

const (
	barWidth, barGap = 10.0, 4.0
	chartHeight      = 64.0
)

func chartRefreshes(history []grant.Event) refreshChart {
	c := refreshChart{Height: chartHeight}
	var longest time.Duration
	failed, total := 0, 0
	var shown []grant.Event
	for _, e := range history {
		switch e.What {
		case grant.Refreshed:
		case grant.Failed, grant.Ended, grant.GivenUp:
			failed++
		default:
			continue
		}
		total++
		longest = max(longest, e.Took)
		shown = append(shown, e)
	}
	if total == 0 {
		return c
	}
	for i, e := range shown {
		kind := "good"
		if e.What != grant.Refreshed {
			kind = "bad"
		}
		h := 4.0
		if longest > 0 {
			h = math.Max(4, chartHeight*float64(e.Took)/float64(longest))
		}
		c.Bars = append(c.Bars, bar{
			X: float64(i) * (barWidth + barGap), Y: chartHeight - h, W: barWidth, H: h, Kind: kind,
			Title: fmt.Sprintf("%s, %s, %s", e.At.UTC().Format("2006-01-02 15:04:05"), eventWords(e), roughly(e.Took)),
		})
	}
	c.Width = float64(len(shown))*(barWidth+barGap) - barGap
	c.Max = roughly(longest)
	c.Words = fmt.Sprintf("The last %d refreshes: %d failed, the longest took %s.", total, failed, c.Max)
	if total == 1 {
		c.Words = fmt.Sprintf("The last refresh took %s.", c.Max)
		if failed == 1 {
			c.Words = "The last refresh failed."
		}
	}
	return c
}

// minutesChart is what became of requests, minute by minute.
type minutesChart struct {
	Bars                     []bar
	Width, Height            float64
	Words                    string
	Swapped, Passed, Refused int
	Any                      bool
}

func chartMinutes(minutes []minute) minutesChart {
	c := minutesChart{Height: chartHeight, Width: float64(len(minutes)) * (barWidth + 2)}
	most := 0
	for _, m := range minutes {
		most = max(most, m.swapped+m.passed+m.refused)
		c.Swapped, c.Passed, c.Refused = c.Swapped+m.swapped, c.Passed+m.passed, c.Refused+m.refused
	}
	c.Words = fmt.Sprintf("In the last %d minutes: %d requests got a credential, %d passed without one, %d were refused. At most %d in a minute.", len(minutes), c.Swapped, c.Passed, c.Refused, most)
	c.Any = most > 0
	for i, m := range minutes {
		y := chartHeight
		for _, part := range []struct {
			kind string
			n    int
		}{{"good", m.swapped}, {"neutral", m.passed}, {"bad", m.refused}} {
			if part.n == 0 {
				continue
			}
			h := math.Max(2, chartHeight*float64(part.n)/float64(most))
			y = math.Max(0, y-h)
			c.Bars = append(c.Bars, bar{
				X: float64(i) * (barWidth + 2), Y: y, W: barWidth, H: h, Kind: part.kind,
				Title: fmt.Sprintf("%s: %d swapped, %d passed, %d refused", time.Unix(m.at*60, 0).UTC().Format("15:04"), m.swapped, m.passed, m.refused),
			})
		}
	}
	return c
}

// stepsChart is how far a rollout is: a bar for each step, filled as far as its Envoys have the new revision.
type stepsChart struct {
	Bars          []bar
	Width, Height float64
	Words         string
	Steps         []stepLabel
}

type stepLabel struct {
	Words string
	Class string // done, now or next
}

const (
	stepWidth, stepGap = 100.0, 3.0
	stepHeight         = 12.0
)

func chartSteps(c rollout.Rollout, p operate.Progress) stepsChart {
	n := float64(len(c.Plan.Steps))
	out := stepsChart{Width: n*(stepWidth+stepGap) - stepGap, Height: stepHeight, Words: sentence(p.Sentence(c.Phase))}
	for i, step := range c.Plan.Steps {
		x, filled, class := float64(i)*(stepWidth+stepGap), 0.0, "next"
		switch {
		case i < c.Step:
			filled, class = 1, "done"
		case i == c.Step:
			class = "now"
			if p.Wanted > 0 {
				filled = float64(p.Taken) / float64(p.Wanted)
			}
		}
		out.Bars = append(out.Bars, bar{X: x, W: stepWidth, H: stepHeight, Kind: "ground", Title: step.String()})
		if filled > 0 {
			out.Bars = append(out.Bars, bar{X: x, W: stepWidth * filled, H: stepHeight, Kind: map[string]string{"done": "good", "now": "active"}[class], Title: step.String()})
		}
		out.Steps = append(out.Steps, stepLabel{fmt.Sprintf("%s, watched for %v", step, step.Dwell), class})
	}
	return out
}
