package console

import "testing"

// What others wrote is what they published, to the byte.
func TestPinnedFiles(t *testing.T) {
	for name, want := range map[string]string{
		"htmx.js":       "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717",
		"htmx-morph.js": "5811b9a7eda14878b7dab4378bf60432e1bb6f11fcfb970cc26540642650181e",
	} {
		data, err := static.ReadFile("static/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if got := digest(string(data)); got != want {
			t.Errorf("%s has digest %s; if it was replaced on purpose, write that here and its version in static/README.md", name, got)
		}
	}
}

// The first look costs less than 100 KB.
func TestFirstLookIsSmall(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	total := len(b.get("/").body)
	for _, name := range []string{"htmx.js", "htmx-morph.js", "console.js", "style.css", "icon.svg"} {
		r := b.request("GET", "/static/"+name, "")
		r.Header.Set("Accept-Encoding", "gzip")
		a := b.do(r)
		if a.header.Get("Content-Encoding") != "gzip" {
			t.Errorf("%s is not compressed", name)
		}
		total += len(a.body)
	}
	if total > 100<<10 {
		t.Errorf("%d bytes", total)
	}
}
