package throttle

import (
	"strconv"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func TestWait(t *testing.T) {
	l := New(3, 10*time.Second)
	for i := range 3 {
		if wait := l.Wait("a", now); wait > 0 {
			t.Fatalf("after %d failures: %v", i, wait)
		}
		l.Failed("a", now)
	}
	if wait := l.Wait("a", now); wait != 10*time.Second {
		t.Errorf("after all failures: %v", wait)
	}
	if wait := l.Wait("b", now); wait > 0 {
		t.Errorf("another source: %v", wait)
	}
	if wait := l.Wait("a", now.Add(10*time.Second)); wait > 0 {
		t.Errorf("after the refill: %v", wait)
	}
}

func TestLimiterIsBounded(t *testing.T) {
	l := New(10, 2*time.Second)
	for i := range 3 * maxSources {
		l.Failed(strconv.Itoa(i), now)
		if len(l.sources) > maxSources {
			t.Fatalf("%d sources are remembered", len(l.sources))
		}
	}
}
