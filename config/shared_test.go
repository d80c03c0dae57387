package config_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wayleave/config"
)

func TestShared(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"nothing":        {"", ""},
		"only local":     {"vault: {mount: m}\nlisten:\n  proxy: 127.0.0.1:1\n", "{}\n"},
		"comments stay":  {"listen: {proxy: '127.0.0.1:1'} # mine\n# for everybody\ntunnel:\n  - a.example # one\nconsole: {}\n", "# for everybody\ntunnel:\n  - a.example # one\n"},
		"in one line":    {"{listen: {proxy: '127.0.0.1:1'}, tunnel: [a.example]}\n", "{tunnel: [a.example]}\n"},
		"without values": {"grants: {a: , b: {c: }}\ntunnel:\n", "grants: {a: null, b: {c: null}}\ntunnel:\n"},
		"an anchor of the local part": {
			"listen: {proxy: '127.0.0.1:1', proxy_tls: '127.0.0.1:2', tls_names: &names [a.example]}\ntunnel: *names\ndeny: *names\n",
			"tunnel: &names [a.example]\ndeny: *names\n",
		},
		"an anchor of its own": {"tunnel: &names [a.example]\nlisten: {tls_names: *names}\ndeny: *names\n", "tunnel: &names [a.example]\ndeny: *names\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := config.Shared("f.yaml", []byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, text := range []string{"a: [", "- a", "a: 1\na: 2\nb: *c"} {
		if _, err := config.Shared("f.yaml", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), "f.yaml:") {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

// What is kept of a file means the same on another machine as the file on its own.
func TestJoin(t *testing.T) {
	text := []byte("listen: {proxy: 127.0.0.1:7}\n" + valid)
	shared, err := config.Shared("a.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	const local = "# of b\ntunnel: [never.example]\nlisten: {proxy: 127.0.0.1:8}\nunknown: 1\n"
	c, err := config.Join("/etc/b.yaml", shared, []byte(local))
	if err != nil {
		t.Fatal(err)
	}
	if want := parse(t, valid).Hash(); c.Hash() != want {
		t.Errorf("the revision is %.12s, and that of the file %.12s", c.Hash(), want)
	}
	if c.Listen.Proxy != "127.0.0.1:8" || len(c.Tunnel) != 0 || c.Dir != "/etc" {
		t.Errorf("got proxy %s, tunnel %v, directory %s", c.Listen.Proxy, c.Tunnel, c.Dir)
	}
	next, err := c.With("next.yaml", []byte(valid+"tunnel: [t.example]\nlisten: {proxy: nonsense}\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if next.Listen.Proxy != "127.0.0.1:8" || next.Hash() == c.Hash() {
		t.Errorf("with another shared part: proxy %s, revision %.12s", next.Listen.Proxy, next.Hash())
	}
	if got := next.HostFault("t.example", "wrong", "right").Error(); got != "next.yaml:23:10: tunnel[0]: wrong; right" {
		t.Error(got)
	}
}

// Whoever brings a change says how the fleet is led to it. Without a word about that, the machine does.
func TestRolloutOfAChange(t *testing.T) {
	machine := parse(t, valid+"rollout: {min_requests: 30, take_time: 7s}\n")
	for text, want := range map[string]string{
		valid:                                "30 7s",
		valid + "rollout: {take_time: 9s}\n": "200 9s",
	} {
		c, err := machine.With("next.yaml", []byte(text), nil)
		if err != nil {
			t.Fatal(err)
		}
		if p := c.Plan(); fmt.Sprint(p.MinRequests, " ", p.TakeTime) != want || c.Hash() != machine.Hash() {
			t.Errorf("got %+v; want %s", p, want)
		}
		if again, err := c.With("again.yaml", []byte(valid), nil); err != nil || again.Plan().MinRequests != 30 {
			t.Errorf("the next change: %+v, %v", again.Plan(), err)
		}
	}
	_, err := machine.With("next.yaml", []byte(valid+"rollout: {take_time: 1s}\n"), nil)
	if err == nil || !strings.HasPrefix(err.Error(), "next.yaml:") {
		t.Errorf("a fault: %v", err)
	}
}

// Each fault is in the file where it can be mended, also one of what the parts are to each other.
func TestFaultsOfTwoFiles(t *testing.T) {
	base, err := config.Parse("/etc/b.yaml", []byte("\n\nlisten: {proxy_tls: 127.0.0.1:9, tls_names: [api.acme.example]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = base.With("new.yaml", []byte(valid+"deny: [A.example]\n"), nil)
	want := `/etc/b.yaml:3:46: listen.tls_names[0]: "api.acme.example" is the gate's own and matches "api.acme.example" of a route or tunnel; give the gate another name, or narrow the pattern
new.yaml:23:8: deny[0]: "A.example" is not in lower case; write a.example`
	if err == nil {
		t.Fatal("accepted")
	}
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Error(diff)
	}
}

// What a public file holds is part of the revision, whatever becomes of the file.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "root.pem")
	put := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	load := func() *config.Config {
		c, err := config.Parse(filepath.Join(dir, "w.yaml"), []byte(valid+"upstream: {ca_files: [root.pem]}\n"))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	certificate, err := os.ReadFile("../xds/testdata/upstream_ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	one := "# one\n" + string(certificate)
	put(one)
	a := load()
	first := a.Hash()
	put("# two\n" + string(certificate))
	b := load()
	if a.Hash() != first || b.Hash() == first {
		t.Errorf("the revisions are %.12s, then %.12s, and %.12s of the changed file", first, a.Hash(), b.Hash())
	}
	if changes := config.Compare(a, b); len(changes) != 1 || changes[0].String() != "file root.pem: has another content" {
		t.Errorf("got %v", changes)
	}
	files, err := a.Files()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	kept, err := b.With("kept", []byte(valid+"upstream: {ca_files: [root.pem]}\n"), files)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := kept.ReadFile("root.pem"); err != nil || string(text) != one || kept.Hash() != first {
		t.Errorf("got %q, %v, revision %.12s", text, err, kept.Hash())
	}
	for _, broken := range []func() error{
		func() error { return nil },
		func() error { put(one[:200]); return nil },
		func() error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) },
	} {
		if err := broken(); err != nil {
			t.Fatal(err)
		}
		_, err := load().Files()
		fault, is := errors.AsType[config.Fault](err)
		if !is || fault.Key != "upstream.ca_files[0]" || fault.Line != 23 {
			t.Errorf("got %v", err)
		}
	}
}
