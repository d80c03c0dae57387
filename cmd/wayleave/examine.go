package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"wayleave/ca"
	"wayleave/config"
	"wayleave/envoy"
	"wayleave/program"
	"wayleave/vault"
)

func good(what, detail string) finding      { return finding{"ok", what, detail, ""} }
func warn(what, detail, fix string) finding { return finding{"warn", what, detail, fix} }
func fail(what, detail, fix string) finding { return finding{"fail", what, detail, fix} }

// examine looks at everything in the order in which the gate would need it. path may be empty; runDir is where `wayleave serve` would
// have its sockets.
func examine(ctx context.Context, path string, st state, runDir string, a around) []finding {
	cfg, out := examineConfig(path)
	if cfg == nil {
		return out
	}
	program := examineEnvoy(ctx, cfg.Envoy.Binary)
	out = append(out, program)

	identity := vaultConfig(cfg)
	ofUp := identity.Address == ""
	if ofUp {
		out = append(out, examineProgram(ctx, "openbao", findBao))
		if path, err := exec.LookPath("vault"); err == nil {
			out = append(out, good("vault", path+" is not started by 'wayleave up', whose store is OpenBao's; set VAULT_ADDR to use one that runs"))
		}
	}
	gate := examineGate(ctx, cfg, st)
	out = append(out, gate)
	running := gate.Status == "ok"
	if ofUp {
		out = append(out, examineCA(st.path("ca.pem"), time.Now())...)
	}
	if path == "" {
		return out
	}
	sockets, account := runDir, auditOf(cfg)
	if ofUp {
		sockets, account = st.path("run"), st.auditFile(cfg)
	}
	version, _, _ := strings.Cut(program.Detail, " ")
	soon, cancel := context.WithTimeout(ctx, examineTime)
	defer cancel()
	out = append(out, atOnce(
		func() []finding { return examineProcess(soon, cfg, filepath.Join(sockets, adminSocket), version) },
		func() []finding { return examineMetrics(soon, cfg, running) },
		func() []finding {
			if !running {
				return nil // nobody gets a leaf
			}
			return examineLeaf(soon, cfg, st, a)
		},
		func() []finding { return examineWorkers(cfg, st, ofUp) },
		func() []finding { return examineEnvironment(cfg, a) },
		func() []finding { return examineIssuers(ctx, cfg) },
		func() []finding { return examineNotify(cfg) },
		func() []finding { return examineAudit(cfg, account) },
		func() []finding { return examineNames(soon, cfg, a) },
		func() []finding { return examineEndpoints(soon, cfg, a) },
	)...)

	role := vault.Viewer
	switch {
	case ofUp && !running:
		return out // its OpenBao runs with it
	case ofUp:
		var err error
		if identity, err = operatorVault(cfg, st); err != nil {
			return append(out, fail("vault", err.Error(), "run doctor as the user who runs 'wayleave up'"))
		}
	case cfg.Vault.Auth.Method != "token", cfg.Vault.Auth.TokenFile != "":
		role = vault.Gateway // it is the gate's own log-in
	default:
		cfg.Vault.Auth = operatorAuth()
		identity = vaultConfig(cfg)
	}
	return append(out, examineVault(ctx, cfg, identity, role)...)
}

// atOnce does several things at the same time, and returns what they find in their order.
func atOnce(parts ...func() []finding) []finding {
	found := make([][]finding, len(parts))
	var all sync.WaitGroup
	for i, part := range parts {
		all.Go(func() { found[i] = part() })
	}
	all.Wait()
	return slices.Concat(found...)
}

