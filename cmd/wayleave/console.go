package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"wayleave/audit"
	"wayleave/config"
	"wayleave/console"
	"wayleave/durable"
	"wayleave/extproc"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/notify"
	"wayleave/operate"
	"wayleave/worker"
)

func newConsole() *cobra.Command {
	var noBrowser bool
	var runDir string
	c := &cobra.Command{
		Use:        "console",
		SuggestFor: []string{"login", "ui"},
		Short:      "Open the operators' pages of the gate on this machine",
		Long: `Console prints a link that logs you in to the console of the gate on this machine, and opens it in a browser. The link is
good once; the next call has another. It is for consoles on loopback: whoever may read the gate's state directory may use it.
Elsewhere operators log in with OIDC (console.oidc in the configuration).`,
		Example: `  wayleave console
  wayleave console --no-browser
  wayleave console --run-dir /run/wayleave     # of a 'wayleave serve'`,
		Args: exactArgs(),
	}
	st := addStateFlag(c)
	c.Flags().BoolVar(&noBrowser, "no-browser", false, "only print the link")
	c.Flags().StringVar(&runDir, "run-dir", "", "directory of the sockets of a 'wayleave serve', in place of --state")
	c.RunE = func(c *cobra.Command, _ []string) error {
		path := st.path(consoleLink)
		if runDir != "" {
			path = filepath.Join(runDir, consoleLink)
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("no gate has a console with links in %s: start one with 'wayleave up'; 'wayleave serve' has one where console.listen is on loopback, without public_url", filepath.Dir(path))
		}
		if err != nil {
			return fmt.Errorf("reading the link: %w; run this as the user who runs the gate", err)
		}
		link := strings.TrimSpace(string(data))
		fmt.Fprintln(c.OutOrStdout(), link)
		if open := browser(); open != nil && !noBrowser {
			if err := open(link); err != nil {
				fmt.Fprintf(c.ErrOrStderr(), "(no browser could be opened here: %v)\n", err)
			}
		}
		return nil
	}
	return c
}

const (
	consoleLink         = "console.login"
	consoleDefault      = "127.0.0.1:3180"
	rememberedDecisions = 5000
)

// consolePlace is where a gate has its console.
type consolePlace struct {
	listen   string // ip:port; empty or none: nowhere
	anywhere bool   // on loopback, when that is taken
	strict   bool   // fail when it is taken; else wait until it is not
	link     string // path of the file with the one-time link
}

// consolePlace is that of `wayleave up`, which has a console unless the configuration says none.
func (u upper) consolePlace() consolePlace {
	p := consolePlace{listen: u.cfg.Console.Listen, strict: true, link: u.state.path(consoleLink)}
	if p.listen == "" {
		p.listen, p.anywhere = consoleDefault, true
	}
	return p
}

// watched lets the console see decisions, the audit keep them, the figures count them, and the log tell them at debug.
func watched(to *console.Decisions, account account, figured *measured, log *slog.Logger) func(extproc.Decided) error {
	return func(d extproc.Decided) error {
		err := account.request(d)
		if err != nil && d.Reason == "" { // the gate refuses it
			d.Reason, d.Swapped, d.Answered = extproc.AuditUnavailable, false, false
		}
		figured.decided(d)
		if d.Reason == "" && log.Enabled(context.Background(), slog.LevelDebug) { // a refusal has its line already
			log.LogAttrs(context.Background(), slog.LevelDebug, "request let out", slog.String("outcome", string(became(d))), slog.String("worker", d.Worker), slog.String("host", d.Host),
				slog.String("method", d.Method), slog.String("route", d.Route), slog.String("grant", d.Grant), slog.Duration("took", d.Took), slog.String("request_id", d.RequestID))
		}
		x := console.Decision{At: d.At, Outcome: console.Passed, Reason: d.Reason, Worker: d.Worker, Session: d.Session, Host: d.Host, Method: d.Method, Route: d.Route, Grant: d.Grant, Request: d.RequestID}
		switch became(d) {
		case audit.Refused:
			x.Outcome = console.Refused
		case audit.Swapped:
			x.Outcome = console.Swapped
		default: // an answer of the gate's own is shown as passed
		}
		to.Add(x)
		return err
	}
}

// consoleDoor is where operators come to the gate. Of several gates that are to have it at one address, the one that got it has
// it, and the next takes over.
type consoleDoor struct {
	gate   gate
	config console.Config
	log    *slog.Logger

	listener net.Listener    // nil: another gate has the address
	server   *console.Server // with listener

	mu     sync.Mutex
	newest string // guarded by mu; the one-time link
	at     string // guarded by mu; where operators reach it
}

// page is the address of a page for operators, wherever they read it.
func (d *consoleDoor) page(path string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at + path
}

// pages is page; nil when there is no console.
func (d *consoleDoor) pages() notify.Pages {
	if d == nil {
		return nil
	}
	return d.page
}

func (d *consoleDoor) reachedAt(u *url.URL) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = u.String()
}

