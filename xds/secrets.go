package xds

import (
	"cmp"
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"strings"
	"sync"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// secrets is the store of what Envoys hold by SDS: our static secrets, and leaf certificates made when a handshake
// first needs one. Every operation costs the same however many names are live.
//
// What Envoy leaves to us:
//   - a subscription that is never answered hangs every handshake for its name: each is answered, by a secret or
//     by its removal, and a leaf that Envoy refuses is removed;
//   - Envoy has no limit on names and no clock for certificates: we cap, withdraw and re-issue. A worker can make names up
//     below a wildcard, or spell one in many ways, so each kind of name has a limit and pushes out its own kind only;
//   - Envoy asks once for a name and then says no more about it, so "idle" means not asked for in a long time. A
//     name withdrawn while in use costs its next handshake one question; open connections do not notice.
type secrets struct {
	mint Minter
	max  int           // live leaves
	part int           // of them for each kind but exact
	idle time.Duration // since a name was last asked for
	log  *slog.Logger
	now  func() time.Time

	mu          sync.Mutex
	static      map[string]*secret
	credentials map[string]*secret       // of lanes; static ones too, which change often and are of no revision
	leaves      map[string]*list.Element // of *leaf, by name as asked for
	kinds       map[string]*list.List    // of *leaf, those asked for longest ago first; by kindOf
	hosts       map[string]bool          // in the configuration, wildcards with their "*."; false: refused
	warned      map[string]time.Time     // when each warning was last given
	generation  int                      // of the certificate authority; a leaf minted in an older one is stale
	subscribers map[*subscriber]struct{}
}

// secret is one version of a secret, ready to be sent.
type secret struct {
	version string
	body    *anypb.Any
}

// leaf is a name with its certificates: one for each root that some Envoy gets them of.
type leaf struct {
	name  string
	kind  string
	asked time.Time
	of    map[string]*minted // by root
}

type minted struct {
	secret   *secret
	renew    time.Time // when it is to be replaced
	notAfter time.Time
}

// A name is of one of these kinds, or of the kind of the wildcard it is below: "*.example.com".
const (
	exact     = ""          // in the configuration itself
	respelled = "respelled" // with capitals
)

// day is the time of day, by which certificates are judged. The running clock stands still while a machine is suspended.
func (s *secrets) day() time.Time { return s.now().Round(0) }

func newSecrets(mint Minter, max int, idle time.Duration, log *slog.Logger) *secrets {
	return &secrets{
		mint: mint, max: max, part: (max + 4) / 5, idle: idle, log: log,
		now:         time.Now,
		static:      map[string]*secret{},
		credentials: map[string]*secret{},
		leaves:      map[string]*list.Element{},
		kinds:       map[string]*list.List{},
		warned:      map[string]time.Time{},
		subscribers: map[*subscriber]struct{}{},
	}
}

// newSecret versions a secret by its content, so that replicas agree.
func newSecret(s *tlsv3.Secret) *secret {
	body := pack(s)
	sum := sha256.Sum256(body.GetValue())
	return &secret{version: hex.EncodeToString(sum[:8]), body: body}
}

// setStatic replaces the static secrets and pushes those that changed to whoever asked for them.
func (s *secrets) setStatic(fresh map[string]*secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.static = fresh
	for name, one := range fresh {
		s.push(name, one)
	}
}

// setCredentials replaces credentials of lanes and pushes those that changed. Most have not, so that only then the secret is made.
func (s *secrets) setCredentials(fresh map[string]Credential) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for credential, c := range fresh {
		name := credentialName(credential)
		if s.credentials[name].versionOrNone() == c.Version {
			continue
		}
		s.credentials[name] = credentialSecret(name, c)
		s.push(name, s.credentials[name])
	}
}

// push sends a static secret to whoever asked for it and holds another version. mu is held.
func (s *secrets) push(name string, one *secret) {
	for sub := range s.subscribers {
		if version, asked := sub.holds[name]; asked && version != one.version {
			sub.owe(name)
		}
	}
}

// setHosts tells which names there are, and which get no certificate: in the configuration's form, wildcards with their "*.".
func (s *secrets) setHosts(hosts, refused []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts = map[string]bool{}
	for _, h := range refused {
		s.hosts[h] = false
	}
	for _, h := range hosts {
		s.hosts[h] = true
	}
	for name := range s.leaves {
		if s.refuses(name) {
			s.withdraw(name)
		}
	}
}