// examineConfig reads the configuration; it is nil when there is no use in looking further.
func examineConfig(path string) (*config.Config, []finding) {
	const what = "configuration"
	if path == "" {
		return new(config.Config), []finding{warn(what, "none was named", "name one with -c to have Vault and the grants looked at")}
	}
	cfg, err := config.Load(path)
	if err != nil {
		return nil, []finding{fail(what, err.Error(), "mend it; 'wayleave config check' shows the same")}
	}
	out := []finding{good(what, fmt.Sprintf("%s, revision %.12s", path, cfg.Hash()))}
	for _, w := range cfg.Warnings {
		out = append(out, warn(what, w.Error(), ""))
	}
	if err := latentFaults(cfg); err != nil {
		out = append(out, fail(what, err.Error(), "mend it; until then the gate refuses the host"))
	}
	if err := cfg.LoadSecrets(os.Getenv); err != nil {
		return nil, append(out, fail("secrets", err.Error(), "make the files and variables readable that the configuration names"))
	}
	return cfg, append(out, examineOwnFiles(cfg)...)
}

// examineOwnFiles looks who may read what the gate proves itself with: on a machine with workers they could be it.
func examineOwnFiles(cfg *config.Config) (out []finding) {
	files := cfg.OwnFiles()
	for _, key := range slices.Sorted(maps.Keys(files)) {
		if everybodyReads(files[key]) {
			out = append(out, warn("secrets", key+": every user of this machine can read "+files[key], "chmod o-r "+files[key]+", and replace what is in it if others use this machine"))
		}
	}
	return out
}

// everybodyReads reports whether a file, and the way to it, is open to all users. Where links lead counts.
func everybodyReads(file string) bool {
	const read, enter = 0o004, 0o001
	at, err := filepath.EvalSymlinks(file)
	if err != nil {
		return false // which is said elsewhere, if it matters
	}
	if at, err = filepath.Abs(at); err != nil {
		return false
	}
	for needs := os.FileMode(read); ; needs = enter {
		info, err := os.Stat(at)
		if err != nil || info.Mode().Perm()&needs == 0 {
			return false
		}
		if at == filepath.Dir(at) {
			return true
		}
		at = filepath.Dir(at)
	}
}

func examineProgram(ctx context.Context, what string, find func(context.Context) (program.Binary, error)) finding {
	b, err := find(ctx)
	if err != nil {
		return fail(what, err.Error(), "")
	}
	return good(what, fmt.Sprintf("%s at %s: %s", b.Version, b.Path, b.Why))
}

func examineEnvoy(ctx context.Context, configured string) finding {
	b, err := findEnvoy(ctx, configured)
	if err != nil {
		return fail("envoy", err.Error(), "")
	}
	found := good("envoy", fmt.Sprintf("%s at %s: %s", b.Version, b.Path, b.Why))
	if against := envoy.Known(b.Version); against != "" {
		return warn("envoy", found.Detail, against)
	}
	return found
}

// examineGate asks, through Envoy, whether the gate answers: the one that 'wayleave up' wrote down, or the one of the
// configuration.
func examineGate(ctx context.Context, cfg *config.Config, st state) finding {
	const what = "gate"
	g, err := st.readGate()
	silent := "was at %s and does not answer"
	switch {
	case err == nil:
	case !errors.Is(err, errNoGate):
		return fail(what, err.Error(), "")
	case cfg.Listen.Proxy == "" || vaultConfig(cfg).Address == "":
		return warn(what, "none was started in "+st.dir, "start one with 'wayleave up'")
	default:
		g.Proxy = upper{cfg: cfg}.proxy()
		silent = "is not known to have run here, and nothing answers at %s"
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.Proxy+"/.wayleave/livez", nil)
	if err != nil {
		return fail(what, err.Error(), "start it again with 'wayleave up'")
	}
	resp, err := (&http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return warn(what, fmt.Sprintf(silent, g.Proxy), "start it with 'wayleave up', or Envoy and 'wayleave serve'")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fail(what, fmt.Sprintf("%s answers with status %d, so the gate behind Envoy does not", g.Proxy, resp.StatusCode), "look at what the gate logs")
	}
	return good(what, "runs; workers connect to "+g.Proxy)
}

