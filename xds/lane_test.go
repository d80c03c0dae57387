package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"wayleave/envoy/envoytest"
	hidden "wayleave/secret"
)

const otherHost = "other.provider.test"

// laneStack are two hosts with lanes, each with a credential of its own, and a gate that swaps a worker's own placeholder for a host, leases
// that, and refuses everything else.
type laneStack struct {
	*stack
	asked atomic.Int64
}

func startLanes(t *testing.T, mutate func(*Resources)) *laneStack {
	t.Helper()
	l := &laneStack{}
	l.stack = start(t, func(c *Config) {
		api := c.Routes[0]
		api.Lane = &Lane{Credential: apiHost, Header: "authorization"}
		c.Routes = []Route{api, {Name: "other", Hosts: []string{otherHost}, ConnectTo: api.ConnectTo, Lane: &Lane{Credential: otherHost, Header: "authorization"}}}
		c.Transparent = &Transparent{Address: freeAddress(t), Sources: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16")}}
	}, mutate)
	l.gate.decide = func(r request) *extprocv3.ProcessingResponse {
		l.asked.Add(1)
		if r.header.Get("Authorization") != "Bearer "+placeholderOf(strings.TrimPrefix(r.identity, addressIdentity), r.serverName) {
			return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extprocv3.ImmediateResponse{
				Status: &typev3.HttpStatus{Code: typev3.StatusCode_Forbidden},
			}}}
		}
		return leasing(l.config.Routes, r)
	}
	return l
}

// placeholderOf is of the same length for all users of a length, and for both hosts.
func placeholderOf(user, host string) string {
	return testMarker + "-" + user + "-" + strings.ReplaceAll(host[:3], ".", "-")
}

func realOf(host string) string { return "Bearer real-of-" + host }

// deliver gives Envoy the credentials.
func (l *laneStack) deliver() {
	l.server.SetCredentials(map[string]Credential{
		apiHost:   {Version: "1", Value: hidden.New(realOf(apiHost))},
		otherHost: {Version: "1", Value: hidden.New(realOf(otherHost))},
	})
}

// leasing swaps, and leases that.
func leasing(routes []Route, r request) *extprocv3.ProcessingResponse {
	out := forward("authorization", realOf(r.serverName))
	out.DynamicMetadata = verdict("swap")
	var lane string
	for _, route := range routes {
		if route.Hosts[0] == r.serverName {
			lane = route.Lane.Key(route.Name)
		}
	}
	own := out.GetDynamicMetadata().GetFields()[metadataNamespace].GetStructValue().GetFields()
	own[metadataNote] = structpb.NewStringValue(r.header.Get("X-Request-Id") + "\n" + r.identity)
	own[metadataLease] = structpb.NewStringValue("lane " + lane + "\nms 1000\nheader authorization\nvalue " + r.header.Get("Authorization") +
		"\nauthority " + r.serverName + "\nmethod GET\n")
	return out
}

