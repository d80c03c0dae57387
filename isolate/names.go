package isolate

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// addresses are those given to names: the benchmarking networks of RFC 2544, which nobody routes.
var addresses = netip.MustParsePrefix("198.18.0.0/15")

// names gives each name an address, for as long as the program runs, and knows whose an address is. The program then asks
// for a connection to an address, and the gate for one to its name.
type names struct {
	search []string // suffixes that resolvers append to names, with their leading dot
	dots   int      // of names that they try as they are first
	known  []string // names that exist in any case

	mu     sync.Mutex
	next   netip.Addr
	byName map[string]netip.Addr
	byAddr map[netip.Addr]string
}

func newNames(search []string, dots int, known []string) *names {
	n := &names{dots: dots, known: known, next: addresses.Addr().Next(), byName: map[string]netip.Addr{}, byAddr: map[netip.Addr]string{}}
	for _, s := range search {
		if s = strings.Trim(strings.ToLower(s), "."); s != "" {
			n.search = append(n.search, "."+s)
		}
	}
	return n
}

// at returns the name whose address this is.
func (n *names) at(a netip.Addr) (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, ok := n.byAddr[a.Unmap()]
	return name, ok
}

// address returns the address of a name in lower case, without its final dot. There is none when all are given.
// localhost, and what is below it, is the network's own (RFC 6761 section 6.3).
func (n *names) address(name string) (netip.Addr, bool) {
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if a, ok := n.byName[name]; ok {
		return a, true
	}
	if !addresses.Contains(n.next) {
		return netip.Addr{}, false
	}
	a := n.next
	n.next = a.Next()
	n.byName[name], n.byAddr[a] = a, name
	return a, true
}

// exists reports whether a name may be one the gate knows. A resolver tries names of few dots with the suffixes of its search list
// first, and takes the first that exists: so of api.example.com with a suffix there must be none where it does so with two dots, as in Kubernetes, while one
// label with a suffix is what it was asked for, in short or in full.
func (n *names) exists(name string) bool {
	if slices.Contains(n.known, name) {
		return true
	}
	exists := name != ""
	for _, suffix := range n.search {
		if label, below := strings.CutSuffix(name, suffix); below {
			dots := strings.Count(label, ".")
			if dots == 0 { // unless in full it is another's name
				return label != "localhost" && !slices.Contains(n.known, label)
			}
			exists = exists && dots >= n.dots
		}
	}
	return exists
}

// ttl of an answer in seconds. Addresses do not change, but resolvers outlive programs.
const ttl = 30

// answer answers a DNS query (RFC 1035 section 4.1), or returns nil for what is none. Every name has one IPv4 address and
// nothing else.
func (n *names) answer(query []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response {
		return nil
	}
	out := dnsmessage.Message{Header: dnsmessage.Header{
		ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true,
	}}
	q, err := p.Question()
	switch {
	case h.OpCode != 0:
		out.RCode = dnsmessage.RCodeNotImplemented
	case err != nil:
		out.RCode = dnsmessage.RCodeFormatError
	default:
		out.Questions = []dnsmessage.Question{q}
		out.RCode = n.resolve(q, &out)
	}
	packed, err := out.Pack()
	if err != nil {
		return nil
	}
	return packed
}

func (n *names) resolve(q dnsmessage.Question, out *dnsmessage.Message) dnsmessage.RCode {
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	if q.Class != dnsmessage.ClassINET || !n.exists(name) {
		return dnsmessage.RCodeNameError
	}
	if q.Type != dnsmessage.TypeA { // the name exists, without an IPv6 address
		return dnsmessage.RCodeSuccess
	}
	a, ok := n.address(name)
	if !ok {
		return dnsmessage.RCodeServerFailure
	}
	out.Answers = []dnsmessage.Resource{{
		Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: ttl},
		Body:   &dnsmessage.AResource{A: a.As4()},
	}}
	return dnsmessage.RCodeSuccess
}
