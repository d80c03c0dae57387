package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	"wayleave/config"
	"wayleave/xds"
)

// addConfigFlag adds -c; WAYLEAVE_CONFIG names the file when the flag does not.
func addConfigFlag(c *cobra.Command, path *string) {
	c.Flags().StringVarP(path, "config", "c", os.Getenv("WAYLEAVE_CONFIG"), "configuration file (default $WAYLEAVE_CONFIG)")
	sayDefaultInWords(c, "config")
}

// addConfigOrGateFlag is addConfigFlag for the commands that look after a gate: one started with 'wayleave up' knows
// its configuration. The function it returns is for when the flags are read.
func addConfigOrGateFlag(c *cobra.Command, st *state) func() string {
	var path string
	c.Flags().StringVarP(&path, "config", "c", os.Getenv("WAYLEAVE_CONFIG"), "configuration file (default $WAYLEAVE_CONFIG, or that of the gate in --state)")
	sayDefaultInWords(c, "config")
	return func() string {
		if path != "" {
			return path
		}
		g, _ := st.readGate() // without one there is no path, which is reported
		return g.Config
	}
}

// sayDefaultInWords keeps help, and the page made from it, from showing what a default is on this machine.
func sayDefaultInWords(c *cobra.Command, flag string) { c.Flags().Lookup(flag).DefValue = "" }

// loadConfig reads the configuration and the secrets it names, and prints its warnings.
func loadConfig(c *cobra.Command, path string) (*config.Config, error) {
	cfg, err := checkConfig(c, path)
	if err != nil {
		return nil, err
	}
	if err := cfg.LoadSecrets(os.Getenv); err != nil {
		return nil, err
	}
	return cfg, nil
}

var errNoConfig = usageError{errors.New("no configuration: name the file with -c or WAYLEAVE_CONFIG")}

// checkConfig reads the configuration alone.
func checkConfig(c *cobra.Command, path string) (*config.Config, error) {
	if path == "" {
		return nil, errNoConfig
	}
	cfg, err := config.Load(path)
	if err != nil {
		return nil, counted(err)
	}
	for _, w := range cfg.Warnings {
		fmt.Fprintf(c.ErrOrStderr(), "warning: %v\n", w)
	}
	return cfg, nil
}

// furtherFaults are those that only the files and the resources of a configuration show.
func furtherFaults(cfg *config.Config) error {
	if _, err := cfg.Files(); err != nil {
		return err
	}
	return latentFaults(cfg)
}

// checked is what `config check --json` prints.
type checked struct {
	Revision string        `json:"revision,omitempty"` // of a configuration without faults
	Faults   config.Faults `json:"faults"`
	Warnings config.Faults `json:"warnings"`
}

// printFaults prints what is wrong for programs. The exit code says whether there is a fault.
func printFaults(c *cobra.Command, path string) error {
	if path == "" {
		return errNoConfig
	}
	found := checked{Faults: config.Faults{}, Warnings: config.Faults{}}
	cfg, err := config.Load(path)
	if err == nil {
		found.Warnings = append(found.Warnings, cfg.Warnings...)
		err = furtherFaults(cfg)
	}
	if err != nil && !errors.As(err, &found.Faults) {
		return err
	}
	if err == nil {
		found.Revision = cfg.Hash()
	}
	if err := printJSON(c.OutOrStdout(), found); err != nil || found.Revision != "" {
		return err
	}
	return exitCode(exitFailure)
}

// counted says how many faults a configuration has, if that is the error.
func counted(err error) error {
	var faults config.Faults
	if errors.As(err, &faults) {
		return fmt.Errorf("faults in the configuration: %d; nothing was started or changed\n%w", len(faults), faults)
	}
	return err
}

func newConfig() *cobra.Command {
	return group(&cobra.Command{
		Use:   "config",
		Short: "Check and compare configurations, print their schema, or render what Envoy gets",
	}, newConfigCheck(), newConfigSchema(), newConfigRender(), newConfigDiff())
}

