package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave/ca"
	"wayleave/fleet"
	"wayleave/operate"
	"wayleave/rollout"
	"wayleave/vault"
)

func newCAActivate() *cobra.Command {
	var how activation
	c := caCommand(true, func(ctx context.Context, d caDesk, args []string) error {
		return d.activate(ctx, strings.Join(args, ""), how)
	})
	c.Use = "activate [FINGERPRINT]"
	c.Short = "Make the other root sign"
	c.Long = `Activate makes the root that does not sign the one that does; where there are several, the one whose SHA-256 fingerprint
begins so. It is rolled out as a configuration is, by the steps of the configuration's rollout: the first Envoys get certificates of that
root, and when more handshakes fail there than elsewhere, or one of them does not take them, all go back to the certificates of before;
'wayleave rollout' shows it and leads it too. Open connections go on. Activate waits for the end, and then makes the root the one that
Vault lets sign by itself; one that was interrupted may be run again, and goes on. When the root was rolled back or the rollout
aborted, it says why and exits with 21. To go back after the end, activate the first root again.

It is refused as long as a session lives that began before gates gave workers that root: those workers would trust no host
any more. What sessions live, the gates write down in Vault. With --force it is rolled out nevertheless. With --now every Envoy gets
certificates of that root at once, whatever becomes of it, and workers without it must be started again. Where no gate runs, there is
nothing to be rolled out.`
	c.Example = `  wayleave ca activate -c wayleave.yaml
  wayleave ca activate 3f2a9c -c wayleave.yaml --now`
	c.Args = atMostOne("FINGERPRINT")
	c.Flags().BoolVar(&how.force, "force", false, "roll it out even though workers that do not have the root yet will fail")
	c.Flags().BoolVar(&how.now, "now", false, "do it for all at once, even though workers that do not have the root yet will fail")
	addJSONFlag(c)
	return c
}

// activation is how a root comes to sign.
type activation struct{ force, now bool }

// told is the root of which every Envoy gets certificates that no rollout says something else to.
func told(s rollout.State, roots []*x509.Certificate) *x509.Certificate {
	return ca.Signs(roots, fleet.Root(s.Stable))
}

// comes is the root that is rolled out; nil: none is.
func comes(s rollout.State, roots []*x509.Certificate) *x509.Certificate {
	if s.Current == nil {
		return nil
	}
	if to := ca.Signs(roots, fleet.Root(s.Current.To)); to != told(s, roots) {
		return to
	}
	return nil
}

func (d caDesk) activate(ctx context.Context, fingerprint string, how activation) error {
	roots, err := d.store.Roots(ctx)
	if err != nil {
		return err
	}
	if len(roots) == 1 && fingerprint == "" {
		return refusal{errors.New("there is one root, and it signs; make another first: wayleave ca prepare")}
	}
	root, err := choose(roots, fingerprint)
	if err != nil {
		return err
	}
	view, err := fleet.Read(ctx, d.store, d.now())
	if err != nil {
		return err
	}
	begun := comes(view.State, roots) == root || told(view.State, roots) == root
	switch {
	case root == roots[0] && told(view.State, roots) == root && comes(view.State, roots) == nil:
		return d.done(ctx, fmt.Sprintf("%q signs already", root.Subject.CommonName))
	case !begun && !how.force && !how.now:
		why, err := d.untrusting(ctx, root)
		if err != nil {
			return err
		}
		if why != "" {
			return refusal{fmt.Errorf("%q may not sign yet: %s; workers without it would trust no host any more: wait, start them again, or give --force, which rolls it out, or --now",
				root.Subject.CommonName, why)}
		}
	}
	how.now = how.now || len(view.Reports) == 0 // nobody is there to do it in steps
	r, err := d.lead(ctx, roots, root, how.now)
	if err != nil {
		return err
	}
	if r.Phase != "" && r.Phase != rollout.Succeeded {
		err := d.done(ctx, fmt.Sprintf("the rollout %s of %q was %s", r.ID, root.Subject.CommonName, printable(r.Outcome())))
		return cmp.Or(err, error(exitCode(exitHalted)))
	}
	if err := d.store.ActivateRoot(ctx, root); err != nil {
		return err
	}
	return d.done(ctx,
		fmt.Sprintf("%q signs from now on", root.Subject.CommonName),
		"open connections go on",
	)
}

