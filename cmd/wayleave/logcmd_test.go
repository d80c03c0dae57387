package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wayleave/config"
	"wayleave/logs"
)

// The file decides, then the variable, and a new file changes it.
func TestGateLevels(t *testing.T) {
	env := map[string]string{}
	getenv := func(name string) string { return env[name] }
	l, err := newLevels(new(config.Config), getenv)
	if err != nil {
		t.Fatal(err)
	}
	is := func(want string) {
		t.Helper()
		grant, _ := l.Of("grant")
		xds, _ := l.Of("xds")
		if got := fmt.Sprint(grant, xds); got != want {
			t.Errorf("%s; want %s", got, want)
		}
	}
	is("INFO INFO")
	env[logVariable] = "debug"
	configureLevels(l, new(config.Config), getenv)
	is("DEBUG DEBUG")
	configureLevels(l, &config.Config{Log: config.Log{Level: "warn", Parts: map[string]string{"grant": "error"}}}, getenv)
	is("ERROR WARN")
	env[logVariable] = "loud"
	if _, err := newLevels(new(config.Config), getenv); err == nil || !strings.Contains(err.Error(), logVariable) {
		t.Errorf("error %v", err)
	}
}

// A file that changes while the gate runs changes what is logged, and needs no restart for that.
func TestFileChangesLevels(t *testing.T) {
	var out bytes.Buffer
	l, err := newLevels(new(config.Config), func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	cfg := new(config.Config)
	s := newSource(gate{cfg: cfg, levels: l, log: slog.New(slog.NewTextHandler(&out, nil))}, nil, nil)
	s.read([]byte("log: {parts: {grant: debug}}\n"))
	if level, _ := l.Of("grant"); level != slog.LevelDebug || strings.Contains(out.String(), "restart") && strings.Contains(out.String(), "log") {
		t.Errorf("grant is at %v, and the gate says: %s", level, &out)
	}
	s.read([]byte("log: {level: nonsense}\n"))
	if level, _ := l.Of("grant"); level != slog.LevelDebug {
		t.Errorf("after a file with a fault grant is at %v", level)
	}
}

// Every package that logs is a part that can have a level of its own.
func TestPartsAreThosePackagesThatLog(t *testing.T) {
	dirs, err := filepath.Glob("../../*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	logging := map[string]bool{logs.Gate: true}
	for _, file := range dirs {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(filepath.Dir(file))
		if bytes.Contains(text, []byte("slog.Logger")) && !strings.HasSuffix(file, "_test.go") && name != "bench" && name != "logs" {
			logging[name] = true
		}
	}
	for name := range logging {
		if logs.Check(name) != nil {
			t.Errorf("%s logs, and is not in logs.Parts", name)
		}
	}
	for _, name := range logs.Parts {
		if !logging[name] {
			t.Errorf("%s is in logs.Parts, and does not log", name)
		}
	}
}

func TestLogLevelCommand(t *testing.T) {
	isolated(t)
	t.Setenv("WAYLEAVE_API_TOKEN", "wlop_x")
	var asked string
	gate := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		asked = r.Method + " " + r.URL.Path + " " + body.String()
		fmt.Fprint(w, `{"parts":{"grant":{"level":"debug","until":"2026-03-01T12:00:00Z"},"xds":{"level":"info"}}}`)
	}))
	defer gate.Close()
	for _, c := range []struct {
		args string
		code int
		want string // in what is asked, printed or said
	}{
		{"", 0, "GET /api/v1/log"},
		{"debug", 0, `PUT /api/v1/log {"levels":{"":"debug"},"for":"10m0s"}`},
		{"grant=debug xds=warn --for 1h", 0, `PUT /api/v1/log {"levels":{"grant":"debug","xds":"warn"},"for":"1h0m0s"}`},
		{"--reset", 0, `PUT /api/v1/log {"for":"10m0s"}`},
		{"", 0, "grant  debug  2026-03-01"},
		{"--json", 0, `"level": "debug"`},
		{"loud", 2, "not one of debug, info, warn, error"},
		{"grants=debug", 2, "not a part of a gate"},
		{"debug info", 2, "what another argument sets"},
		{"debug --reset", 2, "leave one of them out"},
	} {
		asked = ""
		var out, errs bytes.Buffer
		args := append([]string{"log", "level", "--api", gate.URL}, strings.Fields(c.args)...)
		if code := run(t.Context(), args, strings.NewReader(""), &out, &errs); code != c.code || !strings.Contains(asked+"\n"+out.String()+errs.String(), c.want) {
			t.Errorf("%q: exit code %d, asked %s, printed %s%s; want %d and %q", c.args, code, asked, &out, &errs, c.code, c.want)
		}
	}
	t.Setenv("WAYLEAVE_API", "")
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"log", "level", "debug"}, strings.NewReader(""), &out, &errs); code != 2 || !strings.Contains(errs.String(), "write log into the configuration") {
		t.Errorf("without a gate: %d %s", code, &errs)
	}
}
