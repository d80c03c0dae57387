package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"syscall"
	"time"

	"wayleave/extproc"
	"wayleave/grant"
	"wayleave/metrics"
	"wayleave/rollout"
	"wayleave/vault"
	"wayleave/xds"
)

// Parts of a gate that may be why it is not ready.
const (
	readyProcess = "gate"
	readyVault   = "vault"

	starting = "is being started" // what the gate is first
)

// measured is what a gate tells of itself, and the hooks by which it learns it.
type measured struct {
	*metrics.Metrics
	health metrics.Health
}

func newMeasured() *measured {
	var reasons []string
	for _, r := range extproc.Reasons() {
		reasons = append(reasons, r.Name)
	}
	m := &measured{Metrics: metrics.New(version(), reasons)}
	m.health.Set(readyProcess, starting)
	m.Health(&m.health)
	return m
}

// decided counts what became of a request.
func (m *measured) decided(d extproc.Decided) {
	if d.Leased {
		m.Leased(d.Grant)
		return
	}
	m.Decided(string(became(d)), d.Grant, d.Reason, d.Trace, d.Took) // they are called the same
}

// grants are the hooks of the grants' keeper.
func (m *measured) grants() grant.Watch {
	return grant.Watch{
		Token:   m.Token,
		Awaited: func(_ string, d time.Duration) { m.LeaseAwaited(d) },
		Happened: func(name string, e grant.Event) {
			if what := string(e.What); slices.Contains(refreshOutcomes(), what) { // else it is an operator's doing, which the grant's history has
				m.Refreshed(name, what, e.Took)
			}
		},
	}
}

// vaultCalled counts a call of Vault, and notes whether it can be read.
func (m *measured) vaultCalled(c vault.Call) {
	outcome := vaultOutcome(c.Err)
	m.VaultCalled(c.Operation, outcome, c.Took)
	if c.Operation != "read" {
		return
	}
	switch outcome {
	case "ok", "not_found":
		m.health.Set(readyVault, "")
	case "unavailable":
		m.health.Set(readyVault, "does not answer; requests are served from memory as long as their tokens last")
	case "denied":
		m.health.Set(readyVault, "does not let this gate read; see its log, or run: wayleave vault setup")
	}
}

func vaultOutcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, context.Canceled): // by us
		return "canceled"
	case errors.Is(err, vault.ErrNotFound):
		return "not_found"
	case errors.Is(err, vault.ErrConflict):
		return "conflict"
	case errors.Is(err, vault.ErrDenied):
		return "denied"
	case errors.Is(err, vault.ErrUnavailable):
		return "unavailable"
	}
	return "error"
}

// mint counts the certificates that by makes.
func (m *measured) mint(by xds.Minter) xds.Minter {
	return func(host, root string) (certPEM, keyPEM []byte, notAfter time.Time, err error) {
		defer func() { m.LeafMinted(err) }()
		return by(host, root)
	}
}

func grantStates() (all []string) {
	for _, s := range grant.States() {
		all = append(all, string(s))
	}
	return all
}

// refreshOutcomes are all that a refresh can come to.
func refreshOutcomes() []string {
	return []string{string(grant.Refreshed), string(grant.Failed), string(grant.Ended), string(grant.GivenUp), string(grant.Declined)}
}

// figures are those that are kept elsewhere.
func figures(live *revisions, now func() time.Time) func() metrics.Figures {
	return func() metrics.Figures {
		f := metrics.Figures{Sessions: live.sessions.Count(now()), Envoys: envoyFigures(live.envoys.Nodes())}
		for _, g := range live.summaries() {
			f.Grants = append(f.Grants, metrics.Grant{Name: g.Name, State: string(g.State), Expires: g.Expires, ConsentEnds: g.ConsentEnds})
		}
		if c := live.now.Load().state.Current; c != nil {
			f.Rollout = metrics.Rollout{Step: c.Step + 1, Steps: len(c.Plan.Steps), Paused: c.Phase == rollout.Paused}
		}
		return f
	}
}

func envoyFigures(nodes []xds.Node) (e metrics.Envoys) {
	for _, n := range nodes {
		refusing := false
		for _, t := range n.Types {
			refusing = refusing || t.Error != ""
		}
		switch {
		case refusing:
			e.Refusing++
		case n.Current():
			e.Current++
		default:
			e.Behind++
		}
	}
	return e
}

// metricsDoor is where the gate's figures are.
type metricsDoor struct {
	address  string
	listener net.Listener // nil: another gate has the address
	handler  http.Handler
	log      *slog.Logger
}

// openMetrics serves the gate's figures until the part is stopped; where the configuration says nowhere, it has ended.
func (g gate) openMetrics(ctx context.Context, m *measured) (*part, error) {
	d := metricsDoor{address: g.cfg.MetricsAddress(g.replica), handler: metrics.Handler(m.Metrics, &m.health), log: g.log}
	if d.address == "" {
		return ended(), nil
	}
	var err error
	if d.listener, err = d.listen(ctx); errors.Is(err, syscall.EADDRINUSE) && !g.metricsStrict {
		g.log.Warn("another program has the address of metrics; this gate takes it when that one ends, as a gate before it does", "address", d.address)
	} else if err != nil {
		return nil, fmt.Errorf("metrics cannot listen on %s: %w; stop what listens there, or write another metrics.listen", d.address, err)
	}
	return start(ctx, d.serve), nil
}

func (d *metricsDoor) listen(ctx context.Context) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(ctx, "tcp", d.address)
}

// serve ends with ctx. Scrapes are short, so none is waited for.
func (d *metricsDoor) serve(ctx context.Context) error {
	if d.listener == nil {
		if d.listener = awaitAddress(ctx, d.listen); d.listener == nil {
			return nil
		}
	}
	srv := &http.Server{
		Handler: d.handler, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(d.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}
