package worker

import (
	"os"
	"os/exec"
	"path/filepath"
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
	with := func(more ...string) []string { return append(base[:len(base):len(base)], more...) }

	// An http.proxy of the machine's, and two that sessions left behind, make more pairs than there are to be.
	env := with("GIT_CONFIG_SYSTEM="+machines, "GIT_CONFIG_COUNT=4", "GIT_CONFIG_KEY_0=http.proxy", "GIT_CONFIG_VALUE_0=http://a:wls1.password-a@gate",
		"GIT_CONFIG_KEY_1=safe.directory", "GIT_CONFIG_VALUE_1=*", "GIT_CONFIG_KEY_2=HTTP.Proxy", "GIT_CONFIG_VALUE_2=http://a:wls1.password-b@gate",
		"GIT_CONFIG_KEY_3=http.proxy", "GIT_CONFIG_VALUE_3=http://a:wls1.password-c@gate")
	for n, dir := range []string{"one", "one", "two", "one", "two", "two"} {
		env = session(n, dir, env)
		for name, want := range map[string]string{"acme.system": "kept", "acme.ours": "yes", "safe.directory": "*", "http.proxy": e.ProxyURL()} {
			if got := setting(env, name); got != want {
				t.Errorf("session %d, in %s: %s is %q", n, dir, name, got)
			}
		}
		if got := environ(env)["GIT_CONFIG_COUNT"]; got != "3" {
			t.Errorf("session %d: %s settings", n, got)
		}
		for _, v := range env {
			if strings.Contains(v, "password-") && !strings.Contains(v, e.Password.Reveal()) {
				t.Errorf("session %d: %s", n, v)
			}
		}
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
