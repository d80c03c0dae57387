package main

import (
	"testing"

	"wayleave/config"
)

// The console's address is as browsers write it, whatever the file has: they ask for nothing else.
func TestConsoleURL(t *testing.T) {
	for _, tt := range []struct{ public, cert, want string }{
		{"", "", "http://127.0.0.1:3180"},
		{"", "gate.pem", "https://127.0.0.1:3180"},
		{"https://gate.example.com", "", "https://gate.example.com"},
		{"https://gate.example.com/", "", "https://gate.example.com"},
		{"HTTPS://Gate.Example.com:443", "", "https://gate.example.com"},
		{"https://gate.example.com:8443", "", "https://gate.example.com:8443"},
		{"https://[2001:DB8::1]:443", "", "https://[2001:db8::1]"},
	} {
		g := gate{cfg: &config.Config{Console: config.Console{PublicURL: tt.public, TLSCertFile: tt.cert}}}
		if u, err := g.consoleURL("127.0.0.1:3180"); err != nil || u.String() != tt.want {
			t.Errorf("%q: %v, %v; want %s", tt.public, u, err, tt.want)
		}
	}
}
