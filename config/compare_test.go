package config_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wayleave/config"
)

func TestCompare(t *testing.T) {
	for name, c := range map[string]struct {
		replace []string // pairs
		want    []string
	}{
		"nothing":             {nil, nil},
		"what means the same": {[]string{"auth_style: client_secret_basic", "auth_style: client_secret_basic # as before"}, nil},
		"a new host":          {[]string{"[api.acme.example]", "[api.acme.example, eu.acme.example]"}, []string{"host eu.acme.example: is new: routed with acme"}},
		"another host": {[]string{"[api.acme.example]", "[eu.acme.example]", "  - hosts: [eu", "  - name: api.acme.example\n    hosts: [eu"}, []string{
			"host api.acme.example: is gone; it was routed with acme", "host eu.acme.example: is new: routed with acme",
		}},
		"a tunnel": {[]string{"profiles:", "tunnel: [pypi.org]\nprofiles:"}, []string{"host pypi.org: is new: tunnelled"}},
		"a scope that is required": {[]string{"    grant: acme\n  - hosts", "    grant: acme\n    required_scopes: [read]\n    paths: [{prefix: /v1/, required_scopes: [write]}]\n  - hosts"}, []string{
			"scopes api.acme.example: a request now needs read of acme",
			"scopes api.acme.example/v1/*: a request now needs read, write of acme",
			"route api.acme.example: has another required_scopes, paths",
		}},
		"a scope that is asked for": {[]string{"scopes: [read, write]", "scopes: [read, admin]"}, []string{
			"grant acme: is now asked for admin; without it, it needs one reconnect (reconnect)", "grant acme: is not asked for write any more",
		}},
		"another grant": {[]string{"claude: {provider: anthropic}", "claude: {provider: anthropic}\n  robot: {provider: anthropic}", "grants: [acme, claude]", "grants: [acme, claude, robot]"}, []string{
			"grant robot: is new, at anthropic (reconnect)", "profile default: has another grants",
		}},
		"a provider's setting": {[]string{"auth_style: client_secret_basic", "auth_style: client_secret_post"}, []string{"provider acme: has another auth_style"}},
		"a worker":             {[]string{"  laptop: {profile: default}", "  desktop: {profile: default}"}, []string{"worker desktop: is new", "worker laptop: is gone"}},
		"a setting":            {[]string{"\nproviders:", "\nupstream: {dns_resolvers: ['192.0.2.1:53']}\nproviders:"}, []string{"setting upstream: has another dns_resolvers"}},
		"a local setting":      {[]string{"\nproviders:", "\nlisten: {proxy: 127.0.0.1:9}\nproviders:"}, []string{"local setting listen: has another proxy"}},
	} {
		t.Run(name, func(t *testing.T) {
			text := valid
			for i := 0; i < len(c.replace); i += 2 {
				if !strings.Contains(text, c.replace[i]) {
					t.Fatalf("no %q to replace", c.replace[i])
				}
				text = strings.Replace(text, c.replace[i], c.replace[i+1], 1)
			}
			a, b := parse(t, valid), parse(t, text)
			var got []string
			for _, change := range config.Compare(a, b) {
				line := change.String()
				if change.Reconnect {
					line += " (reconnect)"
				}
				got = append(got, line)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			local := !slices.ContainsFunc(got, func(line string) bool { return !strings.HasPrefix(line, "local setting ") })
			if local != (a.Hash() == b.Hash()) {
				t.Errorf("%d changes, and the revisions are %.8s and %.8s", len(got), a.Hash(), b.Hash())
			}
		})
	}
}
