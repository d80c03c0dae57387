package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"wayleave/approval"
	"wayleave/config"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/notify"
	"wayleave/webhook"
	"wayleave/xds"
)

// targets are where operators are told.
func targets(cfg *config.Config) ([]notify.Target, error) {
	var out []notify.Target
	for _, name := range slices.Sorted(maps.Keys(cfg.Notify.Targets)) {
		t := cfg.Notify.Targets[name]
		key := "notify.targets." + name
		client, err := trustingFile(cfg.Path(t.CAFile))
		if err != nil {
			return nil, fmt.Errorf("%s.ca_file: %w", key, err)
		}
		sender, err := sender(t, cfg.Path(t.CAFile), client)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		target := notify.Target{Name: name, Sender: sender}
		for _, kind := range t.Kinds {
			target.Kinds = append(target.Kinds, notify.Kind(kind))
		}
		out = append(out, target)
	}
	return out, nil
}

func sender(t config.NotifyTarget, caFile string, client *http.Client) (notify.Sender, error) {
	if t.Type == config.NotifySMTP {
		host, _, err := net.SplitHostPort(t.Address)
		if err != nil {
			return nil, err
		}
		roots, err := rootsAnd(caFile)
		if err != nil {
			return nil, err
		}
		return notify.SMTP{
			Address: t.Address, Encryption: notify.Encryption(t.Encryption), TLS: &tls.Config{ServerName: host, RootCAs: roots, MinVersion: tls.VersionTLS12},
			Username: t.Username, Password: t.Secrets.Password, From: t.From, To: t.To,
		}, nil
	}
	if err := webhook.CheckURL(t.Secrets.URL.Reveal()); err != nil {
		return nil, fmt.Errorf("the address %w", err)
	}
	var signing webhook.Key
	if t.Type == config.NotifyWebhook {
		var err error
		if signing, err = webhook.ParseKey(t.Secrets.Key); err != nil {
			return nil, fmt.Errorf("secret_file: %w", err)
		}
	}
	hook := webhook.New(t.Secrets.URL, signing, client, nil)
	if t.Type == config.NotifySlack {
		return notify.Slack(hook), nil
	}
	return notify.Webhook(hook), nil
}

// notifier tells operators what goes wrong at this gate.
func (g gate) notifier(holder string, store notify.Documents, see func() []notify.Alert) (*notify.Notifier, error) {
	to, err := targets(g.cfg)
	if err != nil {
		return nil, err
	}
	return notify.New(notify.Options{
		Holder: holder, Docs: store, Alerts: see, Targets: to, Log: g.log,
		Timing: notify.Timing{GroupWait: g.cfg.Notify.GroupWait, Repeat: g.cfg.Notify.RepeatInterval},
	}), nil
}

// needs are all that needs an operator now, as this gate knows: what its notifier tells, and its console shows. gate is this one's name in
// its fleet.
func (g gate) needs(holder, gate string, live *revisions, member *fleet.Member, board *approval.Board) needs {
	return func(pages notify.Pages) []need {
		served, view, now := live.now.Load(), member.View(), time.Now()
		var all []need
		add := func(a notify.Alert, wrong bool) {
			if wrong {
				all = append(all, need{Alert: a})
			}
		}
		var summaries []grant.Summary
		for _, spec := range served.specs(nil) {
			s := live.grants.Summary(spec.Name)
			summaries = append(summaries, s)
			add(notify.OfGrant(s, now, pages))
		}
		add(notify.OfVault(summaries, pages))
		add(notify.OfRoots(live.authority.Roots(), now, pages))
		ours := connected(live.envoys, holder)
		for _, n := range ours {
			add(notify.OfEnvoy(n.ID, n.Refused, holder, pages))
		}
		others := 0
		for _, r := range view.Reports {
			if r.Gate == gate {
				continue // as it was a moment ago
			}
			others += len(r.Envoys)
			for _, n := range r.Envoys {
				if a, wrong := notify.OfEnvoy(n.ID, n.Refused, r.Gate, pages); wrong {
					all = append(all, need{a, true})
				}
			}
		}
		add(notify.OfFleet(len(ours)+others, pages))
		add(notify.OfRollout(view.State, now, pages))
		for _, a := range board.Waiting() {
			add(notify.OfApproval(a, pages), true)
		}
		for _, a := range takenOut(served.stable.resources.Quarantined, pages) {
			add(a, true)
		}
		return all
	}
}

