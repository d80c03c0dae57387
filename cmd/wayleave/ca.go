package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave/ca"
	"wayleave/config"
	"wayleave/fleet"
	"wayleave/vault"
	"wayleave/vault/embedded"
	"wayleave/worker"
)

func newCA() *cobra.Command {
	return group(&cobra.Command{
		Use:   "ca",
		Short: "Show, print and replace the root CA that workers trust",
		Long: `A root is replaced in three steps: prepare makes another one, which workers get beside the one there is; activate makes it
sign; retire removes the first. No gate and no worker is restarted for it.

Show and print need the rights of a viewer. The steps need those of an administrator, as 'vault setup' does: VAULT_TOKEN, or
what 'bao login' left. For the OpenBao of a 'wayleave up' they work as the user who runs it.`,
	}, newCAShow(), newCAPrepare(), newCAActivate(), newCARetire(), newCAPrint(), newCAInstall())
}

// rootStore is where the roots are, and what gates write down: vault.Client.
type rootStore interface {
	fleet.Documents
	Roots(ctx context.Context) ([]*x509.Certificate, error)
	PrepareRoot(ctx context.Context) (*x509.Certificate, error)
	ActivateRoot(ctx context.Context, root *x509.Certificate) error
	RetireRoot(ctx context.Context, root *x509.Certificate) error
	Intermediates(ctx context.Context) ([]*x509.Certificate, error)
}

// caDesk is where a ca command works.
type caDesk struct {
	cfg   *config.Config
	store rootStore
	now   func() time.Time
	out   io.Writer
	json  bool
}

// caCommand makes a command that works with the rights of a viewer, or of an administrator.
func caCommand(administrator bool, f func(context.Context, caDesk, []string) error) *cobra.Command {
	c := &cobra.Command{ValidArgsFunction: cobra.NoFileCompletions}
	st := addStateFlag(c)
	configPath := addConfigOrGateFlag(c, st)
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := checkConfig(c, configPath())
		if err != nil {
			return err
		}
		cfg.Vault.Auth = operatorAuth()
		log := newLog(c.ErrOrStderr(), slog.LevelWarn)
		store, err := openForCA(c.Context(), cfg, *st, administrator, log)
		if err != nil {
			return err
		}
		defer store.Close()
		asJSON, _ := c.Flags().GetBool("json") // print has no such flag
		err = f(c.Context(), caDesk{cfg: cfg, store: store, now: time.Now, out: c.OutOrStdout(), json: asJSON}, args)
		if errors.Is(err, vault.ErrDenied) && administrator {
			return fmt.Errorf("%w; only an administrator of the Vault may do this, with a token in VAULT_TOKEN", err)
		}
		return err
	}
	return c
}

func openForCA(ctx context.Context, cfg *config.Config, st state, administrator bool, log *slog.Logger) (*vault.Client, error) {
	if !administrator {
		identity, err := operatorVault(cfg, st)
		if err != nil {
			return nil, err
		}
		return openAs(ctx, cfg, identity, vault.Viewer, log)
	}
	identity, err := vaultOrEmbedded(cfg, st, embedded.Administrator)
	if err != nil {
		return nil, err
	}
	return openVault(ctx, cfg, identity, log)
}

func addJSONFlag(c *cobra.Command) { c.Flags().Bool("json", false, "print JSON") }

func newCAShow() *cobra.Command {
	c := caCommand(false, func(ctx context.Context, d caDesk, _ []string) error { return d.show(ctx) })
	c.Use = "show"
	c.Short = "Show the roots that workers trust, which one signs, and what to do next"
	c.Example = `  wayleave ca show -c wayleave.yaml
  wayleave ca show -c wayleave.yaml --json`
	c.Args = exactArgs()
	addJSONFlag(c)
	return c
}

func newCAPrint() *cobra.Command {
	c := caCommand(false, func(ctx context.Context, d caDesk, _ []string) error {
		roots, err := d.store.Roots(ctx)
		if err == nil {
			_, err = d.out.Write(ca.PEM(roots))
		}
		return err
	})
	c.Use = "print"
	c.Short = "Print the roots that workers trust, as PEM"
	c.Long = `Print writes every root that workers trust to standard output, for machines that are told by hand: those that reach the gate
over TLS with WAYLEAVE_GATE_CA.`
	c.Example = `  wayleave ca print -c wayleave.yaml > ca.pem`
	c.Args = exactArgs()
	return c
}

