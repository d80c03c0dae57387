package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"wayleave/worker"
)

// enrolFlags say which gate a worker enrols at, and as whom.
type enrolFlags struct {
	state                   *state
	gateURL, gateCA, worker string
	say                     func(format string, args ...any)
	sources                 worker.Sources
	roots                   authority // after enrol
}

func addEnrolFlags(c *cobra.Command) *enrolFlags {
	f := &enrolFlags{state: addStateFlag(c), say: func(format string, args ...any) { fmt.Fprintf(c.ErrOrStderr(), "wayleave: "+format+"\n", args...) }}
	c.Flags().StringVar(&f.gateURL, "gate", os.Getenv("WAYLEAVE_GATE"), "URL of the gate's proxy, such as http://gate.internal:3128 (default $WAYLEAVE_GATE)")
	sayDefaultInWords(c, "gate")
	c.Flags().StringVar(&f.gateCA, "gate-ca", os.Getenv("WAYLEAVE_GATE_CA"), "PEM file of the authority of an https gate's certificate (default $WAYLEAVE_GATE_CA, else the system's)")
	sayDefaultInWords(c, "gate-ca")
	c.Flags().StringVar(&f.worker, "worker", "", "which of this machine's workers to be, when 'wayleave up' knows several")
	f.sources.Getenv = os.Getenv
	c.Flags().StringVar(&f.sources.TokenFile, "token-file", "", "file of the worker's token, such as a projected one of Kubernetes (default $WAYLEAVE_TOKEN_FILE)")
	c.Flags().StringVar(&f.sources.CertFile, "cert", "", "PEM file of a certificate that says who the worker is, with its chain (default $WAYLEAVE_CERT)")
	c.Flags().StringVar(&f.sources.KeyFile, "key", "", "PEM file of the key of --cert (default $WAYLEAVE_KEY)")
	c.MarkFlagsRequiredTogether("cert", "key")
	c.MarkFlagsMutuallyExclusive("token-file", "cert")
	c.Flags().StringVar(&f.sources.Audience, "audience", os.Getenv("WAYLEAVE_AUDIENCE"), "audience to ask GitHub Actions for (default $WAYLEAVE_AUDIENCE, else the gate's URL)")
	sayDefaultInWords(c, "audience")
	return f
}

// addDirectFlag adds --no-proxy to c.
func addDirectFlag(c *cobra.Command) *[]string {
	return c.Flags().StringSlice("no-proxy", nil, "hosts that programs reach without the gate, of services beside the worker: names, suffixes (.svc.cluster.local), addresses")
}

// enrol becomes a worker of the gate. The authority of --gate-ca is then one the worker's programs trust too, since the gate
// is their proxy.
func (f *enrolFlags) enrol(ctx context.Context) (worker.Enrolment, error) {
	gate, err := gateAddress(f.gateURL, *f.state)
	if err != nil {
		return worker.Enrolment{}, err
	}
	me, err := f.present(ctx, gate)
	if err != nil {
		return worker.Enrolment{}, err
	}
	me.Variables = append(me.Variables, me.Among(os.Environ())...)
	if f.roots, err = gateRoots(f.gateCA); err != nil {
		return worker.Enrolment{}, err
	}
	enrolment, err := worker.Enrol(ctx, gate, f.roots.pool, me)
	if err == nil && len(f.roots.file) > 0 {
		if f.roots.lacks(enrolment.CA) {
			f.say("%s lacks a root of the gate: one is being replaced, and no worker can begin here when that is done; write the file anew (wayleave ca print)", f.gateCA)
		}
		enrolment.CA = worker.Bundle(enrolment.CA, f.roots.file)
	}
	return enrolment, err
}

// present finds what the worker proves itself with. A gate of this machine, which nobody named, has tokens for it in its state
// directory: what the machine's platform says, which is meant for others then, is not asked.
func (f *enrolFlags) present(ctx context.Context, gate *url.URL) (worker.Presented, error) {
	sources := f.sources
	if f.gateURL == "" {
		sources.Getenv = func(name string) string {
			if strings.HasPrefix(name, "WAYLEAVE_") {
				return f.sources.Getenv(name)
			}
			return ""
		}
	}
	me, err := sources.Find(ctx, gate)
	if err != nil || !me.IsZero() {
		return me, err
	}
	token, err := f.state.workerToken(f.worker)
	if err != nil {
		if hint := sources.Hint(gate); hint != "" {
			err = fmt.Errorf("%w; %s", err, hint)
		}
		return worker.Presented{}, err
	}
	return worker.Presented{Token: token}, nil
}

// authority is whom to believe that a gate over TLS is the one: the system's roots, and those of a file.
type authority struct {
	pool *x509.CertPool // nil: the system's
	file []byte         // PEM
}

func gateRoots(caFile string) (authority, error) {
	if caFile == "" {
		return authority{}, nil
	}
	file, err := os.ReadFile(caFile)
	if err != nil {
		return authority{}, fmt.Errorf("reading the authority of the gate: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return authority{}, fmt.Errorf("reading the system's root certificates: %w", err)
	}
	if !pool.AppendCertsFromPEM(file) {
		return authority{}, fmt.Errorf("%s holds no PEM certificate: name the file of the gate's authority", caFile)
	}
	return authority{pool, file}, nil
}

// lacks reports whether the file has some of the gate's roots and not all of them. With none it is of another authority.
func (a authority) lacks(gate []byte) bool {
	has, all := 0, 0
	for block, rest := pem.Decode(gate); block != nil; block, rest = pem.Decode(rest) {
		all++
		for own, rest := pem.Decode(a.file); own != nil; own, rest = pem.Decode(rest) {
			if bytes.Equal(own.Bytes, block.Bytes) {
				has++
				break
			}
		}
	}
	return 0 < has && has < all
}

// gateAddress is the URL of the proxy listener: as given, or as `up` on this machine wrote it down.
func gateAddress(given string, st state) (*url.URL, error) {
	if given == "" {
		g, err := st.readGate()
		if err != nil {
			return nil, err
		}
		given = g.Proxy
	}
	u, err := url.Parse(given)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, usageError{fmt.Errorf("%q is not a gate's URL; it looks like http://host:3128", given)}
	}
	return u, nil
}
