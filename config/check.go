package config

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// checker looks at a decoded configuration with its defaults. It adds to doc.faults, except for what could not be read:
// that has its fault already.
type checker struct {
	*Config
	doc      *document
	warnings Faults
}

// check adds what is wrong with c to doc.faults and returns the warnings; none when anything is wrong, because
// one misspelt name would bring several.
func check(c *Config, doc *document) Faults {
	k := &checker{Config: c, doc: doc}
	k.vault()
	k.listen()
	k.console()
	k.metrics()
	k.log()
	k.telemetry()
	k.notify()
	k.audit()
	k.record()
	k.approvals()
	k.process()
	k.rollout()
	k.providers()
	k.grants()
	k.routes()
	k.profiles()
	k.issuers()
	k.workers()
	k.proofs()
	k.addresses()
	if len(doc.faults) > 0 {
		return nil
	}
	k.modes()
	k.unused()
	k.warnings.sort()
	return k.warnings
}

func (k *checker) fault(path, what, fix string) {
	if !k.doc.isBroken(path) {
		k.doc.fault(path, k.doc.find(path), what, fix)
	}
}

func (k *checker) warn(path, what, fix string) {
	at := k.doc.find(path)
	k.warnings = append(k.warnings, Fault{File: k.doc.of(path).file, Line: at.line, Column: at.column, Key: path, What: what, Fix: fix})
}

// reference checks that a name is one of the keys declared in a section that could be read.
func (k *checker) reference(path, kind, name, section string, declared []string) {
	switch {
	case name == "":
		k.fault(path, "is missing", "name "+article(kind))
	case !slices.Contains(declared, name) && !k.doc.isBroken(section):
		k.fault(path, fmt.Sprintf("%s %s is not declared", kind, quote(name)), choose(name, declared))
	}
}

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func (k *checker) name(path, name string) {
	if !namePattern.MatchString(name) {
		k.fault(path, quote(name)+" is not a name", "use 1 to 63 of a-z 0-9 . _ - and start with a letter or digit")
	}
}

// unique reports items written twice; the list is at path.
func (k *checker) unique(path string, items []string) {
	seen := map[string]int{}
	for i, s := range items {
		if first, twice := seen[s]; twice && s != "" {
			k.fault(item(path, i), quote(s)+" is the same as item "+fmt.Sprint(first+1), "remove one")
		} else {
			seen[s] = i
		}
	}
}

// notEmpty reports a list that is written but has no items, where that would mean nothing is allowed.
func (k *checker) notEmpty(path string, n int) {
	if n == 0 && k.doc.given(path) {
		k.fault(path, "an empty list", "remove the key for the default, or list what is meant")
	}
}

var nodePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$`)

var mountPattern = regexp.MustCompile(`^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$`)

func (k *checker) vault() {
	v := k.Vault
	if v.Address != "" {
		if what, fix := vaultProblem(v.Address); what != "" {
			k.fault("vault.address", what, fix)
		}
	}
	k.vaultNodes()
	for _, m := range []struct{ path, mount string }{
		{"vault.mount", v.Mount}, {"vault.pki_mount", v.PKIMount}, {"vault.auth.mount", v.Auth.Mount},
	} {
		if !mountPattern.MatchString(m.mount) {
			k.fault(m.path, quote(m.mount)+" is not the path of a mount", "write it without slashes at the ends, such as teams/wayleave")
		}
	}
	if v.Mount == v.PKIMount {
		k.fault("vault.pki_mount", "is the same as mount", "use two mounts: one of type kv, one of type pki")
	}
	k.vaultAuth()
}

// vaultNodes checks the further nodes of a cluster, which are spoken to as the first one is.
func (k *checker) vaultNodes() {
	v := k.Vault
	k.unique("vault.nodes", v.Nodes)
	if len(v.Nodes) > 0 && v.Address == "" {
		k.fault("vault.nodes", "names further nodes, and vault.address names none", "write one of them as vault.address")
		return
	}
	scheme, _, _ := strings.Cut(v.Address, "://")
	for i, node := range v.Nodes {
		path := item("vault.nodes", i)
		what, fix := vaultProblem(node)
		switch {
		case what != "":
			k.fault(path, what, fix)
		case scheme == "unix" || !strings.HasPrefix(node, scheme+"://"):
			k.fault(path, "is not reached like vault.address", "write every node with https://, or every one with http://")
		case node == v.Address:
			k.fault(path, "is vault.address", "name the other nodes here")
		}
	}
}

// process checks envoy and upstream.
func (k *checker) process() {
	if k.Envoy.Name != "" && !nodePattern.MatchString(k.Envoy.Name) {
		k.fault("envoy.name", quote(k.Envoy.Name)+" is not a name", "use 1 to 253 of a-z A-Z 0-9 . _ - and start with a letter or digit")
	}
	if k.Envoy.Group != "" {
		k.name("envoy.group", k.Envoy.Group)
	}
	k.unique("upstream.ca_files", k.Upstream.CAFiles)
	for i, name := range k.Upstream.CAFiles {
		if name == "" {
			k.fault(item("upstream.ca_files", i), "an empty file name", "remove it")
		}
	}
	metadata := netip.MustParseAddr("169.254.169.254")
	for i, p := range k.Upstream.AllowPrivate {
		if p.Contains(metadata) {
			k.warn(item("upstream.allow_private", i), "contains 169.254.169.254, where clouds hand out machine credentials", "name narrower networks")
		}
	}
}

// article puts "a" or "an" before a word.
func article(word string) string {
	if strings.ContainsRune("aeiou", rune(word[0])) {
		return "an " + word
	}
	return "a " + word
}
