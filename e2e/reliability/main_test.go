package reliability

import (
	"flag"
	"os"
	"strconv"
	"testing"
	"time"
)

// The full size takes minutes, so it is asked for: WAYLEAVE_RELIABILITY=full.
var full = os.Getenv("WAYLEAVE_RELIABILITY") == "full"

var update = flag.Bool("update", false, "write the tables of docs/reliability.md instead of comparing them")

func TestMain(m *testing.M) {
	if os.Getenv(replicaEnv) != "" {
		os.Exit(replicaMain())
	}
	flag.Parse()
	// The tests wait more than they work.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set(strconv.Itoa(12))
	}
	os.Exit(m.Run())
}

// size is what CI runs, or the full size.
func size[T int | time.Duration](ci, all T) T {
	if full {
		return all
	}
	return ci
}
