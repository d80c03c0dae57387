package xds

import (
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
//     by its removal, and a secret that Envoy refuses is removed;
//   - Envoy has no limit on names and no clock for certificates: we cap, withdraw and re-issue;
//   - Envoy asks once for a name and then says no more about it, so "idle" means not asked for in a long time. A
//     name withdrawn while in use costs its next handshake one question; open connections do not notice.
type secrets struct {
	mint Minter
	max  int           // live leaves
	idle time.Duration // since a name was last asked for
	log  *slog.Logger

	mu          sync.Mutex
	static      map[string]*secret
	leaves      map[string]*list.Element // of *leaf, by name as asked for
	asked       *list.List               // of *leaf, the longest ago first
	generation  int                      // of the certificate authority; a leaf minted in an older one is stale
	subscribers map[*subscriber]struct{}
}

// secret is one version of a secret, ready to be sent.
type secret struct {
	version string
	body    *anypb.Any
}

type leaf struct {
	name     string
	secret   *secret
	asked    time.Time
	renew    time.Time // when it is to be replaced
	notAfter time.Time
}

func newSecrets(mint Minter, max int, idle time.Duration, log *slog.Logger) *secrets {
	return &secrets{
		mint: mint, max: max, idle: idle, log: log,
		static:      map[string]*secret{},
		leaves:      map[string]*list.Element{},
		asked:       list.New(),
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
func (s *secrets) setStatic(all []*tlsv3.Secret) {
	fresh := map[string]*secret{}
	for _, one := range all {
		fresh[one.GetName()] = newSecret(one)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.static = fresh
	for sub := range s.subscribers {
		for name, one := range fresh {
			if version, asked := sub.holds[name]; asked && version != one.version {
				sub.owe(name, answer)
			}
		}
	}
}

// answerTo returns the secret that sub shall have for name, nil to refuse it, and notes that sub has it.
// It mints when it must, outside the lock.
func (s *secrets) answerTo(sub *subscriber, name string) *secret {
	if strings.HasPrefix(name, staticPrefix) {
		s.mu.Lock()
		defer s.mu.Unlock()
		one := s.static[name]
		sub.holds[name] = one.versionOrNone() // noted even when absent: it may come
		return one
	}
	// The mapper hands on the bytes of the ClientHello: any case, and anything at all. The leaf is made for the
	// lower-case name and delivered under the name that was asked for.
	host := strings.ToLower(name)
	if !isHostName(host) {
		s.log.Debug("refusing a certificate for what is no host name", "name", name)
		return nil
	}
	for {
		s.mu.Lock()
		if one := s.current(name); one != nil {
			sub.holds[name] = one.version
			s.mu.Unlock()
			return one
		}
		generation := s.generation
		s.mu.Unlock()

		certPEM, keyPEM, notAfter, err := s.mint(host)

		s.mu.Lock()
		switch {
		case err != nil:
			one := s.keep(name)
			if one != nil {
				sub.holds[name] = one.version
			} else {
				delete(sub.holds, name)
			}
			s.mu.Unlock()
			s.log.Warn("making a certificate failed", "host", host, "kept_old", one != nil, "err", err)
			return one
		case generation != s.generation: // the authority changed meanwhile
			s.mu.Unlock()
			continue
		}
		one := s.current(name) // another stream may have been faster
		if one == nil {
			one = s.put(name, newSecret(leafSecret(name, certPEM, keyPEM)), notAfter)
		}
		sub.holds[name] = one.version
		s.evict()
		s.mu.Unlock()
		return one
	}
}

func (s *secret) versionOrNone() string {
	if s == nil {
		return ""
	}
	return s.version
}

// current returns the leaf of name unless there is none or it is to be replaced. mu is held.
func (s *secrets) current(name string) *secret {
	e := s.leaves[name]
	if e == nil || !time.Now().Before(e.Value.(*leaf).renew) {
		return nil
	}
	return e.Value.(*leaf).secret
}

// keep returns the old leaf of name while it is still valid, to be replaced a little later. mu is held.
func (s *secrets) keep(name string) *secret {
	e := s.leaves[name]
	if e == nil {
		return nil
	}
	l, now := e.Value.(*leaf), time.Now()
	if !now.Before(l.notAfter) {
		s.forget(name)
		return nil
	}
	l.renew = now.Add(l.notAfter.Sub(now) / 4)
	return l.secret
}

// put stores a new leaf in the place of an old one. mu is held.
func (s *secrets) put(name string, one *secret, notAfter time.Time) *secret {
	now := time.Now()
	l := &leaf{name: name, secret: one, asked: now, notAfter: notAfter, renew: now.Add(notAfter.Sub(now) * 2 / 3)}
	if e := s.leaves[name]; e != nil {
		l.asked = e.Value.(*leaf).asked
		e.Value = l
	} else {
		s.leaves[name] = s.asked.PushBack(l)
	}
	return one
}

// touch notes that name was asked for. mu is held.
func (s *secrets) touch(name string) {
	if e := s.leaves[name]; e != nil {
		e.Value.(*leaf).asked = time.Now()
		s.asked.MoveToBack(e)
	}
}

// evict withdraws the names asked for longest ago until the rest is within the limit. mu is held.
func (s *secrets) evict() {
	for s.asked.Len() > s.max {
		s.withdraw(s.asked.Front().Value.(*leaf).name)
	}
}

// withdraw forgets a leaf and takes it from everyone who holds it. mu is held.
func (s *secrets) withdraw(name string) {
	s.forget(name)
	for sub := range s.subscribers {
		if _, held := sub.holds[name]; held {
			sub.owe(name, removal)
		}
	}
}

func (s *secrets) forget(name string) {
	if e := s.leaves[name]; e != nil {
		s.asked.Remove(e)
		delete(s.leaves, name)
	}
}

// rotate replaces every leaf, as after a change of the certificate authority.
func (s *secrets) rotate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation++
	for e := s.asked.Front(); e != nil; e = e.Next() {
		e.Value.(*leaf).renew = time.Time{}
	}
	s.renewDue()
}

// sweep withdraws idle names and re-issues the leaves whose time has come.
func (s *secrets) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.asked.Front(); e != nil && time.Since(e.Value.(*leaf).asked) >= s.idle; e = s.asked.Front() {
		s.withdraw(e.Value.(*leaf).name)
	}
	s.renewDue()
}

// renewDue owes every holder of a leaf that is to be replaced a new one. mu is held.
func (s *secrets) renewDue() {
	now := time.Now()
	for name, e := range s.leaves {
		if now.Before(e.Value.(*leaf).renew) {
			continue
		}
		for sub := range s.subscribers {
			if _, held := sub.holds[name]; held {
				sub.owe(name, answer)
			}
		}
	}
}
