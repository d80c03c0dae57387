package e2e

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// The documentation's site is built without a warning, is found in by its search, and asks nobody else for anything.
func TestSite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), filepath.Join(filepath.Dir(toolsBin), "docs", "bin", "mkdocs"), "build", "--quiet", "--strict", "--site-dir", dir)
	build.Dir = ".."
	build.Env = append(build.Environ(), "NO_MKDOCS_2_WARNING=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v; run 'make tools' if mkdocs is missing\n%s", err, out)
	}
	s := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(s.Close)

	b := newTab(t)
	elsewhere := func() {
		t.Helper()
		var loaded []string
		const look = `JSON.stringify(performance.getEntriesByType("resource").map(e => e.name))`
		if err := json.Unmarshal([]byte(valueOf(b, chromedp.Evaluate[string](look))), &loaded); err != nil {
			t.Fatal(err)
		}
		if len(loaded) < 4 {
			t.Errorf("only %q loaded: the test is not looking", loaded)
		}
		for _, url := range loaded {
			if !strings.HasPrefix(url, s.URL+"/") {
				t.Errorf("the page has %s loaded", url)
			}
		}
	}
	b.do("the first page", chromedp.Navigate(s.URL), visible("article"))
	b.sees("A worker never holds a token worth stealing")
	elsewhere()
	b.picture("site-index")
	b.do("a page by the menu", click(`.md-nav a[href="start.html"]`))
	b.sees("wayleave grant connect claude")
	b.do("a search", click(`label.md-search__icon[for="__search"]`), chromedp.SendKeys(chromedp.CSS("input.md-search__input"), "token_review"), visible("a.md-search-result__link"))
	b.do("what was found", click(`a.md-search-result__link[href*="enrolment.html"]`))
	b.sees("asks the API server about each token")
	elsewhere()
	b.picture("site-enrolment")
	b.do("a file that pages lead to", chromedp.Navigate(s.URL+"/deploy.html"), click(`article a[href="source/deploy/systemd.html"]`))
	b.sees("ExecStart=")
	elsewhere()
}
