package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"wayleave/grant"
	"wayleave/operate"
	"wayleave/vault"
)

func newGrantImport() *cobra.Command {
	var file string
	var wait bool
	c := operatorCommand(vault.Operator, func(ctx context.Context, d operator, args []string) error {
		return d.importGrant(ctx, args[0], file, wait)
	})
	c.Use = "import NAME"
	c.Short = "Store a key, a password, or tokens that were given out elsewhere"
	c.Long = `Import reads a credential from standard input or a file, never from the command line, and stores it as the grant's. On a
terminal what you type is not shown.

For a static provider it is the bare value: a key or a password. What could not work is refused with the reason: white space
or quotes around it, several lines, a placeholder, an example such as your-api-key, the name of a variable or of a file.

For an OAuth provider it is a token response as JSON (RFC 6749), Claude Code's .credentials.json or Codex's auth.json. The
gate then refreshes it, so whoever else goes on refreshing with the same refresh token breaks this grant, and is broken.`
	c.Example = `  wayleave grant import weather -c wayleave.yaml
  wayleave grant import weather -c wayleave.yaml < weather.key
  wayleave grant import claude -c wayleave.yaml --from-file ~/.claude/.credentials.json`
	c.Args = exactArgs("NAME")
	c.Flags().StringVar(&file, "from-file", "", "read it from this file instead of standard input")
	c.Flags().BoolVar(&wait, "wait", false, "then wait until a running gate has taken the grant over, which it proves by refreshing it once")
	return c
}

func (d operator) importGrant(ctx context.Context, name, file string, wait bool) error {
	g, err := d.Find(ctx, name)
	if err == nil {
		err = operate.CheckImport(name, g.Kind)
	}
	if err != nil {
		return err
	}
	data, err := d.readImport(ctx, name, file, g.Kind)
	if err != nil {
		return err
	}
	got, err := d.Import(ctx, name, data)
	if got.Warning != "" {
		d.say("warning: %s", got.Warning)
	}
	if err != nil {
		return err
	}
	return d.stored(ctx, got.Stored, wait)
}

// readImport reads what is to be imported.
func (d operator) readImport(ctx context.Context, name, file string, kind grant.Kind) ([]byte, error) {
	in := d.in
	switch tty := terminalOf(d.in); {
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	case tty != nil && kind == grant.Static:
		fmt.Fprintf(d.err, "The value of %s, which is not shown: ", name)
		defer fmt.Fprintln(d.err)
		return readUnseen(ctx, tty)
	case tty != nil:
		return nil, usageError{errors.New("tokens are JSON, which a terminal would show: name the file with --from-file, or redirect it")}
	}
	data, err := readAll(ctx, io.LimitReader(in, operate.MaxImport+1))
	if err == nil && len(data) > operate.MaxImport {
		err = operate.ErrTooLarge
	}
	return data, err
}
