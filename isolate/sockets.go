package isolate

import (
	"errors"
	"net"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// sockets are those of the program's network.
type sockets struct {
	proxy       net.Listener   // the proxy that programs are told of
	captured    []net.Listener // of a port each, at every address
	resolverTCP []net.Listener
	resolverUDP []*resolver
}

func (s sockets) close() {
	if s.proxy != nil {
		s.proxy.Close()
	}
	for _, l := range append(s.captured, s.resolverTCP...) {
		l.Close()
	}
	for _, r := range s.resolverUDP {
		r.close()
	}
}

// resolver is a UDP socket at every address, which answers from the address that was asked.
type resolver struct {
	conn net.PacketConn
	v4   *ipv4.PacketConn
	v6   *ipv6.PacketConn
}

func newResolver(c net.PacketConn, v6 bool) (*resolver, error) {
	if v6 {
		p := ipv6.NewPacketConn(c)
		return &resolver{conn: c, v6: p}, p.SetControlMessage(ipv6.FlagDst, true)
	}
	p := ipv4.NewPacketConn(c)
	return &resolver{conn: c, v4: p}, p.SetControlMessage(ipv4.FlagDst, true)
}

func (r *resolver) close() { r.conn.Close() }

// serve answers until the socket is closed.
func (r *resolver) serve(answer func([]byte) []byte) error {
	query := make([]byte, 4096)
	for {
		n, to, from, err := r.read(query)
		switch {
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // of one packet
			continue
		}
		if a := answer(query[:n]); a != nil {
			_ = r.write(a, from, to) // who asked may be gone
		}
	}
}

func (r *resolver) read(b []byte) (n int, to net.IP, from net.Addr, err error) {
	if r.v6 != nil {
		n, cm, from, err := r.v6.ReadFrom(b)
		if cm != nil {
			to = cm.Dst
		}
		return n, to, from, err
	}
	n, cm, from, err := r.v4.ReadFrom(b)
	if cm != nil {
		to = cm.Dst
	}
	return n, to, from, err
}

func (r *resolver) write(b []byte, to net.Addr, from net.IP) error {
	if r.v6 != nil {
		_, err := r.v6.WriteTo(b, &ipv6.ControlMessage{Src: from}, to)
		return err
	}
	_, err := r.v4.WriteTo(b, &ipv4.ControlMessage{Src: from}, to)
	return err
}
