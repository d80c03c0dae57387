package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"text/tabwriter"
	"time"

	"wayleave/grant"
)

// proxy is where workers on this machine connect.
func (u upper) proxy() string {
	host, port, err := net.SplitHostPort(u.cfg.Listen.Proxy)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip.To4() == nil {
			host = "::1"
		}
	}
	return "http://" + net.JoinHostPort(host, port)
}

// announce says that workers may come, what state the grants are in, and what to do next.
func (u upper) announce(grants []grant.Summary, console string) {
	u.say("ready: workers connect to %s", u.proxy())
	where := ""
	if u.state.dir != absolute(defaultStateDir()) {
		where = " --state " + u.state.dir
	}
	fmt.Fprintln(u.out)
	w := tabwriter.NewWriter(u.out, 0, 4, 2, ' ', 0)
	for _, s := range grants {
		next := s.Next
		switch s.State {
		case grant.NeverConnected, grant.NeedsReconnect, grant.ScopeMissing:
			switch s.Kind { // to be copied
			case grant.Consent:
				next = fmt.Sprintf("wayleave grant connect%s %s", where, s.Name)
			case grant.Static:
				next = fmt.Sprintf("wayleave grant import%s %s", where, s.Name)
			case grant.Machine:
			}
		default:
		}
		fmt.Fprintf(w, "  grant %s\t%s", s.Name, s.State)
		if next != "" {
			fmt.Fprintf(w, "\t%s", next)
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
	u.otherWays()
	if console != "" { // the link logs in once
		fmt.Fprintf(u.out, "\n  the console   %s", console)
	}
	fmt.Fprintf(u.out, "\n  run a worker  wayleave run%s -- COMMAND\n  look closer   wayleave doctor%s\n  stop          Ctrl-C\n", where, where)
	fmt.Fprintln(u.out)
}

// otherWays says where workers come in beside the proxy.
func (u upper) otherWays() {
	l := u.cfg.Listen
	if l.ProxyTLS != "" || l.Transparent != "" {
		fmt.Fprintln(u.out)
	}
	if host, port, err := net.SplitHostPort(l.ProxyTLS); err == nil {
		authority := ""
		if len(l.TLSNames) > 0 {
			host, authority = l.TLSNames[0], " WAYLEAVE_GATE_CA="+u.state.path("ca.pem")
		}
		fmt.Fprintf(u.out, "  over TLS      WAYLEAVE_GATE=https://%s%s\n", net.JoinHostPort(host, port), authority)
	}
	if l.Transparent != "" {
		fmt.Fprintf(u.out, "  redirected    to %s, without a proxy: wayleave run --transparent\n", l.Transparent)
	}
}

// portPatience is how long the Envoy of a run that was killed may take to let go of the port.
const portPatience = 2 * time.Second

// portFree sees that nothing listens where Envoy is to. Envoy would not notice another Envoy of the same user: it shares
// ports (SO_REUSEPORT), and each would get some of the workers of both.
func portFree(ctx context.Context, address string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err == nil {
			return l.Close()
		}
		if ctx.Err() == nil && errors.Is(err, syscall.EADDRINUSE) {
			select {
			case <-again.C:
				continue
			case <-ctx.Done():
			}
		}
		return fmt.Errorf("workers cannot connect to %s: %w; stop what listens there, or write another address under listen", address, err)
	}
}