func newConfigCheck() *cobra.Command {
	var path string
	var asJSON bool
	c := &cobra.Command{
		Use:        "check",
		SuggestFor: []string{"validate", "lint"},
		Short:      "Report every fault of the configuration with its line and its fix",
		Example: `  wayleave config check -c wayleave.yaml
  wayleave config check -c wayleave.yaml --json`,
		Args: exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error {
			if asJSON {
				return printFaults(c, path)
			}
			cfg, err := checkConfig(c, path)
			if err != nil {
				return err
			}
			if err := furtherFaults(cfg); err != nil {
				return counted(err)
			}
			fmt.Fprintf(c.OutOrStdout(), "%s is good: revision %.12s, routes: %d, grants: %d, workers: %d\n",
				path, cfg.Hash(), len(cfg.Routes), len(cfg.Grants), len(cfg.Workers))
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	addConfigFlag(c, &path)
	return c
}

func newConfigSchema() *cobra.Command {
	return &cobra.Command{
		Use:     "schema",
		Short:   "Print the JSON Schema of the configuration, for editors",
		Example: `  wayleave config schema > wayleave.schema.json`,
		Args:    exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := c.OutOrStdout().Write(config.Schema())
			return err
		},
	}
}

func newConfigRender() *cobra.Command {
	var path, runDir string
	var onlyBootstrap, validate bool
	c := &cobra.Command{
		Use:   "render",
		Short: "Print the Envoy bootstrap and resources that the configuration becomes",
		Example: `  wayleave config render -c wayleave.yaml
  wayleave config render -c wayleave.yaml --validate
  wayleave config render -c wayleave.yaml --bootstrap > envoy.yaml`,
		Args: exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := checkConfig(c, path)
			if err != nil {
				return err
			}
			runDir = absolute(runDir)
			boot := bootstrap(cfg, runDir)
			text, err := boot.YAML()
			if err != nil {
				return err
			}
			if onlyBootstrap {
				_, err = c.OutOrStdout().Write(text)
				return err
			}
			resources, err := envoyResources(cfg, cfg.Hash(), runDir, "/dev/stdout")
			if err != nil {
				return err
			}
			for _, f := range hostFaults(cfg, resources.Quarantined) {
				fmt.Fprintf(c.ErrOrStderr(), "refused, and the others are served: %v\n", f)
			}
			if !validate {
				fmt.Fprintf(c.OutOrStdout(), "# bootstrap\n%s", text)
				return printResources(c.OutOrStdout(), resources)
			}
			binary, err := findEnvoy(c.Context(), cfg.Envoy.Binary)
			if err != nil {
				return err
			}
			if err := askEnvoy(c.Context(), binary, boot, resources); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "Envoy %s accepts the configuration (revision %.12s)\n", binary.Version, cfg.Hash())
			return nil
		},
	}
	addConfigFlag(c, &path)
	c.Flags().StringVar(&runDir, "run-dir", "/run/wayleave", "directory of the sockets between Envoy and the gate")
	c.Flags().BoolVar(&onlyBootstrap, "bootstrap", false, "print only the bootstrap that Envoy is started with")
	c.Flags().BoolVar(&validate, "validate", false, "ask Envoy whether it accepts the configuration, and print only its answer")
	return c
}

// printResources prints each resource as a YAML document. The certificates that verify upstreams are only counted: they
// are long, and no secret.
func printResources(w io.Writer, r *xds.Resources) error {
	for _, message := range r.All() {
		if s, ok := message.(*tlsv3.Secret); ok {
			pem := s.GetValidationContext().GetTrustedCa().GetInlineBytes()
			fmt.Fprintf(w, "---\n# secret %s: %d certificates\n", s.GetName(), bytes.Count(pem, []byte("BEGIN CERTIFICATE")))
			continue
		}
		wrapped, err := anypb.New(message)
		if err != nil {
			return err
		}
		asJSON, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(wrapped)
		if err != nil {
			return err
		}
		text, err := yaml.JSONToYAML(asJSON)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "---\n%s", text)
	}
	return nil
}
