package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wayleave/config"
	"wayleave/envoy"
	"wayleave/metrics"
)

// examineProcess asks the Envoy of this machine over its admin socket, where there is one.
func examineProcess(ctx context.Context, cfg *config.Config, socket, found string) []finding {
	const what = "envoy process"
	if _, err := os.Stat(socket); err != nil {
		return nil // none was started here, of which the gate tells
	}
	c, err := envoy.Look(ctx, socket)
	if err != nil {
		return []finding{warn(what, err.Error(), "start it again, with 'wayleave up' or 'wayleave envoy', as the user who runs doctor")}
	}
	var out []finding
	if !c.Connected {
		out = append(out, fail(what, "is connected to no gate, and goes on with what it has", "start the gate, and look at what it logs"))
	}
	if c.State != "LIVE" {
		out = append(out, warn(what, "is "+strings.ToLower(strings.ReplaceAll(c.State, "_", " ")), "wait until it has its configuration from a gate, or look at what that logs"))
	}
	for _, address := range cfg.Listen.Addresses() {
		if !slices.ContainsFunc(c.Listens, func(l string) bool { return sameAddress(l, address) }) {
			out = append(out, fail(what, "does not listen on "+address, "see whether it is drained, or refuses what it was sent: wayleave fleet list"))
		}
	}
	for _, u := range c.Unhealthy {
		out = append(out, warn(what, "does not ask "+u, "see that it runs there; requests go to the others of its cluster, or fail"))
	}
	for _, of := range slices.Sorted(maps.Keys(c.Rejected)) {
		out = append(out, warn(what, fmt.Sprintf("has refused %d updates of %s since its start", c.Rejected[of], of), "see what it says, and whether it still does: wayleave fleet list"))
	}
	if found != "" && c.Version != found {
		out = append(out, warn(what, fmt.Sprintf("is %s, and %s would be started now", c.Version, found), "send 'wayleave envoy' a SIGHUP, or start 'wayleave up' again"))
	}
	if len(out) == 0 {
		out = append(out, good(what, fmt.Sprintf("%s, live for %v, connected to the gate, listens on %s", c.Version, c.Uptime.Round(time.Second), strings.Join(c.Listens, ", "))))
	}
	return out
}

// sameAddress reports whether Envoy writes an address so.
func sameAddress(a, b string) bool {
	x, err := netip.ParseAddrPort(a)
	y, err2 := netip.ParseAddrPort(b)
	return err == nil && err2 == nil && x == y
}

// examineMetrics asks each gate of the configuration whether it is ready, and what it has dropped.
func examineMetrics(ctx context.Context, cfg *config.Config, running bool) []finding {
	replicas := cfg.Listen.Replicas
	if len(replicas) == 0 {
		replicas = []string{""}
	}
	if cfg.Metrics.Listen == "" {
		return nil
	}
	return together(replicas, func(replica string) []finding {
		what := strings.Join(strings.Fields("gate "+replica+" health"), " ")
		address := cfg.MetricsAddress(replica)
		if a, err := netip.ParseAddrPort(address); err == nil && a.Addr().IsUnspecified() {
			loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
			if a.Addr().Is6() {
				loopback = netip.IPv6Loopback()
			}
			address = netip.AddrPortFrom(loopback, a.Port()).String()
		}
		status, body, err := get(ctx, "http://"+address+"/readyz", "application/json")
		var said struct {
			Ready   *bool
			Reasons []metrics.Reason
		}
		switch {
		case err != nil && !running:
			return nil // which was said
		case err != nil:
			return []finding{warn(what, "nothing answers at "+address+", where metrics.listen says", "see in the gate's log whether another program has the address; a change of it takes a restart")}
		case json.Unmarshal(body, &said) != nil || said.Ready == nil:
			return []finding{warn(what, address+" is another program's, by its answer", "stop it, or give metrics.listen another port")}
		}
		var out []finding
		for _, r := range said.Reasons {
			out = append(out, warn(what, fmt.Sprintf("not ready: %s %s", r.Part, r.Why), "see what doctor says of it, and the gate's log"))
		}
		if status == http.StatusOK {
			out = append(out, good(what, "ready, says "+address))
		}
		if _, text, err := get(ctx, "http://"+address+"/metrics", ""); err == nil {
			out = append(out, examineDropped(what, string(text))...)
		}
		return out
	})
}

// dropped are figures that should be zero, and what it means when they are not.
var dropped = []struct{ name, what, fix string }{
	{"wayleave_audit_dropped_total", "records of the audit were dropped since its start", "see in its log which sink did not take them; docs/alerts.md has more"},
	{"wayleave_audit_lost_total", "decisions of gates that were killed are not in the audit", "see when: wayleave audit query; who they were for is in Envoy's access log"},
	{"wayleave_telemetry_dropped_total", "spans, figures or log records did not reach the collector since its start", "see in its log why, and whether the collector runs"},
}

// examineDropped reads a gate's figures.
func examineDropped(what, text string) (out []finding) {
	sums := map[string]float64{}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		name, _, _ = strings.Cut(name, "{")
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			sums[name] += n
		}
	}
	for _, d := range dropped {
		if n := sums[d.name]; n > 0 {
			out = append(out, warn(what, fmt.Sprintf("%v %s", n, d.what), d.fix))
		}
	}
	return out
}

func get(ctx context.Context, address, accept string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Accept", accept)
	resp, err := (&http.Client{Timeout: examineTime / 2, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	return resp.StatusCode, body, err
}

// examineAudit says where the account of requests is kept, and whether it can be. file is empty where none is.
func examineAudit(cfg *config.Config, file string) (out []finding) {
	const what = "audit"
	if file == "" {
		return []finding{warn(what, "none is kept: nobody will know which worker used which grant", "write audit.file into the configuration")}
	}
	for _, names := range auditFiles(cfg, file) {
		out = append(out, examineFile(what, names, int64(cfg.Audit.MaxMB)<<20))
	}
	return out
}

// examineFile looks at a file that is added to, the newest one first, which may come to most bytes.
func examineFile(what string, names []string, most int64) finding {
	file := names[0]
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := unix.Access(filepath.Dir(file), unix.W_OK); err != nil {
			return warn(what, fmt.Sprintf("%s cannot be made here: %v", file, err), "make the directory, and give it to the user who runs the gate; or run doctor as that user")
		}
	case err != nil:
		return warn(what, err.Error(), "run doctor as the user who runs the gate")
	case unix.Access(file, unix.W_OK) != nil:
		return warn(what, file+" cannot be written here", "give it to the user who runs the gate; or run doctor as that user")
	}
	var size int64
	for _, name := range names {
		if i, err := os.Stat(name); err == nil {
			size += i.Size()
		}
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(file), &disk); err == nil {
		if free := int64(disk.Bavail) * int64(disk.Bsize); free < most-size { //nolint:unconvert // differs by system
			return warn(what, fmt.Sprintf("%s may come to %d MB more, and its disk has %d MB left", file, (most-size)>>20, free>>20), "make room, or write a smaller audit.max_mb")
		}
	}
	detail := file + ", not there yet"
	if err == nil {
		detail = fmt.Sprintf("%s, %d KB in all, written last at %s", file, (size+1023)>>10, when(info.ModTime()))
	}
	return good(what, detail)
}