// laneWorker is one connection for each host, until it is renewed.
func (l *laneStack) laneWorker(user string, alpn ...string) *http.Client {
	tr := &http.Transport{
		Proxy:             http.ProxyURL(&url.URL{Scheme: "http", User: url.UserPassword(user, "pw"), Host: l.config.ProxyAddress}),
		TLSClientConfig:   &tls.Config{RootCAs: l.leaves.pool(), NextProtos: alpn},
		ForceAttemptHTTP2: alpn[0] == "h2",
	}
	l.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

func whoAmI(ctx context.Context, c *http.Client, host, placeholder string) (status int, credential string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/whoami?a=b", nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+placeholder)
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// awaitLane returns when Envoy has answered by itself.
func (l *laneStack) awaitLane(host string) {
	l.t.Helper()
	c := l.laneWorker("ann", "http/1.1")
	envoytest.Await(l.t, "the fast lane", func() error {
		before := l.asked.Load()
		for range 2 {
			if status, credential, err := whoAmI(l.t.Context(), c, host, placeholderOf("ann", host)); err != nil || status != http.StatusOK || credential != realOf(host) {
				return fmt.Errorf("%d %q, %w", status, credential, err)
			}
		}
		if l.asked.Load() == before+2 {
			return errors.New("the gate was asked about both")
		}
		return nil
	})
}

// laneWorkerOver is the same, but its tunnels are streams of an HTTP/2 connection that it shares with others.
func (l *laneStack) laneWorkerOver(proxy *sharedProxy, user string, alpn ...string) *http.Client {
	c := l.laneWorker(user, alpn...)
	tr := c.Transport.(*http.Transport)
	tr.Proxy = nil
	tr.DialTLSContext = func(ctx context.Context, _, authority string) (net.Conn, error) {
		shared, err := proxy.connection(l.stack)
		if err != nil {
			return nil, err
		}
		tunnel, status, err := connectOver(context.WithoutCancel(ctx), shared, user, authority)
		if err != nil || status != http.StatusOK {
			return nil, fmt.Errorf("CONNECT: status %d, %w", status, err)
		}
		host, _, _ := strings.Cut(authority, ":")
		conn := tls.Client(tunnel, &tls.Config{ServerName: host, RootCAs: l.leaves.pool(), NextProtos: alpn})
		return conn, conn.HandshakeContext(ctx)
	}
	return c
}

// laneWorkerAt is the same at an address, from which connections are redirected.
func (l *laneStack) laneWorkerAt(source string, alpn ...string) *http.Client {
	c := l.laneWorker(source, alpn...)
	tr := c.Transport.(*http.Transport)
	tr.Proxy, tr.DialContext = nil, l.dialFrom(source)
	return c
}

// thieves lets workers, four of each way in, send requests until so many were answered: with their own placeholders, with those of others, and
// with their own for the other host. Only the first kind may be let out.
func (l *laneStack) thieves(requests int64) (own, stolen, wrong int64) {
	l.t.Helper()
	var owns, steals, wrongs atomic.Int64
	named, addresses, hosts := []string{"ann", "bob", "cat", "dan"}, []string{"127.1.0.1", "127.1.0.2", "127.1.0.3", "127.1.0.4"}, []string{apiHost, otherHost}
	var wg sync.WaitGroup
	var shared sharedProxy
	for i := range 24 {
		random := rand.New(rand.NewPCG(1, uint64(i)))
		users := named
		if i >= 16 {
			users = addresses
		}
		user := users[i%len(users)]
		alpn := [][]string{{"h2"}, {"http/1.1"}}[i/len(users)%2]
		c := l.laneWorker(user, alpn...)
		switch {
		case i >= 16:
			c = l.laneWorkerAt(user, alpn...)
		case i >= 8:
			c = l.laneWorkerOver(&shared, user, alpn...)
		}
		wg.Go(func() {
			for n := 1; owns.Load()+steals.Load() < requests; n++ {
				whose, host := user, hosts[random.IntN(2)]
				of := host
				switch random.IntN(4) {
				case 0:
					whose = users[random.IntN(len(users))]
				case 1:
					of = hosts[random.IntN(2)]
				}
				status, credential, err := whoAmI(l.t.Context(), c, host, placeholderOf(whose, of))
				mine := whose == user && of == host
				switch {
				case err != nil:
					l.t.Errorf("request of %s: %v", user, err)
					return
				case mine:
					owns.Add(1)
					if status != http.StatusOK || credential != realOf(host) {
						wrongs.Add(1)
					}
				default:
					steals.Add(1)
					if status != http.StatusForbidden {
						wrongs.Add(1)
					}
				}
				if n%50 == 0 {
					c.CloseIdleConnections()
				}
			}
		})
	}
	wg.Wait()
	return owns.Load(), steals.Load(), wrongs.Load()
}

// What the gate leased to a connection is of use to nobody else, and for no other placeholder.
func TestLeasesAreIsolated(t *testing.T) {
	l := startLanes(t, nil)
	l.deliver()
	l.awaitLane(apiHost)
	l.awaitLane(otherHost)
	before := l.asked.Load()
	own, stolen, wrong := l.thieves(4_000)
	asked := l.asked.Load() - before
	t.Logf("%d requests with a worker's own placeholder, %d with another one, the gate was asked about %d", own, stolen, asked)
	if wrong != 0 {
		t.Errorf("%d requests were answered as they should not be", wrong)
	}
	if asked-stolen >= own {
		t.Error("no request took the fast lane")
	}
}

// The test above would notice.
func TestLeaseIsolationTestCanFail(t *testing.T) {
	for without, change := range map[string][2]string{
		"the connection":  {`return handle:streamInfo():filterState():get("` + stateTunnel + `")`, `return "everybody's"`},
		"the placeholder": {`if value ~= lease.value then`, `if false then`},
	} {
		t.Run(without, func(t *testing.T) {
			l := startLanes(t, func(r *Resources) { editLanes(t, r, change[0], change[1]) })
			l.deliver()
			l.awaitLane(apiHost)
			if own, stolen, wrong := l.thieves(2_000); wrong == 0 {
				t.Errorf("%d requests with a worker's own placeholder, %d with another one, and all are answered as if leases were compared: the isolation test proves nothing", own, stolen)
			}
		})
	}
}

// editLanes changes the script of both filters.
func editLanes(t *testing.T, r *Resources, from, to string) {
	t.Helper()
	script := func(packed *anypb.Any) {
		var lua luav3.Lua
		if err := packed.UnmarshalTo(&lua); err != nil {
			t.Fatal(err)
		}
		old := lua.GetDefaultSourceCode().GetInlineString()
		if !strings.Contains(old, from) {
			t.Fatalf("lane.lua has no %q", from)
		}
		lua.DefaultSourceCode = inlineString(strings.Replace(old, from, to, 1))
		if err := packed.MarshalFrom(&lua); err != nil {
			t.Fatal(err)
		}
	}
	editManagers(r, func(m *hcmv3.HttpConnectionManager) {
		for _, f := range m.GetHttpFilters() {
			switch f.GetName() {
			case filterLane:
				script(f.GetTypedConfig())
			case filterLease:
				var only compositev3.Composite
				if err := f.GetTypedConfig().UnmarshalTo(&only); err != nil {
					t.Fatal(err)
				}
				action := only.GetMatcher().GetMatcherList().GetMatchers()[0].GetOnMatch().GetAction().GetTypedConfig()
				var made compositev3.ExecuteFilterAction
				if err := action.UnmarshalTo(&made); err != nil {
					t.Fatal(err)
				}
				script(made.GetTypedConfig().GetTypedConfig())
				if err := errors.Join(action.MarshalFrom(&made), f.GetTypedConfig().MarshalFrom(&only)); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// Until Envoy has the credential, and whenever the gate leases nothing, it asks about every request.
func TestNoLaneWithoutCredential(t *testing.T) {
	l := startLanes(t, nil)
	c := l.laneWorker("ann", "http/1.1")
	for n := range int64(10) {
		status, credential, err := whoAmI(t.Context(), c, apiHost, placeholderOf("ann", apiHost))
		if err != nil || status != http.StatusOK || credential != realOf(apiHost) || l.asked.Load() != n+1 {
			t.Fatalf("%d %q, %v; the gate was asked %d times about %d", status, credential, err, l.asked.Load(), n+1)
		}
	}
	l.deliver()
	l.awaitLane(apiHost)
	l.server.SetCredentials(map[string]Credential{apiHost: {Version: "2", Value: hidden.New("Bearer another")}})
	envoytest.Await(t, "another credential", func() error {
		if _, credential, err := whoAmI(t.Context(), c, apiHost, placeholderOf("ann", apiHost)); err != nil || credential != "Bearer another" {
			return fmt.Errorf("%q, %w", credential, err)
		}
		return nil
	})
}

// A list that is mostly space costs no more than another one: the thread that reads it has the requests of other workers to read.
func TestSpaceInLists(t *testing.T) {
	l := startLanes(t, nil)
	answer, ensured := l.gate.decide, ""
	for i := range 100 { // each is looked for
		ensured += fmt.Sprintf("ensure x-list item-%d\n", i)
	}
	l.gate.decide = func(r request) *extprocv3.ProcessingResponse {
		out := answer(r)
		own := out.GetDynamicMetadata().GetFields()[metadataNamespace].GetStructValue().GetFields()
		if lease := own[metadataLease]; lease != nil {
			own[metadataLease] = structpb.NewStringValue(lease.GetStringValue() + ensured)
		}
		return out
	}
	l.deliver()
	c := l.laneWorker("ann", "http/1.1")
	authorization := []string{"Authorization", "Bearer " + placeholderOf("ann", apiHost)}
	envoytest.Await(t, "the fast lane", func() error {
		if a := get(t, c, "https://"+apiHost+"/", authorization...); a.status != http.StatusOK {
			return fmt.Errorf("%d %q", a.status, a.body)
		}
		before := l.asked.Load()
		a := get(t, c, "https://"+apiHost+"/", append(authorization, "X-List", "item-7, a"+strings.Repeat(" ", 90<<10)+"b")...)
		list := l.upstream.last.Load().Header.Get("X-List")
		switch {
		case l.asked.Load() != before:
			return errors.New("the gate was asked")
		case a.status != http.StatusOK, strings.Count(list, "item-") != 100, strings.Count(list, "item-7,") != 1:
			t.Errorf("%d, %d of 100 items", a.status, strings.Count(list, "item-"))
		}
		return nil
	})
}

// A name of a credential is nothing that Envoy or the SDS server would read in parts, and not that of another.
func TestCredentialNames(t *testing.T) {
	names := map[string]bool{}
	for _, c := range []string{"claude Bearer", "claude bearer", "claude", "claude.a Bearer", "a b", "a  b"} {
		name := credentialName(c)
		if !isStatic(name) || strings.ContainsAny(name, ". ") || names[name] {
			t.Errorf("%q: %q", c, name)
		}
		names[name] = true
	}
}
