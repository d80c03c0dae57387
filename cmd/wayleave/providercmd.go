package main

import (
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"wayleave/config"
	"wayleave/oauth"
	"wayleave/provider"
)

func newProvider() *cobra.Command {
	return group(&cobra.Command{
		Use:   "provider",
		Short: "List the providers that are known, or find out what a new one needs",
	}, newProviderList(), newProviderDiscover())
}

func newProviderList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the presets and the providers of the configuration",
		Long: `List shows what each provider's credentials are, how a grant gets its first one, and where they are refreshed. With a
configuration it shows the configuration's own providers too, and which grants are theirs.`,
		Example: `  wayleave provider list
  wayleave provider list -c wayleave.yaml --json`,
		Args: exactArgs(),
	}
	st := addStateFlag(c)
	path := addConfigOrGateFlag(c, st)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg := new(config.Config)
		if path() != "" {
			var err error
			if cfg, err = checkConfig(c, path()); err != nil {
				return err
			}
		}
		all := listProviders(cfg)
		if asJSON {
			return printJSON(c.OutOrStdout(), all)
		}
		return printProviders(c.OutOrStdout(), all)
	}
	return c
}

// listedProvider is one line of `wayleave provider list`.
type listedProvider struct {
	Name     string        `json:"name"`
	Preset   string        `json:"preset,omitempty"` // that it starts from; empty: it is one
	Kind     provider.Kind `json:"kind"`
	First    string        `json:"first_credential"` // how a grant gets it
	TokenURL string        `json:"token_url,omitempty"`
	Grants   []string      `json:"grants,omitempty"`
}

// listProviders are the presets, then what the configuration has of its own, each sorted. A preset that the configuration
// changes is only among the latter.
func listProviders(cfg *config.Config) []listedProvider {
	var all []listedProvider
	for _, name := range provider.Presets() {
		if _, own := cfg.Providers[name]; !own {
			p, _ := provider.Preset(name)
			all = append(all, listed(p))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Providers)) {
		p := cfg.Providers[name]
		l := listed(p.Provider)
		l.Preset = p.Preset
		for _, g := range slices.Sorted(maps.Keys(cfg.Grants)) {
			if cfg.Grants[g].Provider == name {
				l.Grants = append(l.Grants, g)
			}
		}
		all = append(all, l)
	}
	return all
}

func listed(p provider.Provider) listedProvider {
	l := listedProvider{Name: p.Name, Kind: p.Kind, TokenURL: p.TokenURL}
	switch {
	case p.Kind == provider.Static:
		l.First = "import"
	case p.GrantType == "":
		l.First = string(oauth.GrantCode)
	default:
		l.First = string(p.GrantType)
	}
	if l.Kind == "" {
		l.Kind = provider.OAuth
	}
	if l.Kind == provider.OAuth && p.DeviceURL != "" && p.GrantType != oauth.GrantDevice {
		l.First += ", " + string(oauth.GrantDevice)
	}
	return l
}

func printProviders(w io.Writer, all []listedProvider) error {
	rows := [][]string{{"PROVIDER", "PRESET", "KIND", "FIRST CREDENTIAL", "TOKEN ENDPOINT"}}
	for _, l := range all {
		rows = append(rows, []string{l.Name, orDash(l.Preset), string(l.Kind), l.First, orDash(hostOf(l.TokenURL))})
	}
	return printTable(w, rows, func(i int) []note {
		if i == 0 || len(all[i-1].Grants) == 0 {
			return nil
		}
		return []note{{"grants", strings.Join(all[i-1].Grants, ", ")}}
	}, widthOf(w))
}

func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Host
}

// say prints lines to whoever reads what is no result.
func say(w io.Writer, lines ...string) {
	for _, l := range lines {
		fmt.Fprintln(w, l)
	}
}
