package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// cast is a recording.
type cast struct {
	cols, rows int
	events     []event
}

// event is what the terminal showed at a time in seconds from the start.
type event struct {
	at   float64
	text string
}

// header is the first line of an asciicast v2; each further line is [seconds, "o", text].
type header struct {
	Version int    `json:"version"`
	Width   int    `json:"width"`
	Height  int    `json:"height"`
	Title   string `json:"title,omitempty"`
}

const title = "make demo"

func (c *cast) write(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(header{2, c.cols, c.rows, title}); err != nil {
		return err
	}
	for _, ev := range c.events {
		if err := e.Encode([]any{math.Round(ev.at*1000) / 1000, "o", ev.text}); err != nil {
			return err
		}
	}
	return nil
}

func read(r io.Reader) (*cast, error) {
	lines := bufio.NewReader(r)
	d := json.NewDecoder(lines)
	var h header
	if err := d.Decode(&h); err != nil || h.Version != 2 || h.Width < 1 || h.Height < 1 {
		return nil, errors.New("this is no asciicast v2: its first line says otherwise")
	}
	c := &cast{cols: h.Width, rows: h.Height}
	for n := 2; ; n++ {
		var fields []json.RawMessage
		err := d.Decode(&fields)
		if errors.Is(err, io.EOF) {
			return c, nil
		}
		var ev event
		var kind string
		if err != nil || len(fields) != 3 ||
			json.Unmarshal(fields[0], &ev.at) != nil || json.Unmarshal(fields[1], &kind) != nil || json.Unmarshal(fields[2], &ev.text) != nil {
			return nil, fmt.Errorf("line %d is no event of an asciicast", n)
		}
		if kind == "o" {
			c.events = append(c.events, ev)
		}
	}
}

// replace changes what is shown. A text that is in two events is not found, so events are whole lines where they can be.
func (c *cast) replace(r *strings.Replacer) {
	for i := range c.events {
		c.events[i].text = r.Replace(c.events[i].text)
	}
}
