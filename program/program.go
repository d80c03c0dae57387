// Package program owns finding an executable of a version we support, saying why that one, and telling a script from other files. What the program is for,
// and running it, is left to the caller.
package program

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Spec says which program is wanted.
type Spec struct {
	Name        string         // of the executable, and in messages
	VersionArgs []string       // arguments that make it print its version
	Version     *regexp.Regexp // finds the version, three numbers with dots and what follows a hyphen, in what it prints, as its first group
	Minimum     string         // the first supported version
	Below       string         // the first version no longer supported
	Setting     string         // what to write or set to name one explicitly, for the message when none is found
}

// Shell is the shell, and the arguments in place of args, by which shells and env start a file that the system did not know how to start (ENOEXEC): a
// script that does not say what it is one for. It is one if there is no NUL at its beginning, as there is in an executable for another kind of machine.
func Shell(err error, path string, args []string) (shell string, with []string, script bool) {
	if !errors.Is(err, syscall.ENOEXEC) {
		return "", nil, false
	}
	f, err := os.Open(path)
	if err != nil {
		return "", nil, false
	}
	defer f.Close()
	head := make([]byte, 128)
	n, _ := f.Read(head)
	return "/bin/sh", slices.Concat([]string{"sh", path}, args[1:]), bytes.IndexByte(head[:n], 0) < 0
}

// Binary is an executable of a supported version.
type Binary struct {
	Path    string
	Version string // as 1.40.0, or 1.40.0-dev
	// Why tells how this one was chosen, and what was passed over and why, in one sentence.
	Why string
}

// Find returns the executable to run: explicit when it is not empty, else the one in $PATH, else the one in toolsDir
// (when that is not empty). One that is not of a supported version is passed over, unless it is explicit: then it is an
// error.
func Find(ctx context.Context, s Spec, explicit, toolsDir string) (Binary, error) {
	if explicit != "" {
		v, err := s.versionOf(ctx, explicit)
		if err != nil {
			return Binary{}, fmt.Errorf("%s names %w", s.Setting, err)
		}
		return Binary{Path: explicit, Version: v, Why: "named by " + s.Setting}, nil
	}
	var passed []string
	for _, place := range []struct{ name, path string }{{"$PATH", s.Name}, {toolsDir, filepath.Join(toolsDir, s.Name)}} {
		if place.name == "" {
			continue
		}
		path, err := exec.LookPath(place.path)
		if err != nil {
			continue
		}
		v, err := s.versionOf(ctx, path)
		if err != nil {
			passed = append(passed, err.Error())
			continue
		}
		why := "found in " + place.name
		if len(passed) > 0 {
			why += "; passed over: " + strings.Join(passed, "; ")
		}
		return Binary{Path: path, Version: v, Why: why}, nil
	}
	what := fmt.Sprintf("no %s in $PATH", s.Name)
	if len(passed) > 0 {
		what = fmt.Sprintf("no usable %s: %s", s.Name, strings.Join(passed, "; "))
	}
	return Binary{}, fmt.Errorf("%s; install %s or newer, name one with %s, or run: make tools", what, s.Minimum, s.Setting)
}

// versionTimeout is longer than any sane program takes to print its version.
const versionTimeout = 20 * time.Second

// versionOf runs the executable and returns its version if that is supported.
func (s Spec) versionOf(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, s.VersionArgs...).Output()
	if err != nil {
		return "", fmt.Errorf("%s, which does not tell its version: %w", path, err)
	}
	m := s.Version.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s, which does not tell its version as %s does", path, s.Name)
	}
	v := string(m[1])
	if !s.Supports(v) {
		return "", fmt.Errorf("%s, which is %s %s; supported are %s up to but not %s", path, s.Name, v, s.Minimum, s.Below)
	}
	return v, nil
}

// Supports reports whether a program of this version, as 1.40.0, is supported.
func (s Spec) Supports(version string) bool {
	return Compare(version, s.Minimum) >= 0 && Compare(version, s.Below) < 0
}

// Compare is negative, zero or positive as version a is older than, the same as or newer than b. Both are three numbers;
// anything that is not a number counts as 0. What was built before a release, such as 1.40.0-dev, is older than it.
func Compare(a, b string) int {
	a, beforeA := release(a)
	b, beforeB := release(b)
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(as), len(bs)) {
		x, _ := strconv.Atoi(as[i])
		y, _ := strconv.Atoi(bs[i])
		if x != y {
			return x - y
		}
	}
	switch {
	case beforeA == beforeB:
		return 0
	case beforeA:
		return -1
	}
	return 1
}

var unreleased = regexp.MustCompile(`(?i)^(dev|alpha|beta|rc|pre)`)

// release is the release of a version, and whether it was built before that. Other words than those are of who built it.
func release(version string) (numbers string, before bool) {
	numbers, label, _ := strings.Cut(version, "-")
	return numbers, unreleased.MatchString(label)
}
