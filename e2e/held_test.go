package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"
)

// hold are connections of a worker that are to live on whatever happens: a tunnel with a request now and then, a WebSocket, and a
// stream of events.
type hold struct {
	worker worker
	tunnel *http.Client
	socket func(*testing.T)
	events atomic.Int64
	broken chan error // what ended the stream
}

func holdOpen(t *testing.T, w worker) *hold {
	t.Helper()
	h := &hold{worker: w, tunnel: w.client(t, false), socket: openSocket(t, w), broken: make(chan error, 1)}
	if a, err := do(h.tunnel, w.request(http.MethodGet, "https://api.demo.test/echo", nil)); err != nil || a.status != http.StatusOK {
		t.Fatalf("opening a tunnel: %v, %v", a, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	streaming := w.client(t, true)
	streaming.Timeout = 0
	resp, err := streaming.Do(w.request(http.MethodGet, "https://api.demo.test/sse?n=10000&ms=100", nil).WithContext(ctx))
	if err != nil || resp.StatusCode != http.StatusOK {
		cancel()
		t.Fatalf("opening a stream: %v, %v", resp, err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "event:") {
				h.events.Add(1)
			}
		}
		h.broken <- errors.Join(errors.New("the stream of events has ended"), lines.Err())
	}()
	t.Cleanup(func() {
		cancel()
		<-read
		_ = resp.Body.Close()
	})
	return h
}

// check sees that all of them live.
func (h *hold) check(t *testing.T) {
	t.Helper()
	h.socket(t)
	kept := false
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { kept = c.Reused }})
	if a, err := do(h.tunnel, h.worker.request(http.MethodGet, "https://api.demo.test/echo", nil).WithContext(ctx)); err != nil || a.status != http.StatusOK || !kept {
		t.Errorf("the tunnel: kept %v, %v, %v", kept, a, err)
	}
	before := h.events.Load()
	if err := eventually(func() error {
		if h.events.Load() > before+1 || len(h.broken) > 0 {
			return nil
		}
		return fmt.Errorf("no event has come after the first %d", before)
	}); err != nil {
		t.Error(err)
	}
	select {
	case err := <-h.broken:
		t.Error(err)
	default:
	}
}
