package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wayleave/config"
	"wayleave/envoy/envoytest"
	"wayleave/operate"
)

// What speaks against a configuration is told from what keeps it from being looked at.
func TestValidator(t *testing.T) {
	const text = "grants: {a: {provider: anthropic}}\nroutes:\n  - {hosts: [api.anthropic.com], grant: a}\n"
	const workers = "profiles: {p: {grants: [a], token_endpoint: placeholder}}\nworkers: {w: {profile: p}}\n"
	dir := t.TempDir()
	refusing := filepath.Join(dir, "envoy")
	script := "#!/bin/sh\n[ \"$1\" = --version ] && exec " + envoytest.Binary(t) + " --version\necho \"error initializing configuration '/x': no such thing\"\nexit 1\n"
	if err := os.WriteFile(refusing, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		binary, route string
		objections    []string
		says          string
	}{
		"good":    {envoytest.Binary(t), "", nil, ""},
		"refused": {refusing, "", []string{operate.EnvoyRefuses}, ""},
		"a host with a fault": {
			envoytest.Binary(t), "  - {name: wayleave.answers, hosts: [b.example.com], grant: a}\n", []string{operate.QuarantinedHosts}, "",
		},
		"no Envoy": {filepath.Join(dir, "none"), "", nil, "no Envoy on this machine"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := config.Parse("w.yaml", []byte(text+c.route+workers+"envoy: {binary: "+c.binary+"}\n"))
			if err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			err = validator(dir, slog.New(slog.NewTextHandler(&log, nil)))(t.Context(), cfg)
			var got []string
			if o, are := errors.AsType[*operate.Objections](err); are {
				for _, a := range o.All {
					got = append(got, a.Name)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(slices.Compact(got), c.objections) || c.says == "" && log.Len() > 0 || !strings.Contains(log.String(), c.says) {
				t.Errorf("got %v, said %q", err, log.String())
			}
		})
	}
}

// What people read of a configuration's faults, programs get as JSON, with the same exit code.
func TestCheckAsJSON(t *testing.T) {
	isolated(t)
	const good = "grants: {a: {provider: anthropic}}\nroutes:\n  - {hosts: [api.anthropic.com], grant: a}\n"
	for name, c := range map[string]struct {
		text, faulty string
		code         int
	}{
		"good, with a warning":   {good, "", exitOK},
		"a fault":                {good + "grunts: {}\n", "grunts", exitFailure},
		"a host with a fault":    {good + "  - {name: wayleave.answers, hosts: [b.example.com], grant: a}\nprofiles: {p: {grants: [a], token_endpoint: placeholder}}\nworkers: {w: {profile: p}}\n", "routes[1]", exitFailure},
		"a file that is missing": {good + "upstream: {ca_files: [none.pem]}\n", "upstream.ca_files[0]", exitFailure},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "wayleave.yaml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			var out, errs bytes.Buffer
			if code := run(t.Context(), []string{"config", "check", "-c", file, "--json"}, strings.NewReader(""), &out, &errs); code != c.code || errs.Len() > 0 {
				t.Errorf("exit code %d, said %q", code, &errs)
			}
			var got checked
			if err := json.Unmarshal(out.Bytes(), &got); err != nil {
				t.Fatalf("%v in %s", err, &out)
			}
			if got.Faults == nil || got.Warnings == nil || (got.Revision == "") != (c.faulty != "") || c.faulty == "" && len(got.Warnings) == 0 {
				t.Errorf("%s", &out)
			}
			if c.faulty != "" && !slices.ContainsFunc(got.Faults, func(f config.Fault) bool { return strings.HasPrefix(f.Key, c.faulty) && f.Line > 0 && f.What != "" }) {
				t.Errorf("no fault of %s in %s", c.faulty, &out)
			}
		})
	}
}
