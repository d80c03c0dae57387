package envoy_test

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wayleave/envoy"
	"wayleave/envoy/envoytest"
)

// What Envoy 1.40 writes, with one of everything that may be wrong.
func TestLook(t *testing.T) {
	answers := map[string]string{
		"/server_info": `{"version":"abc/1.40.0/Clean/RELEASE/BoringSSL","state":"LIVE","uptime_current_epoch":"65s"}`,
		"/stats":       "control_plane.connected_state: 1\nlistener_manager.lds.update_rejected: 2\ncluster_manager.cds.update_rejected: 0\n",
		"/listeners": `{"listener_statuses":[{"name":"intercept","local_address":{"envoy_internal_address":{"server_listener_name":"intercept"}}},
			{"name":"proxy","local_address":{"socket_address":{"address":"127.0.0.1","port_value":3128}}},
			{"name":"both","local_address":{"socket_address":{"address":"::","port_value":3443}},"additional_local_addresses":[{"local_address":{"socket_address":{"address":"0.0.0.0","port_value":3443}}}]}]}`,
		"/clusters": `{"cluster_statuses":[{"name":"gate","host_statuses":[
			{"address":{"pipe":{"path":"/run/gate.a.sock"}},"health_status":{"failed_active_health_check":true,"eds_health_status":"HEALTHY"}},
			{"address":{"pipe":{"path":"/run/gate.b.sock"}},"health_status":{"eds_health_status":"HEALTHY"}}]},
			{"name":"to_api","host_statuses":[{"address":{"socket_address":{"address":"10.0.0.1","port_value":443}},"health_status":{"eds_health_status":"DRAINING"}}]}]}`,
	}
	socket := filepath.Join(envoytest.Dir(t), "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, answers[r.URL.Path]) })}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	got, err := envoy.Look(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	want := envoy.Condition{
		Info: got.Info, Connected: true, Listens: []string{"127.0.0.1:3128", "[::]:3443", "0.0.0.0:3443"},
		Unhealthy: []string{"/run/gate.a.sock of gate: failed active health check", "10.0.0.1:443 of to_api: draining"},
		Rejected:  map[string]int{"listener_manager.lds": 2},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, page := range []string{"/clusters", "/listeners"} {
		was := answers[page]
		answers[page] = "no"
		if _, err := envoy.Look(t.Context(), socket); err == nil {
			t.Errorf("a wrong answer to %s is no error", page)
		}
		answers[page] = was
	}
	if _, err := envoy.Look(t.Context(), socket+".none"); err == nil {
		t.Error("nobody is no error")
	}
}