// examineCA looks at the roots that workers trust, as the gate wrote them down; there are none before the first start.
func examineCA(path string, now time.Time) []finding {
	const what = "ca"
	const fix = "remove it; the next start of 'wayleave up' writes it"
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return []finding{warn(what, err.Error(), "run doctor as the user who runs 'wayleave up'")}
	}
	var roots []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return []finding{warn(what, fmt.Sprintf("%s: %v", path, err), fix)}
		}
		roots = append(roots, cert)
	}
	if len(roots) == 0 {
		return []finding{warn(what, path+" holds no certificate", fix)}
	}
	return examineRoots(roots, "in "+path, now)
}

// examineRoots says how long each root lasts. The first one signs.
func examineRoots(roots []*x509.Certificate, where string, now time.Time) (out []finding) {
	const what = "ca"
	for i, root := range roots {
		detail := fmt.Sprintf("%s until %s, SHA-256 %.16s…, %s", root.Subject.CommonName, root.NotAfter.Format(time.DateOnly), ca.Fingerprint(root), where)
		due := ca.Due(roots, now)
		switch {
		case i > 0:
			out = append(out, good(what, detail+"; trusted beside it, see 'wayleave ca show'"))
		case now.After(root.NotAfter):
			out = append(out, fail(what, detail+"; it has ended", "run 'wayleave vault setup', or start 'wayleave up' again; workers get the new root when they start again"))
		case due != "":
			out = append(out, warn(what, detail, due))
		default:
			out = append(out, good(what, detail))
		}
	}
	return out
}

// examineWorkers says where each worker's token is, or whose.
func examineWorkers(cfg *config.Config, st state, ofUp bool) []finding {
	var known, none []string
	made := st.workersWithToken()
	for _, name := range slices.Sorted(maps.Keys(cfg.Workers)) {
		switch {
		case cfg.Workers[name].SPIFFEID != "":
			known = append(known, name+" (certificate for "+cfg.Workers[name].SPIFFEID+")")
		case cfg.Workers[name].From.Given():
			known = append(known, name+" (token of issuer "+cfg.Workers[name].From.Issuer+")")
		case cfg.Workers[name].TokenDigest != "":
			known = append(known, name+" (token in the configuration)")
		case slices.Contains(made, name):
			known = append(known, name+" (token in "+st.dir+")")
		default:
			none = append(none, name)
		}
	}
	var out []finding
	if len(known) > 0 {
		out = append(out, good("workers", strings.Join(known, ", ")))
	}
	if len(none) > 0 {
		fix := "'wayleave up' makes one at its start"
		if !ofUp {
			fix += "; for 'wayleave serve' make one with 'wayleave worker token'"
		}
		out = append(out, warn("workers", "without a token: "+strings.Join(none, ", "), fix))
	}
	return out
}

// examineNotify says who is told when something needs an operator. Nobody is told anything.
func examineNotify(cfg *config.Config) []finding {
	const what = "notifications"
	to, err := targets(cfg)
	switch {
	case err != nil:
		return []finding{fail(what, err.Error(), "mend it; until then the gate does not start")}
	case len(to) == 0:
		return nil
	}
	var names []string
	for _, t := range to {
		names = append(names, t.Name)
	}
	return []finding{good(what, strings.Join(names, ", ")+"; 'wayleave notify test' tries them out")}
}

// examineIssuers asks those who vouch for workers, from this machine.
func examineIssuers(ctx context.Context, cfg *config.Config) []finding {
	const what = "issuers"
	asked, err := issuers(cfg, nil)
	if err != nil {
		return []finding{fail(what, err.Error(), "make the file readable, or name another")}
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	failed := asked.Probe(ctx)
	var out []finding
	for _, name := range slices.Sorted(maps.Keys(cfg.Issuers)) {
		if err := failed[name]; err != nil {
			out = append(out, warn(what, fmt.Sprintf("%s: %v", name, err), "mend issuers."+name+", or the way there from the gate's machine; its workers cannot enrol once the keys known are a day old"))
			continue
		}
		out = append(out, good(what, name+" answers"))
	}
	return out
}
