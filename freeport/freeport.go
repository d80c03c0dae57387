// Package freeport finds addresses for servers that cannot say which one they got, in the demo, the benchmarks and the tests.
package freeport

import (
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"sync/atomic"
)

// The ports are below those that systems give to whoever asks for any, and to the near end of each connection (from 32768
// on Linux, 49152 elsewhere): such a port may be somebody's by the time it is used. They are every second one, since Vault
// and OpenBao listen at the next one too.
const first, count, step = 10_000, 20_000, 2

var last atomic.Uint32

// Programs at the same time begin at different places, and none takes a port twice before it has taken all.
func init() { last.Store(mathrand.Uint32N(count/step) * step) }

// Address returns an address of 127.0.0.1 at which nobody listens.
func Address() (string, error) {
	var errs error
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", first+last.Add(step)%count)
		l, err := net.Listen("tcp", address)
		if err == nil {
			return address, l.Close()
		}
		errs = errors.Join(errs, err)
	}
	return "", fmt.Errorf("no port is free: %w", errs)
}
