package xds

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	setstatecommon "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
)

// No worker ever gets another worker's credential, however many come at once. `make isolation` sends 100,000 requests.
func TestWorkersAreIsolated(t *testing.T) {
	requests := int64(6_000)
	if n, err := strconv.ParseInt(os.Getenv("WAYLEAVE_ISOLATION_REQUESTS"), 10, 64); err == nil {
		requests = n
	}
	s := startSwarm(t, nil)
	got := s.swarm(requests)
	if got.wrong() != 0 || got.all() < requests || got.cancelled.Load() == 0 {
		t.Fatalf("another worker's credential came: %v", got)
	}
	t.Log(got)
}

// The test above would notice, in each way: with the filter state that Envoy's documentation shows it does find requests that
// carry another worker's credential.
func TestIsolationTestCanFail(t *testing.T) {
	s := startSwarm(t, func(r *Resources) { keepGuards(r) })
	got := s.swarm(4_000)
	for i := range got.ways {
		if got.ways[i].wrong.Load() == 0 {
			t.Errorf("no request %s carried another worker's credential, although nothing keeps workers apart: the isolation test proves nothing", swarmWays[i])
		}
	}
	t.Logf("without any guard: %v", got)
}

// swarmWays are how the workers of a swarm get to Envoy.
var swarmWays = [...]string{"through tunnels over HTTP/1.1", "through tunnels over HTTP/2", "redirected"}

// tally counts the requests of a swarm.
type tally struct {
	ways               [len(swarmWays)]struct{ answered, wrong atomic.Int64 } // wrong is a part of answered
	cancelled, tunnels atomic.Int64
}

func (c *tally) all() (n int64) {
	for i := range c.ways {
		n += c.ways[i].answered.Load()
	}
	return n
}

func (c *tally) wrong() (n int64) {
	for i := range c.ways {
		n += c.ways[i].wrong.Load()
	}
	return n
}

func (c *tally) String() string {
	text := fmt.Sprintf("%d requests answered, %d cancelled, %d connections", c.all(), c.cancelled.Load(), c.tunnels.Load())
	for i, way := range swarmWays {
		text += fmt.Sprintf("; %s %d, %d of them with another worker's credential", way, c.ways[i].answered.Load(), c.ways[i].wrong.Load())
	}
	return text
}

// startSwarm lets workers in by each way.
func startSwarm(t *testing.T, mutate func(*Resources)) *stack {
	t.Helper()
	s := startTransparent(t, mutate)
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
		return swap(strings.TrimPrefix(r.identity, addressIdentity))
	}
	return s
}

// swarm lets 64 workers, each with a credential of its own, send requests until so many were answered. A third of them connect
// with HTTP/1.1, a third are streams of four shared HTTP/2 connections to the proxy, and a third have addresses of their own and are
// redirected; inside they speak both. Every connection is replaced after a few requests, and some requests are given up under way.
func (s *stack) swarm(requests int64) *tally {
	s.t.Helper()
	var shared [4]sharedProxy
	var count tally
	var wg sync.WaitGroup
	for i := range 64 {
		way, user := i%len(swarmWays), fmt.Sprintf("worker%02d", i)
		var dial func(ctx context.Context, network, address string) (net.Conn, error)
		var proxy func(*http.Request) (*url.URL, error)
		noise := func() {}
		alpn := [][]string{{"h2"}, {"http/1.1"}}[i/len(swarmWays)%2]
		inTunnel := &tls.Config{ServerName: apiHost, RootCAs: s.leaves.pool(), NextProtos: alpn}
		switch way {
		case 0:
			proxy = http.ProxyURL(&url.URL{Scheme: "http", User: url.UserPassword(user, "pw"), Host: s.config.ProxyAddress})
		case 2:
			user = fmt.Sprintf("127.1.0.%d", i+1)
			dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
				conn, err := s.dialFrom(user)(ctx, "", "")
				if err != nil {
					return nil, err
				}
				c := tls.Client(conn, inTunnel)
				return c, c.HandshakeContext(ctx)
			}
			noise = func() { s.hurry(s.t.Context(), user) }
		default:
			dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
				proxy, err := shared[i/len(swarmWays)%len(shared)].connection(s)
				if err != nil {
					return nil, err
				}
				tunnel, status, err := connectOver(context.WithoutCancel(ctx), proxy, user, apiHost+":443")
				if err != nil || status != http.StatusOK {
					return nil, fmt.Errorf("CONNECT: status %d, %w", status, err)
				}
				c := tls.Client(tunnel, inTunnel)
				return c, c.HandshakeContext(ctx)
			}
		}
		wg.Go(func() {
			for round := 0; count.all() < requests; round++ {
				tr := &http.Transport{Proxy: proxy, DialTLSContext: dial, TLSClientConfig: inTunnel.Clone(), ForceAttemptHTTP2: alpn[0] == "h2"}
				count.tunnels.Add(1)
				noise()
				err := s.fewRequests(&http.Client{Transport: tr, Timeout: time.Minute}, user, way, i+round, &count)
				tr.CloseIdleConnections()
				if err != nil {
					s.t.Errorf("request of %s: %v", user, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return &count
}

// sharedProxy is an HTTP/2 connection to the proxy, another one after each hundred tunnels, before Envoy asks for one.
type sharedProxy struct {
	mu   sync.Mutex
	conn *http.ClientConn
	used int
}

func (p *sharedProxy) connection(s *stack) (*http.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used++; p.conn != nil && p.used%100 != 0 {
		return p.conn, nil
	}
	only := &http.Protocols{}
	only.SetUnencryptedHTTP2(true)
	conn, err := (&http.Transport{Protocols: only}).NewClientConn(s.t.Context(), "http", s.config.ProxyAddress)
	if err != nil {
		return nil, err
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	p.conn = conn
	return conn, nil
}

// fewRequests sends one to eight requests and then, in every third round, another that is given up under way.
func (s *stack) fewRequests(c *http.Client, user string, way, round int, count *tally) error {
	of := &count.ways[way]
	for range 1 + round%8 {
		got, err := credentialSeen(s.t.Context(), c, user)
		if err != nil {
			return err
		}
		of.answered.Add(1)
		if got != "Bearer real-"+user {
			of.wrong.Add(1)
		}
	}
	if round%3 != 0 {
		return nil
	}
	// From before it is sent until about when the answer comes.
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Duration(round%40)*100*time.Microsecond)
	defer cancel()
	if got, err := credentialSeen(ctx, c, user); err != nil {
		count.cancelled.Add(1)
	} else if got != "Bearer real-"+user {
		of.wrong.Add(1)
	}
	return nil
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
					got, err := credentialSeen(s.t.Context(), client, user)
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
func credentialSeen(ctx context.Context, c *http.Client, user string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+apiHost+"/whoami", nil)
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
