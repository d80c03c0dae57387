package extproc

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/metadata"

	"wayleave/grant"
	"wayleave/limit"
	rules "wayleave/policy"
)

// only makes cfg the one configuration there is.
func (s *Server) only(cfg Config) { s.Update("", map[string]Config{"": cfg}) }

// from is a context of a call of an Envoy that says these of itself.
func from(ctx context.Context, node, revision string) context.Context {
	return metadata.NewIncomingContext(ctx, metadata.Pairs(metadataNode, node, metadataRevision, revision))
}

const stableRevision, nextRevision = "stable0123456789", "next0123456789"

// twoRevisions is a server with two of which the next one refuses what the stable one lets through.
func twoRevisions(t testing.TB) *serverFixture {
	f := newServer(t)
	f.server.Update(stableRevision, map[string]Config{stableRevision: testConfig, nextRevision: ruled(false, rules.Deny)})
	return f
}

// asks sends a request for a swap and returns why it was refused, or its verdict.
func (f *serverFixture) asks(t *testing.T, node, revision string) string {
	t.Helper()
	return f.sends(t, node, revision, f.swapped())
}

func (f *serverFixture) sends(t *testing.T, node, revision string, r request) string {
	t.Helper()
	out, err := f.server.processMessage(from(t.Context(), node, revision), message(r), new(phases))
	if err != nil {
		t.Fatal(err)
	}
	_, reason, _, _ := refusalOf(t, out)
	return cmp.Or(reason, verdictOf(out))
}

// An Envoy is answered by the revision that it has.
func TestRevisions(t *testing.T) {
	f := twoRevisions(t)
	for said, want := range map[string]string{stableRevision: verdictSwap, nextRevision: policyDenied, "": verdictSwap, "gone": verdictSwap} {
		if got := f.asks(t, "envoy-1", said); got != want {
			t.Errorf("%q: %s", said, got)
		}
	}
	if !strings.Contains(f.log.String(), "revision=next01234567\n") {
		t.Errorf("log: %s", f.log)
	}
	f.server.Update(nextRevision, map[string]Config{nextRevision: testConfig}) // as after the rollout
	for _, said := range []string{stableRevision, nextRevision} {
		if got := f.asks(t, "envoy-1", said); got != verdictSwap {
			t.Errorf("afterwards %q: %s", said, got)
		}
	}
	f.server.Update("missing", nil)
	if got := f.asks(t, "envoy-1", "missing"); got != hostNotAllowed && got != sessionExpired {
		t.Errorf("without any: %s", got)
	}
}

// The check at the proxy is told by the call, or by the route.
func TestRevisionsOfConnections(t *testing.T) {
	f := newServer(t)
	without := testConfig
	without.Tunnel = nil
	f.server.Update(stableRevision, map[string]Config{stableRevision: testConfig, nextRevision: without})
	request := checkRequest(http.MethodConnect, "pypi.org:443", basicAuth(f.session.ID, f.token.Reveal()))
	check := func(ctx context.Context, extensions map[string]string) bool {
		t.Helper()
		request.Attributes.ContextExtensions = extensions
		out, err := f.server.Check(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		return out.GetOkResponse() != nil
	}
	for _, c := range []struct {
		said, extension string
		want            bool
	}{{"", "", true}, {nextRevision, "", false}, {"", nextRevision, false}, {stableRevision, "", true}, {"", "gone", true}} {
		if got := check(from(t.Context(), "envoy-1", c.said), map[string]string{extensionRevision: c.extension}); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	want := []Count{{Node: "envoy-1", Revision: nextRevision, Requests: 2, Refusals: 2}, {Node: "envoy-1", Revision: stableRevision, Requests: 3}}
	if diff := gocmp.Diff(want, f.counted()); diff != "" {
		t.Error(diff)
	}
	wrong := &authv3.CheckRequest{Attributes: checkRequest(http.MethodConnect, "pypi.org:443", basicAuth(f.session.ID, "other")).GetAttributes()}
	if _, err := f.server.Check(t.Context(), wrong); err != nil {
		t.Fatal(err)
	}
	if got := f.counted(); len(got) != 0 {
		t.Errorf("a challenge counted: %v", got)
	}
}

func (f *serverFixture) counted() []Count {
	return slices.SortedFunc(slices.Values(f.server.Counted()), func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Revision, b.Revision))
	})
}

