package config

import (
	"log/slog"
	"maps"
	"slices"

	"wayleave/logs"
)

// Log says how much the gate logs. A change of it takes effect at once, in the gates of this machine. `wayleave log level` does the
// same for a while.
type Log struct {
	// From which level on. Default: $WAYLEAVE_LOG, else info.
	Level string `yaml:"level" jsonschema:"enum=debug,enum=info,enum=warn,enum=error"`

	// Levels of parts of the gate, in place of level. Each line says which part it is of: approval, ca, console, extproc, fleet, gate,
	// grant, identity, journal, notify, vault, worker or xds.
	Parts map[string]string `yaml:"parts"`
}

// Levels are what is logged: from which level on, which is otherwise where the file does not say, and by which parts from another.
func (l Log) Levels(otherwise slog.Level) (level slog.Level, parts map[string]slog.Level) {
	level = otherwise
	if l.Level != "" {
		level, _ = logs.Parse(l.Level) // checked before
	}
	parts = map[string]slog.Level{}
	for name, of := range l.Parts {
		parts[name], _ = logs.Parse(of)
	}
	return level, parts
}

func (k *checker) log() {
	for _, part := range slices.Sorted(maps.Keys(k.Log.Parts)) {
		at := join("log.parts", part)
		if logs.Check(part) != nil {
			k.fault(at, "is not a part of the gate", choose(part, logs.Parts))
		} else if _, err := logs.Parse(k.Log.Parts[part]); err != nil {
			k.fault(at, err.Error(), choose(k.Log.Parts[part], logs.Names()))
		}
	}
}
