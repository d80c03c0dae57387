package worker

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"wayleave/secret"
)

// A shell takes in the environment of one session after another, of two workers in turn: git works there as after the first, with the machine's own
// settings, and knows nothing of the sessions before.
func TestGitSettingsOfSessionAfterSession(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip(err)
	}
	home := t.TempDir()
	machines := filepath.Join(home, `the "machine's" \n`)
	if err := os.WriteFile(machines, []byte("[acme]\n\tsystem = kept\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hub := Credential{Grant: "hub", Env: map[string]string{
		"GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": "url.https://github.com/.insteadOf", "GIT_CONFIG_VALUE_0": "git@github.com:",
		"GIT_CONFIG_KEY_1": "acme.ours", "GIT_CONFIG_VALUE_1": "yes",
	}}
	e := testEnrolment("http://gate:3128", hub)
	e.CA = testCA(t)
	session := func(n int, dir string, base []string) []string {
		t.Helper()
		e.Password = secret.New("wls1.password-" + strconv.Itoa(n))
		files, err := WriteFiles(filepath.Join(home, dir), "", e, e.CA, func(name string) string { return environ(base)[name] })
		if err != nil {
			t.Fatal(err)
		}
		env, _ := Environment(e, base, files)
		return env
	}
	setting := func(env []string, name string) string {
		c := exec.Command("git", "config", "--get", name)
		c.Dir, c.Env = home, env
		out, _ := c.CombinedOutput() // of a setting that there is not, git says so with a status
		return strings.TrimSpace(string(out))
	}
	base := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}
	m := Machine{Git: func(env []string, args ...string) ([]byte, error) {
		c := exec.Command("git", args...)
		c.Env = env
		return c.Output()
	}}
	for file, want := range map[string]string{machines: machines, filepath.Join(home, "none"): ""} {
		if got := m.GitSystem(append(base, "GIT_CONFIG_SYSTEM="+file)); got != want {
			t.Errorf("with %s the machine's file is %q", file, got)
		}
	}
	with := func(more ...string) []string { return append(base[:len(base):len(base)], more...) }

	// The machine's http.proxy, and one that a session left behind, beside settings of others.
	env := with("GIT_CONFIG_SYSTEM="+machines, "GIT_CONFIG_COUNT=2", "GIT_CONFIG_KEY_0=http.proxy", "GIT_CONFIG_VALUE_0=http://proxy.example:1", "GIT_CONFIG_KEY_1=safe.directory", "GIT_CONFIG_VALUE_1=*",
		`GIT_CONFIG_PARAMETERS='HTTP.Proxy=http://a:wls1.password-b@gate' 'acme.theirs'='it'\''s'`)
	for n, dir := range []string{"one", "one", "two", "one", "two", "two"} {
		env = session(n, dir, env)
		for name, want := range map[string]string{"acme.system": "kept", "acme.ours": "yes", "safe.directory": "*", "http.proxy": e.ProxyURL(), "acme.theirs": "it's"} {
			if got := setting(env, name); got != want {
				t.Errorf("session %d, in %s: %s is %q", n, dir, name, got)
			}
		}
		if got := environ(env)["GIT_CONFIG_PARAMETERS"]; strings.Count(got, "=") != 3 {
			t.Errorf("session %d: %s", n, got)
		}
		for _, v := range env {
			if strings.Contains(v, "password-") && !strings.Contains(v, e.Password.Reveal()) {
				t.Errorf("session %d: %s", n, v)
			}
		}
	}

	// Commands of an agent that keeps what is called like a key or a token from them.
	kept := slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return strings.Contains(name, "KEY") || strings.Contains(name, "TOKEN") || name == "GIT_CONFIG_COUNT" // what was there before is its own matter
	})
	if got := setting(kept, "acme.ours"); got != "yes" {
		t.Errorf("without keys and tokens: %q", got)
	}

	// A file that includes itself is mended.
	own := filepath.Join(home, "one", "gitconfig")
	if err := os.WriteFile(own, []byte(gitSystemFile(e.Credentials, own)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := setting(session(7, "one", with("GIT_CONFIG_SYSTEM="+own)), "acme.ours"); got != "yes" {
		t.Errorf("with a file that included itself: %q", got)
	}

	// Whether there are settings of the machine's is as git has it.
	for value, want := range map[string]string{"": "kept", "0": "kept", "No": "kept", "OFF": "kept", "false": "kept", "1": "", "yes": "", "TRUE": "", "on": ""} {
		env := session(8, "no"+value, with("GIT_CONFIG_SYSTEM="+machines, "GIT_CONFIG_NOSYSTEM="+value))
		for range 2 {
			if got := setting(env, "acme.system"); got != want || setting(env, "acme.ours") != "yes" {
				t.Errorf("GIT_CONFIG_NOSYSTEM=%s: %q", value, got)
			}
			env = session(9, "no"+value, env)
		}
	}
}
