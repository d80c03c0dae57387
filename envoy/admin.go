package envoy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// adminTimeout bounds one question to the admin interface.
const adminTimeout = 10 * time.Second

// ErrNotReady is in the error of Ready while Envoy answers but is not live: it is still starting, or draining.
var ErrNotReady = errors.New("envoy is not live yet")

// Ready returns nil when Envoy is live. That says nothing about its configuration: with routes it has refused it
// is live too, and answers 404.
func Ready(ctx context.Context, adminSocket string) error {
	i, err := ServerInfo(ctx, adminSocket)
	if err != nil {
		return err
	}
	if i.State != "LIVE" {
		return fmt.Errorf("%w: %s", ErrNotReady, strings.ToLower(i.State))
	}
	return nil
}

// Info is what Envoy says of itself.
type Info struct {
	Version string // as 1.40.0
	State   string // LIVE, DRAINING, PRE_INITIALIZING or INITIALIZING (envoy.admin.v3.ServerInfo.State)
	Uptime  time.Duration
	Epoch   int // how many Envoys it follows by hot restart
}

// ServerInfo returns what Envoy says of itself.
func ServerInfo(ctx context.Context, adminSocket string) (Info, error) {
	body, err := admin(ctx, adminSocket, http.MethodGet, "/server_info")
	if err != nil {
		return Info{}, err
	}
	var raw struct {
		Version string `json:"version"`
		State   string `json:"state"`
		Uptime  string `json:"uptime_current_epoch"`
		Options struct {
			Epoch int `json:"restart_epoch"`
		} `json:"command_line_options"`
	}
	if err := json.Unmarshal(body, &raw); err != nil {
		return Info{}, fmt.Errorf("reading envoy's server info: %w", err)
	}
	i := Info{State: raw.State, Epoch: raw.Options.Epoch}
	if m := Program.Version.FindStringSubmatch("version: " + raw.Version); m != nil {
		i.Version = m[1]
	}
	i.Uptime, _ = time.ParseDuration(raw.Uptime)
	return i, nil
}

// ConfigDump returns what Envoy runs with, as JSON (envoy.admin.v3.ConfigDump). Envoy blanks private keys in it,
// but it does hold host names and internal addresses.
func ConfigDump(ctx context.Context, adminSocket string) ([]byte, error) {
	return admin(ctx, adminSocket, http.MethodGet, "/config_dump")
}

// Drain asks Envoy to let go of its connections within its drain time: HTTP/2 ones are told to go away, others
// end after their next response. It does not wait; a caller waits and then stops the process.
func Drain(ctx context.Context, adminSocket string) error {
	_, err := admin(ctx, adminSocket, http.MethodPost, "/drain_listeners?graceful&skip_exit")
	return err
}

// RotateLog keeps an access log that Envoy writes from growing past most bytes by much: it then renames it, with ".1" at
// its end and in place of the one that was so named, and has Envoy begin a new one. It returns with ctx.
func RotateLog(ctx context.Context, path string, most int64, adminSocket string) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			rotateLog(ctx, path, most, adminSocket)
		case <-ctx.Done():
			return
		}
	}
}

// rotateLog leaves what fails to the next time. A file that is gone is one that Envoy has yet to begin anew.
func rotateLog(ctx context.Context, path string, most int64, adminSocket string) {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.Size() < most:
		return
	case err == nil:
		err = os.Rename(path, path+".1")
	case errors.Is(err, os.ErrNotExist):
		err = nil
	}
	if err == nil {
		_, _ = admin(ctx, adminSocket, http.MethodPost, "/reopen_logs")
	}
}

// What package xds calls that which a stop should not cut: requests, and tunnels nobody looks into. A tunnel may be
// idle for hours, so it counts while bytes come or go.
const (
	activeRequests = "http.intercept.downstream_rq_active"
	tunnelBytes    = "cluster.tunnel.upstream_cx_" // …rx_bytes_total, …tx_bytes_total
	tunnelIdle     = time.Second
)

// Finish takes Envoy out of service, before it is told to end: it closes its listeners, and tells clients to go
// elsewhere with their next response. Finish returns when nothing is under way any longer, or with ctx.
func Finish(ctx context.Context, adminSocket string) error {
	if err := Drain(ctx, adminSocket); err != nil {
		return err
	}
	if _, err := admin(ctx, adminSocket, http.MethodPost, "/drain_listeners"); err != nil {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var before float64
	var moved time.Time
	for {
		requests, bytes, err := underWay(ctx, adminSocket)
		if err != nil {
			return err
		}
		if bytes != before {
			if before != 0 {
				moved = time.Now()
			}
			before = bytes
		}
		if requests == 0 && time.Since(moved) > tunnelIdle {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("envoy still has %v requests under way: %w", requests, ctx.Err())
		}
	}
}

// underWay returns how many requests are under way, and how many bytes have passed through tunnels so far.
func underWay(ctx context.Context, adminSocket string) (requests, bytes float64, err error) {
	stats, err := Stats(ctx, adminSocket, "^("+regexp.QuoteMeta(activeRequests)+"|"+regexp.QuoteMeta(tunnelBytes)+"[rt]x_bytes_total)$")
	for name, n := range stats {
		if name == activeRequests {
			requests += n
		} else {
			bytes += n
		}
	}
	return requests, bytes, err
}

// Stats returns Envoy's counters and gauges whose names the regular expression finds.
func Stats(ctx context.Context, adminSocket, filter string) (map[string]float64, error) {
	text, err := admin(ctx, adminSocket, http.MethodGet, "/stats?filter="+url.QueryEscape(filter))
	if err != nil {
		return nil, err
	}
	stats := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if stats[name], err = strconv.ParseFloat(value, 64); err != nil {
			return nil, fmt.Errorf("reading envoy's statistics: %q", line)
		}
	}
	return stats, nil
}

// Allocated returns how many bytes of memory Envoy uses; it may keep more, for later.
func Allocated(ctx context.Context, adminSocket string) (int64, error) {
	text, err := admin(ctx, adminSocket, http.MethodGet, "/memory")
	if err != nil {
		return 0, err
	}
	var m struct {
		Allocated int64 `json:"allocated,string"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return 0, fmt.Errorf("reading envoy's use of memory: %w", err)
	}
	return m.Allocated, nil
}

func admin(ctx context.Context, socket, method, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, fmt.Errorf("asking envoy at %s for %s: %w", socket, path, err)
	}
	defer func() { _ = resp.Body.Close() }() // read to its end below, or given up
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("asking envoy at %s for %s: %w", socket, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("asking envoy at %s for %s: status %d", socket, path, resp.StatusCode)
	}
	return body, nil
}
