package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave/api"
	"wayleave/config"
	"wayleave/logs"
)

// logVariable names the level of gates whose file names none.
const logVariable = "WAYLEAVE_LOG"

// newLevels are how much a gate logs at its start.
func newLevels(cfg *config.Config, getenv func(string) string) (*logs.Levels, error) {
	if name := getenv(logVariable); name != "" {
		if _, err := logs.Parse(name); err != nil {
			return nil, usageError{fmt.Errorf("%s: %w", logVariable, err)}
		}
	}
	l := logs.New(slog.LevelInfo, time.Now)
	configureLevels(l, cfg, getenv)
	return l, nil
}

// configureLevels makes a gate log as its file says.
func configureLevels(l *logs.Levels, cfg *config.Config, getenv func(string) string) {
	otherwise := slog.LevelInfo
	if level, err := logs.Parse(getenv(logVariable)); err == nil {
		otherwise = level
	}
	l.Configure(cfg.Log.Levels(otherwise))
}

func newLogCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "log",
		Short: "Say how much a running gate logs, and change it for a while",
	}, newLogLevel())
}

func newLogLevel() *cobra.Command {
	var lasts time.Duration
	var reset bool
	c := &cobra.Command{
		Use:   "level [[PART=]LEVEL ...] --api ADDRESS",
		Short: "Have a gate, or parts of it, log more or less for a while",
		Long: `Level changes how much the gate behind --api logs: debug, info, warn or error, of one PART or of all. Without a level it shows
those of all parts. After --for, or with --reset, the gate logs again what its file says.

It is of that one gate only. For all gates of a machine, and for longer, write log into their configuration, which takes effect
within a second.`,
		Example: `  wayleave log level --api https://gate.example.com
  wayleave log level debug --api https://gate.example.com
  wayleave log level grant=debug vault=debug --for 1h --api https://gate.example.com
  wayleave log level --reset --api https://gate.example.com`,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var all []string
			for _, part := range logs.Parts {
				for _, level := range logs.Names() {
					all = append(all, part+"="+level)
				}
			}
			return append(logs.Names(), all...), cobra.ShellCompDirectiveNoFileComp
		},
	}
	flags := addAPIFlags(c)
	c.Flags().DurationVar(&lasts, "for", 10*time.Minute, "how long; a day at most")
	c.Flags().BoolVar(&reset, "reset", false, "log again what the file says")
	addJSONFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		levels, err := readLevels(args)
		if err == nil && reset && len(args) > 0 {
			err = errors.New("--reset sets no level; leave one of them out")
		}
		if err != nil {
			return usageError{err}
		}
		at, err := flags.open(c, stdio{err: c.ErrOrStderr()})
		if err != nil {
			return err
		}
		if at == nil {
			return usageError{errors.New("no gate: name its console with --api or WAYLEAVE_API; or write log into the configuration, which takes effect within a second")}
		}
		defer at.Close()
		var now api.LogLevels
		if len(args) > 0 || reset {
			now, err = at.SetLogLevels(c.Context(), api.LogRequest{Levels: levels, For: lasts.String()})
		} else {
			now, err = at.LogLevels(c.Context())
		}
		if err != nil {
			return err
		}
		if asJSON, _ := c.Flags().GetBool("json"); asJSON {
			return printJSON(c.OutOrStdout(), now)
		}
		rows := [][]string{{"PART", "LEVEL", "UNTIL"}}
		for _, part := range slices.Sorted(maps.Keys(now.Parts)) {
			until := "-"
			if ends := now.Parts[part].Until; !ends.IsZero() {
				until = when(ends)
			}
			rows = append(rows, []string{part, now.Parts[part].Level, until})
		}
		return printTable(c.OutOrStdout(), rows, func(int) []note { return nil }, widthOf(c.OutOrStdout()))
	}
	return c
}

// readLevels reads arguments such as debug and grant=debug.
func readLevels(args []string) (map[string]string, error) {
	levels := map[string]string{}
	for _, arg := range args {
		part, level, one := strings.Cut(arg, "=")
		if !one {
			part, level = "", arg
		} else if err := logs.Check(part); err != nil {
			return nil, err
		}
		if _, err := logs.Parse(level); err != nil {
			return nil, err
		}
		if _, twice := levels[part]; twice {
			return nil, fmt.Errorf("%s sets what another argument sets", arg)
		}
		levels[part] = level
	}
	return levels, nil
}
