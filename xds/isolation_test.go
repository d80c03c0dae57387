package xds

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	setstatecommon "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
)

// No worker ever gets another worker's credential, however many come at once.
func TestWorkersAreIsolated(t *testing.T) {
	s := start(t, nil, nil)
	requests, wrong := s.manyWorkers(32, s.worker)
	if requests < 2000 || wrong != 0 {
		t.Fatalf("%d of %d requests carried another worker's credential", wrong, requests)
	}
}

// The test above would notice: with the filter state that Envoy's documentation shows it does find requests that
// carry another worker's credential.
func TestIsolationTestCanFail(t *testing.T) {
	s := start(t, nil, func(r *Resources) { keepGuards(r) })
	requests, wrong := s.manyWorkers(32, s.worker)
	if wrong == 0 {
		t.Fatalf("of %d requests none carried another worker's credential, although nothing keeps workers apart: the isolation test proves nothing", requests)
	}
	t.Logf("without any guard %d of %d requests carried another worker's credential", wrong, requests)
}

// Each guard is enough by itself.
func TestEachGuardAlone(t *testing.T) {
	for _, g := range guards {
		t.Run(string(g), func(t *testing.T) {
			s := start(t, nil, func(r *Resources) { keepGuards(r, g) })
			if requests, wrong := s.manyWorkers(8, s.worker); requests == 0 || wrong != 0 {
				t.Errorf("%d of %d requests carried another worker's credential", wrong, requests)
			}
		})
	}
}

// manyWorkers sends requests over 16 connections of these workers, ann and bob when there are none, each connection reused
// for a few requests and then replaced.
func (s *stack) manyWorkers(rounds int, worker func(user string) *http.Client, users ...string) (requests, wrong int64) {
	s.t.Helper()
	const connections, reuse = 16, 4
	var sent, other atomic.Int64
	var wg sync.WaitGroup
	if len(users) == 0 {
		users = []string{"ann", "bob"}
	}
	for i := range connections {
		user := users[i%len(users)]
		client := worker(user)
		wg.Go(func() {
			for range rounds {
				for range reuse {
					got, err := credentialSeen(client, user)
					if err != nil {
						s.t.Errorf("request of %s: %v", user, err)
						return
					}
					sent.Add(1)
					if got != "Bearer real-"+user {
						other.Add(1)
					}
				}
				client.CloseIdleConnections()
			}
		})
	}
	wg.Wait()
	return sent.Load(), other.Load()
}

// credentialSeen returns the authorization the upstream received.
func credentialSeen(c *http.Client, user string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, "https://"+apiHost+"/whoami", nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer of-"+user)
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// guard is one of the things that keep the connections of workers apart.
type guard string

const (
	hashedIdentity guard = "identity can be hashed"
	hashedTunnel   guard = "every tunnel has a value"
	hashedAddress  guard = "the worker's address and port"
	poolEach       guard = "a pool for each connection"
)

var guards = []guard{hashedIdentity, hashedTunnel, hashedAddress, poolEach}

// keepGuards takes away every guard but those to keep.
func keepGuards(r *Resources, keep ...guard) {
	for _, c := range r.Clusters {
		if c.GetName() == clusterIntercept {
			c.ConnectionPoolPerDownstreamConnection = slices.Contains(keep, poolEach)
		}
	}
	keepState := func(values []*setstatecommon.FilterStateValue) (kept []*setstatecommon.FilterStateValue) {
		for _, v := range values {
			g := map[string]guard{stateIdentity: hashedIdentity, stateTunnel: hashedTunnel, originalRemoteKey: hashedAddress}[v.GetObjectKey()]
			switch {
			case slices.Contains(keep, g):
			case v.GetFactoryKey() == hashableString:
				v.FactoryKey = "envoy.string"
			default:
				continue
			}
			kept = append(kept, v)
		}
		return kept
	}
	editManagers(r, func(m *hcmv3.HttpConnectionManager) {
		for _, f := range m.GetHttpFilters() {
			var state setstatev3.Config
			if f.GetTypedConfig().UnmarshalTo(&state) == nil {
				state.OnRequestHeaders = keepState(state.GetOnRequestHeaders())
				f.ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&state)}
			}
		}
	})
	for _, l := range r.Listeners {
		for _, f := range networkFilters(l) {
			var state netstatev3.Config
			if f.GetTypedConfig().UnmarshalTo(&state) == nil {
				state.OnNewConnection = keepState(state.GetOnNewConnection())
				f.ConfigType = networkFilter(f.GetName(), &state).ConfigType
			}
		}
	}
}

// editManagers changes every HTTP connection manager of r.
func editManagers(r *Resources, edit func(*hcmv3.HttpConnectionManager)) {
	for _, l := range r.Listeners {
		for _, f := range networkFilters(l) {
			var m hcmv3.HttpConnectionManager
			if f.GetTypedConfig().UnmarshalTo(&m) != nil {
				continue
			}
			edit(&m)
			f.ConfigType = networkFilter(httpManager, &m).ConfigType
		}
	}
}