func newCAPrepare() *cobra.Command {
	c := caCommand(true, func(ctx context.Context, d caDesk, _ []string) error { return d.prepare(ctx) })
	c.Use = "prepare"
	c.Short = "Make a second root, which workers trust and which signs nothing yet"
	c.Long = `Prepare makes another root beside the one that signs. Each gate sees it within half a minute and gives both to the workers
that begin from then on. It is refused when there are two already.`
	c.Example = `  wayleave ca prepare -c wayleave.yaml`
	c.Args = exactArgs()
	addJSONFlag(c)
	return c
}

func newCARetire() *cobra.Command {
	var now bool
	c := caCommand(true, func(ctx context.Context, d caDesk, args []string) error {
		return d.retire(ctx, strings.Join(args, ""), now)
	})
	c.Use = "retire [FINGERPRINT]"
	c.Short = "Remove the root that does not sign, and its key"
	c.Long = `Retire removes the root that does not sign, with its key, for good; where there are several, the one whose SHA-256
fingerprint begins so. Workers that begin from then on trust the other one alone.

It is refused as long as gates may serve certificates of that root: until no Envoy has one, and for half a minute after the end
of the rollout of the other root, in which every gate that reaches Vault sees it. Where that is not known, what intermediates Vault has
signed tells. With --now it is done nevertheless, and workers that begin at a gate that still has an old one fail until it has another.`
	c.Example = `  wayleave ca retire -c wayleave.yaml
  wayleave ca retire 3f2a9c -c wayleave.yaml --now`
	c.Args = atMostOne("FINGERPRINT")
	c.Flags().BoolVar(&now, "now", false, "do it even though a gate may serve certificates of that root")
	addJSONFlag(c)
	return c
}

// atMostOne is for a command with an argument that may be left out.
func atMostOne(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usageError{fmt.Errorf("%s wants at most %s; see '%s --help'", c.CommandPath(), name, c.CommandPath())}
		}
		return nil
	}
}

