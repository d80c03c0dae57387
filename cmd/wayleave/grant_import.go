package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/secret"
	"wayleave/vault"
)

// maxImport is more than any key or token file holds.
const maxImport = 1 << 20

func newGrantImport() *cobra.Command {
	var file string
	var wait bool
	c := grantCommand(vault.Operator, func(ctx context.Context, d desk, args []string) error { return d.importGrant(ctx, args[0], file, wait) })
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

func (d desk) importGrant(ctx context.Context, name, file string, wait bool) error {
	spec, err := d.spec(name)
	if err != nil {
		return err
	}
	if spec.Kind == grant.Machine {
		return usageError{fmt.Errorf("%s takes no import: the gate gets its tokens by itself", name)}
	}
	data, err := d.readImport(ctx, name, file, spec.Kind)
	if err != nil {
		return err
	}
	var token oauth.Token
	if spec.Kind == grant.Static {
		token, err = d.importValue(name, data)
	} else {
		token, err = d.importTokens(name, data)
	}
	if err != nil {
		return fmt.Errorf("importing %s: %w; nothing was changed", name, err)
	}
	return d.store(ctx, spec, token, wait)
}

// readImport reads what is to be imported.
func (d desk) readImport(ctx context.Context, name, file string, kind grant.Kind) ([]byte, error) {
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
	data, err := io.ReadAll(io.LimitReader(in, maxImport+1))
	if err == nil && len(data) > maxImport {
		err = errors.New("it is larger than any credential; name the right file")
	}
	return data, err
}

// importValue is a static value.
func (d desk) importValue(name string, data []byte) (oauth.Token, error) {
	// Editors and echo end a line; that one is not meant.
	value := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if problem := valueProblem(value, exists); problem != "" {
		return oauth.Token{}, errors.New(problem)
	}
	if p, _ := d.cfg.ProviderOf(name); !strings.HasPrefix(value, p.PlaceholderPrefix) {
		d.say("warning: values of %s usually begin with %s, and this one does not; it is stored as it is", p.Name, p.PlaceholderPrefix)
	}
	return oauth.Token{Access: secret.New(value)}, nil
}

// importTokens are tokens of an OAuth provider.
func (d desk) importTokens(name string, data []byte) (oauth.Token, error) {
	tokens, err := readTokens(data, d.now())
	if err != nil {
		return oauth.Token{}, err
	}
	if preset := d.cfg.Providers[d.cfg.Grants[name].Provider].Preset; tokens.preset != "" && tokens.preset != preset {
		return oauth.Token{}, fmt.Errorf("this is %s, whose tokens are of preset %s, and the grant's provider is of preset %s", tokens.what, tokens.preset, preset)
	}
	if !tokens.Refresh.IsZero() {
		d.say("warning: from now on only the gate may use this refresh token: any other client that still refreshes with it breaks this grant and is broken by it")
	} else {
		d.say("warning: there is no refresh token in it, so the grant ends when its token does")
	}
	p, _ := d.cfg.ProviderOf(name)
	tokens.Facts = p.FactsIn(map[string]string{"access_token": tokens.Access.Reveal(), "id_token": tokens.idToken})
	return tokens.Token, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
