package envoy

import (
	"math"
	"testing"
)

func TestConnectionsFor(t *testing.T) {
	for files, want := range map[uint64]int64{100: 1, 1024: 312, 4096: 1848, 65_536: 20_000, math.MaxUint64: 20_000} {
		if got := connectionsFor(files); got != want {
			t.Errorf("%d files: %d, want %d", files, got, want)
		}
	}
	if n := Connections(); n < 1 || n > defaultConnections {
		t.Errorf("here: %d", n)
	}
}
