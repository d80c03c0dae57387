package main

import (
	"fmt"
	"html"
	"maps"
	"slices"
	"strings"
)

// chart is which numbers of a table are worth a picture: of one case, those of one metric.
type chart struct {
	Case   string `json:"of"`
	Metric string `json:"metric"`
}

// what is which of the numbers it shows.
func (c chart) what() string {
	if c.Case == "" {
		return c.Metric
	}
	return c.Case + ": " + c.Metric
}

const (
	chartWidth = 720
	labelWidth = 250
	valueWidth = 120
	rowHeight  = 26
	headHeight = 44
)

// chartStyle follows the reader's colours.
const chartStyle = `text{font:13px system-ui,sans-serif;fill:#1f2328}.small{font-size:12px;fill:#59636e}.bar{fill:#8c959f}.ours{fill:#0969da}.spread{stroke:#1f2328;stroke-width:1.5;fill:none}` +
	`@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}.bar{fill:#656c76}.ours{fill:#4493f8}.spread{stroke:#f0f6fc}}`

// svg is a bar for each variant, with the median and the spread of the rounds.
func (c chart) svg(t *table) string {
	type bar struct {
		label         string
		median        float64
		least, most   float64
		ratio, accent string
	}
	var bars []bar
	top := 0.0
	for _, variant := range t.variants(c.Case) {
		all, ratios := t.values(c.Case, variant, c.Metric)
		if len(all) == 0 {
			continue
		}
		b := bar{label: variant, median: median(all), least: slices.Min(all), most: slices.Max(all), accent: "bar"}
		if variant != t.Base && len(ratios) > 0 {
			b.ratio = fmt.Sprintf(" ×%.2f", median(ratios))
		}
		if strings.HasPrefix(variant, ours) {
			b.accent = "bar ours"
		}
		top = max(top, b.most)
		bars = append(bars, b)
	}
	if top == 0 {
		top = 1
	}
	x := func(v float64) float64 { return labelWidth + v/top*(chartWidth-labelWidth-valueWidth) }
	better := "less is better"
	if c.Metric == perSecond {
		better = "more is better"
	}
	var b strings.Builder
	title, what, height := html.EscapeString(t.Title), html.EscapeString(c.what()), headHeight+rowHeight*len(bars)+8
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s"><title>%s; %s</title><style>%s</style>`+"\n",
		chartWidth, height, chartWidth, height, title, title, what, chartStyle)
	fmt.Fprintf(&b, `<text x="0" y="16">%s</text><text x="0" y="34" class="small">%s, median of the rounds, with the least and the most; %s</text>`+"\n", title, what, better)
	for i, r := range bars {
		y := headHeight + i*rowHeight
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect class="%s" x="%d" y="%d" width="%.1f" height="16"/>`,
			labelWidth-8, y+17, html.EscapeString(r.label), r.accent, labelWidth, y+5, x(r.median)-labelWidth)
		fmt.Fprintf(&b, `<path class="spread" d="M%.1f %dV%dM%.1f %dH%.1fM%.1f %dV%d"/>`, x(r.least), y+9, y+17, x(r.least), y+13, x(r.most), x(r.most), y+9, y+17)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" class="small">%s%s</text>`+"\n", x(r.most)+8, y+17, short(r.median), r.ratio)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// variants are those of a case, in the order in which they came.
func (t *table) variants(of string) (names []string) {
	for _, s := range t.Samples {
		if s.Case == of && !slices.Contains(names, s.Variant) {
			names = append(names, s.Variant)
		}
	}
	return names
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
