package envoy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"wayleave/envoy"
	"wayleave/envoy/envoytest"
	"wayleave/program"
)

// The real Envoy is of a version we say we support.
func TestProgram(t *testing.T) {
	b, err := program.Find(t.Context(), envoy.Program, envoytest.Binary(t), "")
	if err != nil || b.Version == "" {
		t.Fatalf("%+v %v", b, err)
	}
}

// What Envoy prints, as it is built and as distributors build it.
func TestVersion(t *testing.T) {
	for line, want := range map[string]string{
		"envoy  version: 9e55809/1.40.0/Clean/RELEASE/BoringSSL":              "1.40.0",
		"envoy  version: 9e55809/1.40.0-dev/Clean/RELEASE/BoringSSL":          "1.40.0-dev",
		"envoy  version: 9e55809/1.41.2-fips-7/Modified/DEBUG/OpenSSL":        "1.41.2-fips-7",
		"envoy  version: 9e55809/1.40.0+vendor/Clean/RELEASE/BoringSSL":       "1.40.0",
		"envoy  version: 9e55809/0.0.0-unknown.local/Clean/RELEASE/BoringSSL": "0.0.0-unknown",
	} {
		m := envoy.Program.Version.FindStringSubmatch(line)
		if m == nil || m[1] != want {
			t.Errorf("%s: %q, want %s", line, m, want)
		}
	}
	if envoy.Program.Supports("1.40.0-dev") || !envoy.Program.Supports("1.40.1-dev") || !envoy.Program.Supports("1.40.0-fips") {
		t.Error("a build from before 1.40.0 is older than it, and no other")
	}
}

func sound() envoy.Bootstrap {
	return envoy.Bootstrap{NodeID: "n1", GateSockets: []string{"/run/wayleave/gate.sock"}, AdminSocket: "/run/wayleave/admin.sock"}
}

func TestBootstrapIsValid(t *testing.T) {
	several := sound()
	several.GateSockets = []string{"/run/wayleave/gate.a.sock", "/run/wayleave/gate.b.sock"}
	grouped := sound()
	grouped.Group = "canary"
	bounded := sound()
	bounded.Memory, bounded.MaxForClusters = 1<<30, map[string]int64{"upstream": 10, "tunnel": 20}
	for _, b := range []envoy.Bootstrap{sound(), several, grouped, bounded} {
		y, err := b.YAML()
		if err != nil {
			t.Fatal(err)
		}
		again, err := b.YAML()
		if err != nil || string(again) != string(y) {
			t.Errorf("not the same twice (%v)", err)
		}
		if err := envoy.Validate(t.Context(), envoytest.Binary(t), y); err != nil {
			t.Error(err)
		}
	}
}

func TestBootstrapFaults(t *testing.T) {
	tests := map[string]func(*envoy.Bootstrap){
		"node id":              func(b *envoy.Bootstrap) { b.NodeID = "" },
		"not an absolute path": func(b *envoy.Bootstrap) { b.GateSockets = []string{"gate.sock"} },
		"use a shorter":        func(b *envoy.Bootstrap) { b.AdminSocket = "/" + strings.Repeat("d", 107) },
		"not one of trace":     func(b *envoy.Bootstrap) { b.LogLevel = "loud" },
		"real credentials":     func(b *envoy.Bootstrap) { b.Components = map[string]string{"http": "trace"} },
	}
	for want, change := range tests {
		b := sound()
		change(&b)
		if _, err := b.YAML(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}

// What Envoy is told to log, and Envoy knows the parts that are named.
func TestLogArgs(t *testing.T) {
	const raised = "client:L,conn_handler:L,connection:L,dns:L,happy_eyeballs:L,hc:L,init:L,io:L,main:L,misc:error,pool:L,upstream:L"
	for _, c := range []struct {
		bootstrap         envoy.Bootstrap
		level, components string
	}{
		{envoy.Bootstrap{}, "warning", "misc:error"},
		{envoy.Bootstrap{LogLevel: "off"}, "off", "misc:error"},
		{envoy.Bootstrap{LogLevel: "debug"}, "info", strings.ReplaceAll(raised, "L", "debug")},
		{envoy.Bootstrap{LogLevel: "trace"}, "info", strings.ReplaceAll(raised, "L", "trace")},
		{envoy.Bootstrap{LogLevel: "trace", LogCredentials: true}, "trace", "misc:error"},
		{envoy.Bootstrap{Components: map[string]string{"upstream": "debug", "misc": "info"}}, "warning", "misc:info,upstream:debug"},
	} {
		b := sound()
		b.LogLevel, b.Components, b.LogCredentials = c.bootstrap.LogLevel, c.bootstrap.Components, c.bootstrap.LogCredentials
		y, err := b.YAML()
		if err != nil {
			t.Errorf("%s: %v", c.level, err)
		}
		file := filepath.Join(t.TempDir(), "envoy.yaml")
		if err := os.WriteFile(file, y, 0o600); err != nil {
			t.Fatal(err)
		}
		args := b.Args(file)
		if want := "--log-level " + c.level + " --component-log-level " + c.components + " "; !strings.Contains(strings.Join(args, " "), want) {
			t.Errorf("got %q; want %q in it", args, want)
		}
		if out, err := exec.CommandContext(t.Context(), envoytest.Binary(t), append(args, "--mode", "validate")...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", c.components, err, out)
		}
	}
}

func TestComponents(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "map[]",
		"upstream:debug":             "map[upstream:debug]",
		"upstream:debug, pool:trace": "map[pool:trace upstream:debug]",
		"upstream":                   "not a component of Envoy's and its level",
		"upstream:debug,":            "not a component of Envoy's and its level",
		":debug":                     "not a component of Envoy's and its level",
		"upstream:loud":              "not a level",
	} {
		got, err := envoy.Components(text)
		if is := fmt.Sprint(got); err == nil && is != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %s", text, got, err, want)
		}
	}
}

