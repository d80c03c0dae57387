package envoy

import "golang.org/x/sys/unix"

// Memory is how much this machine has for an Envoy. Zero: nobody knows.
func Memory() uint64 {
	n, _ := unix.SysctlUint64("hw.memsize") // which is zero with an error
	return n
}
