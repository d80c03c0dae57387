package operate

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wayleave/config"
	"wayleave/grant"
	"wayleave/worker"
)

const vetted = `
providers:
  acme: {authorize_url: https://login.acme.example/a, token_url: https://login.acme.example/t, client_id: w, auth_style: none}
  other: {authorize_url: https://login.other.example/a, token_url: https://login.other.example/t, client_id: w, auth_style: none}
  robot: {token_url: https://login.robot.example/t, client_id: w, client_secret_file: f, auth_style: client_secret_basic, grant_type: client_credentials}
grants:
  acme: {provider: acme, scopes: [read, write, admin]}
  second: {provider: acme, scopes: [read]}
  machine: {provider: robot, scopes: [read]}
routes:
  - hosts: [api.acme.example, "*.eu.acme.example"]
    grant: acme
    required_scopes: [read]
    paths: [{prefix: /admin/, required_scopes: [admin]}]
  - {hosts: [machine.example], grant: machine}
profiles:
  default: {grants: [acme, second, machine]}
  none: {}
workers:
  ci: {profile: default}
  idle: {profile: none}
`

func TestVet(t *testing.T) {
	live := []worker.Live{
		{ID: "1", Record: worker.Record{Worker: "ci", Profile: "default"}}, {ID: "2", Record: worker.Record{Worker: "ci", Profile: "default"}},
		{ID: "3", Record: worker.Record{Worker: "idle", Profile: "none"}}, {ID: "4", Record: worker.Record{Worker: "ci", Profile: "older"}},
		{ID: "5", Record: worker.Record{Worker: "gone", Profile: "default"}},
	}
	grants := []grant.Summary{
		{Name: "acme", State: grant.ScopeMissing, Granted: []string{"read", "write"}},
		{Name: "machine", State: grant.Healthy, Granted: []string{"read"}},
		{Name: "second", State: grant.NeverConnected},
	}
	const route = "required_scopes: [read]"
	for name, c := range map[string]struct {
		replace []string // pairs
		want    []string
	}{
		"nothing":                  {nil, nil},
		"another host beside":      {[]string{"[api.acme.example,", "[api.acme.example, www.acme.example,"}, nil},
		"one host of several":      {[]string{"[api.acme.example,", "["}, nil},
		"an idle worker":           {[]string{"  idle: {profile: none}\n", ""}, nil},
		"a host of all is denied":  {[]string{"\nprofiles:", "\ndeny: [x.eu.acme.example]\nprofiles:"}, nil},
		"a worker that is gone":    {[]string{"  ci: {profile: default}\n", ""}, []string{"drops_worker: worker ci, with 2 live sessions, would lose every route it has: workers does not have it any more"}},
		"a worker's profile":       {[]string{"ci: {profile: default}", "ci: {profile: none}"}, []string{"drops_worker: worker ci, with 2 live sessions, would lose every route it has: its profile is none in place of default, which ends its sessions"}},
		"a profile without grants": {[]string{"{grants: [acme, second, machine]}", "{}"}, []string{"drops_worker: worker ci, with 2 live sessions, would lose every route it has: none of the hosts that it is routed to stays"}},
		"other hosts": {[]string{`[api.acme.example, "*.eu.acme.example"]`, "[api.other.example]", "[machine.example]", "[m.example]"}, []string{
			"drops_worker: worker ci, with 2 live sessions, would lose every route it has: none of the hosts that it is routed to stays",
		}},
		"another port":                    {[]string{`[api.acme.example, "*.eu.acme.example"]`, `["api.acme.example:8443"]`}, nil},
		"a scope that is held":            {[]string{route, "required_scopes: [write]"}, nil},
		"a scope where it is missing now": {[]string{"required_scopes: [admin]}]", "required_scopes: [admin, write]}]"}, nil},
		"a scope that is not held": {[]string{route, "required_scopes: [read, admin]"}, []string{
			"needs_reconnect: requests to *.eu.acme.example, api.acme.example that are served now would need grant acme, which lacks scopes (admin); connect it with the new file first: wayleave grant connect acme -c FILE",
		}},
		"a scope that comes with one that is held": {[]string{route, "required_scopes: [read, admin]", "https://login.acme.example/t,", "https://login.acme.example/t, implied_scopes: {write: [admin]},"}, nil},
		"a scope for a path": {[]string{"[{prefix: /admin/,", "[{exact: /v1, methods: [PUT], required_scopes: [admin]}, {prefix: /admin/,"}, []string{
			"needs_reconnect: requests to *.eu.acme.example/v1, api.acme.example/v1 that are served now would need grant acme, which lacks scopes (admin); connect it with the new file first: wayleave grant connect acme -c FILE",
		}},
		"a path that is denied": {[]string{"[{prefix: /admin/,", "[{exact: /v1, deny: no}, {prefix: /admin/,"}, nil},
		"a scope of a machine":  {[]string{"grant: machine}", "grant: machine, required_scopes: [more]}", "{provider: robot, scopes: [read]}", "{provider: robot, scopes: [more]}"}, nil},
		"a grant that is not connected": {[]string{"grant: acme\n", "grant: second\n", "    paths: [{prefix: /admin/, required_scopes: [admin]}]\n", ""}, []string{
			"needs_reconnect: requests to *.eu.acme.example, api.acme.example that are served now would need grant second, which is not connected; connect it with the new file first: wayleave grant connect second -c FILE",
		}},
		"another provider": {[]string{"acme: {provider: acme,", "acme: {provider: other,"}, []string{
			"needs_reconnect: requests to *.eu.acme.example, api.acme.example that are served now would need grant acme, which is connected at another provider; connect it with the new file first: wayleave grant connect acme -c FILE",
		}},
		"a route for one host": {[]string{"routes:\n", "routes:\n  - {hosts: [x.eu.acme.example], grant: second}\n"}, nil}, // that nobody is known to use
	} {
		t.Run(name, func(t *testing.T) {
			text := vetted
			for i := 0; i < len(c.replace); i += 2 {
				if !strings.Contains(text, c.replace[i]) {
					t.Fatalf("no %q to replace", c.replace[i])
				}
				text = strings.Replace(text, c.replace[i], c.replace[i+1], 1)
			}
			var got []string
			for _, o := range Vet(parsed(t, vetted), parsed(t, text), grants, live) {
				got = append(got, o.Name+": "+o.Words)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What a scope no longer implies is lost, also where a gate has shown it as granted until now.
func TestVetNoLongerImplied(t *testing.T) {
	implying := strings.Replace(vetted, "https://login.acme.example/t,", "https://login.acme.example/t, implied_scopes: {write: [admin]},", 1)
	grants := []grant.Summary{{Name: "acme", State: grant.Healthy, Granted: []string{"admin", "read", "write"}, Listed: []string{"read", "write"}}}
	got := Vet(parsed(t, implying), parsed(t, vetted), grants, nil)
	if len(got) != 1 || got[0].Name != NeedsReconnect || !strings.Contains(got[0].Words, "/admin/* that are served now would need grant acme, which lacks scopes (admin)") {
		t.Errorf("%+v", got)
	}
	if got := Vet(parsed(t, implying), parsed(t, implying), grants, nil); len(got) > 0 {
		t.Errorf("nothing changes, and: %+v", got)
	}
}

func parsed(t *testing.T, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("wayleave.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}
