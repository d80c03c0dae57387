package main

import (
	"errors"
	"testing"

	"wayleave/notify"
	"wayleave/xds"
)

// What operators are told about a fault has the hosts' names, and leads to their routes.
func TestTakenOut(t *testing.T) {
	got := takenOut([]xds.Quarantined{{Hosts: []string{"api.test", "*.wild.test:8443"}, Fault: errors.New("route r: it is in two routes")}}, func(path string) string { return "https://gate.test" + path })
	want := []struct{ subject, title, url string }{
		{"api.test", "api.test is refused: the configuration has a fault", "https://gate.test/routes?find=api.test"},
		{"*.wild.test:8443", "*.wild.test:8443 is refused: the configuration has a fault", "https://gate.test/routes?find=%2A.wild.test%3A8443"},
	}
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i, a := range got {
		if a.Kind != notify.Configuration || a.Subject != want[i].subject || a.Title != want[i].title || a.URL != want[i].url || a.Text != "route r: it is in two routes" {
			t.Errorf("%+v, want %+v", a, want[i])
		}
	}
}
