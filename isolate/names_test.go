package isolate

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func query(t testing.TB, name string, kind dnsmessage.Type) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

func TestNames(t *testing.T) {
	n := newNames([]string{"agents.svc.cluster.local", "svc.cluster.local", "Cluster.Local.", "acme.example", "."}, 5, []string{"git.eu.acme.example", "minio"})
	for _, c := range []struct {
		name  string
		kind  dnsmessage.Type
		rcode dnsmessage.RCode
		want  string // address, or none
	}{
		{"api.example.com.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.18.0.1"},
		{"other.example.com.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.18.0.2"},
		{"API.Example.COM.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.18.0.1"},
		{"api.example.com.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, ""},
		{"api.example.com.", dnsmessage.TypeHTTPS, dnsmessage.RCodeSuccess, ""},
		{"api.example.com.svc.cluster.local.", dnsmessage.TypeA, dnsmessage.RCodeNameError, ""},
		{"api.example.com.cluster.local.", dnsmessage.TypeAAAA, dnsmessage.RCodeNameError, ""},
		{"api.example.com.acme.example.", dnsmessage.TypeA, dnsmessage.RCodeNameError, ""},
		{"api.acme.example.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.18.0.3"}, // written in full, or api
		{"redis.agents.svc.cluster.local.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.18.0.4"},
		{"minio.acme.example.", dnsmessage.TypeA, dnsmessage.RCodeNameError, ""}, // a credential's host is minio
		{"localhost.acme.example.", dnsmessage.TypeA, dnsmessage.RCodeNameError, ""},
		{"git.eu.acme.example.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.18.0.5"},
		{"a.b.c.d.e.f.acme.example.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.18.0.6"}, // which is tried as a.b.c.d.e.f first
		{"localhost.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "127.0.0.1"},
		{"App.localhost.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "127.0.0.1"},
		{"app.localhost.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, ""},
		{".", dnsmessage.TypeA, dnsmessage.RCodeNameError, ""},
	} {
		var m dnsmessage.Message
		if err := m.Unpack(n.answer(query(t, c.name, c.kind))); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got := ""
		if len(m.Answers) == 1 {
			got = netip.AddrFrom4(m.Answers[0].Body.(*dnsmessage.AResource).A).String()
		}
		if m.ID != 7 || !m.Response || m.RCode != c.rcode || got != c.want {
			t.Errorf("%s %v: %v %q, want %v %q", c.name, c.kind, m.RCode, got, c.rcode, c.want)
		}
	}
	if name, ok := n.at(netip.MustParseAddr("::ffff:198.18.0.2")); !ok || name != "other.example.com" {
		t.Errorf("198.18.0.2 is %q", name)
	}
	if name, ok := n.at(netip.MustParseAddr("198.18.0.9")); ok {
		t.Errorf("an address that was not given is that of %q", name)
	}
}

// Where resolvers append suffixes to names of one label alone, as they do unless told otherwise, whatever has more is below the search domain on purpose.
func TestNamesBelowTheSearchDomain(t *testing.T) {
	search, dots := SearchList([]byte("search acme.example\nnameserver 10.0.0.2\noptions edns0 trust-ad\n"))
	for name, want := range map[string]bool{
		"registry.build.acme.example": true, "a.b.c.acme.example": true, "api.acme.example": true, "api.example.com": true, "localhost.acme.example": false,
	} {
		if got := newNames(search, dots, nil).exists(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	search, dots = SearchList([]byte("domain first\nsearch agents.svc.cluster.local acme.example\noptions timeout:1 ndots:5\n"))
	if n := newNames(search, dots, nil); n.exists("registry.build.acme.example") || !n.exists("api.first") {
		t.Errorf("with %q and %d dots", search, dots)
	}
}

// A program that asks for names without end gets no more addresses at the end of the network, and keeps those it has.
func TestNamesRunOut(t *testing.T) {
	n := newNames(nil, 1, nil)
	const most = 1<<17 - 1
	for i := range most {
		if _, ok := n.address(fmt.Sprintf("h%d.test", i)); !ok {
			t.Fatalf("no address after %d", i)
		}
	}
	if a, ok := n.address("one.more.test"); ok {
		t.Errorf("%v, outside %v", a, addresses)
	}
	if a, ok := n.address("h0.test"); !ok || a != netip.MustParseAddr("198.18.0.1") {
		t.Errorf("the first name has %v now", a)
	}
	var m dnsmessage.Message
	if err := m.Unpack(n.answer(query(t, "one.more.test.", dnsmessage.TypeA))); err != nil || m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("%v, %v", m.RCode, err)
	}
}

func FuzzNames(f *testing.F) {
	f.Add(query(f, "api.example.com.", dnsmessage.TypeA))
	f.Add([]byte{0, 7, 1, 0, 0, 1})
	n := newNames([]string{"local"}, 5, nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		answer := n.answer(data)
		if answer == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(answer); err != nil || !m.Response || len(m.Answers) > 1 {
			t.Errorf("%x answered with %x: %v", data, answer, err)
		}
	})
}