// A worker that goes through Envoys of two revisions has one allowance.
func TestRevisionsShareLimits(t *testing.T) {
	f := newServer(t)
	cfg := ruled(false, "")
	p := cfg.Profiles["default"]
	p.Limit = limit.Limit{PerMinute: 20, Burst: 2}
	cfg.Profiles["default"] = p
	f.server.Update(stableRevision, map[string]Config{stableRevision: cfg, nextRevision: cfg})
	got := []string{f.asks(t, "a", stableRevision), f.asks(t, "b", nextRevision), f.asks(t, "b", nextRevision), f.asks(t, "a", stableRevision)}
	if want := []string{verdictSwap, verdictSwap, rateLimited, rateLimited}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

// Whoever watches, and a recording, are told which revision decided; so is Envoy, which says it again about a rejected token.
func TestRevisionIsTold(t *testing.T) {
	f := twoRevisions(t)
	var (
		told     []string
		recorded []string
	)
	f.server.decided = func(d Decided) error { told = append(told, d.Revision); return nil }
	f.server.records = Recording{To: func(j rules.Judged) { recorded = append(recorded, j.Revision) }}
	f.asks(t, "a", stableRevision)
	f.asks(t, "b", nextRevision)
	want := []string{"stable012345", "next01234567"}
	if !slices.Equal(told, want) || !slices.Equal(recorded, want) {
		t.Errorf("told %v, recorded %v", told, recorded)
	}
	first, err := f.server.processMessage(from(t.Context(), "a", stableRevision), message(f.swapped()), new(phases))
	if err != nil {
		t.Fatal(err)
	}
	noted := rejected(first, "authorization", "Bearer "+realToken("claude"))
	note := noted.GetMetadataContext().GetFilterMetadata()[metadataNamespace].GetFields()[fieldNote].GetStringValue()
	if was, _ := readNote(note); was.Revision != want[0] {
		t.Errorf("noted %q", note)
	}
	// The retry is the first attempt's, whatever revision its Envoy has by now.
	f.vault.version = "2"
	f.vault.errs = map[string]error{"claude": &grant.Unusable{Grant: "claude", State: grant.NeedsReconnect}}
	f.log.Reset()
	if _, err := f.server.processMessage(from(t.Context(), "a", nextRevision), noted, new(phases)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(f.log.String(), "revision="+want[0]) {
		t.Errorf("log: %s", f.log)
	}
}

// What is counted is told once, for each Envoy and revision.
func TestCounted(t *testing.T) {
	f := twoRevisions(t)
	f.asks(t, "a", stableRevision)
	f.asks(t, "a", stableRevision)
	f.asks(t, "b", nextRevision)
	f.asks(t, "b", "gone")
	want := []Count{
		{Node: "a", Revision: stableRevision, Requests: 2},
		{Node: "b", Revision: nextRevision, Requests: 1, Refusals: 1},
		{Node: "b", Revision: stableRevision, Requests: 1},
	}
	if diff := gocmp.Diff(want, f.counted()); diff != "" {
		t.Error(diff)
	}
	if got := f.counted(); len(got) != 0 {
		t.Errorf("again: %v", got)
	}
}

// A refusal counts when a configuration may have caused it.
func TestWhichRefusalsCount(t *testing.T) {
	for reason := range notOfRevision {
		reasonNamed(reason) // or there is none, which panics
	}
	f := newServer(t)
	for state, counts := range map[grant.State]bool{grant.ScopeMissing: true, grant.NeverConnected: true, grant.RefreshUnavailable: true, grant.VaultUnavailable: false} {
		f.vault.errs = map[string]error{"claude": &grant.Unusable{Grant: "claude", State: state}}
		if got := f.asks(t, "a", ""); got != string(state) {
			t.Fatal(got)
		}
		want := []Count{}
		if counts {
			want = []Count{{Node: "a", Requests: 1, Refusals: 1}}
		}
		if diff := gocmp.Diff(want, f.counted(), gocmp.Transformer("", func(c []Count) []Count { return append([]Count{}, c...) })); diff != "" {
			t.Errorf("%s:\n%s", state, diff)
		}
	}
	f.server.now = func() time.Time { return now.Add(1000 * time.Hour) }
	if got := f.asks(t, "a", ""); got != sessionExpired {
		t.Fatal(got)
	}
	if got := f.counted(); len(got) != 0 {
		t.Errorf("a session that is over: %v", got)
	}
}

func TestCountsAreBounded(t *testing.T) {
	var s Server
	for i := range maxCounts + 10 {
		s.counts.add(strconv.Itoa(i), "", Count{Requests: 1})
	}
	s.counts.add("0", "", Count{Requests: 1})
	got := s.Counted()
	if len(got) != maxCounts {
		t.Errorf("%d", len(got))
	}
	if i := slices.IndexFunc(got, func(c Count) bool { return c.Node == "0" }); i < 0 || got[i].Requests != 2 {
		t.Errorf("the first is counted no further")
	}
}
