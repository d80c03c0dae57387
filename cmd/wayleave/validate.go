package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"wayleave/config"
	"wayleave/envoy"
	"wayleave/operate"
	"wayleave/program"
	"wayleave/xds"
)

// askEnvoy asks Envoy whether it accepts what it would be told. The error is envoy.ErrInvalid when it does not.
func askEnvoy(ctx context.Context, binary program.Binary, boot envoy.Bootstrap, r *xds.Resources) error {
	static, err := envoy.Static(boot, r.All())
	if err != nil {
		return err
	}
	err = envoy.Validate(ctx, binary.Path, static)
	if errors.Is(err, envoy.ErrInvalid) {
		return fmt.Errorf("Envoy %s: %w; what it was sent is what 'wayleave config render' prints", binary.Version, err) //nolint:staticcheck,revive // a name
	}
	return err
}

// validator is operate.Desk.Validate: hosts that would be refused for a fault are an objection, and so is what Envoy says. Where there
// is no Envoy, as in a gate's own container, nobody is asked, and the first ones to be told are.
func validator(sockets string, log *slog.Logger) func(context.Context, *config.Config) error {
	return func(ctx context.Context, cfg *config.Config) error {
		r, err := envoyResources(cfg, cfg.Hash(), sockets, "/dev/stdout")
		if err != nil {
			return err
		}
		var all []operate.Objection
		for _, f := range hostFaults(cfg, r.Quarantined) {
			all = append(all, operate.Objection{Name: operate.QuarantinedHosts, Words: f.Error()})
		}
		binary, err := findEnvoy(ctx, cfg.Envoy.Binary)
		switch {
		case err != nil:
			log.Warn("no Envoy on this machine was asked whether it accepts the configuration; the first one to get it says so", "err", err)
		default:
			if err := askEnvoy(ctx, binary, bootstrap(cfg, sockets), r); errors.Is(err, envoy.ErrInvalid) {
				all = append(all, operate.Objection{Name: operate.EnvoyRefuses, Words: err.Error()})
			} else if err != nil {
				return err
			}
		}
		if len(all) > 0 {
			return &operate.Objections{All: all}
		}
		return nil
	}
}
