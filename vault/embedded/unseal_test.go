package embedded

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeBao answers at the directory's socket in OpenBao's place.
func fakeBao(t *testing.T, handler http.HandlerFunc) *unsealer {
	t.Helper()
	top, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	d, err := openDir(top)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(d.path, "vault.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return &unsealer{dir: d, address: "unix://" + l.Addr().String(), log: slog.New(slog.DiscardHandler), hopeless: make(chan struct{})}
}

// A store whose initialisation was cut off half-way, or that is damaged so that it looks like that, is not waited for.
func TestHalfInitialised(t *testing.T) {
	u := fakeBao(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		w.Write([]byte(`{"errors":["core: barrier reports initialized but no seal configuration found"]}`))
	})
	if err := u.unsealed(t.Context()); !errors.Is(err, errHopeless) || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("a store that was whole: %v", err)
	}
	if err := u.dir.write(startedFile, ""); err != nil {
		t.Fatal(err)
	}
	if err := u.unsealed(t.Context()); !errors.Is(err, errHopeless) || !strings.Contains(err.Error(), "remove "+u.dir.path) {
		t.Errorf("a new store: %v", err)
	}
}

// A stop that comes while a store is being initialised waits for its keys.
func TestStopWhileInitialising(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	u := fakeBao(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/seal-status"):
			w.Write([]byte(`{"initialized":false,"sealed":true}`))
		case strings.HasSuffix(r.URL.Path, "/init"):
			close(asked)
			<-answer
			w.Write([]byte(`{"keys_base64":["a2V5"],"root_token":"s.root"}`))
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- u.unsealed(ctx) }()
	<-asked
	stop()
	settled := make(chan struct{})
	go func() { u.settled(ctx); close(settled) }()
	select {
	case <-settled:
		t.Error("settled before there was an answer")
	default:
	}
	close(answer)
	<-settled
	if k, err := u.dir.readKeys(); err != nil || k.root.IsZero() {
		t.Errorf("the keys are lost: %v", err)
	}
	<-ended
}
