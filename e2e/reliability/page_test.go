package reliability

import (
	"os"
	"strings"
	"sync"
	"testing"
)

const pagePath = "../../docs/reliability.md"

var pageMu sync.Mutex

// page compares a table of the page with the run's, or writes it with -update.
func page(t *testing.T, name, table string) {
	t.Helper()
	pageMu.Lock()
	defer pageMu.Unlock()
	b, err := os.ReadFile(pagePath)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), "<!-- "+name+" -->\n")
	was, tail, ok2 := strings.Cut(rest, "<!-- end -->\n")
	switch {
	case !ok || !ok2:
		t.Errorf("%s has no place for the table %q", pagePath, name)
	case was == table:
	case *update && !t.Failed():
		if err := os.WriteFile(pagePath, []byte(head+"<!-- "+name+" -->\n"+table+"<!-- end -->\n"+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the table %q of %s is not what this run showed; write it with `go test ./e2e/reliability -update`", name, pagePath)
	}
}
