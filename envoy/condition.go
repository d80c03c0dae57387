package envoy

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Condition is how an Envoy is, as it says itself.
type Condition struct {
	Info
	Connected bool           // to a gate, for its configuration
	Listens   []string       // addresses, ip:port
	Unhealthy []string       // hosts of clusters that it does not ask, each with why
	Rejected  map[string]int // how many updates it has refused since its start, by what tells of them, such as listener_manager.lds
}

// What Envoy calls what we look at.
const (
	statConnected = "control_plane.connected_state"
	statRejected  = ".update_rejected"
)

// Look asks an Envoy how it is.
func Look(ctx context.Context, adminSocket string) (c Condition, err error) {
	if c.Info, err = ServerInfo(ctx, adminSocket); err != nil {
		return c, err
	}
	stats, err := Stats(ctx, adminSocket, `(^control_plane\.connected_state|\.update_rejected)$`)
	if err != nil {
		return c, err
	}
	c.Rejected = map[string]int{}
	for name, n := range stats {
		if of, is := strings.CutSuffix(name, statRejected); is && n > 0 {
			c.Rejected[of] = int(n)
		}
	}
	c.Connected = stats[statConnected] > 0
	if c.Listens, err = listens(ctx, adminSocket); err != nil {
		return c, err
	}
	c.Unhealthy, err = unhealthy(ctx, adminSocket)
	return c, err
}

// address is one as Envoy writes it.
type address struct {
	Socket struct {
		Address string `json:"address"`
		Port    int    `json:"port_value"`
	} `json:"socket_address"`
	Pipe struct {
		Path string `json:"path"`
	} `json:"pipe"`
	Internal struct {
		Listener string `json:"server_listener_name"`
	} `json:"envoy_internal_address"`
}

func (a address) String() string {
	switch {
	case a.Pipe.Path != "":
		return a.Pipe.Path
	case a.Internal.Listener != "":
		return a.Internal.Listener
	}
	return net.JoinHostPort(a.Socket.Address, strconv.Itoa(a.Socket.Port))
}

func listens(ctx context.Context, adminSocket string) (all []string, err error) {
	var raw struct {
		Listeners []struct {
			Local  address `json:"local_address"`
			Others []struct {
				Local address `json:"local_address"`
			} `json:"additional_local_addresses"`
		} `json:"listener_statuses"`
	}
	if err := askJSON(ctx, adminSocket, "/listeners?format=json", &raw); err != nil {
		return nil, err
	}
	for _, l := range raw.Listeners {
		if l.Local.Internal.Listener == "" {
			all = append(all, l.Local.String())
		}
		for _, o := range l.Others {
			all = append(all, o.Local.String())
		}
	}
	return all, nil
}

func unhealthy(ctx context.Context, adminSocket string) (all []string, err error) {
	var raw struct {
		Clusters []struct {
			Name  string `json:"name"`
			Hosts []struct {
				Address address        `json:"address"`
				Health  map[string]any `json:"health_status"`
			} `json:"host_statuses"`
		} `json:"cluster_statuses"`
	}
	if err := askJSON(ctx, adminSocket, "/clusters?format=json", &raw); err != nil {
		return nil, err
	}
	for _, c := range raw.Clusters {
		for _, h := range c.Hosts {
			var why []string
			for _, name := range slices.Sorted(maps.Keys(h.Health)) {
				switch v := h.Health[name].(type) {
				case bool:
					if v {
						why = append(why, strings.ReplaceAll(name, "_", " "))
					}
				case string: // eds_health_status
					if v != "HEALTHY" && v != "UNKNOWN" {
						why = append(why, strings.ToLower(v))
					}
				}
			}
			if len(why) > 0 {
				all = append(all, fmt.Sprintf("%s of %s: %s", h.Address, c.Name, strings.Join(why, ", ")))
			}
		}
	}
	slices.Sort(all)
	return all, nil
}

func askJSON(ctx context.Context, adminSocket, path string, into any) error {
	text, err := admin(ctx, adminSocket, http.MethodGet, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("reading envoy's answer to %s: %w", path, err)
	}
	return nil
}
