package e2e

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"wayleave/freeport"
)

// TestConnectAtAProviderThatSendsOn connects in a real browser at a provider whose consent page is on another origin than the address
// that the configuration names, as with most that have a log-in of their own. Browsers hold what answers a form to form-action, on
// every redirect there is, so a form must not be what leads to the provider.
func TestConnectAtAProviderThatSendsOn(t *testing.T) {
	t.Parallel()
	b := newTab(t)
	w := makeWorld(t)
	address, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	door := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, w.getenv("PROVIDER")+"/authorize?"+r.URL.RawQuery, http.StatusFound)
	}))
	t.Cleanup(door.Close)
	w.env = append(w.env, "CONSOLE="+address, "DOOR="+strings.Replace(door.URL, "127.0.0.1", "localhost", 1))
	g := startIn(t, w, strings.Replace(consoleConfig, "authorize_url: $PROVIDER/authorize", "authorize_url: $DOOR/authorize", 1))
	b.logIn(g)
	b.do("look at it", chromedp.Navigate("http://"+address+"/grants/acme"), visible("#connect"))
	b.do("connect", click("#connect"))
	b.sees("acme is connected.")

	// Going back does not begin again: the page in between is not in the history.
	b.do("back", chromedp.Evaluate[chromedp.Void](`history.back()`))
	b.sees("Nothing has to be done.")
}
