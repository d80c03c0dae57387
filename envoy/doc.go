// Package envoy owns what concerns Envoy as a program: which versions are supported, the bootstrap it starts from,
// asking it whether a configuration is valid, and its admin interface. What it is told once it runs is package xds's;
// finding it is package program's, and keeping it running package supervise's.
package envoy
