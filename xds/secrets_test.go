package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"

	"wayleave/envoy/envoytest"
)

// fakeEnvoy is the client end of an ADS stream that behaves as Envoy does: it acknowledges every response, keeps
// what it is given, and asks again for a name only after it was told that there is none.
type fakeEnvoy struct {
	grpc.ServerStream // unused
	ctx               context.Context
	requests          chan *discovery.DeltaDiscoveryRequest

	mu       sync.Mutex
	secrets  map[string]string // name → the certificate
	removed  []string
	largest  int // response, in secrets
	refuse   func(name, certificate string) bool
	configs  map[string]int // responses by type
	finished chan struct{}
	stuck    chan struct{} // when set, nothing is read before it is closed; guarded by mu
}

func (e *fakeEnvoy) Context() context.Context { return e.ctx }

func (e *fakeEnvoy) Recv() (*discovery.DeltaDiscoveryRequest, error) {
	select {
	case r := <-e.requests:
		return r, nil
	case <-e.ctx.Done():
		return nil, e.ctx.Err()
	}
}

func (e *fakeEnvoy) Send(resp *discovery.DeltaDiscoveryResponse) error {
	e.mu.Lock()
	stuck := e.stuck
	e.mu.Unlock()
	if stuck != nil {
		select {
		case <-stuck:
		case <-e.ctx.Done():
			return e.ctx.Err()
		}
	}
	ack := &discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	e.mu.Lock()
	e.configs[shortType(resp.GetTypeUrl())]++
	if resp.GetTypeUrl() == resource.SecretType {
		e.largest = max(e.largest, len(resp.GetResources()))
		for _, r := range resp.GetResources() {
			var s tlsv3.Secret
			if err := r.GetResource().UnmarshalTo(&s); err != nil {
				return err
			}
			cert := string(s.GetTlsCertificate().GetCertificateChain().GetInlineBytes()) + string(s.GetValidationContext().GetTrustedCa().GetInlineBytes())
			if e.refuse != nil && e.refuse(r.GetName(), cert) {
				ack.ErrorDetail = &rpcstatus.Status{Code: 13, Message: "cannot use " + r.GetName()}
				continue
			}
			e.secrets[r.GetName()] = cert
		}
		for _, name := range resp.GetRemovedResources() {
			delete(e.secrets, name)
			e.removed = append(e.removed, name)
		}
	}
	e.mu.Unlock()
	go func() { e.request(ack) }()
	return nil
}

func (e *fakeEnvoy) request(r *discovery.DeltaDiscoveryRequest) {
	select {
	case e.requests <- r:
	case <-e.ctx.Done():
	}
}

func (e *fakeEnvoy) ask(names ...string) {
	e.request(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.SecretType, ResourceNamesSubscribe: names})
}

func (e *fakeEnvoy) held(name string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.secrets[name]
}

func (e *fakeEnvoy) names() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return sortedKeys(e.secrets)
}

// takeRemoved returns the names removed since the last call.
func (e *fakeEnvoy) takeRemoved() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.removed
	e.removed = nil
	slices.Sort(r)
	return r
}

// minter makes certificates that tell their host and number, in place of certificates.
type minter struct {
	mu   sync.Mutex
	made map[string]int
	life time.Duration
	fail error
	wait chan struct{} // when set, minting waits for it
}

func (m *minter) mint(host, root string) (certPEM, keyPEM []byte, notAfter time.Time, err error) {
	if m.wait != nil {
		<-m.wait
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, nil, time.Time{}, m.fail
	}
	m.made[host]++
	if root != "" {
		root = " of " + root
	}
	return fmt.Appendf(nil, "%s #%d%s", host, m.made[host], root), []byte("key"), time.Now().Add(m.life), nil
}

