// Package e2e owns the product's stories, told over real Envoy, real OpenBao and real clients against the stand-in
// provider and API of package demo. Everything is driven from outside, through the wayleave command.
//
// Short stories are scripts in testdata; what needs concurrency or a byte-exact client is Go. The product itself is in
// the other packages; nothing here is part of it.
package e2e
