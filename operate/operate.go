// Package operate owns what operators do with grants, sessions and rollouts, whoever asks for it: the command line or the console. It
// says what may be done, does it, and says what came of it. How that is shown, and who may ask, is left to them; how a grant is kept, to
// package grant; how a fleet is led, to packages fleet and rollout; the protocol, to package oauth.
//
//	wayleave grant … ──┐                 ┌─▶ grant: Connect, Ask, Disconnect, List
//	                   ├─▶ operate.Desk ─┤
//	console ───────────┘                 └─▶ oauth: the consent page, the device flow
package operate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"wayleave/config"
	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/provider"
	"wayleave/vault"
)

// Desk is where an operator works: the configuration, and the store with somebody's rights. It holds no state and may be used
// concurrently.
type Desk struct {
	Config *config.Config
	Specs  []grant.Spec
	Docs   grant.Documents
	Now    func() time.Time
	Every  time.Duration // between two looks at what gates wrote
	// Rollout is the one that is led, for who has seen it under way: no other one is. Empty: whichever it is.
	Rollout string
	// Validate is what speaks against what Envoy would be told by a configuration, as *Objections. Nil: nobody is asked.
	Validate func(context.Context, *config.Config) error
}

// Refusal is why something was not begun.
type Refusal struct {
	Kind  Kind
	Words string
}

func (r *Refusal) Error() string { return r.Words }

// Kind says whose a refusal is to mend.
type Kind int

// Kinds of refusals.
const (
	NoSuch   Kind = iota // there is no such grant
	Misused              // nothing of this kind can be done with this grant
	NotNow               // it could be, but not as the grant is now
	Unusable             // it could be, but not with the value that was given
)

func refuse(kind Kind, format string, args ...any) error {
	return &Refusal{kind, fmt.Sprintf(format, args...)}
}

// Specs says what is to be kept usable.
func Specs(cfg *config.Config) []grant.Spec {
	var specs []grant.Spec
	for _, name := range slices.Sorted(maps.Keys(cfg.Grants)) {
		p, _ := cfg.ProviderOf(name)
		spec := grant.Spec{Name: name, Provider: p.Name, Scopes: cfg.RequestedScopes(name), Implied: p.ImpliedScopes}
		switch {
		case p.Kind == provider.Static:
			spec.Kind = grant.Static
		case !p.NeedsOperator():
			spec.Kind = grant.Machine
			fallthrough
		default:
			spec.OAuth = clientOf(cfg, name)
		}
		specs = append(specs, spec)
	}
	return specs
}

// clientOf speaks to a grant's provider, with the client's secret and key as their files have them when it does.
func clientOf(cfg *config.Config, name string) *oauth.Client {
	p, _ := cfg.ProviderOf(name)
	entry := cfg.Grants[name].Provider
	return oauth.NewClient(p.Config, nil, nil).Renewing(func(c oauth.Config) oauth.Config { return cfg.Renewed(entry, c) })
}

// Spec is a grant of the configuration.
func (d Desk) Spec(name string) (grant.Spec, error) {
	if i := d.index(name); i >= 0 {
		return d.Specs[i], nil
	}
	var names []string
	for _, s := range d.Specs {
		names = append(names, s.Name)
	}
	return grant.Spec{}, noSuchGrant(name, names)
}

// index is where in the configuration a grant is, or -1.
func (d Desk) index(name string) int {
	return slices.IndexFunc(d.Specs, func(s grant.Spec) bool { return s.Name == name })
}

// List is every grant, configured or stored.
func (d Desk) List(ctx context.Context) ([]grant.Summary, error) {
	return grant.List(ctx, d.Docs, d.Specs)
}

// Strays are the grants that are stored and not configured any more. It reads no others.
func (d Desk) Strays(ctx context.Context) ([]grant.Summary, error) {
	configured := map[string]bool{}
	for _, s := range d.Specs {
		configured[s.Name] = true
	}
	return grant.List(ctx, without{d.Docs, configured}, nil)
}

// without is a store that does not list some names.
type without struct {
	grant.Documents
	names map[string]bool
}

func (w without) List(ctx context.Context, path string) ([]string, error) {
	all, err := w.Documents.List(ctx, path)
	return slices.DeleteFunc(all, func(name string) bool { return w.names[name] }), err
}

// Find is a grant that is configured, or was and is still stored.
func (d Desk) Find(ctx context.Context, name string) (grant.Summary, error) {
	var specs []grant.Spec
	if i := d.index(name); i >= 0 {
		specs = d.Specs[i : i+1]
	}
	found, err := grant.List(ctx, alone{d.Docs, name}, specs)
	if err == nil && len(found) == 1 {
		return found[0], nil
	}
	all, err := d.List(ctx)
	if err != nil {
		return grant.Summary{}, err
	}
	var names []string
	for _, s := range all {
		names = append(names, s.Name)
	}
	return grant.Summary{}, noSuchGrant(name, names)
}

// alone is a store that lists one name, so that looking at one grant does not read the others.
type alone struct {
	grant.Documents
	name string
}

func (a alone) List(context.Context, string) ([]string, error) { return []string{a.name}, nil }

// Watch is the function Watch for a grant of the store. A Vault that does not answer for a while is waited out.
func (d Desk) Watch(ctx context.Context, name string, done func(grant.Summary) bool) (grant.Summary, error) {
	look := func(ctx context.Context) (grant.Summary, error) { return d.Find(ctx, name) }
	return Watch(ctx, d.Every, look, done, func(err error) bool { return errors.Is(err, vault.ErrUnavailable) })
}

// Watch looks at a grant until done says that it is as awaited. When ctx ends before, the error is its cause; the summary is
// the last one seen in any case. Errors that pass are waited out.
func Watch(ctx context.Context, every time.Duration, look func(context.Context) (grant.Summary, error), done func(grant.Summary) bool, passes func(error) bool) (grant.Summary, error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last grant.Summary
	for {
		s, err := look(ctx)
		switch {
		case err == nil && done(s):
			return s, nil
		case err == nil:
			last = s
		case ctx.Err() == nil && !passes(err):
			return last, err
		}
		select {
		case <-ctx.Done():
			return last, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// namedGrants is how many a refusal names.
const namedGrants = 20

func noSuchGrant(name string, names []string) error {
	if len(names) == 0 {
		return refuse(NoSuch, "no grant %q: the configuration has none; add it to grants", name)
	}
	more := ""
	if len(names) > namedGrants {
		names, more = names[:namedGrants], fmt.Sprintf(", and %d more", len(names)-namedGrants)
	}
	return refuse(NoSuch, "no grant %q; there are: %s%s", name, strings.Join(names, ", "), more)
}