func (m *minter) setFailure(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// bench is a server and its connected fakes, inside a synctest bubble.
type bench struct {
	t      *testing.T
	server *Server
	minter *minter
	ctx    context.Context
	end    context.CancelFunc
	run    chan struct{}
}

func newBench(t *testing.T, o Options) *bench {
	o.Log = slog.New(slog.DiscardHandler)
	b := &bench{t: t, minter: &minter{made: map[string]int{}, life: 30 * time.Minute}, run: make(chan struct{})}
	b.server = NewServer(b.minter.mint, o)
	b.ctx, b.end = context.WithCancel(t.Context())
	go func() { defer close(b.run); b.server.Run(b.ctx) }()
	t.Cleanup(b.end)
	return b
}

func (b *bench) setStatic(s *tlsv3.Secret) {
	b.server.secrets.setStatic(map[string]*secret{s.GetName(): newSecret(s)})
}

func (b *bench) connect() *fakeEnvoy { return b.connectUntil(b.ctx) }

// connectUntil connects a node that hangs up when ctx ends.
func (b *bench) connectUntil(ctx context.Context) *fakeEnvoy { return b.connectAs(ctx, "n") }

func (b *bench) connectAs(ctx context.Context, id string) *fakeEnvoy {
	ctx, cancel := context.WithCancel(ctx)
	e := &fakeEnvoy{ctx: ctx, requests: make(chan *discovery.DeltaDiscoveryRequest), secrets: map[string]string{}, configs: map[string]int{}, finished: make(chan struct{})}
	go func() {
		defer close(e.finished)
		defer cancel()
		_ = adsService{server: b.server}.DeltaAggregatedResources(e) // ends with the context, which some call a failure
	}()
	e.request(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.ClusterType, Node: &corev3.Node{Id: id}})
	return e
}

func TestLeafIsMintedOnDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		e, other := b.connect(), b.connect()
		e.ask("api.example.com", "API.Example.com")
		other.ask("api.example.com")
		synctest.Wait()
		if got := e.held("API.Example.com"); !strings.HasPrefix(got, "api.example.com #") {
			t.Errorf("under the name asked for there is %q", got)
		}
		if e.held("api.example.com") == "" || e.held("api.example.com") != other.held("api.example.com") {
			t.Errorf("two nodes hold %q and %q", e.held("api.example.com"), other.held("api.example.com"))
		}
		b.finish()
	})
}

// finish ends the server, so that the bubble has no goroutine left.
func (b *bench) finish() {
	b.end()
	<-b.run
	synctest.Wait()
}

func TestEveryNameIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.setStatic(caSecret("static/known", []byte("CA 1")))
		e := b.connect()
		bad := []string{"", "*.example.com", "x/../y.example.com", "-x.example.com", "a..b", "1.2.3.4", "static/unknown", "nul\x00.example.com", "exämple.com", strings.Repeat("a", 64) + ".com"}
		e.ask(append([]string{"good.example.com", "static/known"}, bad...)...)
		synctest.Wait()
		if diff := cmp.Diff([]string{"good.example.com", "static/known"}, e.names()); diff != "" {
			t.Errorf("held (-want +got):\n%s", diff)
		}
		slices.Sort(bad)
		if diff := cmp.Diff(bad, e.takeRemoved()); diff != "" {
			t.Errorf("refused (-want +got):\n%s", diff)
		}

		b.minter.setFailure(errors.New("no authority"))
		e.ask("late.example.com")
		synctest.Wait()
		if diff := cmp.Diff([]string{"late.example.com"}, e.takeRemoved()); diff != "" {
			t.Errorf("refused (-want +got):\n%s", diff)
		}
		b.minter.setFailure(nil)
		e.ask("late.example.com")
		synctest.Wait()
		if e.held("late.example.com") == "" {
			t.Error("the name is refused for good")
		}
		b.finish()
	})
}

func TestStaticSecretIsPushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		e := b.connect()
		e.ask("static/ca") // before there is one
		synctest.Wait()
		for _, ca := range []string{"CA 1", "CA 2", "CA 2"} {
			b.setStatic(caSecret("static/ca", []byte(ca)))
			synctest.Wait()
			if got := e.held("static/ca"); got != ca {
				t.Errorf("held %q, want %q", got, ca)
			}
		}
		if n := e.configs["Secret"]; n != 3 { // none, CA 1, CA 2
			t.Errorf("%d responses, want 3", n)
		}
		b.finish()
	})
}

func TestLeafIsRenewedBeforeItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{LeafIdle: 24 * time.Hour})
		e := b.connect()
		e.ask("api.example.com")
		synctest.Wait()
		for _, step := range []struct {
			after time.Duration
			fail  error
			want  string
		}{
			{19 * time.Minute, nil, "api.example.com #1"},
			{2 * time.Minute, nil, "api.example.com #2"},                   // two thirds of 30 minutes are over
			{21 * time.Minute, errors.New("sealed"), "api.example.com #2"}, // it is due, and the old one is kept
			{10 * time.Second, errors.New("sealed"), "api.example.com #2"},
			{5 * time.Minute, nil, "api.example.com #3"},
		} {
			b.minter.setFailure(step.fail)
			time.Sleep(step.after)
			synctest.Wait()
			if got := e.held("api.example.com"); got != step.want {
				t.Errorf("%s later: held %q, want %q", step.after, got, step.want)
			}
		}
		if removed := e.takeRemoved(); removed != nil {
			t.Errorf("removed: %q", removed)
		}
		b.minter.setFailure(errors.New("sealed"))
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		if got := e.held("api.example.com"); got != "" {
			t.Errorf("an expired leaf is left: %q", got)
		}
		b.finish()
	})
}

