package config_test

import (
	"strings"
	"testing"
)

func TestTelemetryHeaders(t *testing.T) {
	text := valid + `
telemetry:
  otlp:
    endpoint: https://collector.example.com:4317
    headers: {authorization: {file: bearer}, x-tenant: {env: TENANT}}
`
	files := map[string]string{"acme.secret": "s", "ci.token": "t", "bearer": "Bearer collector\n"}
	c := load(t, text, files)
	if err := c.LoadSecrets(func(name string) string { return "from " + name }); err != nil {
		t.Fatal(err)
	}
	h := c.Telemetry.OTLP.Headers
	if got := h["authorization"].Value.Reveal() + ", " + h["x-tenant"].Value.Reveal(); got != "Bearer collector, from TENANT" {
		t.Errorf("headers: %s", got)
	}
	if got := c.Telemetry.Percent(); got != 1 {
		t.Errorf("%g %% is traced by default", got)
	}

	files["bearer"] = "Bearer coll\tector\n"
	err := load(t, text, files).LoadSecrets(func(string) string { return "" })
	if err == nil || !strings.Contains(err.Error(), "headers.authorization") || !strings.Contains(err.Error(), "$TENANT is not set") || strings.Contains(err.Error(), "Bearer") {
		t.Errorf("with values that cannot be sent: %v", err)
	}
}