// lead brings the certificates of a root to every Envoy, in steps or at once, and returns how that ended. It is the zero Rollout when
// they have them, or when there has never been a gate.
func (d caDesk) lead(ctx context.Context, roots []*x509.Certificate, root *x509.Certificate, atOnce bool) (rollout.Rollout, error) {
	var errNothing, errGoesOn = errors.New("nothing is to be rolled out"), errors.New("it is under way")
	var is rollout.Rollout // what is to be waited for
	state, err := fleet.Change(ctx, d.store, func(s rollout.State) (rollout.State, error) {
		now := d.now()
		switch to := comes(s, roots); {
		case s.Stable == "", to == nil && told(s, roots) == root:
			return s, errNothing
		case to == root && atOnce:
			is = *s.Current
			return s.Promote("at once, with wayleave ca activate", now)
		case to == root:
			is = *s.Current
			return s, errGoesOn
		}
		author, _ := whoami()
		is = rollout.Rollout{
			ID: operate.RolloutID(now), To: fleet.Named(fleet.Configuration(s.Stable), ca.Name(root)), Plan: d.cfg.Plan(),
			Author: author, Note: fmt.Sprintf("the root CA %q signs", root.Subject.CommonName),
		}
		s, err := s.Start(is, now)
		if err == nil && atOnce {
			s, err = s.Promote("at once, with wayleave ca activate", now)
		}
		return s, err
	})
	switch {
	case errors.Is(err, errNothing):
		return rollout.Rollout{}, nil
	case errors.Is(err, errGoesOn):
	case errors.Is(err, rollout.ErrUnderWay):
		return is, refusal{err}
	case err != nil:
		return is, err
	}
	if atOnce {
		return state.History[0], nil
	}
	return d.await(ctx, is.ID)
}

// await shows how a rollout goes until it has ended. A Vault that does not answer for a while is waited out.
func (d caDesk) await(ctx context.Context, id string) (rollout.Rollout, error) {
	last := ""
	say := func(words string) {
		if words != last && !d.json {
			_, _ = fmt.Fprintln(d.out, words)
		}
		last = words
	}
	tick := time.NewTicker(deskEvery)
	defer tick.Stop()
	for {
		s, _, err := fleet.ReadState(ctx, d.store)
		switch {
		case errors.Is(err, vault.ErrUnavailable) && ctx.Err() == nil:
			say(fmt.Sprintf("waiting: %v", err))
		case err != nil:
			return rollout.Rollout{}, err
		case s.Current != nil && s.Current.ID == id:
			say(progress(*s.Current))
		default:
			i := slices.IndexFunc(s.History, func(r rollout.Rollout) bool { return r.ID == id })
			if i < 0 {
				return rollout.Rollout{}, fmt.Errorf("nothing is known any more of the rollout %s; see what there is with: wayleave ca show", id)
			}
			return s.History[i], nil
		}
		select {
		case <-ctx.Done():
			return rollout.Rollout{}, fmt.Errorf("%w; the rollout %s goes on; to wait for its end: wayleave ca activate", ctx.Err(), id)
		case <-tick.C:
		}
	}
}

// progress is how far a rollout is, without what changes all the time.
func progress(r rollout.Rollout) string {
	step := r.Plan.Steps[r.Step]
	words := fmt.Sprintf("rollout %s: step %d of %d (%s)", r.ID, r.Step+1, len(r.Plan.Steps), step)
	switch {
	case r.Phase == rollout.Paused:
		words += ", paused"
		if r.Reason != "" {
			words += ": " + printable(r.Reason)
		}
	case r.Settled.IsZero():
		words += ": its Envoys take it"
	default:
		words += fmt.Sprintf(": its Envoys have it, and are watched for %v", step.Dwell)
	}
	return words
}

// since is when every Envoy was told to have certificates of the root that is told now; zero: that is not known.
func since(s rollout.State, roots []*x509.Certificate) time.Time {
	for _, r := range s.History {
		if r.Phase != rollout.Succeeded || r.From == "" || fleet.Root(r.From) == fleet.Root(r.To) {
			continue
		}
		if ca.Signs(roots, fleet.Root(r.To)) == told(s, roots) {
			return r.Ended
		}
		break
	}
	return time.Time{}
}
