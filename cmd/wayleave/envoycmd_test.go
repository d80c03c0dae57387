package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"wayleave/envoy/envoytest"
)

// What would have Envoy print credentials is refused before it starts, and says how to get it all the same.
func TestEnvoyLogLevels(t *testing.T) {
	isolated(t)
	t.Setenv("WAYLEAVE_ENVOY", envoytest.Binary(t))
	for want, args := range map[string][]string{
		"Envoy's http may print requests with their real credentials": {"--component-log-level", "upstream:debug,http:trace"},
		"say that you want credentials in the log":                    {"--log-level", "trace", "--component-log-level", "router:debug"},
		"write it as upstream:debug":                                  {"--component-log-level", "upstream"},
		`"loud" is not one of trace, debug`:                           {"--log-level", "loud"},
	} {
		var out, errs bytes.Buffer
		code := run(t.Context(), append([]string{"envoy", "-c", "testdata/example.yaml", "--run-dir", filepath.Join(envoytest.Dir(t), "run")}, args...), strings.NewReader(""), &out, &errs)
		if code == 0 || !strings.Contains(errs.String(), want) {
			t.Errorf("%q: exit code %d, %q; want %q", args, code, errs.String(), want)
		}
	}
}
