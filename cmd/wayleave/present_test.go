package main

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wayleave/worker"
)

// What a platform says is for a gate that somebody named; the gate of this machine has its own tokens.
func TestPresentsToTheGateThatIsMeant(t *testing.T) {
	st := state{dir: t.TempDir()}
	gate := &url.URL{Scheme: "http", Host: "127.0.0.1:3128"}
	variables := map[string]string{"GITHUB_ACTIONS": "true", "ACTIONS_ID_TOKEN_REQUEST_URL": "http://not.asked.example", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "x"}
	f := &enrolFlags{state: &st, sources: worker.Sources{Getenv: func(name string) string { return variables[name] }}}

	if _, err := f.present(t.Context(), gate); err == nil || !strings.Contains(err.Error(), "no worker token") || strings.Contains(err.Error(), "id-token") {
		t.Errorf("without a state: %v", err)
	}
	path := st.workerTokenPath("laptop")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("of-the-state\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if me, err := f.present(t.Context(), gate); err != nil || me.Token.Reveal() != "of-the-state" || me.Variables != nil {
		t.Errorf("the token of the state: %v", err)
	}
	variables["WAYLEAVE_TOKEN"] = "named"
	if me, err := f.present(t.Context(), gate); err != nil || me.Token.Reveal() != "named" {
		t.Errorf("a token that is named: %v", err)
	}
	delete(variables, "WAYLEAVE_TOKEN")
	f.gateURL = gate.String()
	if _, err := f.present(t.Context(), gate); err == nil || !strings.Contains(err.Error(), "ACTIONS_ID_TOKEN_REQUEST_URL") {
		t.Errorf("GitHub is not asked for a gate that is named: %v", err)
	}
	delete(variables, "ACTIONS_ID_TOKEN_REQUEST_TOKEN")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := f.present(t.Context(), gate); err == nil || !strings.Contains(err.Error(), "id-token: write") {
		t.Errorf("a job without a token is not told how to get one: %v", err)
	}
}
