package envoy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// commandTimeout is for commands that answer at once.
const commandTimeout = 20 * time.Second

// ErrInvalid is in the error of Validate when Envoy has judged, and refused, a configuration.
var ErrInvalid = errors.New("envoy refuses the configuration")

// Validate asks Envoy whether it would start with the configuration file config (YAML). It opens no port and dials
// nobody.
func Validate(ctx context.Context, binary string, config []byte) error {
	dir, err := os.MkdirTemp("", "wl-validate-")
	if err != nil {
		return fmt.Errorf("validating envoy's configuration: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return fmt.Errorf("validating envoy's configuration: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "--mode", "validate", "-c", file, "--log-level", "error", "--disable-hot-restart")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.Exited():
		return fmt.Errorf("%w: %s", ErrInvalid, reason(out))
	}
	return fmt.Errorf("running %s to validate its configuration: %w", binary, err)
}

// reason is the part of Envoy's output that says what is wrong: what follows "error initializing configuration
// '<file>': ", or else the last line.
func reason(output []byte) string {
	text := ""
	for line := range strings.Lines(string(bytes.TrimSpace(output))) {
		text = strings.TrimSpace(line)
		if _, after, ok := strings.Cut(text, "error initializing configuration '"); ok {
			if _, after, ok = strings.Cut(after, "': "); ok {
				return after
			}
		}
	}
	return text
}
