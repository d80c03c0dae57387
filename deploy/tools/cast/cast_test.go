package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func shown(s *screen) []string {
	var lines []string
	for _, l := range s.lines {
		var b strings.Builder
		for _, c := range l {
			b.WriteRune(c.r)
		}
		lines = append(lines, b.String())
	}
	return lines
}

func TestScreen(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string
		top  int
	}{
		"lines":               {"one\r\ntwo\r\n", []string{"one", "two"}, 0},
		"wrapping":            {"0123456789ab", []string{"0123456789", "ab"}, 0},
		"a full line":         {"0123456789\r\nab", []string{"0123456789", "ab"}, 0},
		"scrolling":           {"1\r\n2\r\n3\r\n4\r\n5", []string{"1", "2", "3", "4", "5"}, 2},
		"a line taken back":   {"a\r\n\r\nkey?\r\x1b[K\x1b[A\r\nb", []string{"a", "", "b"}, 0},
		"tabs":                {"a\tb", []string{"a       b"}, 0},
		"colours take no row": {"\x1b[1;36mé\x1b[0m…", []string{"é…"}, 0},
	} {
		s := newScreen(10, 3)
		if err := s.show(c.text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(c.want, shown(s)); d != "" || s.top != c.top {
			t.Errorf("%s: the first row in sight is %d; %s", name, s.top, d)
		}
	}
	for _, text := range []string{"\x1b[2J", "\x1b[38;5;1m", "\x1b[1", "\a", "\x1b]0;x\a", "\xff"} {
		if err := newScreen(10, 3).show(text); err == nil {
			t.Errorf("%q is shown", text)
		}
	}
}

func TestCast(t *testing.T) {
	c := &cast{cols: 80, rows: 24, events: []event{{0.5, "a <b> & \x1b[32mc\x1b[0m\r\n"}, {1.25, "…"}}}
	var b bytes.Buffer
	if err := c.write(&b); err != nil {
		t.Fatal(err)
	}
	if want := `[0.5,"o","a <b> & \u001b[32mc\u001b[0m\r\n"]` + "\n"; !strings.Contains(b.String(), want) {
		t.Errorf("got %s, want %s in it", b.String(), want)
	}
	back, err := read(&b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(c, back, cmp.AllowUnexported(cast{}, event{})); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"", "{}", `{"version":2,"width":80,"height":24}` + "\n[1]"} {
		if _, err := read(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

// Each line is drawn once for each thing that it was, and what went is gone in the end.
func TestSVG(t *testing.T) {
	c := &cast{cols: 20, rows: 2, events: []event{{0, "<one>\r\n"}, {1, "key?"}, {2, "\r\x1b[K"}, {3, "\x1b[1mtwo\x1b[0m\r\nthree"}}}
	b, err := svg(c)
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, b)
		}
	}
	for text, times := range map[string]int{
		"&lt;one&gt;</text>": 1, "key?</text>": 1, `<tspan class="b">two</tspan>`: 1, "three</text>": 1,
		"{opacity:0}8.333%{opacity:1}16.667%{opacity:0}}":                                1, // the key, from 1 s to 2 s of 12
		"@keyframes scroll{0%{transform:translateY(0)}25%{transform:translateY(-18px)}}": 1,
		"prefers-reduced-motion": 4, "<script": 0,
	} {
		if n := strings.Count(string(b), text); n != times {
			t.Errorf("%q is there %d times, not %d, in\n%s", text, n, times, b)
		}
	}
}

// A program that waits for keys gets them, and one that goes on is interrupted.
func TestRecord(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("no bash here")
	}
	const program = `echo "one in $HOME"; read -rsn 1 -p 'press a key'; echo; echo 'that is all'; trap 'echo unseen; exit' INT; while :; do read -rt 1; done`
	c, err := record([]string{"bash", "-c", program}, options{cols: 40, rows: 10, press: "press a key", last: "is all"})
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	c.replace(strings.NewReplacer(os.Getenv("HOME"), "~"))
	var all strings.Builder
	for i, ev := range c.events {
		all.WriteString(ev.text)
		if i > 0 && (ev.at < c.events[i-1].at || ev.at > c.events[i-1].at+longest+mostRead) {
			t.Errorf("event %d is at %v after %v", i, ev.at, c.events[i-1].at)
		}
	}
	if want := "one in ~\r\npress a key\r\nthat is all\r\n"; all.String() != want {
		t.Errorf("got %q, want %q", all.String(), want)
	}
	if _, err := record([]string{"bash", "-c", "echo why; exit 3"}, options{cols: 40, rows: 10}); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("a program that failed gave %v", err)
	}
}

// The picture in the README is that of the recording beside it.
func TestTourIsDrawn(t *testing.T) {
	images := filepath.Join("..", "..", "..", "docs", "images")
	drawn := filepath.Join(t.TempDir(), "tour.svg")
	if err := run([]string{"draw", filepath.Join(images, "tour.cast"), drawn}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(drawn)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(images, "tour.svg"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/images/tour.svg is not what tour.cast gives: run 'go run ./deploy/tools/cast draw docs/images/tour.cast docs/images/tour.svg'")
	}
}
