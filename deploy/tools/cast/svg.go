package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Sizes in pixels, and times in seconds.
const (
	charWidth, lineHeight, fontSize = 7.8, 18.0, 13.0
	margin, bar                     = 14.0, 30.0
	atTheEnd                        = 9.0 // before it begins again
)

// row is a line of the terminal as it was for a while.
type row struct {
	n        int
	cells    []cell
	from, to float64 // to is 0 where it stays
}

// svg draws a recording: each line once, made to appear and to go by CSS, and all of them moved up as the terminal scrolls.
// Whoever wants no motion sees the end.
func svg(c *cast) ([]byte, error) {
	rows, scrolls, err := play(c)
	if err != nil {
		return nil, err
	}
	if len(c.events) == 0 {
		return nil, fmt.Errorf("nothing is shown")
	}
	length := c.events[len(c.events)-1].at + atTheEnd
	width, height := 2*margin+float64(c.cols)*charWidth, bar+float64(c.rows)*lineHeight+margin

	var css, body bytes.Buffer
	classes := map[[2]float64]string{}
	for _, r := range rows {
		text := line(r.cells)
		if text == "" {
			continue
		}
		when := [2]float64{r.from, r.to}
		class, known := classes[when]
		if !known {
			class = "t" + strconv.FormatInt(int64(len(classes)), 36)
			classes[when] = class
			gone := ""
			if r.to > 0 {
				gone = percent(r.to/length) + "{opacity:0}"
				fmt.Fprintf(&css, ".%s{opacity:0}\n", class)
			}
			fmt.Fprintf(&css, "@keyframes %s{0%%{opacity:0}%s{opacity:1}%s}\n", class, percent(r.from/length), gone)
			fmt.Fprintf(&css, "@media (prefers-reduced-motion:no-preference){.%s{animation:%s %ss step-end infinite}}\n", class, class, number(length))
		}
		fmt.Fprintf(&body, "<text class=\"%s\" y=\"%s\"%s</text>\n", class, number((float64(r.n)+0.75)*lineHeight), text)
	}
	css.WriteString("@keyframes scroll{0%{transform:translateY(0)}")
	end := 0
	for _, s := range scrolls {
		fmt.Fprintf(&css, "%s{transform:translateY(-%spx)}", percent(s.at/length), number(float64(s.top)*lineHeight))
		end = s.top
	}
	fmt.Fprintf(&css, "}\n.scroll{transform:translateY(-%spx)}\n", number(float64(end)*lineHeight))
	fmt.Fprintf(&css, "@media (prefers-reduced-motion:no-preference){.scroll{animation:scroll %[1]ss step-end infinite}.so-far{animation:so-far %[1]ss linear infinite}}\n", number(length))

	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]s %[2]s" width="%[1]s" height="%[2]s" role="img" aria-label="%[3]s, as it runs in a terminal">
<!-- Made by 'make tour' from the recording beside it; do not edit. -->
<style>
text{font:%[4]spx ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono","Liberation Mono",monospace;fill:#d0d7de;white-space:pre}
.b{font-weight:bold;fill:#fff}.d{fill:#8b949e}.c1{fill:#ff7b72}.c2{fill:#7ee787}.c3{fill:#e3b341}.c4{fill:#79c0ff}.c5{fill:#d2a8ff}.c6{fill:#76e3ea}.c7{fill:#fff}
@keyframes so-far{from{transform:scaleX(0)}to{transform:scaleX(1)}}
%[5]s</style>
`, number(width), number(height), title, number(fontSize), css.String())
	fmt.Fprintf(&out, `<rect width="%[1]s" height="%[2]s" rx="8" fill="#0d1117"/>
<circle cx="18" cy="15" r="5" fill="#ff5f57"/><circle cx="36" cy="15" r="5" fill="#febc2e"/><circle cx="54" cy="15" r="5" fill="#28c840"/>
<text class="d" x="50%%" y="19" text-anchor="middle">%[3]s</text>
<rect class="so-far" y="%[4]s" width="%[1]s" height="2" fill="#30363d"/>
<svg x="%[5]s" y="%[6]s" width="%[7]s" height="%[8]s"><g class="scroll">
%[9]s</g></svg>
</svg>
`, number(width), number(height), title, number(bar-4), number(margin), number(bar), number(width-margin), number(float64(c.rows)*lineHeight), body.String())
	return out.Bytes(), nil
}

// scroll is from when on a row is the first in sight.
type scroll struct {
	at  float64
	top int
}

// play has a terminal show a recording.
func play(c *cast) (rows []row, scrolls []scroll, err error) {
	s := newScreen(c.cols, c.rows)
	now := map[int]int{} // row → where it is in rows
	for _, ev := range c.events {
		clear(s.changed)
		before := s.top
		if err := s.show(ev.text); err != nil {
			return nil, nil, err
		}
		for n := range s.lines {
			if !s.changed[n] {
				continue
			}
			i, was := now[n]
			if was && slices.Equal(rows[i].cells, s.lines[n]) {
				continue
			}
			if was {
				rows[i].to = ev.at
			}
			now[n] = len(rows)
			rows = append(rows, row{n: n, cells: slices.Clone(s.lines[n]), from: ev.at})
		}
		if s.top != before {
			scrolls = append(scrolls, scroll{ev.at, s.top})
		}
	}
	return rows, scrolls, nil
}

// line is the attributes and the contents of a text element, from x on; empty when there is nothing to see.
func line(cells []cell) string {
	for len(cells) > 0 && cells[len(cells)-1].r == ' ' {
		cells = cells[:len(cells)-1]
	}
	first := slices.IndexFunc(cells, func(c cell) bool { return c.r != ' ' })
	if first < 0 {
		return ""
	}
	var b strings.Builder
	// The length keeps columns where they are in any font.
	fmt.Fprintf(&b, ` x="%s" textLength="%s" lengthAdjust="spacingAndGlyphs">`, number(float64(first)*charWidth), number(float64(len(cells)-first)*charWidth))
	for cells = cells[first:]; len(cells) > 0; {
		n := 1
		for n < len(cells) && cells[n].style == cells[0].style {
			n++
		}
		var text []rune
		for _, c := range cells[:n] {
			text = append(text, c.r)
		}
		var escaped bytes.Buffer
		_ = xml.EscapeText(&escaped, []byte(string(text))) // a buffer takes all
		if class := cells[0].style.class(); class != "" {
			fmt.Fprintf(&b, `<tspan class="%s">%s</tspan>`, class, escaped.String())
		} else {
			b.WriteString(escaped.String())
		}
		cells = cells[n:]
	}
	return b.String()
}

func (s style) class() string {
	var classes []string
	if s.bold {
		classes = append(classes, "b")
	}
	if s.dim {
		classes = append(classes, "d")
	}
	if s.colour > 0 {
		classes = append(classes, "c"+strconv.Itoa(s.colour))
	}
	return strings.Join(classes, " ")
}

func number(f float64) string { return strconv.FormatFloat(float64(int(f*100+0.5))/100, 'f', -1, 64) }

func percent(f float64) string {
	return strconv.FormatFloat(float64(int(f*100000+0.5))/1000, 'f', -1, 64) + "%"
}
