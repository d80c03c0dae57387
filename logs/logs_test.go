package logs

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestLevels(t *testing.T) {
	now := time.Unix(1000, 0)
	l := New(slog.LevelInfo, func() time.Time { return now })
	is := func(when string, want map[string]slog.Level) {
		t.Helper()
		for part, level := range want {
			if got, _ := l.Of(part); got != level {
				t.Errorf("%s: %s is at %v; want %v", when, part, got, level)
			}
		}
	}
	is("at first", map[string]slog.Level{"grant": slog.LevelInfo})
	l.Configure(slog.LevelWarn, map[string]slog.Level{"grant": slog.LevelDebug})
	is("by the file", map[string]slog.Level{"grant": slog.LevelDebug, "xds": slog.LevelWarn})
	l.Ask("xds", slog.LevelDebug, time.Minute)
	l.Ask("grant", slog.LevelError, 2*time.Minute)
	is("asked", map[string]slog.Level{"grant": slog.LevelError, "xds": slog.LevelDebug, "ca": slog.LevelWarn})
	if _, until := l.Of("xds"); !until.Equal(now.Add(time.Minute)) {
		t.Errorf("until %v", until)
	}
	l.Configure(slog.LevelInfo, nil)
	is("asked, with another file", map[string]slog.Level{"grant": slog.LevelError, "ca": slog.LevelInfo})
	now = now.Add(time.Minute)
	is("after one has ended", map[string]slog.Level{"grant": slog.LevelError, "xds": slog.LevelInfo})
	l.Ask("", slog.LevelDebug, time.Minute)
	is("of all parts", map[string]slog.Level{"grant": slog.LevelDebug, "xds": slog.LevelDebug})
	l.Ask("grant", slog.LevelWarn, time.Minute)
	is("of all parts but one", map[string]slog.Level{"grant": slog.LevelWarn, "xds": slog.LevelDebug})
	l.Forget()
	is("forgotten", map[string]slog.Level{"grant": slog.LevelInfo, "xds": slog.LevelInfo})
}

// What is written depends on who writes it, and says who did.
func TestHandler(t *testing.T) {
	var out bytes.Buffer
	l := New(slog.LevelInfo, time.Now)
	log := slog.New(l.Handler(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))).With("grant", "g")
	written := func(write func(string, ...any), want string) {
		t.Helper()
		out.Reset()
		write("said", "k", "v")
		if got := out.String(); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("wrote %q; want %q", got, want)
		}
	}
	written(log.Debug, "")
	written(log.Info, "level=INFO msg=said grant=g k=v part=logs")
	l.Configure(slog.LevelError, map[string]slog.Level{"logs": slog.LevelDebug})
	written(log.Debug, "level=DEBUG msg=said grant=g k=v part=logs")
	l.Configure(slog.LevelInfo, map[string]slog.Level{"logs": slog.LevelError, "grant": slog.LevelDebug})
	written(log.Warn, "")
	written(log.WithGroup("a").Error, "a.k=v a.part=logs")
}

func TestPartNamed(t *testing.T) {
	for function, part := range map[string]string{
		"wayleave/grant.(*minder).refresh":        "grant",
		"wayleave/vault/embedded.(*Server).event": "vault",
		"main.gate.serve":                         Gate,
		"wayleave/cmd/wayleave.gate.serve.func1":  Gate,
		"net/http.(*Server).logf":                 Gate,
		"":                                        Gate,
	} {
		if got := partNamed(function); got != part {
			t.Errorf("%s: %s; want %s", function, got, part)
		}
	}
}

func TestParse(t *testing.T) {
	for _, name := range Names() {
		if level, err := Parse(name); err != nil || Name(level) != name {
			t.Errorf("%s: %v, %v", name, level, err)
		}
	}
	if _, err := Parse("loud"); err == nil || !strings.Contains(err.Error(), "debug, info, warn, error") {
		t.Errorf("error %v", err)
	}
	if err := Check("grants"); err == nil || Check("grant") != nil {
		t.Errorf("error %v", err)
	}
}

func TestChangesAtOnce(t *testing.T) {
	l := New(slog.LevelInfo, time.Now)
	var all sync.WaitGroup
	for _, part := range Parts {
		all.Go(func() { l.Ask(part, slog.LevelDebug, time.Hour) })
	}
	all.Wait()
	for _, part := range Parts {
		if level, _ := l.Of(part); level != slog.LevelDebug {
			t.Errorf("%s is at %v", part, level)
		}
	}
}

// What is not logged costs a comparison.
func BenchmarkNotLogged(b *testing.B) {
	log := slog.New(New(slog.LevelInfo, time.Now).Handler(slog.DiscardHandler))
	b.ReportAllocs()
	for b.Loop() {
		log.LogAttrs(b.Context(), slog.LevelDebug, "said")
	}
}
