//go:build !linux

package worker

// Hide has nothing to do here: this system has no such setting.
func Hide() {}
