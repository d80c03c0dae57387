package config

import "fmt"

// Limits are how much may be sent. Each gate counts by itself; the gates of listen.replicas have an equal part each.
type Limits struct {
	// Requests a minute in the long run, from 1 to 1000000. Default: any number.
	RequestsPerMinute int `yaml:"requests_per_minute" jsonschema:"minimum=1,maximum=1000000"`

	// How many of them may come at one moment, from 1 to 1000000. Default: as many as a minute has.
	Burst int `yaml:"burst" jsonschema:"minimum=1,maximum=1000000"`

	// Requests under way at once, from 1 to 100000: a request is until its answer has ended, also when that streams for hours.
	// Tunnels and hosts of plain are not counted. Default: any number.
	Concurrent int `yaml:"concurrent" jsonschema:"minimum=1,maximum=100000"`
}

func (l *Limits) applyDefaults() {
	if l.Burst == 0 {
		l.Burst = l.RequestsPerMinute
	}
}

// limits checks those at path.
func (k *checker) limits(path string, l Limits) {
	some := false
	for _, n := range []struct {
		key   string
		value int
		most  int
	}{{"requests_per_minute", l.RequestsPerMinute, 1_000_000}, {"burst", l.Burst, 1_000_000}, {"concurrent", l.Concurrent, 100_000}} {
		at := path + "." + n.key
		if !k.doc.given(at) {
			continue
		}
		some = true
		if n.value < 1 || n.value > n.most {
			k.fault(at, fmt.Sprintf("%d is out of range", n.value), fmt.Sprintf("write a number from 1 to %d, or remove the key for no limit", n.most))
		}
	}
	if !some && k.doc.given(path) {
		k.fault(path, "limits nothing", "write requests_per_minute or concurrent, or remove the key")
	}
	if k.doc.given(path+".burst") && !k.doc.given(path+".requests_per_minute") {
		k.fault(path+".burst", "written without requests_per_minute, of which it is a part", "write that too, or remove it")
	}
}
