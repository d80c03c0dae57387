// Package docs_test holds what pages say to what there is.
package docs_test

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// files are those of the repository, by their paths in it.
func files(t *testing.T) []string {
	t.Helper()
	list := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = ".."
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	return slices.DeleteFunc(names, func(name string) bool { // deleted, and not yet so in git
		_, err := os.Lstat("../" + name)
		return err != nil
	})
}

// page is a page's links and the anchors that lead into it.
type page struct {
	links   []link
	anchors map[string]bool
}

type link struct {
	line int
	to   string
}

var (
	fence     = regexp.MustCompile("^\\s*(```+|~~~+)")
	code      = regexp.MustCompile("``[^`]+``|`[^`]+`")
	linked    = regexp.MustCompile(`\]\(([^)\s]*)(?:\s+"[^"]*")?\)|^\[[^\]]+\]:\s*(\S+)|\b(?:src|srcset|href)="([^"]*)"|<(https?:[^>]*)>`)
	heading   = regexp.MustCompile(`^#{1,6} +(.*?)(?: +#+)? *$`)
	anchor    = regexp.MustCompile(`<a (?:id|name)="([^"]+)"`)
	linkText  = regexp.MustCompile(`!?\[([^\]]*)\]\([^)]*\)`)
	noAnchor  = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	mentioned = regexp.MustCompile(`\bdocs/[a-zA-Z0-9_/-]+\.md(?:#[a-z0-9-]+)?`)
)

func readPage(text string) page {
	p := page{anchors: map[string]bool{}}
	open := ""
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\n")
		if m := fence.FindStringSubmatch(line); m != nil && (open == "" || strings.HasPrefix(m[1], open)) {
			if open == "" {
				open = m[1]
			} else {
				open = ""
			}
			continue
		}
		if open != "" {
			continue
		}
		if m := heading.FindStringSubmatch(line); m != nil {
			p.anchors[p.slug(m[1])] = true
		}
		for _, m := range anchor.FindAllStringSubmatch(line, -1) {
			p.anchors[m[1]] = true
		}
		for _, m := range linked.FindAllStringSubmatch(code.ReplaceAllString(line, "x"), -1) {
			p.links = append(p.links, link{n, strings.Join(m[1:], "")})
		}
	}
	return p
}

// slug is the anchor that GitHub gives to a heading, and `make site` too.
func (p page) slug(heading string) string {
	s := strings.ToLower(strings.ReplaceAll(linkText.ReplaceAllString(heading, "$1"), "*", ""))
	s = strings.ReplaceAll(noAnchor.ReplaceAllString(s, ""), " ", "-")
	unique := s
	for i := 1; p.anchors[unique]; i++ {
		unique = fmt.Sprintf("%s-%d", s, i)
	}
	return unique
}

// Every link of every page leads somewhere, and README.md leads to every page. What is on other machines is not asked for.
func TestLinks(t *testing.T) {
	all := files(t)
	exists := map[string]bool{}
	for _, name := range all {
		for ; name != "."; name = path.Dir(name) {
			exists[name] = true
		}
	}
	pages := map[string]page{}
	for _, name := range all {
		if path.Ext(name) == ".md" {
			pages[name] = readPage(read(t, name))
		}
	}
	reached := map[string]bool{}
	found := 0
	var follow func(name string)
	check := func(from string, l link) {
		found++
		u, err := url.Parse(l.to)
		switch {
		case err != nil || l.to == "":
			t.Errorf("%s:%d: %q is no link: %v", from, l.line, l.to, err)
		case u.Scheme == "https" && u.Host != "", u.Scheme == "http" && u.Host != "", u.Scheme == "mailto" && u.Opaque != "":
		case u.Scheme != "" || u.Host != "" || strings.HasPrefix(u.Path, "/"):
			t.Errorf("%s:%d: %s leads out of the repository; give the whole address, or a path from the page", from, l.line, l.to)
		default:
			to := from
			if u.Path != "" {
				to = path.Join(path.Dir(from), u.Path)
			}
			if !exists[to] {
				t.Errorf("%s:%d: there is no %s", from, l.line, to)
			} else if p, isPage := pages[to]; u.Fragment != "" && (!isPage || !p.anchors[u.Fragment]) {
				t.Errorf("%s:%d: %s has no heading #%s", from, l.line, to, u.Fragment)
			}
			follow(to)
		}
	}
	follow = func(name string) {
		if _, isPage := pages[name]; !isPage || reached[name] {
			return
		}
		reached[name] = true
		for _, l := range pages[name].links {
			check(name, l)
		}
	}
	follow("README.md")
	for name := range pages {
		if strings.HasPrefix(name, "docs/") && !reached[name] {
			t.Errorf("nothing leads from README.md to %s", name)
		}
		follow(name)
	}
	if found < 200 {
		t.Errorf("only %d links found: the test is not looking", found)
	}

	// What programs, rules and comments say is in a page.
	for _, name := range all {
		if slices.Contains([]string{".png", ".svg", ".sum"}, path.Ext(name)) || strings.HasPrefix(name, "docs/") {
			continue
		}
		for _, m := range mentioned.FindAllString(read(t, name), -1) {
			to, fragment, _ := strings.Cut(m, "#")
			if p, ok := pages[to]; !ok || fragment != "" && !p.anchors[fragment] {
				t.Errorf("%s names %s, which is not there", name, m)
			}
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The test above finds what is wrong.
func TestPagesAreRead(t *testing.T) {
	p := readPage("# A `b` – c.md, [d](e)\n[x](y.md#z \"title\") `[no](no)` <https://a.example>\n```sh\n# no\n[no](no)\n```\n# A `b` – c.md, [d](e)\n<img src=\"i.png\">\n")
	var to []string
	for _, l := range p.links {
		to = append(to, l.to)
	}
	if got, want := fmt.Sprint(to), "[e y.md#z https://a.example e i.png]"; got != want {
		t.Errorf("links %s, want %s", got, want)
	}
	if len(p.anchors) != 2 || !p.anchors["a-b--cmd-d"] || !p.anchors["a-b--cmd-d-1"] {
		t.Errorf("anchors %v", p.anchors)
	}
}
