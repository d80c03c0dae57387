package worker

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
)

// javaEnvironment is that of a worker whose gate refuses every CONNECT, and asked is which came, and of whom.
func javaEnvironment(t *testing.T) (env []string, asked func() []string) {
	t.Helper()
	var mu sync.Mutex
	var got []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Authorization", r.Header.Get("Proxy-Authorization"))
		user, password, ok := r.BasicAuth()
		if !ok {
			w.Header().Set("Proxy-Authenticate", `Basic realm="wayleave"`)
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.Method+" "+r.Host+" of "+user+" "+password)
		w.WriteHeader(http.StatusForbidden)
	}))
	t.Cleanup(proxy.Close)
	e := testEnrolment(proxy.URL)
	e.CA = testCA(t)
	home := t.TempDir()
	base := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "JDK_JAVA_OPTIONS=-Dkept=yes"}
	files, err := WriteFiles(filepath.Join(home, "a directory's files"), "", e, e.CA, noVariables)
	if err != nil {
		t.Fatal(err)
	}
	env, _ = Environment(e, base, files)
	return env, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return got
	}
}

// Java is told the proxy's password in a way that it does not print.
func TestJavaIsToldThePassword(t *testing.T) {
	java, err := exec.LookPath("java")
	if err != nil {
		t.Skip(err)
	}
	env, _ := javaEnvironment(t)
	cmd := exec.Command(java, "-XX:TieredStopAtLevel=1", "-XshowSettings:properties", "-version")
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	said, properties, _ := strings.Cut(string(out), "Property settings:")
	if strings.Contains(said, "wls1.x.y") || !strings.Contains(said, "Picked up JDK_JAVA_OPTIONS: -Dkept=yes ") {
		t.Errorf("java says %s", said)
	}
	for _, want := range []string{"https.proxyUser = abcdefghijklmnopqrstuvwx", "https.proxyPassword = wls1.x.y", "http.proxyPassword = wls1.x.y", "kept = yes", "jdk.http.auth.tunneling.disabledSchemes = \n"} {
		if !strings.Contains(properties, want) {
			t.Errorf("java does not know %q: %s", want, properties)
		}
	}
}

// Maven reads how to log in at a proxy in its settings alone, which may refer to what Java is told.
func TestMavenLogsIn(t *testing.T) {
	maven, err := exec.LookPath("mvn")
	if err != nil {
		t.Skip(err)
	}
	page, err := os.ReadFile("../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "```xml\n")
	text, _, _ = strings.Cut(text, "```")
	env, asked := javaEnvironment(t)
	proxy, err := url.Parse(environ(env)["HTTPS_PROXY"])
	if err != nil {
		t.Fatal(err)
	}
	settings := filepath.Join(t.TempDir(), "settings.xml")
	if err := os.WriteFile(settings, []byte(strings.Replace(text, "3128", proxy.Port(), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(maven, "-B", "-s", settings, "-Dmaven.repo.local="+t.TempDir(), "help:help")
	cmd.Dir, cmd.Env = t.TempDir(), env
	out, _ := cmd.CombinedOutput() // it cannot go on
	if got := asked(); len(got) == 0 || got[0] != "CONNECT repo.maven.apache.org:443 of abcdefghijklmnopqrstuvwx wls1.x.y" {
		t.Errorf("Maven asked the proxy %q: %s", got, out)
	}
	home := fstest.MapFS{"home/.m2/settings.xml": &fstest.MapFile{Data: []byte(text)}}
	base := []string{"HOME=/home", "HTTPS_PROXY=http://gate"}
	if _, found := Preferences(append(base, "JDK_JAVA_OPTIONS="+environ(env)["JDK_JAVA_OPTIONS"]), nil, Machine{Files: home, Git: noGit}); len(found) > 0 {
		t.Errorf("the settings of the page lead around the gate: %v", found)
	}
	if _, found := Preferences(base, nil, Machine{Files: home, Git: noGit}); len(found) != 1 {
		t.Errorf("they lead nowhere where Java is told no proxy, and what is said is %v", found)
	}
}
