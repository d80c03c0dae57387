//go:build !linux

package isolate

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
)

// A Child is a program prepared to start in a network of its own, which only Linux has.
type Child struct{}

// Prepare fails with ErrNotPermitted.
func Prepare(*exec.Cmd, []string, Way) (*Child, error) {
	return nil, fmt.Errorf("%w: only Linux has networks for one program, this is %s; keep the network from letting workers out instead", ErrNotPermitted, runtime.GOOS)
}

// Close does nothing.
func (c *Child) Close() {}

// Explain returns err.
func Explain(err error) error { return err }

// Enter fails.
func Enter([]string) (int, error) { return 126, ErrNotPermitted }

func (c *Child) serve(context.Context, func(netip.AddrPort) []string) error { return nil }
