package shapes

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// The file as `docker compose` reads it: by the schema, with variables, profiles and merges.
func TestCompose(t *testing.T) {
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "deploy/compose/compose.yaml")}, cli.WithProfiles([]string{"*"}))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	services := project.Services
	for _, name := range []string{"gate-a", "gate-b", "envoy"} {
		s := services[name]
		if !s.ReadOnly || s.User != "65532:65532" || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s may do more than it needs: %+v", name, s)
		}
		if !slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool { return v.Source == "run" && v.Target == "/run/wayleave" }) {
			t.Errorf("%s has no part in the sockets", name)
		}
		if len(s.Ports) > 0 {
			t.Errorf("%s is published: %v", name, s.Ports)
		}
	}
	spool := func(name string) (source string) {
		for _, v := range services[name].Volumes {
			if v.Target == "/var/lib/wayleave" {
				source = v.Source
			}
		}
		return source
	}
	if a, b := spool("gate-a"), spool("gate-b"); a == "" || b == "" || a == b {
		t.Errorf("the gates' spools are in %q and %q; each needs one of its own", a, b)
	}
	// The worker reaches Envoy, and nothing else.
	for network := range services["worker"].Networks {
		if !project.Networks[network].Internal {
			t.Errorf("the worker is in the network %s, which leads out", network)
		}
	}
	if _, there := services["gate-a"].Networks["workers"]; there {
		t.Error("workers reach a gate without Envoy")
	}
	if _, there := services["envoy"].Networks["workers"]; !there {
		t.Error("workers do not reach Envoy")
	}
}
