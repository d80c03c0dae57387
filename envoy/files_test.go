package envoy

import (
	"math"
	"testing"
)

func TestConnectionsFor(t *testing.T) {
	for files, want := range map[uint64][2]int64{
		100: {1, 1}, 1024: {312, 128}, 4096: {1848, 512}, 65_536: {20_000, 11_334}, 262_144: {20_000, 60_486}, math.MaxUint64: {20_000, 100_000},
	} {
		if workers, each := connectionsFor(files, 4); workers != want[0] || each != want[1] || workers+4*each > int64(min(files, 1<<40)) && files > 1000 {
			t.Errorf("%d files: %d, %d; want %d", files, workers, each, want)
		}
	}
	workers, hosts := Connections("a", "b")
	if workers < 1 || workers > defaultConnections || len(hosts) != 2 || hosts["a"] < 1 || hosts["a"] != hosts["b"] {
		t.Errorf("here: %d, %v", workers, hosts)
	}
}
