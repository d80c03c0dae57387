package main

import (
	"bytes"
	"context"
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"wayleave/freeport"
	"wayleave/supervise"
)

// mitmproxy sets the header in one line of an addon. deploy/tools/fetch.sh brings it.

const mitmdump = ".tools/mitmproxy/bin/mitmdump"

//go:embed mitmproxy.py
var mitmAddon string

// findMitmdump returns the program and its version, or nothing where there is none.
func findMitmdump(ctx context.Context) (path, version string) {
	for _, path := range []string{os.Getenv("WAYLEAVE_MITMDUMP"), mitmdump, "mitmdump"} {
		if path == "" {
			continue
		}
		out, err := exec.CommandContext(ctx, path, "--version").Output()
		if err != nil {
			continue
		}
		first, _, _ := strings.Cut(string(out), "\n") // Mitmproxy: 12.3.1
		_, version, _ := strings.Cut(first, " ")
		return path, strings.TrimSpace(version)
	}
	return "", ""
}

// rival is what a proxy that is not ours is told: where to listen, and where the hosts are.
func rival(up, h2 *upstream) (address string, spec mitmSpec, err error) {
	address, err = freeport.Address()
	return address, mitmSpec{Address: address, Upstream: up.address, UpstreamH2: h2.address, UpstreamCAs: append(bytes.Clone(up.ca), h2.ca...)}, err
}

// newMitmproxy starts one in front of the upstreams, as a world without a gate.
func newMitmproxy(ctx context.Context, program string, up, h2 *upstream) (_ *world, err error) {
	address, spec, err := rival(up, h2)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	cas, addon := filepath.Join(dir, "upstream.pem"), filepath.Join(dir, "addon.py")
	if err := errors.Join(os.WriteFile(cas, spec.UpstreamCAs, 0o600), os.WriteFile(addon, []byte(mitmAddon), 0o600)); err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	w := &world{gate: &gate{gateHello: gateHello{carried: carried{mitmUser, mitmPassword, placeholder}}}, proxy: address, upstream: up, roots: x509.NewCertPool()}
	pid, stop, err := start(ctx, supervise.Process{
		Name: "mitmproxy",
		Command: func() *exec.Cmd {
			cmd := exec.Command(program, "--quiet", "--listen-host", host, "--listen-port", port, "--proxyauth", mitmUser+":"+mitmPassword, //nolint:noctx // supervise ends it
				"--set", "confdir="+dir, "--set", "ssl_verify_upstream_trusted_ca="+cas, "-s", addon)
			cmd.Env = append(os.Environ(), "BENCH_TOKEN="+realToken, "BENCH_UPSTREAM="+spec.Upstream, "BENCH_UPSTREAM_H2="+spec.UpstreamH2)
			return cmd
		},
		Ready: func(ctx context.Context) error {
			root, err := os.ReadFile(filepath.Join(dir, "mitmproxy-ca-cert.pem"))
			if err != nil {
				return err
			}
			if !w.roots.AppendCertsFromPEM(root) {
				return fmt.Errorf("its root is no certificate yet")
			}
			c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err == nil {
				c.Close()
			}
			return err
		},
	})
	if err != nil {
		return nil, fmt.Errorf("starting mitmproxy: %w", err)
	}
	w.envoy, w.stop = pid, after(stop, func() { os.RemoveAll(dir) })
	return w, nil
}
