package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"wayleave/config"
	"wayleave/grant"
	"wayleave/operate"
	"wayleave/vault"
)

// examineVault looks at Vault, at our log-in and the rights of role, and at the grants: each only when what it needs is
// well.
func examineVault(ctx context.Context, cfg *config.Config, identity vault.Config, role vault.Role) []finding {
	out, open := examineNodes(ctx, identity)
	if !open {
		return out
	}
	store, err := vault.Open(ctx, identity, slog.New(slog.DiscardHandler))
	if err != nil {
		return append(out, fail("vault log-in", err.Error(), "mend vault.auth or vault.namespace in the configuration; docs/vault.md has each method"))
	}
	defer store.Close()
	out = append(out, examineLogIn(ctx, store, identity, time.Now())...)
	if err := store.Preflight(ctx, role); err != nil {
		return append(out, fail("vault rights", err.Error(), "an administrator runs 'wayleave vault setup', or gives this log-in the policy "+role.Policy()))
	}
	out = append(out, good("vault rights", "what the "+string(role)+" needs"))
	if vaultConfig(cfg).Address != "" { // else the roots are in the state directory, and were looked at
		if roots, err := store.Roots(ctx); err != nil {
			out = append(out, fail("ca", err.Error(), "an administrator runs 'wayleave vault setup'"))
		} else {
			out = append(out, examineRoots(roots, "in Vault", time.Now())...)
		}
	}
	out = append(out, examineGrants(ctx, cfg, store)...)
	if at, will := store.Deletes(); will {
		out = append(out, warn("vault mount", "deletes documents by itself, one of them at "+at+", and with them keys and grants", "set delete_version_after of the mount to 0s, or let an administrator run 'wayleave vault setup'"))
	}
	return out
}

// examineServer asks what the server tells anybody. It reports whether one can log in to it.
func examineServer(ctx context.Context, identity vault.Config) (out []finding, open bool) {
	const what = "vault"
	server, err := vault.NewSeal(identity)
	if err != nil {
		return []finding{fail(what, err.Error(), "mend vault.address, vault.nodes or vault.ca_file in the configuration")}, false
	}
	defer server.Close()
	status, err := server.Status(ctx)
	if err != nil {
		return []finding{fail(what, err.Error(), "see that it runs at "+identity.Address+" and can be reached from here")}, false
	}
	switch {
	case !status.Initialized:
		return []finding{fail(what, "not initialised", "initialise it: bao operator init")}, false
	case status.Sealed:
		return []finding{fail(what, "sealed", "unseal it: bao operator unseal")}, false
	}
	detail := cmp.Or(status.Version, "unknown version") + " at " + identity.Address
	if identity.Namespace != "" {
		detail += ", namespace " + identity.Namespace
	}
	out = []finding{good(what, detail)}
	if status.StaleReads() {
		out = append(out, warn(what, status.Version+" lets standbys answer from a copy that is behind, and has no way to ask for the active node",
			"upgrade to OpenBao 2.7 or later, or write disable_standby_reads = true in the configuration of the servers"))
	}
	return append(out, examineClock("Vault", status.Skew)...), true
}

// examineNodes asks each node of a cluster, since a gate does not notice one that is away until it needs it. One that is well will do.
func examineNodes(ctx context.Context, identity vault.Config) (out []finding, open bool) {
	if len(identity.Nodes) == 0 {
		return examineServer(ctx, identity)
	}
	for _, address := range append([]string{identity.Address}, identity.Nodes...) {
		one := identity
		one.Address, one.Nodes = address, nil
		found, up := examineServer(ctx, one)
		if !up {
			found = []finding{warn("vault node "+address, found[0].Detail, found[0].Fix+"; until then the gate asks the others")}
		}
		out, open = append(out, found...), open || up
	}
	if !open {
		out = append(out, fail("vault", "none of its nodes can be used", "mend one of them"))
	}
	return out, open
}

// examineClock tells of clocks that differ by more than tokens and certificates allow for.
func examineClock(whose string, skew time.Duration) []finding {
	const tolerable = 30 * time.Second
	if skew.Abs() < tolerable {
		return nil
	}
	word := "ahead of"
	if skew < 0 {
		word = "behind"
	}
	return []finding{warn("clock", fmt.Sprintf("%s's is %v %s ours; JSON web tokens and certificates fail when that grows", whose, skew.Abs(), word),
		"set both by NTP, and find out which is wrong: timedatectl")}
}

// examineLogIn says how long the log-in lasts.
func examineLogIn(ctx context.Context, store *vault.Client, identity vault.Config, now time.Time) []finding {
	const what = "vault log-in"
	l, err := store.LogIn(ctx)
	if err != nil {
		return []finding{warn(what, err.Error(), "let its policy read auth/token/lookup-self, as the policy 'default' does")}
	}
	how := "by " + identity.Auth.Method
	if identity.Auth.Method != "token" {
		how += " at " + l.Path
	}
	detail := fmt.Sprintf("%s, policies %s", how, strings.Join(l.Policies, ", "))
	ends := fmt.Sprintf("ends in %v", l.TTL)
	var out []finding
	switch repeated := identity.Auth.Method != "token"; {
	case l.TTL == 0:
		out = append(out, good(what, detail+"; never ends"))
	case l.Period > 0:
		out = append(out, good(what, fmt.Sprintf("%s; %s, and is renewed for %v each time", detail, ends, l.Period)))
	case repeated:
		out = append(out, good(what, fmt.Sprintf("%s; %s, and is repeated", detail, ends)))
	case l.Renewable:
		out = append(out, warn(what, fmt.Sprintf("%s; %s, and is renewed up to its maximum only", detail, ends),
			"fine for a person; a gate needs a periodic token (bao token create -period=24h) or another vault.auth.method"))
	default:
		out = append(out, warn(what, fmt.Sprintf("%s; %s, and cannot be renewed", detail, ends),
			"fine for a person; a gate needs a periodic token (bao token create -period=24h) or another vault.auth.method"))
	}
	if identity.Auth.Method == "approle" {
		out = append(out, examineSecretID(ctx, store, now))
	}
	return out
}

func examineSecretID(ctx context.Context, store *vault.Client, now time.Time) finding {
	const what = "secret id"
	id, err := store.SecretID(ctx)
	if err != nil {
		return warn(what, err.Error(), "'wayleave vault setup' lets the gate ask how long its secret id works")
	}
	if warning := id.Warning(now); warning != "" {
		return warn(what, warning, "make another and write it to vault.auth.secret_id_file: bao write -f -field=secret_id auth/approle/role/wayleave-gateway/secret-id; "+
			"it is capped by the mount's max_lease_ttl, whatever secret_id_ttl says")
	}
	if id.Expires.IsZero() {
		return good(what, "never ends")
	}
	return good(what, "ends at "+when(id.Expires))
}

// examineGrants says how each grant is.
func examineGrants(ctx context.Context, cfg *config.Config, store *vault.Client) []finding {
	summaries, err := grant.List(ctx, store, operate.Specs(cfg))
	if err != nil {
		return []finding{fail("grants", err.Error(), "")}
	}
	var out []finding
	for _, s := range summaries {
		detail := string(s.State)
		if len(s.Missing) > 0 {
			detail += ": " + strings.Join(s.Missing, " ")
		}
		if s.Next == "" {
			out = append(out, good("grant "+s.Name, detail))
		} else {
			out = append(out, warn("grant "+s.Name, cmp.Or(detail, "unknown"), s.Next))
		}
	}
	return out
}
