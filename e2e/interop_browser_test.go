package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"

	"golang.org/x/net/html"
)

// browser is an operator's: it keeps cookies, follows redirects, and signs in and agrees in whatever form it is shown.
type browser struct{ *http.Client }

func newBrowser() (browser, error) {
	jar, err := cookiejar.New(nil)
	return browser{&http.Client{Jar: jar, Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}}, err
}

// agree opens an address and fills in forms until a page has none, and returns that page.
func (b browser) agree(address string) (string, error) { return b.agreeUntil(address, "") }

// agreeUntil is agree that ends at the first page of a host, whatever it has.
func (b browser) agreeUntil(address, host string) (string, error) {
	resp, err := b.Get(address)
	for range 10 {
		if err != nil {
			return "", err
		}
		page, rerr := io.ReadAll(resp.Body)
		resp.Body.Close()
		if rerr != nil {
			return "", rerr
		}
		action, fields, found := formIn(page)
		if !found || resp.Request.URL.Host == host {
			if resp.StatusCode != http.StatusOK {
				return "", fmt.Errorf("%s: status %d: %.2000s", resp.Request.URL.Path, resp.StatusCode, page)
			}
			return string(page), nil
		}
		to, perr := resp.Request.URL.Parse(action)
		if perr != nil {
			return "", perr
		}
		resp, err = b.PostForm(to.String(), fields)
	}
	return "", fmt.Errorf("there is always another form at %s", address)
}

// formIn finds the first form of a page, with its hidden fields as they are and the others filled in.
func formIn(page []byte) (action string, fields url.Values, found bool) {
	doc, err := html.Parse(bytes.NewReader(page))
	if err != nil {
		return "", nil, false
	}
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode || n.Data != "form" {
			continue
		}
		fields = url.Values{}
		for input := range n.Descendants() {
			a := attributes(input)
			if input.Data != "input" || a["name"] == "" {
				continue
			}
			if a["value"] == "" {
				a["value"] = "operator"
			}
			fields.Set(a["name"], a["value"])
		}
		return attributes(n)["action"], fields, true
	}
	return "", nil, false
}

func attributes(n *html.Node) map[string]string {
	all := map[string]string{}
	for _, a := range n.Attr {
		all[a.Key] = a.Val
	}
	return all
}
