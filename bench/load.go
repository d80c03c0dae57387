package main

import (
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
)

// requester does the same again and again, over a connection of its own.
type requester interface {
	io.Closer
	ask() error
}

// loaded is what a number of requests took.
type loaded struct {
	took             []time.Duration // each
	all, proxy, gate time.Duration   // together: on the clock, and of CPU time
}

func (l loaded) perSecond() float64 { return float64(len(l.took)) / l.all.Seconds() }
func (l loaded) p50() float64       { return micros(quantile(l.took, 0.5)) }
func (l loaded) p99() float64       { return micros(quantile(l.took, 0.99)) }

// each is a CPU time as µs for one request.
func (l loaded) each(cpu time.Duration) float64 { return micros(cpu) / float64(len(l.took)) }

// load has each of them ask in turn, all at the same time, so that there are about as many requests.
func (w *world) load(all []requester, requests int) (loaded, error) {
	each := max(1, requests/len(all))
	l := loaded{took: make([]time.Duration, each*len(all))}
	proxyBefore, gateBefore, err := w.cpuTimes()
	if err != nil {
		return l, err
	}
	begun := time.Now()
	var group errgroup.Group
	for i, a := range all {
		mine := l.took[i*each:][:each]
		group.Go(func() error {
			for n := range mine {
				begun := time.Now()
				if err := a.ask(); err != nil {
					return fmt.Errorf("request %d of a connection: %w", n+1, err)
				}
				mine[n] = time.Since(begun)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return l, err
	}
	l.all = time.Since(begun)
	proxyAfter, gateAfter, err := w.cpuTimes()
	l.proxy, l.gate = proxyAfter-proxyBefore, gateAfter-gateBefore
	return l, err
}

// cpuTimes are those of the proxy and of the gate. Not every proxy has one.
func (w *world) cpuTimes() (proxy, gate time.Duration, err error) {
	if proxy, err = cpuTime(w.envoy); err != nil || w.gate.pid == 0 {
		return proxy, 0, err
	}
	gate, err = cpuTime(w.gate.pid)
	return proxy, gate, err
}

// memory is what the proxy and the gate have of it, in MB.
func (w *world) memory() (proxy, gate float64, err error) {
	const mb = 1e6
	if proxy, err = resident(w.envoy); err != nil || w.gate.pid == 0 {
		return proxy / mb, 0, err
	}
	gate, err = resident(w.gate.pid)
	return proxy / mb, gate / mb, err
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