// openConsole listens for operators. It returns nil when there is no console.
func (g gate) openConsole(ctx context.Context, store grant.Documents, live *revisions, member *fleet.Member, decisions *console.Decisions, account account, needs func() []notify.Alert) (*consoleDoor, error) {
	p := g.console
	if p.listen == "" || p.listen == config.ListenNone {
		return nil, nil
	}
	roots, err := consoleRoots(g.cfg)
	if err != nil {
		return nil, err
	}
	d := &consoleDoor{gate: g, log: g.log}
	at, err := g.consoleURL(p.listen)
	if err != nil {
		return nil, err
	}
	d.reachedAt(at)
	c := g.cfg.Console
	d.config = console.Config{
		Desk: func() operate.Desk { return live.desk(store) }, Source: func() []byte { return []byte(live.now.Load().stable.Text) },
		Grants: live.grants, Sessions: live.sessions, Needs: needs, Fleet: member.View, Decisions: decisions, SearchAudit: account.search(g), Audit: account.operators(),
		File: g.file, OIDC: c.OIDC, OIDCRoots: roots, TrustedProxies: c.TrustedProxies, Idle: c.SessionIdle, Life: c.SessionLife, Version: version(), Levels: g.levels, Log: g.log,
	}
	l, err := d.listen(ctx)
	if err != nil && (p.strict || !errors.Is(err, syscall.EADDRINUSE)) {
		return nil, fmt.Errorf("the console cannot listen on %s: %w; stop what listens there, or write another console.listen", p.listen, err)
	}
	if err != nil {
		g.log.Info("another gate has the console; this one takes over when that one ends", "address", p.listen)
	}
	if l != nil {
		return d, d.prepare(l)
	}
	return d, nil
}

func (d *consoleDoor) listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", d.gate.console.listen)
	if err != nil && d.gate.console.anywhere {
		l, err = lc.Listen(ctx, "tcp", "127.0.0.1:0")
	}
	return l, err
}

// consoleRoots are the authorities for the issuer of the console's OIDC log-in; nil: the system's alone.
func consoleRoots(cfg *config.Config) (*x509.CertPool, error) {
	pool, err := rootsAnd(cfg.Path(cfg.Console.OIDC.CAFile))
	if err != nil {
		return nil, fmt.Errorf("console.oidc.ca_file: %w", err)
	}
	return pool, nil
}

// rootsAnd are the system's authorities and those of a PEM file; nil, which is the system's alone, when none is named.
func rootsAnd(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	system, _, err := worker.SystemRoots(os.Getenv)
	if err != nil {
		return nil, fmt.Errorf("reading the system's root certificates: %w", err)
	}
	more, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(more) {
		return nil, fmt.Errorf("%s holds no PEM certificate; name the file of the authority", file)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(worker.Bundle(system, more))
	return pool, nil
}

// link is the one-time link, "" where there is none.
func (d *consoleDoor) link() string {
	if d == nil {
		return ""
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.newest
}

// close lets go of the address.
func (d *consoleDoor) close() {
	if d != nil && d.listener != nil {
		_ = d.listener.Close()
		_ = os.Remove(d.gate.console.link)
	}
}

// prepare makes the console for an address that we have.
func (d *consoleDoor) prepare(l net.Listener) error {
	c := d.config
	var err error
	if c.URL, err = d.gate.consoleURL(l.Addr().String()); err != nil {
		return err
	}
	d.reachedAt(c.URL)
	c.Alias = alsoKnownAs(l.Addr().String())
	d.listener = l
	if d.gate.cfg.Console.TLSCertFile != "" {
		d.listener = tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: d.certificate})
	}
	if a, err := netip.ParseAddrPort(l.Addr().String()); d.gate.cfg.Console.PublicURL == "" && err == nil && a.Addr().IsLoopback() {
		c.NewLink = d.keepLink
	}
	if d.server, err = console.New(c); err != nil {
		return fmt.Errorf("the console: %w", err)
	}
	d.log.Info("operators may come", "console", c.URL.String())
	return nil
}

// consoleURL is where operators reach a console that listens on address, as browsers write it.
func (g gate) consoleURL(address string) (*url.URL, error) {
	c := g.cfg.Console
	if c.PublicURL == "" {
		scheme := "http"
		if c.TLSCertFile != "" {
			scheme = "https"
		}
		return &url.URL{Scheme: scheme, Host: address}, nil
	}
	u, err := url.Parse(c.PublicURL)
	if err != nil {
		return nil, fmt.Errorf("console.public_url: %w", err) // checked before
	}
	return &url.URL{Scheme: u.Scheme, Host: strings.TrimSuffix(strings.ToLower(u.Host), ":443")}, nil
}

// serve serves operators until ctx ends. It waits for the address if another gate has it.
func (d *consoleDoor) serve(ctx context.Context) error {
	if d == nil {
		return nil
	}
	if d.listener == nil {
		l := awaitAddress(ctx, d.listen)
		if l == nil {
			return nil
		}
		if err := d.prepare(l); err != nil {
			return err
		}
	}
	srv := &http.Server{Handler: d.server, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10, IdleTimeout: 2 * time.Minute, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.server.Run(ctx)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if srv.Shutdown(last) != nil {
			_ = srv.Close()
		}
	}()
	err := srv.Serve(d.listener)
	if !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return fmt.Errorf("the console: %w", err)
	}
	<-ended
	return nil
}

// keepLink writes the one-time link down, for whoever may read this gate's files.
func (d *consoleDoor) keepLink(link string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.newest = link
	if err := durable.Replace(d.gate.console.link, []byte(link+"\n")); err != nil {
		d.log.Warn("the link to the console could not be written down", "file", d.gate.console.link, "err", err)
	}
}

// certificate reads the console's certificate, which somebody may have replaced.
func (d *consoleDoor) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c := d.gate.cfg
	pair, err := tls.LoadX509KeyPair(c.Path(c.Console.TLSCertFile), c.Path(c.Console.TLSKeyFile))
	if err != nil {
		d.log.Warn("the console's certificate cannot be read", "err", err)
	}
	return &pair, err
}

// alsoKnownAs knows the names of this machine for a loopback address, and the address itself behind a reverse proxy.
func alsoKnownAs(address string) func(string) bool {
	_, port, _ := net.SplitHostPort(address)
	names := map[string]bool{address: true}
	if a, err := netip.ParseAddrPort(address); err == nil && a.Addr().IsLoopback() {
		for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
			names[net.JoinHostPort(name, port)] = true
		}
	}
	return func(host string) bool { return names[host] }
}
