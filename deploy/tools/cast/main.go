// Command cast records what a program shows in a terminal, pressing the keys that it waits for, and draws recordings.
//
//	cast record [flags] FILE.cast PROGRAM…    an asciicast v2 (docs.asciinema.org/manual/asciicast/v2)
//	cast draw FILE.cast FILE.svg              an SVG that plays it, alone and without scripts
//
// What is recorded is what the program printed, as it came. Only time is ours: nobody is made to wait long, and before
// each key there is time to read. screen.go is the terminal, and svg.go the picture; both are pure.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cast:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: cast record [flags] FILE.cast PROGRAM… | cast draw FILE.cast FILE.svg")

func run(args []string) error {
	switch {
	case len(args) > 0 && args[0] == "record":
		return recordTo(args[1:])
	case len(args) == 3 && args[0] == "draw":
		return draw(args[1], args[2])
	}
	return errUsage
}

// replacements are what is shown for other than it was, such as the directory of whoever records.
type replacements []string

func (r *replacements) String() string { return strings.Join(*r, " ") }

func (r *replacements) Set(s string) error {
	from, to, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("want FROM=TO")
	}
	*r = append(*r, from, to)
	return nil
}

func recordTo(args []string) error {
	flags := flag.NewFlagSet("record", flag.ExitOnError)
	var shown replacements
	flags.Var(&shown, "shown", "`FROM=TO`: TO is shown for FROM")
	cols := flags.Int("cols", 110, "columns of the terminal")
	rows := flags.Int("rows", 32, "rows of the terminal")
	press := flags.String("press", "press a key", "text after which a key is pressed")
	last := flags.String("last", "", "text after which the recording ends; the program is interrupted then")
	_ = flags.Parse(args)
	if flags.NArg() < 2 {
		return errUsage
	}
	c, err := record(flags.Args()[1:], options{cols: *cols, rows: *rows, press: *press, last: *last})
	if err != nil {
		return err
	}
	c.replace(strings.NewReplacer(shown...))
	var b bytes.Buffer
	if err := c.write(&b); err != nil {
		return err
	}
	return os.WriteFile(flags.Arg(0), b.Bytes(), 0o644) //nolint:gosec // it is published
}

func draw(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := read(f)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	b, err := svg(c)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return os.WriteFile(to, b, 0o644) //nolint:gosec // it is published
}
