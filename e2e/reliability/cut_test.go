package reliability

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// way is a way to OpenBao that can be cut.
type way struct {
	address string

	mu    sync.Mutex
	state string // "", or how it is cut: refused, silent
	conns map[net.Conn]bool
}

func (w *world) newWay() *way {
	w.Helper()
	dir, err := os.MkdirTemp("", "wl") // short enough for a socket
	if err != nil {
		w.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		w.Fatal(err)
	}
	c := &way{address: "unix://" + path, conns: map[net.Conn]bool{}}
	w.Cleanup(func() {
		l.Close()
		c.cut("refused")
		os.RemoveAll(dir)
	})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go c.carry(conn, strings.TrimPrefix(w.bao.Address, "unix://"))
		}
	}()
	return c
}

func (c *way) carry(conn net.Conn, to string) {
	defer conn.Close()
	server, err := net.Dial("unix", to)
	if err != nil {
		return
	}
	defer server.Close()
	c.mu.Lock()
	state := c.state
	c.conns[conn], c.conns[server] = true, true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.conns, conn)
		delete(c.conns, server)
	}()
	switch state {
	case "refused":
	case "silent":
		_, _ = io.Copy(io.Discard, conn)
	default:
		go func() {
			_, _ = io.Copy(server, conn)
			server.Close()
		}()
		_, _ = io.Copy(conn, server)
	}
}

// cut ends all connections. New ones are closed at once (refused), or nothing comes back (silent).
func (c *way) cut(how string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = how
	for conn := range c.conns {
		conn.Close()
	}
}

func (c *way) mend() { c.cut("") }
