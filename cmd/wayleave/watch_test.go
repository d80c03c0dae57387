package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/config"
	"wayleave/rollout"
)

const watched1 = "tunnel: [a.example]\nupstream: {ca_files: [root.pem]}\n"

// The watcher tells each content that lasts, once, however it came.
func TestWatchConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "wayleave.yaml")
		put := func(name, text string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		do := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		// As Kubernetes shows a ConfigMap: a link to a link to a directory that is swapped.
		for _, of := range []string{"one", "two"} {
			do(os.Mkdir(filepath.Join(dir, of), 0o700))
			put(of+"/wayleave.yaml", watched1)
			put(of+"/root.pem", "root 1")
		}
		point := func(to string) {
			do(os.Symlink(to, filepath.Join(dir, "next")))
			do(os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "now")))
		}
		point("one")
		do(os.Symlink("now/wayleave.yaml", path))
		do(os.Symlink("now/root.pem", filepath.Join(dir, "root.pem")))

		cfg, err := config.Load(path)
		do(err)
		ctx, stop := context.WithCancel(t.Context())
		var told []string
		var log bytes.Buffer
		done := make(chan struct{})
		go func() {
			watchConfig(ctx, path, cfg, slog.New(slog.NewTextHandler(&log, nil)), func(text []byte) { told = append(told, string(text)) })
			close(done)
		}()
		defer func() { stop(); <-done }()
		want := func(what string, texts ...string) {
			t.Helper()
			time.Sleep(3 * watchEvery)
			synctest.Wait()
			if !slices.Equal(told, texts) {
				t.Errorf("%s: told %q, want %q", what, told, texts)
			}
			told = nil
		}
		time.Sleep(watchEvery / 2) // what is written is written between two looks
		want("as it was")
		point("two")
		want("the same in another place")
		put("one/wayleave.yaml", watched1+"# more\n")
		point("one")
		want("swapped", watched1+"# more\n")
		put("renamed", watched1+"# renamed\n")
		do(os.Rename(filepath.Join(dir, "renamed"), path))
		want("renamed", watched1+"# renamed\n")

		for i := range 4 { // as it is written in pieces
			put("wayleave.yaml", watched1+strings.Repeat("# piece\n", i))
			time.Sleep(watchEvery)
		}
		want("written in pieces", watched1+strings.Repeat("# piece\n", 3))

		do(os.Remove(filepath.Join(dir, "root.pem")))
		put("root.pem", "root 2")
		want("what it names", watched1+strings.Repeat("# piece\n", 3))
		put("wayleave.yaml", "tunnel: [")
		want("with a fault, which others report", "tunnel: [")
		put("root.pem", "root 3")
		want("what it does not name any more")

		do(os.Remove(path))
		want("away")
		put("wayleave.yaml", "tunnel: [")
		want("and back as it was")
		if n := strings.Count(log.String(), "cannot be read"); n != 1 {
			t.Errorf("said %d times that it is away: %s", n, log.String())
		}
	})
}

