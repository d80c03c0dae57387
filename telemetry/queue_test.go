package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func TestQueue(t *testing.T) {
	for name, c := range map[string]struct {
		answers []error // of each try; then none
		tries   int
		dropped int // beside what found no room
	}{
		"taken":              {nil, 1, 0},
		"later":              {[]error{&retry{err: errors.New("away")}, &retry{err: errors.New("away")}}, 3, 0},
		"when it says":       {[]error{&retry{errors.New("busy"), 20 * time.Second}}, 2, 0},
		"never":              {[]error{errors.New("no")}, 1, 4},
		"only some of it":    {[]error{&Rejected{Count: 2}}, 1, 2},
		"some, but not then": {[]error{&retry{err: errors.New("away")}, &Rejected{Count: 1}}, 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dropped, tries := 0, 0
				q := newQueue[int](4, &outage{signal: Traces, dropped: func(_ string, n int) { dropped += n }, log: slog.New(slog.DiscardHandler)})
				q.add(1, 2, 3, 4, 5, 6) // two find no room
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					q.run(ctx, func(context.Context, []int) error {
						tries++
						if tries <= len(c.answers) {
							return c.answers[tries-1]
						}
						return nil
					})
				}()
				time.Sleep(time.Minute)
				cancel()
				<-done
				if tries != c.tries || dropped != c.dropped+2 {
					t.Errorf("%d tries, %d dropped", tries, dropped)
				}
			})
		})
	}
}

// At the end there is one more try, and it does not last.
func TestQueueEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dropped, tries := 0, 0
		q := newQueue[int](4, &outage{signal: Traces, dropped: func(_ string, n int) { dropped += n }, log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			q.run(ctx, func(ctx context.Context, _ []int) error {
				tries++
				<-ctx.Done() // a collector that hangs
				return &retry{err: ctx.Err()}
			})
		}()
		q.add(1, 2)
		time.Sleep(5 * time.Second)
		cancel()
		began := time.Now()
		<-done
		if took := time.Since(began); took > 2*lastCall || tries != 2 || dropped != 2 {
			t.Errorf("it took %s, %d tries, %d dropped", took, tries, dropped)
		}
	})
}