// refuses reports whether what the most specific pattern says of a name is that it gets no certificate. mu is held.
func (s *secrets) refuses(name string) bool {
	for name = strings.ToLower(name); name != ""; name = wider(name) {
		if served, known := s.hosts[name]; known {
			return !served
		}
	}
	return false
}

// kindOf tells with which others name shares a limit. mu is held.
func (s *secrets) kindOf(name string) string {
	switch {
	case name != strings.ToLower(name):
		return respelled
	case s.hosts[name]:
		return exact
	}
	for _, parent, ok := strings.Cut(name, "."); ok; _, parent, ok = strings.Cut(parent, ".") {
		if s.hosts["*."+parent] {
			return "*." + parent
		}
	}
	return exact
}

// mayWarn lets each warning of what workers can cause at will be given once a minute. mu is held.
func (s *secrets) mayWarn(about string) bool {
	now := time.Now()
	if now.Sub(s.warned[about]) < time.Minute {
		return false
	}
	s.warned[about] = now
	return true
}

// logRefused tells of a secret that an Envoy refused. Workers can cause it for leaves, if their making is at fault.
func (s *secrets) logRefused(node, name, reason string) {
	if isStatic(name) {
		s.log.Error("envoy refused a secret and keeps its old one", "node", node, "secret", name, "reason", reason)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mayWarn("refused") {
		s.log.Error("envoy refused a certificate, so the handshakes for its host fail; it is made anew when next asked for. More of these are not logged for a minute", "node", node, "host", name, "reason", reason)
	}
}

// answerTo returns the secret that sub shall have for name, nil to refuse it, and its root, and notes that sub has it.
// It mints when it must, outside the lock.
func (s *secrets) answerTo(sub *subscriber, name string) (one *secret, root string) {
	if isStatic(name) {
		s.mu.Lock()
		defer s.mu.Unlock()
		one := cmp.Or(s.static[name], s.credentials[name])
		// Noted even when absent, as it may come; but our names have no dot, and what a ClientHello can ask for has one.
		if one != nil || !strings.Contains(name, ".") {
			sub.holds[name] = one.versionOrNone()
		}
		return one, ""
	}
	// The mapper hands on the bytes of the ClientHello: any case, and anything at all. The leaf is made for the
	// lower-case name and delivered under the name that was asked for.
	host := strings.ToLower(name)
	if !isHostName(host) || len(host) != len(name) { // the sign for Kelvin becomes a k
		s.log.Debug("refusing a certificate for what is no host name", "name", name)
		return nil, ""
	}
	for {
		s.mu.Lock()
		root = sub.root
		if s.refuses(name) {
			delete(sub.holds, name)
			s.mu.Unlock()
			return nil, root
		}
		if one := s.current(name, root); one != nil {
			sub.holds[name] = one.version
			s.mu.Unlock()
			return one, root
		}
		generation := s.generation
		s.mu.Unlock()

		certPEM, keyPEM, notAfter, err := s.mint(host, root)

		s.mu.Lock()
		switch {
		case err == nil && (generation != s.generation || root != sub.root || s.refuses(name)): // something changed meanwhile
			s.mu.Unlock()
			continue
		case err != nil:
			one := s.keep(name, root)
			if one != nil {
				sub.holds[name] = one.version
			} else {
				delete(sub.holds, name)
			}
			if s.mayWarn("mint") {
				s.log.Warn("making a certificate failed; more of these are not logged for a minute", "host", host, "kept_old", one != nil, "err", err)
			}
			s.mu.Unlock()
			return one, root
		}
		one := s.current(name, root) // another stream may have been faster
		if one == nil {
			one = s.put(name, root, newSecret(leafSecret(name, certPEM, keyPEM)), notAfter)
		}
		sub.holds[name] = one.version
		s.evict(s.kindOf(name))
		s.mu.Unlock()
		return one, root
	}
}

func (s *secret) versionOrNone() string {
	if s == nil {
		return ""
	}
	return s.version
}

// minted returns what was made for name by root, nil when there is none. mu is held.
func (s *secrets) minted(name, root string) *minted {
	if e := s.leaves[name]; e != nil {
		return e.Value.(*leaf).of[root]
	}
	return nil
}

// current returns the leaf of name unless there is none or it is to be replaced. mu is held.
func (s *secrets) current(name, root string) *secret {
	m := s.minted(name, root)
	if m == nil || !s.day().Before(m.renew) {
		return nil
	}
	return m.secret
}

// keep returns the old leaf of name while it is still valid, to be replaced a little later. mu is held.
func (s *secrets) keep(name, root string) *secret {
	m, now := s.minted(name, root), s.day()
	if m == nil {
		return nil
	}
	if !now.Before(m.notAfter) {
		s.drop(name, root)
		return nil
	}
	m.renew = now.Add(m.notAfter.Sub(now) / 4)
	return m.secret
}

// put stores a new leaf in the place of an old one. mu is held.
func (s *secrets) put(name, root string, one *secret, notAfter time.Time) *secret {
	now := s.day()
	m := &minted{secret: one, notAfter: notAfter, renew: now.Add(notAfter.Sub(now) * 2 / 3)}
	if e := s.leaves[name]; e != nil {
		e.Value.(*leaf).of[root] = m
		return one
	}
	l := &leaf{name: name, kind: s.kindOf(name), asked: time.Now(), of: map[string]*minted{root: m}}
	if s.kinds[l.kind] == nil {
		s.kinds[l.kind] = list.New()
	}
	s.leaves[name] = s.kinds[l.kind].PushBack(l)
	return one
}

// drop forgets the leaf that a root made. mu is held.
func (s *secrets) drop(name, root string) {
	of := s.leaves[name].Value.(*leaf).of
	if delete(of, root); len(of) == 0 {
		s.forget(name)
	}
}

// dropRoots forgets what was made by roots of which no Envoy gets leaves any more.
func (s *secrets) dropRoots() {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := map[string]bool{}
	for sub := range s.subscribers {
		used[sub.root] = true
	}
	if len(used) == 0 {
		return // they come again
	}
	for name, e := range s.leaves {
		for root := range e.Value.(*leaf).of {
			if !used[root] {
				s.drop(name, root)
			}
		}
	}
}

// touch notes that name was asked for. mu is held.
func (s *secrets) touch(name string) {
	if e := s.leaves[name]; e != nil {
		l := e.Value.(*leaf)
		l.asked = time.Now()
		s.kinds[l.kind].MoveToBack(e)
	}
}

// evict withdraws the names asked for longest ago until the rest is within the limits, after one of kind was added: first
// of that kind, and when there are too many in all, of the largest kind that workers can make up, if any. mu is held.
func (s *secrets) evict(kind string) {
	for kind != exact && s.kinds[kind] != nil && s.kinds[kind].Len() > s.part {
		if s.mayWarn("part") {
			s.log.Warn("more names are in use than certificates are kept for: those asked for longest ago are withdrawn, and made anew when asked for", "names", kind, "limit", s.part)
		}
		s.withdraw(oldest(s.kinds[kind]).name)
	}
	for len(s.leaves) > s.max {
		largest, n := exact, 0
		for k, of := range s.kinds {
			if k != exact && of.Len() > n {
				largest, n = k, of.Len()
			}
		}
		if s.mayWarn("max") {
			s.log.Warn("more names are in use in all than certificates are kept for: those asked for longest ago are withdrawn, and made anew when asked for", "names", largest, "limit", s.max)
		}
		s.withdraw(oldest(s.kinds[largest]).name)
	}
}

func oldest(of *list.List) *leaf { return of.Front().Value.(*leaf) }

// withdraw forgets a leaf and takes it from everyone who holds it. mu is held.
func (s *secrets) withdraw(name string) {
	s.forget(name)
	for sub := range s.subscribers {
		if _, held := sub.holds[name]; held {
			sub.retract(name)
		}
	}
}

func (s *secrets) forget(name string) {
	if e := s.leaves[name]; e != nil {
		kind := e.Value.(*leaf).kind
		if s.kinds[kind].Remove(e); s.kinds[kind].Len() == 0 {
			delete(s.kinds, kind)
		}
		delete(s.leaves, name)
	}
}

// rotate replaces every leaf, as after a change of the certificate authority.
func (s *secrets) rotate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation++
	for _, e := range s.leaves {
		for _, m := range e.Value.(*leaf).of {
			m.renew = time.Time{}
		}
	}
	s.renewDue()
}

// sweep withdraws idle names and re-issues the leaves whose time has come.
func (s *secrets) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range s.kinds {
		for of.Len() > 0 && time.Since(oldest(of).asked) >= s.idle {
			s.withdraw(oldest(of).name)
		}
	}
	s.renewDue()
}

// renewDue owes every holder of a leaf that is to be replaced a new one. mu is held.
func (s *secrets) renewDue() {
	now := s.day()
	for name, e := range s.leaves {
		for root, m := range e.Value.(*leaf).of {
			if now.Before(m.renew) {
				continue
			}
			for sub := range s.subscribers {
				if _, held := sub.holds[name]; held && sub.root == root {
					sub.owe(name)
				}
			}
		}
	}
}