func TestAutomatic(t *testing.T) {
	ended := func(to string, phase rollout.Phase, reason string) rollout.Rollout {
		return rollout.Rollout{ID: "old", From: "r0", To: to, Phase: phase, Reason: reason}
	}
	now := &rollout.Rollout{ID: "now", From: "r1", To: "r2"}
	good := []rollout.Rollout{ended("r1", rollout.Succeeded, "")}
	for name, c := range map[string]struct {
		state   rollout.State
		file    string
		changed bool
		byHand  bool
		do      fileMove
		words   string
	}{
		"the first of all":                     {rollout.State{}, "r1", false, true, begin, "first"},
		"stable":                               {rollout.State{Stable: "r1", History: good}, "r1", false, false, leave, ""},
		"stable, with a root CA":               {rollout.State{Stable: "r1+ab", History: good}, "r1", true, false, leave, ""},
		"its root CA is rolled out":            {rollout.State{Stable: "r1", Current: &rollout.Rollout{ID: "now", From: "r1", To: "r1+ab"}}, "r1", true, false, leave, ""},
		"its root CA was rolled back":          {rollout.State{Stable: "r1", History: []rollout.Rollout{ended("r1+ab", rollout.RolledBack, "x")}}, "r1", true, false, leave, ""},
		"rolled back with another root CA":     {rollout.State{Stable: "r1+ab", History: []rollout.Rollout{ended("r2", rollout.RolledBack, "x")}}, "r2", true, false, leave, "was rolled back: x"},
		"stable again":                         {rollout.State{Stable: "r1", History: good}, "r1", true, false, leave, ""},
		"another gate has begun it":            {rollout.State{Stable: "r1", Current: now}, "r2", true, false, leave, ""},
		"back while it goes on":                {rollout.State{Stable: "r1", Current: now}, "r1", true, false, leave, "wayleave rollout abort"},
		"as it was while it goes on":           {rollout.State{Stable: "r1", Current: now}, "r1", false, false, leave, ""},
		"another while one goes on":            {rollout.State{Stable: "r1", Current: now}, "r3", true, false, await, "now is under way"},
		"changed":                              {rollout.State{Stable: "r1", History: good}, "r2", true, false, begin, ""},
		"new at the start":                     {rollout.State{Stable: "r1", History: good}, "r2", false, false, begin, ""},
		"by hand only":                         {rollout.State{Stable: "r1", History: good}, "r2", true, true, leave, "wayleave rollout start -c w.yaml"},
		"older at the start":                   {rollout.State{Stable: "r1", History: good}, "r0", false, false, leave, "older revision"},
		"older at the start, and one goes on":  {rollout.State{Stable: "r1", Current: now, History: good}, "r0", false, false, leave, "older revision"},
		"taken back while watched":             {rollout.State{Stable: "r1", History: good}, "r0", true, false, begin, ""},
		"rolled back":                          {rollout.State{Stable: "r1", History: []rollout.Rollout{ended("r2", rollout.RolledBack, "the Envoy e refuses it")}}, "r2", true, false, leave, "was rolled back: the Envoy e refuses it; mend the file, or start it again: wayleave rollout start -c w.yaml"},
		"rolled back, at the start":            {rollout.State{Stable: "r1", History: []rollout.Rollout{ended("r2", rollout.RolledBack, "x")}}, "r2", false, false, leave, "was rolled back: x"},
		"aborted":                              {rollout.State{Stable: "r1", History: []rollout.Rollout{ended("r2", rollout.Aborted, "")}}, "r2", true, false, leave, "was aborted; mend"},
		"rolled back long ago, and taken anew": {rollout.State{Stable: "r1", History: []rollout.Rollout{ended("r1", rollout.Succeeded, ""), ended("r2", rollout.RolledBack, "x")}}, "r2", true, false, begin, ""},
	} {
		do, words := automatic(c.state, ownFile{path: "w.yaml", revision: c.file, changed: c.changed, automatic: !c.byHand})
		if do != c.do || !strings.Contains(words, c.words) || c.words == "" && words != "" {
			t.Errorf("%s: got %v %q, want %v %q", name, do, words, c.do, c.words)
		}
	}
}

// A file that has not changed since its rollout began says nothing about what comes after it, whoever began it.
func TestIsRolledOut(t *testing.T) {
	now := &rollout.Rollout{ID: "now", From: "r1", To: "r2"}
	under, after := rollout.State{Stable: "r1", Current: now}, rollout.State{Stable: "r2", History: []rollout.Rollout{*now}}
	named := rollout.State{Stable: "r1+root"} // once a root CA was rolled out
	toNamed := rollout.State{Stable: "r1+root", Current: &rollout.Rollout{To: "r2+root"}}
	for _, c := range []struct {
		state rollout.State
		file  string
		is    bool
	}{{under, "r2", true}, {under, "r1", false}, {under, "r3", false}, {after, "r2", true}, {after, "r1", false},
		{named, "r1", true}, {named, "r2", false}, {toNamed, "r2", true}, {toNamed, "r1", false}} {
		if got := isRolledOut(c.state, c.file); got != c.is {
			t.Errorf("%s in %+v: %v", c.file, c.state, got)
		}
	}
	if !mentions(under, "now") || !mentions(after, "now") || mentions(after, "then") {
		t.Error("which rollouts a state knows of is not told")
	}
}
