package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"wayleave/envoy/envoytest"
	"wayleave/vault/vaulttest"
	"wayleave/worker"
	"wayleave/xds"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == gateCommand || os.Args[1] == mitmCommand) { // what the scenarios start
		main()
		return
	}
	os.Exit(m.Run())
}

// Every benchmark that docs/performance.md shows runs as it is shown there, but smaller. No time is looked at: that there is one
// is enough.
func TestCommandsInTheDocumentation(t *testing.T) {
	t.Setenv("WAYLEAVE_ENVOY", envoytest.Binary(t))
	t.Setenv("WAYLEAVE_BAO", vaulttest.Binary(t))
	page, err := os.ReadFile("../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	ran := map[string]bool{}
	for line := range strings.Lines(string(page)) {
		if !strings.HasPrefix(line, "make bench-") {
			continue
		}
		args := recipe(t, append(strings.Fields(strings.SplitN(line, " #", 2)[0])[1:], "NAMES=60", "REQUESTS=64", "LIVE=64", "NODES=8", "GRANTS=120", "ROUTES=20", "ROUNDS=1")...)
		if ran[args[0]] || args[0] == "check" { // with other numbers; or it runs others
			continue
		}
		ran[args[0]] = true
		t.Run(args[0], func(t *testing.T) {
			if checks[args[0]] == nil { // it takes too long, and what it measures with is tested without Envoy
				parses(t, args)
				return
			}
			checks[args[0]](t, args)
		})
	}
	for _, s := range scenarios {
		if !ran[s.name] {
			t.Errorf("docs/performance.md does not show how to run %s", s.name)
		}
	}
}

// checks run a scenario and see whether it has measured what it says.
var checks = map[string]func(*testing.T, []string){
	// Beyond the limits on certificates, Envoy holds no more of them.
	"names": func(t *testing.T, args []string) {
		r := bench(t, append(args, "--leaves", "10", "--handshakes", "3")...)
		got := map[string]float64{}
		for _, s := range r.Tables[0].Samples {
			got[s.Case+" "+s.Variant] = s.Values[held]
		}
		for of, want := range map[string]float64{"0 " + spread: 0, "60 " + spread: 10, "60 " + below: 2, "60 " + passing: 0} {
			if n, ok := got[of]; !ok || n != want {
				t.Errorf("%s: %v certificates, want %v of %v", of, n, want, got)
			}
		}
	},
	// One Envoy and many have had all: at first, after each change, and after they have come back.
	"nodes": func(t *testing.T, args []string) {
		got := map[string]int{}
		for _, s := range bench(t, append(args, "--changes", "3")...).Tables[0].Samples {
			if s.Values[wireKB] > 0 {
				got[s.Case+", "+s.Variant]++
			}
		}
		want := map[string]int{}
		for _, n := range []string{"1", "8"} {
			want[firstTime+", "+n], want[oneHost+", "+n], want[again+", "+n] = 1, 3, 1
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	},
	// Few grants and many have been kept, and all of them refreshed once.
	"grants": func(t *testing.T, args []string) {
		got := map[string]bool{}
		for i, table := range bench(t, append(args, "--checks", "100", "--watch", "10ms")...).Tables {
			for _, s := range table.Samples {
				if i == 0 {
					got["kept "+s.Variant] = s.Values[readyMS] > 0
				} else {
					got["refreshed "+s.Variant] = s.Values[callsMost] > 0
				}
			}
		}
		want := map[string]bool{"kept 100": true, "kept 120": true, "refreshed 100": true, "refreshed 120": true}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	},
	// One session and many have been told apart, for connections and for requests, and have memory of their own. So have those of workers
	// who asked through Envoy.
	"sessions": func(t *testing.T, args []string) {
		r := bench(t, append(args, "--checks", "1000")...)
		got := map[string]bool{}
		for _, s := range r.Tables[2].Samples {
			got["asked, "+s.Variant] = s.Values[perSecond] > 0
		}
		for _, table := range r.Tables[:2] {
			for _, s := range table.Samples {
				for of, v := range s.Values {
					got[s.Case+", "+s.Variant+", "+of] = of == cpuNS || v > 0
				}
			}
		}
		want := map[string]bool{
			"a connection, 1, CPU ns": true, "a request, 1, CPU ns": true, "a connection, 64, CPU ns": true, "a request, 64, CPU ns": true,
			"asked, 10": true, "asked, 64": true, "64, as read, MB": true, "64, after the checks, MB": true,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	},
	// Each part has started, and an answer came, with the executables in memory and without.
	"start": func(t *testing.T, args []string) {
		got := map[string]bool{}
		for _, s := range bench(t, args...).Tables[0].Samples {
			got[s.Case+", "+s.Variant] = s.Values[untilMS] > 0
		}
		want := map[string]bool{}
		for _, of := range []string{warm, cold} {
			for _, name := range starts {
				want[of+", "+name] = true
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	},
	// What is kept of requests is measured with each number of connections, and some were traced.
	"observe": func(t *testing.T, args []string) {
		if n := len(bench(t, args...).Tables[0].Samples); n != 3*len(observers) {
			t.Errorf("%d samples of %d variants with three numbers of connections", n, len(observers))
		}
	},
	"swap": func(t *testing.T, args []string) {
		r := bench(t, args...)
		for i, of := range []int{4, len(fastLadder)} {
			if n := len(r.Tables[i].Samples); n != 3*of {
				t.Errorf("%d samples of %d variants with three numbers of connections", n, of)
			}
		}
		var out bytes.Buffer
		if err := r.print(&out); err != nil || !strings.Contains(out.String(), "×") {
			t.Errorf("printed without a ratio: %v\n%s", err, out.String())
		}
	},
}

// parses sees that a scenario knows its parameters.
func parses(t *testing.T, args []string) {
	t.Helper()
	for _, s := range scenarios {
		if s.name == args[0] {
			f := flag.NewFlagSet(s.name, flag.ContinueOnError)
			s.flags(f)
			if err := f.Parse(args[1:]); err != nil || f.NArg() > 0 {
				t.Errorf("bench %s: %v", strings.Join(args, " "), err)
			}
		}
	}
}

// recipe is what make would run, without the program.
func recipe(t *testing.T, words ...string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "make", append([]string{"--no-print-directory", "-n", "-C", ".."}, words...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make %s: %v\n%s", strings.Join(words, " "), err, out)
	}
	_, line, found := strings.Cut(string(out), "go run ./bench ")
	if !found {
		t.Fatalf("make %s runs no benchmark:\n%s", strings.Join(words, " "), out)
	}
	line, _, _ = strings.Cut(line, "\n")
	return strings.Fields(line)
}

// bench runs the command and returns its raw data.
func bench(t *testing.T, args ...string) *report {
	t.Helper()
	var out, progress bytes.Buffer
	if err := run(t.Context(), append(args, "--json"), &out, &progress); err != nil {
		t.Fatalf("bench %s: %v\n%s", strings.Join(args, " "), err, progress.String())
	}
	r := &report{}
	if err := json.Unmarshal(out.Bytes(), r); err != nil {
		t.Fatal(err)
	}
	return r
}

// Should a filter get another name, its variant would leave out nothing, and its ratio say that it costs nothing.
func TestVariantsLeaveOutWhatTheySay(t *testing.T) {
	const lua, search, swap, barrier = "wayleave.upstream", "envoy_on_response", "wayleave.ext_proc", "envoy.filters.http.rbac"
	for name, gone := range map[string][]string{whole: nil, allEnds: nil, noSearch: {lua, search}, onlyTLS: {lua, search, swap, barrier}} {
		r, err := xds.Build(xds.Config{
			ProxyAddress: "127.0.0.1:3128", UpstreamCA: []byte("-----BEGIN CERTIFICATE-----"), APISockets: []string{"/api.sock"}, GateSockets: map[string]string{"": "/gate.sock"}, Marker: worker.Marker,
			Routes: []xds.Route{{Name: "api", Hosts: []string{apiHost}, ConnectTo: "127.0.0.1:1"}}, AccessLogPath: "/dev/null",
		})
		if err != nil {
			t.Fatal(err)
		}
		if edit := variants[name].envoy; edit != nil {
			if err := edit(r); err != nil {
				t.Fatal(err)
			}
		}
		var text []byte
		for _, m := range r.All() {
			wire, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, wire...)
		}
		for _, part := range []string{lua, search, swap, barrier} {
			if bytes.Contains(text, []byte(part)) == slices.Contains(gone, part) {
				t.Errorf("%s: %s is there: %t", name, part, bytes.Contains(text, []byte(part)))
			}
		}
	}
}

// What counts is the ratio within a round, since a machine may be busy in one and not in the next.
func TestRatiosAreWithinARound(t *testing.T) {
	tbl := &table{Base: "slow", Metrics: []metric{{Name: "ms"}, {Name: "n", NoRatio: true}}}
	for round, ms := range []float64{10, 1000, 30} { // the machine was busy in the second
		tbl.add("c", "slow", round, map[string]float64{"ms": ms, "n": 1})
		tbl.add("c", "fast", round, map[string]float64{"ms": ms / 2, "n": 2})
	}
	want := "| | | ms | n | |---|---|---|---| | c | slow | 30 [10–1,000] | 1 | | | fast | 15 [5–500] ×0.50 | 2 |"
	if got := strings.Join(strings.Fields(markdown(tbl.rows())), " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Whoever ends a benchmark is not told figures, nor kept waiting for a gate that hangs.
func TestEndedBySignal(t *testing.T) {
	ctx, end := context.WithCancelCause(t.Context())
	var out bytes.Buffer
	err := run(ctx, []string{"sessions", "--live", "2"}, &out, writer(func() { end(errors.New("terminated signal received")) }))
	if err == nil || !strings.Contains(err.Error(), "ended before everything was measured: terminated signal received") || out.Len() > 0 {
		t.Errorf("%v, %q", err, out.String())
	}

	ctx, end = context.WithCancelCause(t.Context())
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // a proxy that hangs
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
		}
	}()
	c, err := (&world{proxy: l.Addr().String(), gate: &gate{}}).tunnel(ctx, "api.bench.test:443")
	if err != nil {
		t.Fatal(err)
	}
	end(nil)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read that waits: %v", err)
	}
	c.Close()
}

type writer func()

func (w writer) Write(p []byte) (int, error) {
	w()
	return len(p), nil
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "name one of the scenarios"},
		{"nothing", "name one of the scenarios"},
		{"names 10", `"10" is no parameter`},
		{"names --names 0", "at least 1"},
		{"sessions --live 1", "at least 2"},
		{"swap --requests 1", "at least 64"},
		{"compare --requests 1", "at least 64"},
		{"grants --grants 100", "more than 100"},
		{"routes --routes 1", "at least 2"},
		{"start --rounds 0", "at least 1"},
		{"check --rounds", "needs an argument"},
	} {
		if err := run(t.Context(), strings.Fields(c.args), io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("bench %s: %v, want %q", c.args, err, c.want)
		}
	}
}