// asleep is t on a machine that was suspended for d: the time of day went on, and the running clock did not.
func asleep(t time.Time, d time.Duration) time.Time {
	*(*uint64)(unsafe.Pointer(&t)) += uint64(d/time.Second) << 30 // where a time that has both readings keeps its seconds
	return t
}

// Leaves are renewed by the time of day, which is what workers judge them by: also when the machine was suspended meanwhile.
func TestLeavesFollowTheTimeOfDay(t *testing.T) {
	m := &minter{made: map[string]int{}, life: 30 * time.Minute}
	s := newSecrets(m.mint, 10, time.Hour, slog.New(slog.DiscardHandler))
	var slept time.Duration
	s.now = func() time.Time { return asleep(time.Now(), slept) }
	sub := s.join()
	if one, _ := s.answerTo(sub, "api.example.com"); one == nil {
		t.Fatal("no leaf")
	}
	awake := s.now()
	if s.sweep(); sub.owed["api.example.com"] {
		t.Error("a leaf is owed at once")
	}
	slept = 25 * time.Minute
	if by := s.now().Sub(awake); by > time.Minute || s.now().Round(0).Sub(awake.Round(0)) < slept {
		t.Fatalf("this is no suspended machine: %v went by", by)
	}
	s.sweep()
	if !sub.owed["api.example.com"] {
		t.Error("no leaf is owed after 25 of 30 minutes")
	}
	if _, _ = s.answerTo(sub, "api.example.com"); m.made["api.example.com"] != 2 {
		t.Errorf("%d were made", m.made["api.example.com"])
	}
}

func TestIdleLeafIsWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{LeafIdle: time.Hour})
		e := b.connect()
		e.ask("a.example.com", "b.example.com")
		time.Sleep(50 * time.Minute)
		e.ask("b.example.com")
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if diff := cmp.Diff([]string{"b.example.com"}, e.names()); diff != "" {
			t.Errorf("held (-want +got):\n%s", diff)
		}
		e.ask("a.example.com")
		synctest.Wait()
		if e.held("a.example.com") == "" {
			t.Error("a withdrawn name is refused")
		}
		b.finish()
	})
}

func TestLeavesAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, many = 10, 250
		b := newBench(t, Options{MaxLeaves: limit})
		e := b.connect()
		for i := range many {
			e.ask(fmt.Sprintf("h%03d.example.com", i))
		}
		synctest.Wait()
		if got := e.names(); len(got) != limit {
			t.Errorf("%d names are live, want %d", len(got), limit)
		}
		// All at once, as after a reconnect.
		again := b.connect()
		var names []string
		for i := range many {
			names = append(names, fmt.Sprintf("h%03d.example.com", i))
		}
		again.ask(names...)
		synctest.Wait()
		if got := again.names(); len(got) != limit {
			t.Errorf("%d names are live after a reconnect, want %d", len(got), limit)
		}
		if again.largest > 1 {
			t.Errorf("a response held %d secrets: Envoy would refuse all for one", again.largest)
		}
		b.server.secrets.mu.Lock()
		defer b.server.secrets.mu.Unlock()
		if n, m := len(b.server.secrets.leaves), b.server.secrets.kinds[exact].Len(); n != limit || m != limit {
			t.Errorf("the store holds %d and %d", n, m)
		}
		b.end()
	})
}

