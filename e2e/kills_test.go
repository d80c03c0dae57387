package e2e

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// traffic is what workers of a cluster send, at a steady rate however long the answers take, and what became of it.
type traffic struct {
	*cluster
	workers []clusterWorker
	end     chan struct{}
	wg      sync.WaitGroup

	mu     sync.Mutex
	during string            // what happened last
	by     map[string]*tally // by what had happened last when they ended
	told   map[string]int    // failures, each kind by what was said
}

// clusterWorker is a worker that sends over HTTP/1.1 and HTTP/2.
type clusterWorker struct {
	worker
	grant   string
	clients []*http.Client
	anew    *http.Client // which opens a connection for each request
}

// tally counts requests.
type tally struct {
	happened int           // how often it did
	served   int           // with the worker's own token
	refused  int           // answered with something else than the API's answer
	broken   int           // the connection to Envoy ended before the answer
	twice    int           // of these, those that failed again when sent again
	wrong    int           // served with a token that is not the worker's
	longest  time.Duration // from the request to its answer
	back     time.Duration // the longest time until what happened was over
}

// startTraffic begins to send so many requests a second.
func (c *cluster) startTraffic(t *testing.T, rate time.Duration) *traffic {
	t.Helper()
	l := &traffic{cluster: c, end: make(chan struct{}), during: "nothing", by: map[string]*tally{}, told: map[string]int{}}
	for i := range clusterGrants {
		w := (&gate{world: c.with("WAYLEAVE_TOKEN=" + workerToken(i))}).enrol(t, workerName(i), "ANTHROPIC_AUTH_TOKEN")
		anew := w.client(t, false)
		anew.Transport.(*http.Transport).DisableKeepAlives = true
		l.workers = append(l.workers, clusterWorker{w, grantName(i), []*http.Client{w.client(t, false), w.client(t, true)}, anew})
	}
	l.wg.Go(func() {
		tick := time.NewTicker(time.Second / rate)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-l.end:
				return
			case <-tick.C:
			}
			w := l.workers[i%len(l.workers)]
			client := w.clients[i/len(l.workers)%2]
			l.wg.Go(func() { l.send(w, client) })
		}
	})
	t.Cleanup(l.stop)
	return l
}

// stop ends it, when all that was sent is answered.
func (l *traffic) stop() {
	select {
	case <-l.end:
	default:
		close(l.end)
	}
	l.wg.Wait()
}

// backOff is for how long a worker waits until it opens another connection in place of one that broke: the socket on which an Envoy
// that is killed listens is closed last, and a connection that is opened at once may still lead there.
const backOff = 100 * time.Millisecond

// send sends a request, and once more over a new connection when its own broke.
func (l *traffic) send(w clusterWorker, client *http.Client) {
	once := func(client *http.Client) (answer, error) {
		return do(client, w.request(http.MethodPost, "https://api.demo.test/echo", strings.NewReader("once")))
	}
	began := time.Now()
	a, err := once(client)
	took := time.Since(began)
	var again error
	if err != nil {
		<-time.After(backOff)
		b, err := once(w.anew)
		if err == nil && b.status != http.StatusOK {
			err = fmt.Errorf("got %v", b)
		}
		again = err
	}
	var echo struct {
		SHA256 string `json:"authorization_sha256"`
	}
	_ = json.Unmarshal([]byte(a.body), &echo)

	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.at(l.during)
	n.longest = max(n.longest, took)
	switch {
	case err != nil:
		n.broken++
		l.told["connection"]++
		if again != nil {
			n.twice++
			l.told["again: "+again.Error()]++
		}
	case a.status != http.StatusOK:
		n.refused++
		l.told[fmt.Sprintf("%d %s", a.status, a.reason)]++
	case l.owners.whose(echo.SHA256) != w.grant:
		n.wrong++
	default:
		n.served++
	}
}

// at is the tally of what had happened; its user locks.
func (l *traffic) at(what string) *tally {
	if l.by[what] == nil {
		l.by[what] = new(tally)
	}
	return l.by[what]
}

// meanwhile does something that is called so while requests are sent, and returns when what it does is over.
func (l *traffic) meanwhile(t *testing.T, what string, do func(*testing.T)) {
	t.Helper()
	l.mu.Lock()
	l.during = what
	l.at(what).happened++
	l.mu.Unlock()
	began := time.Now()
	do(t)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at(what).back = max(l.at(what).back, time.Since(began))
}

