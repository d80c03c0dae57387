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
	}
	if err := json.Unmarshal(body, &raw); err != nil {
		return Info{}, fmt.Errorf("reading envoy's server info: %w", err)
	}
	i := Info{State: raw.State}
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
