// Package reliability owns the proof that grants are never lost: real processes, each with a real grant.Keeper, over a real
// OpenBao and a provider that revokes a consent when a refresh token is presented twice. They are killed, stopped, cut off
// from the store and given a wrong clock at every step of a refresh.
//
// What they must show is in docs/reliability.md, whose tables are checked against the run. Everything here is a test; the
// processes are the test binary started again (replica_test.go).
package reliability