func (d caDesk) show(ctx context.Context) error {
	roots, err := d.store.Roots(ctx)
	if err != nil {
		return err
	}
	next, err := d.next(ctx, roots)
	if err != nil {
		return err
	}
	if d.json {
		return d.printJSON(roots, "", next)
	}
	state, _, err := fleet.ReadState(ctx, d.store)
	if err != nil {
		return err
	}
	rows := [][]string{{"ROOT", "FROM", "UNTIL", "USE"}}
	for i, r := range roots {
		use := "trusted only"
		switch {
		case r == comes(state, roots):
			use = "signs for some"
		case r == told(state, roots):
			use = "signs"
		case i == 0:
			use = "signed before"
		}
		rows = append(rows, []string{r.Subject.CommonName, when(r.NotBefore), when(r.NotAfter), use})
	}
	notes := func(i int) []note {
		if i == 0 {
			return nil
		}
		return []note{{"SHA-256", ca.Fingerprint(roots[i-1])}}
	}
	if err := printTable(d.out, rows, notes, widthOf(d.out)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(d.out, "\nNext: %s.\n", next)
	return err
}

// printJSON prints the roots for programs, as each command leaves them.
func (d caDesk) printJSON(roots []*x509.Certificate, outcome, next string) error {
	type root struct {
		Name   string    `json:"name"`
		SHA256 string    `json:"sha256"`
		From   time.Time `json:"from"`
		Until  time.Time `json:"until"`
		Signs  bool      `json:"signs"`
	}
	var all []root
	for i, r := range roots {
		all = append(all, root{r.Subject.CommonName, ca.Fingerprint(r), r.NotBefore, r.NotAfter, i == 0})
	}
	return printJSON(d.out, struct {
		Roots   []root `json:"roots"`
		Outcome string `json:"outcome,omitempty"`
		Next    string `json:"next"`
	}{all, outcome, next})
}

// untrusting says why a root may not sign yet: which workers may be without it. It is empty when there are none.
func (d caDesk) untrusting(ctx context.Context, root *x509.Certificate) (string, error) {
	given := vault.SignedAt(root).Add(ca.LookTime) // by every gate that reaches Vault
	if d.now().Before(given) {
		return fmt.Sprintf("gates may not give it to workers before %s", when(given)), nil
	}
	live, err := worker.ListSessions(ctx, d.store, d.now())
	if err != nil {
		return "", err
	}
	live = slices.DeleteFunc(live, func(s worker.Live) bool { return !s.Issued.Before(given) })
	if len(live) == 0 {
		return "", nil
	}
	var names []string
	latest := time.Time{} // with all renewals
	for _, s := range live {
		if !slices.Contains(names, s.Worker) {
			names = append(names, s.Worker)
		}
		if most := s.Issued.Add(d.cfg.Profiles[s.Profile].MaxSession); most.After(latest) {
			latest = most
		}
	}
	slices.Sort(names)
	const shown = 5
	if more := len(names) - shown; more > 0 {
		names = append(names[:shown], fmt.Sprintf("%d more", more))
	}
	ends := live[len(live)-1].Ends // they come in this order
	until := when(ends)
	if latest.After(ends) {
		until += ", or if it is renewed " + when(latest) + " at most"
	}
	return fmt.Sprintf("sessions live that began before gates gave it to workers: %d (%s), of which the last one ends %s", len(live), strings.Join(names, ", "), until), nil
}

// next is what to do now.
func (d caDesk) next(ctx context.Context, roots []*x509.Certificate) (string, error) {
	signs, now := roots[0], d.now()
	state, _, err := fleet.ReadState(ctx, d.store)
	if err != nil {
		return "", err
	}
	if root := comes(state, roots); root != nil {
		return fmt.Sprintf("wait for the end of the rollout of %q: wayleave ca activate %.12s; to go back: wayleave rollout abort", root.Subject.CommonName, ca.Fingerprint(root)), nil
	}
	if root := told(state, roots); root != signs {
		return fmt.Sprintf("let %q sign by itself, since every Envoy has certificates of it: wayleave ca activate %.12s", root.Subject.CommonName, ca.Fingerprint(root)), nil
	}
	if len(roots) > 2 {
		return "remove all roots but one that does not sign: wayleave ca retire FINGERPRINT", nil
	}
	if len(roots) == 1 {
		if due := ca.Due(roots, now); due != "" {
			return due, nil
		}
		return fmt.Sprintf("nothing before %s; then replace it, beginning with: wayleave ca prepare", signs.NotAfter.Add(-ca.Notice).Format(time.DateOnly)), nil
	}
	other := roots[1]
	if !vault.SignedAt(other).After(vault.SignedAt(signs)) {
		return fmt.Sprintf("when no gate serves certificates of it any more, remove %q: wayleave ca retire; to go back: wayleave ca activate", other.Subject.CommonName), nil
	}
	why, err := d.untrusting(ctx, other)
	if err != nil {
		return "", err
	}
	if why != "" {
		return fmt.Sprintf("wait before %q may sign, since %s; then: wayleave ca activate", other.Subject.CommonName, why), nil
	}
	return fmt.Sprintf("make %q sign: wayleave ca activate", other.Subject.CommonName), nil
}

func (d caDesk) prepare(ctx context.Context) error {
	roots, err := d.store.Roots(ctx)
	if err != nil {
		return err
	}
	if len(roots) > 1 {
		next, err := d.next(ctx, roots)
		if err != nil {
			return err
		}
		return refusal{fmt.Errorf("there are %d roots already; %s", len(roots), next)}
	}
	made, err := d.store.PrepareRoot(ctx)
	if err != nil {
		return err
	}
	return d.done(ctx,
		fmt.Sprintf("made the root %q, SHA-256 %s; it signs nothing yet", made.Subject.CommonName, ca.Fingerprint(made)),
		"each gate gives it to new workers, beside the root that signs, within half a minute",
		"machines that were given the CA by hand (WAYLEAVE_GATE_CA) need both before the new one signs: wayleave ca print > ca.pem",
	)
}

func (d caDesk) retire(ctx context.Context, fingerprint string, atOnce bool) error {
	roots, err := d.store.Roots(ctx)
	if err != nil {
		return err
	}
	if len(roots) == 1 && fingerprint == "" {
		return d.done(ctx, fmt.Sprintf("nothing to remove: %q is the only root", roots[0].Subject.CommonName))
	}
	root, err := choose(roots, fingerprint)
	if err != nil {
		return err
	}
	view, err := fleet.Read(ctx, d.store, d.now())
	if err != nil {
		return err
	}
	if root == roots[0] || root == told(view.State, roots) || root == comes(view.State, roots) {
		return refusal{fmt.Errorf("%q signs; let another root sign first: wayleave ca activate", root.Subject.CommonName)}
	}
	if !atOnce {
		if err := d.stillServed(ctx, view, roots, root); err != nil {
			return err
		}
	}
	if err := d.store.RetireRoot(ctx, root); err != nil {
		return err
	}
	return d.done(ctx,
		fmt.Sprintf("removed the root %q and its key", root.Subject.CommonName),
		"workers that begin from now on do not trust it; those at work do until they end",
		"machines that were given the CA by hand (WAYLEAVE_GATE_CA) can forget it: wayleave ca print > ca.pem",
	)
}

// stillServed refuses to remove a root of which a gate or an Envoy may have certificates still. A gate that reaches Vault sees a
// change within LookTime. When the change was, its rollout tells and otherwise what Vault has signed.
func (d caDesk) stillServed(ctx context.Context, view fleet.View, roots []*x509.Certificate, old *x509.Certificate) error {
	for _, e := range view.Envoys() {
		if has := cmp.Or(e.Has, e.Revision); has != "" && ca.Signs(roots, fleet.Root(has)) == old {
			return refusal{fmt.Errorf("the Envoy %s serves certificates of %q still; wait until it has others, or give --now", printable(e.ID), old.Subject.CommonName)}
		}
	}
	until := func(changed time.Time) error {
		if seen := changed.Add(ca.LookTime); d.now().Before(seen) {
			return refusal{fmt.Errorf("gates may serve certificates of %q until %s; wait until then, or give --now", old.Subject.CommonName, when(seen))}
		}
		return nil
	}
	if changed := since(view.State, roots); !changed.IsZero() {
		return until(changed)
	}
	signs := roots[0]
	all, err := d.store.Intermediates(ctx)
	if err != nil {
		return err
	}
	var last *x509.Certificate // of the root that goes
	for _, c := range all {
		if ca.SignedBy(c, old) && (last == nil || vault.SignedAt(c).After(vault.SignedAt(last))) {
			last = c
		}
	}
	if last == nil {
		return nil
	}
	var first *x509.Certificate // of the root that stays, after it
	for _, c := range all {
		if ca.SignedBy(c, signs) && !vault.SignedAt(c).Before(vault.SignedAt(last)) && (first == nil || vault.SignedAt(c).Before(vault.SignedAt(first))) {
			first = c
		}
	}
	if first == nil {
		return refusal{fmt.Errorf("no gate has an intermediate of %q yet, so the certificates they serve are of %q; see that they run and reach Vault, or give --now",
			signs.Subject.CommonName, old.Subject.CommonName)}
	}
	return until(vault.SignedAt(first))
}

// choose returns the root whose fingerprint begins so; without one, the only root that does not sign.
func choose(roots []*x509.Certificate, fingerprint string) (*x509.Certificate, error) {
	var found, all []*x509.Certificate
	if fingerprint == "" {
		found, all = roots[1:], roots[1:]
	} else {
		prefix := normalized(fingerprint)
		all = roots
		found = slices.DeleteFunc(slices.Clone(roots), func(r *x509.Certificate) bool { return !strings.HasPrefix(ca.Fingerprint(r), prefix) })
	}
	if len(found) == 1 {
		return found[0], nil
	}
	var names []string
	for _, r := range all {
		names = append(names, fmt.Sprintf("%.12s (%s)", ca.Fingerprint(r), r.Subject.CommonName))
	}
	return nil, usageError{fmt.Errorf("name one root by how its SHA-256 fingerprint begins: %s", strings.Join(names, ", "))}
}

// done says what was done and what comes next.
func (d caDesk) done(ctx context.Context, lines ...string) error {
	roots, err := d.store.Roots(ctx)
	if err != nil {
		return fmt.Errorf("%s; and then: %w", lines[0], err)
	}
	next, err := d.next(ctx, roots)
	if err != nil {
		return fmt.Errorf("%s; and then: %w", lines[0], err)
	}
	if d.json {
		return d.printJSON(roots, lines[0], next)
	}
	_, err = fmt.Fprintln(d.out, strings.Join(append(lines, "next: "+next), "\n"))
	return err
}
