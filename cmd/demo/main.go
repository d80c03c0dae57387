// Command demo is a guided tour of the main job, from outside: it starts a stand-in provider and API, drives the wayleave
// command as an operator and a worker would, and shows what they type and what they get. Nothing in it is made up: what
// is shown as a command is what runs, and what follows is what it printed.
//
// steps.go is the story and its words, screen.go how it is shown, and world.go what runs; the stand-ins are package demo.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "approve" { // what $BROWSER runs: the operator who agrees
		exitOn(approve(os.Args[2]))
		return
	}
	state := flag.String("state", ".demo", "directory for everything the demo makes; a second start resumes it")
	once := flag.Bool("once", false, "walk through without waiting for keys, stop everything and exit")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var keys *keyboard
	if !*once {
		keys = newKeyboard(os.Stdin, os.Stdout)
	}
	exitOn(run(ctx, *state, *once, newScreen(os.Stdout, keys)))
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// errEnough ends the tour before its end: somebody pressed q.
var errEnough = errors.New("enough seen")

func run(ctx context.Context, dir string, once bool, scr *screen) error {
	w, err := newWorld(dir)
	if err != nil {
		return err
	}
	defer w.close()
	if _, err := exec.LookPath("curl"); err != nil {
		return errors.New("curl is not on PATH: install it, the worker of this tour uses it")
	}
	t := &tour{world: w, screen: scr}
	switch err := t.walk(ctx); {
	case errors.Is(err, errEnough), err != nil && ctx.Err() != nil:
		scr.text("Stopping.")
		return nil
	case err != nil:
		return fmt.Errorf("%w\nwhat was made is in %s; 'make demo' resumes there, and removing it starts afresh", err, w.dir)
	case once:
		scr.text("That was all. Stopping.")
		return nil
	}
	t.tryThis()
	select {
	case <-ctx.Done():
		scr.text("Stopping.")
		return nil
	case <-w.up.done:
		return fmt.Errorf("wayleave up ended by itself; its last words:\n%s", w.up.tail())
	}
}

// beside is the program of that name in the directory of this one.
func beside(name string) (self, other string, err error) {
	self, err = os.Executable()
	if err != nil {
		return "", "", err
	}
	other = filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(other); err != nil {
		return "", "", fmt.Errorf("no %s beside %s: run 'make build' first", name, self)
	}
	return self, other, nil
}