// Names that a worker makes up push out others of their kind, never those in the configuration, and cost one warning.
func TestNamesMadeUpAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, part = 50, 10
		var log strings.Builder
		b := newBench(t, Options{MaxLeaves: limit})
		b.server.secrets.log = slog.New(slog.NewTextHandler(&log, nil))
		hosts := []string{"api.example.com", "also.wild.example.com", "*.wild.example.com"}
		for i := range 9 {
			hosts = append(hosts, fmt.Sprintf("*.w%d.example.com", i))
		}
		b.server.secrets.setHosts(hosts, nil)
		e := b.connect()
		e.ask("api.example.com", "also.wild.example.com")
		synctest.Wait()
		count := func(suffix string) (n int) {
			for _, name := range e.names() {
				if strings.HasSuffix(name, suffix) {
					n++
				}
			}
			return n
		}
		for i := range 100 {
			e.ask(fmt.Sprintf("n%d.wild.example.com", i), fmt.Sprintf("a.deep.%d.wild.example.com", i))
			synctest.Wait()
		}
		if n := count(".wild.example.com"); n != part+1 {
			t.Errorf("%d names below the wildcard are live, want %d and the one in the configuration", n, part)
		}
		if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "names=*.wild.example.com limit=10") {
			t.Errorf("%d warnings:\n%s", n, log.String())
		}
		for i := range 1 << 8 { // each a spelling of one name
			name := []byte("api.example.com")
			for bit := range 8 {
				if i>>bit&1 == 1 {
					at := bit + bit/3 // past the dot
					name[at] -= 'a' - 'A'
				}
			}
			e.ask(string(name))
			synctest.Wait()
		}
		if n := len(e.names()); n != 2+2*part {
			t.Errorf("%d names are live after every spelling, want %d", n, 2+2*part)
		}
		for i := range 9 * 2 * part { // and below more wildcards than the whole has room for
			e.ask(fmt.Sprintf("n%d.w%d.example.com", i, i%9))
			synctest.Wait()
		}
		if n := len(e.names()); n != limit {
			t.Errorf("%d names are live in all, want %d", n, limit)
		}
		if e.held("api.example.com") == "" || e.held("also.wild.example.com") == "" {
			t.Error("a name in the configuration was pushed out by made-up ones")
		}
		e.ask("n0.wild.example.com")
		synctest.Wait()
		if e.held("n0.wild.example.com") == "" {
			t.Error("a name that was withdrawn does not come back")
		}
		b.finish()
	})
}

// Whatever a ClientHello asks for, a leaf goes to host names only, and what is refused leaves nothing behind.
func FuzzServerName(f *testing.F) {
	for _, s := range []string{"api.example.com", "API.example.com", "*.example.com", "static/x.example.com", "static/upstream_ca", "no.such.host", "a\x00.example.com", "x/../y.example.com", "\u212a.example.com"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		mint := func(host, _ string) (certPEM, keyPEM []byte, notAfter time.Time, err error) {
			if host != "api.example.com" && !strings.HasSuffix(host, ".wild.example.com") {
				return nil, nil, time.Time{}, errors.New("not allowed")
			}
			if host != strings.ToLower(host) || strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
				t.Errorf("a leaf was asked for %q", host)
			}
			return []byte("certificate"), []byte("key"), time.Now().Add(time.Hour), nil
		}
		s := NewServer(mint, Options{Log: slog.New(slog.DiscardHandler)}).secrets
		sub := s.join()
		got, _ := s.answerTo(sub, name)
		if got == nil && strings.Contains(name, ".") && len(sub.holds)+len(s.leaves)+len(s.kinds) != 0 {
			t.Errorf("%q was refused and left %v, %v", name, sub.holds, s.leaves)
		}
		if got != nil && strings.ContainsFunc(name, func(r rune) bool { return r > 0x7f }) || got != nil && !strings.EqualFold(name, "api.example.com") && !strings.HasSuffix(strings.ToLower(name), ".wild.example.com") {
			t.Errorf("%q got a leaf", name)
		}
	})
}

func TestRefusedLeafIsRemovedAndMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.setStatic(caSecret("static/ca", []byte("bad CA")))
		e := b.connect()
		e.refuse = func(_, cert string) bool { return cert == "a.example.com #1" || cert == "bad CA" }
		e.ask("a.example.com")
		synctest.Wait()
		if diff := cmp.Diff([]string{"a.example.com"}, e.takeRemoved()); diff != "" {
			t.Errorf("removed (-want +got):\n%s", diff)
		}
		nodes := b.server.Nodes()
		if len(nodes) != 1 || nodes[0].Types[0].Error != "" {
			t.Errorf("the removal was taken, and still: %+v", nodes)
		}
		e.ask("a.example.com")
		synctest.Wait()
		if got := e.held("a.example.com"); got != "a.example.com #2" {
			t.Errorf("held %q", got)
		}
		e.ask("static/ca") // Envoy keeps the old one of these: nothing to free
		synctest.Wait()
		if removed := e.takeRemoved(); removed != nil {
			t.Errorf("removed: %q", removed)
		}
		if s := b.server.Nodes()[0].Types[0]; s.Error != "cannot use static/ca" || s.Refused != s.Sent {
			t.Errorf("state: %+v", s)
		}
		b.finish()
	})
}