// needs are what needs an operator now.
type needs func(notify.Pages) []need

// need is something that needs an operator.
type need struct {
	notify.Alert
	elsewhere bool // another gate sees it better, and tells it
}

// takenOut are the hosts that are refused for a fault.
func takenOut(all []xds.Quarantined, pages notify.Pages) (alerts []notify.Alert) {
	for _, q := range all {
		for _, host := range q.Hosts {
			alerts = append(alerts, notify.OfHost(host, q.Fault.Error(), pages))
		}
	}
	return alerts
}

// told are what this gate tells.
func (of needs) told(pages notify.Pages) func() []notify.Alert {
	return func() (all []notify.Alert) {
		for _, n := range of(pages) {
			if !n.elsewhere {
				all = append(all, n.Alert)
			}
		}
		return all
	}
}

// shown are all of it, with the paths of pages.
func (of needs) shown() (all []notify.Alert) {
	for _, n := range of(func(path string) string { return path }) {
		all = append(all, n.Alert)
	}
	return all
}

func newNotify() *cobra.Command {
	return group(&cobra.Command{Use: "notify", Short: "Try out how operators are told that something needs them"}, newNotifyTest())
}

func newNotifyTest() *cobra.Command {
	var configPath string
	var asJSON bool
	c := &cobra.Command{
		Use:   "test -c wayleave.yaml [TARGET…]",
		Short: "Send a test message to the targets of the configuration",
		Long: `Test sends a message that says that nothing is wrong to each target in notify.targets, or those that are named, and reports
which took it. It needs no gate and no Vault, only the files that the targets name. Exit code 1: some target did not take it.`,
		Example: `  wayleave notify test
  wayleave notify test -c /etc/wayleave/wayleave.yaml oncall
  wayleave notify test --json`,
		RunE: func(c *cobra.Command, only []string) error {
			cfg, err := checkConfig(c, configPath)
			if err != nil {
				return err
			}
			if len(cfg.Notify.Targets) == 0 {
				return usageError{errors.New("the configuration tells nobody: write notify.targets; docs/notifications.md has examples")}
			}
			for _, name := range only {
				if _, ok := cfg.Notify.Targets[name]; !ok {
					return usageError{fmt.Errorf("no target %q; there are: %s", name, strings.Join(slices.Sorted(maps.Keys(cfg.Notify.Targets)), ", "))}
				}
			}
			if err := cfg.LoadNotify(); err != nil {
				return err
			}
			to, err := targets(cfg)
			if err != nil {
				return err
			}
			if len(only) > 0 {
				to = slices.DeleteFunc(to, func(t notify.Target) bool { return !slices.Contains(only, t.Name) })
			}
			return reportTest(c, to, asJSON)
		},
	}
	addConfigFlag(c, &configPath)
	c.Flags().BoolVar(&asJSON, "json", false, "print the results as JSON")
	return c
}

// tried is what came of a test message.
type tried struct {
	Target string `json:"target"`
	Taken  bool   `json:"taken"`
	Error  string `json:"error,omitempty"`
}

func reportTest(c *cobra.Command, to []notify.Target, asJSON bool) error {
	results := make([]tried, len(to))
	message := notify.Test(time.Now())
	var all sync.WaitGroup
	for i, t := range to {
		all.Go(func() {
			results[i] = tried{Target: t.Name, Taken: true}
			if err := t.Sender.Send(c.Context(), message); err != nil {
				results[i].Taken, results[i].Error = false, err.Error()
			}
		})
	}
	all.Wait()
	failed := 0
	for _, r := range results {
		if !r.Taken {
			failed++
		}
	}
	switch {
	case asJSON:
		if err := printJSON(c.OutOrStdout(), results); err != nil {
			return err
		}
	default:
		for _, r := range results {
			if r.Taken {
				fmt.Fprintf(c.OutOrStdout(), "%s took it\n", r.Target)
			} else {
				fmt.Fprintf(c.OutOrStdout(), "%s did not: %s\n", r.Target, r.Error)
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d targets did not take a message: mend them in notify.targets, or what they lead to", failed, len(results))
	}
	return nil
}