// Envoys that follow one another share a base id and sockets; those of another directory share neither.
func TestHotArgs(t *testing.T) {
	args := func(dir string, epoch int) string {
		return strings.Join(sound().HotArgs("/x.yaml", envoy.Hot{Dir: dir, Epoch: epoch, Drain: 3 * time.Second}), " ")
	}
	first, second, other := args("/run/a", 0), args("/run/a", 1), args("/run/b", 0)
	if strings.Replace(first, "--restart-epoch 0", "--restart-epoch 1", 1) != second {
		t.Errorf("%s\n%s\ndiffer in more than their epoch", first, second)
	}
	for _, want := range []string{"--socket-path /run/a/envoy", "--socket-mode 600", "--drain-time-s 3", "--parent-shutdown-time-s 5"} {
		if !strings.Contains(first, want) {
			t.Errorf("no %s in %s", want, first)
		}
	}
	id := func(args string) string {
		_, after, _ := strings.Cut(args, "--base-id ")
		return strings.Fields(after)[0]
	}
	if id(first) == id(other) {
		t.Error("two directories have the same base id")
	}
	if strings.Contains(first, "disable-hot-restart") || !strings.Contains(strings.Join(sound().Args("/x.yaml"), " "), "disable-hot-restart") {
		t.Error("hot restart is on where it was not asked for, or the other way round")
	}
}

// Validate tells Envoy's judgement from a failure to ask for it, and gives its words.
func TestValidate(t *testing.T) {
	binary := envoytest.Binary(t)
	bad := &clusterv3.Cluster{Name: "c", ConnectTimeout: durationpb.New(1), LbPolicy: clusterv3.Cluster_CLUSTER_PROVIDED}
	config, err := envoy.Static(sound(), []proto.Message{bad})
	if err != nil {
		t.Fatal(err)
	}
	err = envoy.Validate(t.Context(), binary, config)
	if !errors.Is(err, envoy.ErrInvalid) || !strings.Contains(err.Error(), "cluster provided LB") || strings.Contains(err.Error(), "/tmp") {
		t.Errorf("of a bad cluster: %v", err)
	}
	if err := envoy.Validate(t.Context(), binary, []byte("nonsense: 1")); !errors.Is(err, envoy.ErrInvalid) || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("of nonsense: %v", err)
	}
	if err := envoy.Validate(t.Context(), "/no/such/envoy", nil); err == nil || errors.Is(err, envoy.ErrInvalid) {
		t.Errorf("without envoy: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := envoy.Validate(ctx, binary, config); err == nil || errors.Is(err, envoy.ErrInvalid) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestStaticRefusesStrangers(t *testing.T) {
	if _, err := envoy.Static(sound(), []proto.Message{durationpb.New(1)}); err == nil || !strings.Contains(err.Error(), "google.protobuf.Duration") {
		t.Errorf("error %v", err)
	}
}

func TestAdmin(t *testing.T) {
	socket := filepath.Join(envoytest.Dir(t), "admin.sock")
	if err := envoy.Ready(t.Context(), socket); err == nil || errors.Is(err, envoy.ErrNotReady) {
		t.Errorf("of nobody: %v", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	state := "PRE_INITIALIZING"
	var drained string
	mux := http.NewServeMux()
	mux.HandleFunc("GET /server_info", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"version":"abc/1.40.0/Clean/RELEASE/BoringSSL","state":%q,"uptime_current_epoch":"65s","command_line_options":{"restart_epoch":2}}`, state)
	})
	mux.HandleFunc("POST /drain_listeners", func(w http.ResponseWriter, r *http.Request) { drained = r.URL.RawQuery })
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })

	if err := envoy.Ready(t.Context(), socket); !errors.Is(err, envoy.ErrNotReady) || !strings.Contains(err.Error(), "pre_initializing") {
		t.Errorf("while it starts: %v", err)
	}
	state = "LIVE"
	if err := envoy.Ready(t.Context(), socket); err != nil {
		t.Error(err)
	}
	info, err := envoy.ServerInfo(t.Context(), socket)
	if err != nil || info.Version != "1.40.0" || info.Uptime.Seconds() != 65 || info.Epoch != 2 {
		t.Errorf("info %+v, %v", info, err)
	}
	if err := envoy.Drain(t.Context(), socket); err != nil || !strings.Contains(drained, "graceful") {
		t.Errorf("drain %q, %v", drained, err)
	}

	// A request, then bytes in a tunnel, keep Envoy from being finished; an idle tunnel does not.
	answers := []string{
		"http.intercept.downstream_rq_active: 1\ncluster.tunnel.upstream_cx_rx_bytes_total: 10\n",
		"http.intercept.downstream_rq_active: 0\ncluster.tunnel.upstream_cx_rx_bytes_total: 20\n",
		"http.intercept.downstream_rq_active: 0\ncluster.tunnel.upstream_cx_rx_bytes_total: 20\n",
	}
	asked := 0
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, answers[min(asked, len(answers)-1)])
		asked++
	})
	began := time.Now()
	if err := envoy.Finish(t.Context(), socket); err != nil || drained != "" || asked < 3 || time.Since(began) < time.Second {
		t.Errorf("finish: %v after %v and %d questions, drain %q", err, time.Since(began), asked, drained)
	}
	answers, asked = answers[:1], 0
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := envoy.Finish(ctx, socket); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("finish with an endless request: %v", err)
	}

	if _, err := envoy.ConfigDump(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("of what it does not know: %v", err)
	}
}