// more waits until n further requests were served.
func (l *traffic) more(t *testing.T, n int) {
	t.Helper()
	before := l.total().served
	if err := eventually(func() error {
		if served := l.total().served; served < before+n {
			return fmt.Errorf("%d requests were served of %d more", served-before, n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// total is the sum of all tallies.
func (l *traffic) total() tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	var sum tally
	for _, n := range l.by {
		sum.happened += n.happened
		sum.served += n.served
		sum.refused += n.refused
		sum.broken += n.broken
		sum.twice += n.twice
		sum.wrong += n.wrong
		sum.longest, sum.back = max(sum.longest, n.longest), max(sum.back, n.back)
	}
	return sum
}

// judge fails the test for what must not happen, whatever is killed: another worker's token, an answer that is not the API's, a
// connection that broke although its Envoy lived, and one that broke again when its request was sent again.
func (l *traffic) judge(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for what, n := range l.by {
		if n.wrong > 0 || n.refused > 0 || n.twice > 0 || n.broken > 0 && what != "Envoy killed" {
			t.Errorf("%s: %+v", what, *n)
		}
	}
	if t.Failed() {
		t.Error(l.told)
	}
	if l.API.Saw(placeholderMarker) {
		t.Error("a placeholder reached the API")
	}
}

// lost are the grants that need an operator, or whose consent has ended at the provider. All others are seen to be refreshed.
func (l *traffic) lost(t *testing.T) (names []string) {
	t.Helper()
	if err := eventually(func() error {
		names = nil
		all, err := l.listed()
		if err != nil {
			return err
		}
		for name, s := range all {
			switch s.State {
			case "healthy":
			case "needs_reconnect":
				names = append(names, name+": "+s.LastError)
			default:
				return fmt.Errorf("%s is %s", name, s.State)
			}
		}
		if len(all) != clusterGrants {
			return fmt.Errorf("%d grants are listed", len(all))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	return names
}

// table is what happened, and what requests met, as a page has it.
func (l *traffic) table() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	b.WriteString("| what happens | times | requests | answered with an error | connection broke | of these, failed again | longest answer | back after at most |\n|---|---|---|---|---|---|---|---|\n")
	for _, what := range slices.Sorted(maps.Keys(l.by)) {
		n := l.by[what]
		if n.happened == 0 {
			continue // before anything did
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %d | %d | %d | %.1f s | %.1f s |\n", what, n.happened, thousands(n.served+n.refused+n.broken+n.wrong), n.refused, n.broken, n.twice,
			n.longest.Seconds(), n.back.Seconds())
	}
	return b.String()
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// kill is one way to harm a cluster, and to see it mended.
type kill struct {
	what string
	do   func(*testing.T)
}

// kills are all of them.
func (c *cluster) kills() []kill {
	all := []kill{
		{"Vault's active node killed", func(t *testing.T) { c.killNode(t, c.leader(t)) }},
		{"a standby of Vault's killed", func(t *testing.T) { c.killNode(t, c.standby(t)) }},
		{"Vault's active node steps down", c.stepDown},
	}
	for _, name := range []string{"a", "b"} {
		all = append(all, kill{"a gate killed", func(t *testing.T) { c.killGate(t, name) }})
	}
	for i := range c.envoys {
		all = append(all, kill{"Envoy killed", func(t *testing.T) { c.killEnvoy(t, i) }})
	}
	return all
}

// Whichever process is killed, and whoever leads Vault's cluster, workers get their own tokens and no grant is lost. The requests whose
// connections led to an Envoy that is killed break, and succeed when they are sent again.
func TestKills(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterSettings{life: time.Hour, log: "debug"})
	l := c.startTraffic(t, 30)
	l.more(t, 40)
	for i, k := range c.kills() {
		l.meanwhile(t, k.what, k.do)
		l.more(t, 40)
		if strings.Contains(k.what, "Vault") {
			c.patiently(t, "wayleave", "grant", "refresh", grantName(i)) // by the gates, which needs all of it
		}
	}
	l.stop()
	t.Log("\n" + l.table())
	l.judge(t)
	if lost := l.lost(t); lost != nil {
		t.Errorf("lost: %q", lost)
	}
}

// Everything is replaced node by node, as for an upgrade, and no request fails.
func TestUpgrade(t *testing.T) {
	soaking(t)
	c := newCluster(t, clusterSettings{life: time.Hour, log: "debug"})
	l := c.startTraffic(t, 30)
	l.more(t, 40)
	last := c.leader(t)
	nodes := slices.DeleteFunc(slices.Clone(c.nodes[:]), func(n *node) bool { return n == last })
	for _, n := range append(nodes, last) {
		l.meanwhile(t, "a node of Vault's replaced", func(t *testing.T) {
			if n == c.leader(t) {
				c.stepDown(t)
			}
			if err := n.signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			c.startNode(t, n)
			c.healthy(t, n)
		})
		c.patiently(t, "wayleave", "grant", "refresh", grantName(0))
	}
	for name, g := range c.gates {
		l.meanwhile(t, "a gate replaced", func(t *testing.T) {
			if err := g.stop(); err != nil {
				t.Error(err)
			}
			c.serve(t, name)
		})
		l.more(t, 40)
	}
	for _, e := range c.envoys {
		l.meanwhile(t, "an Envoy replaced", func(t *testing.T) {
			if err := e.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			if err := e.waitOutput("the Envoy before has ended"); err != nil {
				t.Fatal(err)
			}
		})
		l.more(t, 40)
	}
	l.conclude(t, "upgrade")
}

// conclude ends it, judges what was seen, and writes that into its place on the page when told to.
func (l *traffic) conclude(t *testing.T, place string) {
	t.Helper()
	l.stop()
	t.Log("\n" + l.table())
	l.judge(t)
	if lost := l.lost(t); lost != nil {
		t.Errorf("lost: %q", lost)
	}
	if *update {
		writePart(t, "../docs/availability.md", place, l.table())
	}
}

// refreshed waits until there was a refresh, which needs all of it.
func (l *traffic) refreshed(t *testing.T) {
	t.Helper()
	before := l.Provider.Stats().Refreshes
	if err := eventually(func() error {
		if l.Provider.Stats().Refreshes == before {
			return errors.New("no refresh")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// soakMinutes says for how many minutes TestSoak goes on. Without it, the tests of `make soak` are left out.
const soakMinutes = "WAYLEAVE_SOAK"

// soaking skips tests that take too long for each change, or have figures that a page has.
func soaking(t *testing.T) (minutes float64) {
	t.Helper()
	minutes, err := strconv.ParseFloat(os.Getenv(soakMinutes), 64)
	if err != nil {
		t.Skip("it is part of `make soak`")
	}
	return minutes
}

// TestSoak kills something every 20 seconds.
func TestSoak(t *testing.T) {
	minutes := soaking(t)
	const pace, rate, life = 20 * time.Second, 30, 2 * time.Minute
	c := newCluster(t, clusterSettings{life: life, log: "info"})
	l := c.startTraffic(t, rate)
	l.more(t, rate)
	began := time.Now()
	all := c.kills()
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for time.Since(began) < time.Duration(minutes*float64(time.Minute)) {
		k := all[rand.IntN(len(all))]
		t.Logf("%v: %s; %+v", time.Since(began).Round(time.Second), k.what, l.total())
		l.meanwhile(t, k.what, k.do)
		<-tick.C
	}
	took := time.Since(began)
	l.refreshed(t)
	l.stop()
	sum, s := l.total(), c.Provider.Stats()
	lost := l.lost(t)
	sent := sum.served + sum.refused + sum.broken + sum.wrong
	page := fmt.Sprintf("%.0f minutes, %d kills: %s requests, of which %s were served at once (%.3f %%) and %d when sent again; %d refreshes, "+
		"no refresh token presented more often than %s; %d grants lost, %d wrong tokens, %d placeholders at the API.\n\n%s",
		took.Minutes(), sum.happened, thousands(sent), thousands(sum.served), 100*float64(sum.served)/float64(sent), sum.broken-sum.twice,
		s.Refreshes, cmp.Or(map[int]string{1: "once"}[s.MaxPresented()], fmt.Sprint(s.MaxPresented(), " times")), len(lost), sum.wrong, map[bool]int{true: 1}[c.API.Saw(placeholderMarker)], l.table())
	t.Logf("\n%s\n%v", page, l.told)
	l.judge(t)
	if lost != nil {
		t.Errorf("lost: %q", lost)
	}
	if *update {
		writePart(t, "../docs/availability.md", "soak", page)
	}
}

// writePart writes what a test found into its place on a page.
func writePart(t *testing.T, path, name, text string) {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begins, ends := "<!-- "+name+" -->\n", "<!-- end -->\n"
	before, rest, ok := strings.Cut(string(page), begins)
	_, after, ok2 := strings.Cut(rest, ends)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for %s", path, name)
	}
	if err := os.WriteFile(path, []byte(before+begins+strings.TrimSpace(text)+"\n"+ends+after), 0o644); err != nil { //nolint:gosec // a page
		t.Fatal(err)
	}
}