// A leaf whose making began before the authority changed is not delivered after it.
func TestRotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		e := b.connect()
		e.ask("a.example.com", "b.example.com")
		synctest.Wait()
		b.minter.wait = make(chan struct{})
		e.ask("slow.example.com")
		synctest.Wait()
		b.server.RotateLeaves()
		close(b.minter.wait)
		synctest.Wait()
		for name, want := range map[string]string{"a.example.com": "a.example.com #2", "b.example.com": "b.example.com #2", "slow.example.com": "slow.example.com #2"} {
			if got := e.held(name); got != want {
				t.Errorf("%s: held %q, want %q", name, got, want)
			}
		}
		b.finish()
	})
}

// The leaves of one Envoy are made by another root, and its open names get them at once; the others keep theirs. Names count once.
func TestRootOfOneEnvoy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{MaxLeaves: 2})
		roots := map[string]string{}
		serve := func() {
			t.Helper()
			err := b.server.Serve(map[string]*Resources{"r": small("c")}, func(n Node) Assignment { return Assignment{Revision: "r", Root: roots[n.ID]} })
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		serve()
		canary, other := b.connectAs(b.ctx, "canary"), b.connectAs(b.ctx, "other")
		canary.ask("a.example.com", "b.example.com")
		synctest.Wait() // two that ask at once may have a leaf made twice
		other.ask("a.example.com", "b.example.com")
		synctest.Wait()
		holds := func(when, name, first, second string) {
			t.Helper()
			if a, b := canary.held(name), other.held(name); a != first || b != second {
				t.Errorf("%s: held %q and %q, want %q and %q", when, a, b, first, second)
			}
		}
		holds("at first", "a.example.com", "a.example.com #1", "a.example.com #1")
		roots["canary"] = "two"
		serve()
		for _, name := range []string{"a.example.com", "b.example.com"} {
			holds("two roots", name, name+" #2 of two", name+" #1")
		}
		b.server.RotateLeaves()
		synctest.Wait()
		if got := canary.held("a.example.com"); !strings.HasSuffix(got, " of two") || got == "a.example.com #2 of two" {
			t.Errorf("made anew: %q", got)
		}
		if len(b.server.secrets.leaves) != 2 || canary.takeRemoved() != nil {
			t.Errorf("%d names", len(b.server.secrets.leaves))
		}
		made := b.minter.made["a.example.com"]
		delete(roots, "canary")
		serve()
		holds("back", "a.example.com", other.held("a.example.com"), other.held("a.example.com"))
		for _, e := range b.server.secrets.leaves {
			if of := e.Value.(*leaf).of; len(of) != 1 || b.minter.made["a.example.com"] != made {
				t.Errorf("going back made %d, and kept %d", b.minter.made["a.example.com"]-made, len(of))
			}
		}

		// One that is being made while the root changes is not delivered.
		wait := make(chan struct{})
		b.minter.wait = wait
		canary.ask("slow.example.com")
		synctest.Wait()
		roots["canary"] = "three"
		serve()
		close(wait)
		synctest.Wait()
		if got := canary.held("slow.example.com"); got != "slow.example.com #2 of three" {
			t.Errorf("held %q", got)
		}
		b.finish()
	})
}

// An Envoy has what it is told when it has taken the leaves of the root too.
func TestHasWaitsForLeaves(t *testing.T) {
	mint := func(host, root string) (certPEM, keyPEM []byte, notAfter time.Time, err error) {
		return []byte(host + root), []byte("key"), time.Now().Add(time.Hour), nil
	}
	s := NewServer(mint, Options{})
	told := Assignment{Revision: "r"}
	serve := func() {
		t.Helper()
		same := small("c")
		if err := s.Serve(map[string]*Resources{"r": same, "r+two": same}, func(Node) Assignment { return told }); err != nil {
			t.Fatal(err)
		}
	}
	serve()
	p := learn(t, s, "n", "")
	p.all()
	secrets := p.stream.config.secrets
	secrets.receive(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"a.example.com"}})
	secrets.next("1")
	told = Assignment{Revision: "r+two", Root: "two"}
	serve()
	has := func(when, want string) {
		t.Helper()
		p.stream.config.secretAnswered()
		if n := p.node(); n.Has != want || n.Revision != "r+two" {
			t.Errorf("%s: %+v", when, n)
		}
	}
	has("a leaf is owed", "")
	secrets.receive(&discovery.DeltaDiscoveryRequest{ResponseNonce: "1"})
	has("the leaf of before is taken", "")
	secrets.next("2")
	has("the leaf is on the way", "")
	secrets.receive(&discovery.DeltaDiscoveryRequest{ResponseNonce: "2"})
	has("it is taken", "r+two")
}

