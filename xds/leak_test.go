package xds

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wayleave/envoy"
	"wayleave/envoy/envoytest"
)

// Neither Envoy's log, at its most talkative, nor its access log nor its configuration dump holds a credential.
func TestNoCredentialIsWritten(t *testing.T) {
	var accessLog string
	s := startAt(t, "trace", func(c *Config) {
		accessLog = filepath.Join(envoytest.Dir(t), "access.json")
		c.AccessLogPath = accessLog
	}, nil)
	a := get(t, s.worker("ann"), "https://"+apiHost+"/v1/messages?key=in-the-query", "Authorization", "Bearer of-the-worker", "Cookie", "session=of-the-worker")
	if a.body != "Bearer real-ann" {
		t.Fatalf("got %d %q", a.status, a.body)
	}
	if _, err := s.connect("unknown.test:443", "unknown.test", s.leaves.pool()); err == nil {
		t.Fatal("an unknown host was served")
	}
	s.worker("ann").CloseIdleConnections()

	records := map[string]map[string]any{}
	envoytest.Await(t, "the access log", func() error {
		text, err := os.ReadFile(accessLog)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			var r map[string]any
			if json.Unmarshal([]byte(line), &r) == nil {
				records[fmt.Sprint(r["kind"])] = r
			}
		}
		if records["request"] == nil || records["refused"] == nil {
			return fmt.Errorf("records so far: %v", records)
		}
		return nil
	})
	for key, want := range map[string]any{"path": "/v1/messages", "authority": apiHost, "verdict": "swap", "identity": "ann", "status": 200.0, "connect_authority": apiHost + ":443"} {
		if got := records["request"][key]; got != want {
			t.Errorf("the record of the request has %s = %v, want %v", key, got, want)
		}
	}
	if records["request"]["request_id"] == nil || records["request"]["tunnel"] == nil {
		t.Errorf("the record of the request has no ids: %v", records["request"])
	}
	if r := records["refused"]; r["chain"] != "deny" || r["server_name"] != "unknown.test" {
		t.Errorf("the record of the refused connection is %v", r)
	}

	dump, err := envoy.ConfigDump(t.Context(), filepath.Join(s.dir, "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	access, err := os.ReadFile(accessLog)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.log(), "[debug]") {
		t.Error("envoy's log is not at debug: the test is not looking")
	}
	// What a placeholder and a proxy password are worth is for others to say: none of them may be there.
	for _, secret := range []string{"real-ann", "of-the-worker", "in-the-query", "YW5uOnB3", "PRIVATE KEY"} {
		for where, text := range map[string]string{"envoy's log": s.log(), "the access log": string(access), "the configuration dump": string(dump)} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s holds %q: …%s", where, secret, text[max(0, i-200):i])
			}
		}
	}
}
