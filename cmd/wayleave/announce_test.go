package main

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/config"
	"wayleave/grant"
)

func TestAnnounce(t *testing.T) {
	t.Setenv("WAYLEAVE_STATE", "/default")
	grants := []grant.Summary{
		{Name: "claude", State: grant.NeverConnected, Next: "run `wayleave grant connect claude`"},
		{Name: "acme-build", State: grant.Healthy},
		{Name: "key", State: grant.NeverConnected, Kind: grant.Static},
	}
	cfg := &config.Config{Listen: config.Listen{Proxy: "0.0.0.0:3128"}}
	var out bytes.Buffer
	upper{cfg: cfg, state: state{"/default"}, out: &out}.announce(grants, "http://127.0.0.1:3180/login?token=once")
	want := `wayleave: ready: workers connect to http://127.0.0.1:3128

  grant claude      never_connected  wayleave grant connect claude
  grant acme-build  healthy
  grant key         never_connected  wayleave grant import key

  the console   http://127.0.0.1:3180/login?token=once
  run a worker  wayleave run -- COMMAND
  look closer   wayleave doctor
  stop          Ctrl-C

`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// Other ways in are said where there are any.
	out.Reset()
	more := &config.Config{Listen: config.Listen{Proxy: "0.0.0.0:3128", ProxyTLS: "0.0.0.0:3129", TLSNames: []string{"gate.example.com"}, Transparent: "0.0.0.0:3443"}}
	upper{cfg: more, state: state{"/default"}, out: &out}.announce(nil, "")
	if want := "\n  over TLS      WAYLEAVE_GATE=https://gate.example.com:3129 WAYLEAVE_GATE_CA=/default/ca.pem\n  redirected    to 0.0.0.0:3443, without a proxy: wayleave run --transparent\n\n  run"; !strings.Contains(out.String(), want) {
		t.Errorf("no %q in:\n%s", want, out.String())
	}

	// With another state directory the commands can still be copied.
	out.Reset()
	upper{cfg: cfg, state: state{"/other"}, out: &out}.announce(grants, "")
	for _, want := range []string{"wayleave grant connect --state /other claude\n", "wayleave run --state /other -- COMMAND\n", "wayleave doctor --state /other\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
}

// Envoy would share a port with another Envoy without a word.
func TestPortFree(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := portFree(t.Context(), address, time.Millisecond); err == nil || !strings.Contains(err.Error(), address) || !strings.Contains(err.Error(), "under listen") {
		t.Errorf("a busy port: %v", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- portFree(t.Context(), address, time.Minute) }()
	l.Close()
	if err := <-waited; err != nil {
		t.Errorf("a port that is let go: %v", err)
	}
	// No waiting for an address that will not be ours.
	if err := portFree(t.Context(), "192.0.2.1:1", time.Minute); err == nil || !strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("an address of another machine: %v", err)
	}
}
