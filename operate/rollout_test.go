package operate

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave/config"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/rollout"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

func TestStartRollout(t *testing.T) {
	ctx := t.Context()
	docs := vaulttest.NewMemory()
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	local := parsed(t, "listen: {proxy: 127.0.0.1:7}\nrollout: {steps: [{share: 50}, {share: 100}]}\n"+vetted)
	d := Desk{Config: local, Specs: Specs(local), Docs: docs, Now: func() time.Time { return now }}
	start := func(change func(*RolloutRequest)) (Started, error) {
		q := RolloutRequest{File: "new.yaml", Text: []byte("listen: {proxy: nonsense}\n" + vetted), Author: "ana", Note: "why"}
		change(&q)
		return d.StartRollout(ctx, q)
	}
	text := func(old, new string) func(*RolloutRequest) {
		return func(q *RolloutRequest) { q.Text = []byte(strings.Replace(vetted, old, new, 1)) }
	}
	objected := func(err error, names ...string) {
		t.Helper()
		o, are := errors.AsType[*Objections](err)
		if !are {
			t.Fatalf("got %v, want objections", err)
		}
		var got []string
		for _, a := range o.All {
			got = append(got, a.Name)
		}
		if !slices.Equal(got, names) || !strings.Contains(err.Error(), "--force "+strings.Join(slices.Sorted(slices.Values(names)), ",")) {
			t.Errorf("got %v, want %v", err, names)
		}
	}
	end := func(f func(rollout.State) (rollout.State, error)) {
		t.Helper()
		if _, err := fleet.Change(ctx, docs, f); err != nil {
			t.Fatal(err)
		}
	}

	// The first is stable at once.
	first, err := start(func(*RolloutRequest) {})
	if err != nil || first.Rollout.Phase != rollout.Succeeded || first.Rollout.To != local.Hash() || len(first.Rollout.Plan.Steps) != 2 || first.Rollout.Author != "ana" {
		t.Fatalf("%+v, %v", first, err)
	}
	kept, err := fleet.LoadRevision(ctx, docs, first.Rollout.To)
	if err != nil || strings.Contains(kept.Text, "listen") || !strings.Contains(kept.Text, "api.acme.example") || kept.Note != "why" {
		t.Errorf("%+v, %v", kept, err)
	}
	if again, err := d.revision(ctx, first.Rollout.To); err != nil || again.Hash() != first.Rollout.To || again.Listen.Proxy != "127.0.0.1:7" {
		t.Errorf("what is kept means something else: %v", err)
	}
	if _, err := start(func(*RolloutRequest) {}); !errors.Is(err, rollout.ErrSame) {
		t.Errorf("the same: %v", err)
	}

	// What is wrong with a file is said of that file, before anything is written.
	_, err = start(text("client_id: w", "client: w"))
	if fault, is := errors.AsType[config.Fault](err); !is || fault.File != "new.yaml" {
		t.Errorf("got %v", err)
	}

	// An objection holds until it is overruled.
	if _, err := docs.Put(ctx, "status/acme", grant.Summary{Name: "acme", Provider: "acme", State: grant.Healthy, Granted: []string{"read"}}, 0); err != nil {
		t.Fatal(err)
	}
	more := text("required_scopes: [read]", "required_scopes: [write]")
	_, err = start(more)
	objected(err, NeedsReconnect)
	d.Validate = func(context.Context, *config.Config) error {
		return &Objections{[]Objection{{EnvoyRefuses, "it says no"}}}
	}
	_, err = start(more)
	objected(err, NeedsReconnect, EnvoyRefuses)
	if _, err := start(func(q *RolloutRequest) { more(q); q.Force = []string{"all"} }); err == nil || !strings.Contains(err.Error(), NeedsReconnect) {
		t.Errorf("got %v", err)
	}
	forced, err := start(func(q *RolloutRequest) { more(q); q.Force = []string{NeedsReconnect, EnvoyRefuses} })
	if err != nil || len(forced.Forced) != 2 || forced.Rollout.Phase != rollout.Running {
		t.Fatalf("%+v, %v", forced, err)
	}
	d.Validate = func(context.Context, *config.Config) error { return nil }
	if _, err := start(text("api.acme.example", "www.acme.example")); !errors.Is(err, rollout.ErrUnderWay) {
		t.Errorf("while one is under way: %v", err)
	}

	// One that was rolled back begins again only when somebody asks for it.
	end(func(s rollout.State) (rollout.State, error) { return s.Abort("not today", now) })
	automatic := func(q *RolloutRequest) { more(q); q.Automatic = true; q.Force = []string{NeedsReconnect} }
	_, err = start(automatic)
	objected(err, RolledBack)
	if !strings.Contains(err.Error(), "not today") {
		t.Error(err)
	}
	again, err := start(func(q *RolloutRequest) { more(q); q.Force = []string{NeedsReconnect} })
	if err != nil || again.Rollout.ID == forced.Rollout.ID {
		t.Errorf("%+v, %v", again, err)
	}
	end(func(s rollout.State) (rollout.State, error) { return s.Promote("", now) })

	// The root CA that Envoys get certificates of stays as it is.
	end(func(s rollout.State) (rollout.State, error) {
		s, err := s.Start(rollout.Rollout{ID: "root", To: fleet.Named(s.Stable, "0123456789abcdef"), Plan: local.Plan()}, now)
		if err != nil {
			return s, err
		}
		return s.Promote("", now)
	})
	if _, err := start(more); !errors.Is(err, rollout.ErrSame) {
		t.Errorf("the same configuration with another root CA: %v", err)
	}
	other, err := start(func(q *RolloutRequest) { text("api.acme.example", "www.acme.example")(q); q.Force = ObjectionNames() })
	if err != nil || fleet.Root(other.Rollout.To) != "0123456789abcdef" || fleet.Configuration(other.Rollout.To) == fleet.Configuration(other.Rollout.From) {
		t.Errorf("%+v, %v", other, err)
	}
	if _, err := fleet.LoadRevision(ctx, docs, other.Rollout.To); err != nil {
		t.Error(err)
	}
	end(func(s rollout.State) (rollout.State, error) { return s.Abort("", now) })

	// Nobody can say what would be lost when what is stable is not to be read.
	if err := docs.Delete(ctx, "fleet/revisions/"+again.Rollout.To); err != nil {
		t.Fatal(err)
	}
	_, err = start(func(*RolloutRequest) {})
	objected(err, NothingKnown)
	broken := fleet.Revision{ID: again.Rollout.To, Text: "of: another version"}
	if err := fleet.StoreRevision(ctx, docs, broken); err != nil {
		t.Fatal(err)
	}
	_, err = start(func(*RolloutRequest) {})
	objected(err, NothingKnown)
	docs.Inject(func(op, path string) vaulttest.Fault {
		if op == "get" && strings.HasPrefix(path, "fleet/revisions/") {
			return vaulttest.Fault{Before: vault.ErrUnavailable}
		}
		return vaulttest.Fault{}
	})
	if _, err := start(func(*RolloutRequest) {}); !errors.Is(err, vault.ErrUnavailable) {
		t.Errorf("while Vault is away: %v", err)
	}
}