// While a certificate is being made, other streams are served.
func TestMintingHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		wait := make(chan struct{})
		first := b.connect()
		b.minter.wait = wait
		first.ask("slow.example.com")
		synctest.Wait()
		b.minter.wait = nil
		other := b.connect()
		other.ask("fast.example.com")
		synctest.Wait()
		if other.held("fast.example.com") == "" {
			t.Error("a stream waits for another's certificate")
		}
		if err := b.server.Serve(alone(&Resources{Clusters: []*clusterv3.Cluster{{Name: "c"}}})); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if first.configs["Cluster"] == 0 {
			t.Error("the configuration waits for a certificate")
		}
		close(wait)
		b.finish()
	})
}

// An Envoy that reads nothing is left alone: others are told of changes and get their certificates, and it is told of the newest when it reads again. All
// say that they are the same node, as the Envoys of a hot restart do.
func TestStuckEnvoyHoldsNobodyUp(t *testing.T) {
	b := newBench(t, Options{})
	publish := func(names ...string) {
		r := &Resources{}
		for _, name := range names {
			r.Clusters = append(r.Clusters, &clusterv3.Cluster{Name: name})
		}
		if err := b.server.Serve(alone(r)); err != nil {
			t.Error(err)
		}
	}
	sent := func(e *fakeEnvoy) int {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.configs["Cluster"]
	}
	publish("a")
	slow, other := b.connect(), b.connect()
	stuck := make(chan struct{})
	slow.mu.Lock()
	slow.stuck = stuck
	slow.mu.Unlock()
	slow.ask("a.example.com")
	before := sent(slow)
	for i := range 10 {
		had, name := sent(other), fmt.Sprintf("b%d.example.com", i)
		publish("a", name)
		other.ask(name)
		b.server.RotateLeaves()
		envoytest.Await(t, "the other Envoy to be told", func() error {
			if sent(other) == had || other.held(name) == "" {
				return fmt.Errorf("%d responses, the certificate %q", sent(other), other.held(name))
			}
			return nil
		})
	}
	if n := len(b.server.Nodes()); n != 2 {
		t.Errorf("%d nodes", n)
	}
	close(stuck)
	envoytest.Await(t, "the slow Envoy to have everything", func() error {
		if sent(slow) == before || slow.held("a.example.com") == "" {
			return fmt.Errorf("%d responses since, certificates %q", sent(slow)-before, slow.names())
		}
		return nil
	})
	if n := sent(slow) - before; n > 3 {
		t.Errorf("of ten changes %d were sent to who did not read", n)
	}
	b.end()
	<-b.run
}

// Streams come and go without leaving anything behind, and none outlives the server.
func TestStreamsEnd(t *testing.T) {
	before := runtime.NumGoroutine()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		for range 1000 {
			ctx, hangUp := context.WithCancel(b.ctx)
			e := b.connectUntil(ctx)
			e.ask("a.example.com")
			synctest.Wait()
			hangUp()
			<-e.finished
		}
		b.server.secrets.mu.Lock()
		n := len(b.server.secrets.subscribers)
		b.server.secrets.mu.Unlock()
		if n != 0 || len(b.server.Nodes()) != 0 {
			t.Errorf("%d subscribers and nodes %v are left", n, b.server.Nodes())
		}
		last := b.connectUntil(t.Context()) // does not hang up by itself
		b.finish()
		<-last.finished
	})
	synctest.Test(t, func(t *testing.T) {}) // lets the first bubble's goroutines end
	if after := runtime.NumGoroutine(); after > before+2 {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
}

// Many streams, asking and hanging up at once, while leaves rotate: for the race detector.
func TestSecretsConcurrently(t *testing.T) {
	b := newBench(t, Options{MaxLeaves: 20})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ctx, hangUp := context.WithCancel(b.ctx)
			defer hangUp()
			e := b.connectUntil(ctx)
			for j := range 50 {
				e.ask(fmt.Sprintf("h%d.example.com", (i+j)%40))
				if j%10 == 0 {
					b.server.RotateLeaves()
					b.server.secrets.sweep()
					b.server.Nodes()
				}
			}
		})
	}
	wg.Wait()
	b.end()
	<-b.run
}
