package envoy

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

func TestRotateLog(t *testing.T) {
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket, path := filepath.Join(dir, "admin.sock"), filepath.Join(dir, "access.log")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	reopened, works := 0, false
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if reopened++; !works {
			w.WriteHeader(http.StatusServiceUnavailable)
		} else if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Error(err)
		}
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })

	if err := os.WriteFile(path, []byte("full"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name  string
		most  int64
		works bool
		want  int // questions so far
	}{
		{"not full", 5, true, 0},
		{"full, and Envoy does not answer", 4, false, 1},
		{"asked again", 4, true, 2},
		{"done", 4, true, 2},
	} {
		works = step.works
		rotateLog(t.Context(), path, step.most, socket)
		if reopened != step.want {
			t.Errorf("%s: asked %d times, want %d", step.name, reopened, step.want)
		}
	}
	if b, err := os.ReadFile(path + ".1"); err != nil || string(b) != "full" {
		t.Errorf("the log before: %q, %v", b, err)
	}
}
