package config

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

// This file divides the configuration. Its shared part is what a revision is: the same for all gates of a fleet, kept in Vault while
// Envoys have it. The local part is each machine's own.

// localKeys are the sections of the local part. How a fleet is led is no part of what it is led to, so rollout is among them.
var localKeys = []string{"vault", "listen", "console", "metrics", keyLog, "telemetry", "audit", "notify", "record", "approvals", "envoy", keyRollout}

// Of these a change takes effect without a restart.
const (
	keyRollout = "rollout"
	keyLog     = "log"
)

// isLocal reports whether a key path is in the local part.
func isLocal(path string) bool { return slices.Contains(localKeys, section(path)) }

// section is the top-level key of a key path.
func section(path string) string {
	key, _, _ := strings.Cut(path, ".")
	key, _, _ = strings.Cut(key, "[")
	return key
}

// LocalChanges are the sections of the local part that are other ones in o, and need a restart. How a fleet is led is not among them, as
// whoever begins a rollout says that, and neither is what is logged.
func (c *Config) LocalChanges(o *Config) (sections []string) {
	was, is := c.sections(), o.sections()
	for _, key := range localKeys {
		if key != keyRollout && key != keyLog && !reflect.DeepEqual(was[key], is[key]) {
			sections = append(sections, key)
		}
	}
	return sections
}

func (c *Config) sections() (all map[string]any) {
	data, err := yaml.Marshal(c)
	if err == nil {
		err = yaml.Unmarshal(data, &all)
	}
	if err != nil {
		panic(fmt.Sprintf("config: a decoded configuration cannot be encoded: %v", err)) // a fault of the struct, not of the file
	}
	return all
}

// Shared is the shared part of a file, with its comments. The error is of type Faults; it says only what makes the file unreadable.
func Shared(name string, text []byte) ([]byte, error) {
	var root yaml.Node
	d := newDocument(name, text)
	if err := yaml.Unmarshal(text, &root); err != nil {
		d.syntaxFault(err, text)
		return nil, d.faults
	}
	if root.Kind == 0 || isNull(root.Content[0]) {
		return nil, nil
	}
	top := root.Content[0]
	if !d.expect(top, yaml.MappingNode, "!!map", "a section of key: value pairs", "") {
		return nil, d.faults
	}
	var kept []*yaml.Node
	for i := 0; i+1 < len(top.Content); i += 2 {
		key := top.Content[i]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if !isLocal(key.Value) {
			kept = append(kept, top.Content[i], top.Content[i+1])
		}
	}
	top.Content = kept
	bringAnchors(top)
	writeNulls(top)
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&root); err != nil {
		return nil, fmt.Errorf("writing the shared part of %s: %w", name, err)
	}
	return out.Bytes(), nil
}

// writeNulls writes out what is empty in a {map} or [list], where the library would make it a string.
func writeNulls(n *yaml.Node) {
	for _, c := range n.Content {
		if n.Style&yaml.FlowStyle != 0 && isNull(c) {
			c.Value = "null"
		}
		writeNulls(c)
	}
}

// bringAnchors writes out what aliases in the tree mean whose anchor is not in it.
func bringAnchors(tree *yaml.Node) {
	there := map[*yaml.Node]bool{}
	var note func(*yaml.Node)
	note = func(n *yaml.Node) {
		there[n] = true
		for _, c := range n.Content {
			note(c)
		}
	}
	note(tree)
	moved := map[*yaml.Node]*yaml.Node{} // anchors outside to their first alias
	var bring func(*yaml.Node)
	bring = func(n *yaml.Node) {
		if target := n.Alias; n.Kind == yaml.AliasNode && !there[target] {
			if first := moved[target]; first != nil {
				n.Alias = first
				return
			}
			*n = *target
			moved[target] = n
		}
		for _, c := range n.Content {
			bring(c)
		}
	}
	bring(tree)
}

// With is the configuration of another shared part on the machine that c is of: one of a revision that is kept, with its files, or one
// of a file that is to become one. Name is what its faults call it. Of what else is in the text only rollout counts: whoever brings a
// change says how the fleet is led to it. The error is of type Faults.
func (c *Config) With(name string, shared []byte, files map[string][]byte) (*Config, error) {
	n := &Config{Dir: c.Dir, public: &publicFiles{kept: files}}
	doc := newDocument(name, shared)
	doc.skip = func(key string) bool { return isLocal(key) && key != keyRollout }
	doc.read(n)
	if m := c.doc; m != nil {
		if m.local != nil {
			m = m.local // c was made so too
		}
		machine := newDocument(m.file, m.data)
		led := doc.given(keyRollout)
		machine.skip = func(key string) bool { return !isLocal(key) || key == keyRollout && led }
		machine.read(n)
		doc.merge(machine)
	}
	return n.finish(doc)
}

// publicFiles are the contents of the files that are part of a revision: as they are kept with it, or else as they are when they are
// first asked for, so that a configuration is one revision as long as it lives.
type publicFiles struct {
	kept map[string][]byte
	once sync.Once
	all  map[string][]byte
	err  error
}

// maxPublicFile is more than all authorities of the web take.
const maxPublicFile = 512 << 10

// Files are the contents of the files that are part of what the configuration means, by the names that it has for them: the public
// ones that its shared part names. The error is of type Faults.
func (c *Config) Files() (map[string][]byte, error) {
	p := c.public
	if p == nil {
		p = &publicFiles{}
	}
	p.once.Do(func() {
		p.all = map[string][]byte{}
		var faults Faults
		for _, at := range c.publicNames() {
			text, kept := p.kept[at.name]
			var err error
			if !kept {
				text, err = readPublic(c.Path(at.name))
			}
			if err != nil {
				faults = append(faults, c.faultAt(at.path, err.Error(), "mend the file, or name another"))
				continue
			}
			p.all[at.name] = text
			if !strings.HasPrefix(at.path, "upstream.") {
				continue
			}
			if err := CheckCertificates(text); err != nil {
				faults = append(faults, c.faultAt(at.path, at.name+": "+err.Error(), "write its certificates again as PEM, or name another"))
			}
		}
		if len(faults) > 0 {
			p.err = faults
		}
	})
	return p.all, p.err
}

// ReadFile is the content of a file that the configuration names, as it is in its revision if it is a part of that.
func (c *Config) ReadFile(name string) ([]byte, error) {
	files, _ := c.Files() // a fault of another file is not this one's
	if text, ok := files[name]; ok {
		return text, nil
	}
	return os.ReadFile(c.Path(name))
}

// FileNames are the names of Files, each once.
func (c *Config) FileNames() (names []string) {
	for _, at := range c.publicNames() {
		names = append(names, at.name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

type namedFile struct{ path, name string }

// publicNames are the files that are part of what the configuration means. That of a pod's own authority is the machine's.
func (c *Config) publicNames() (all []namedFile) {
	for i, name := range c.Upstream.CAFiles {
		all = append(all, namedFile{item("upstream.ca_files", i), name})
	}
	for _, name := range slices.Sorted(maps.Keys(c.Issuers)) {
		if file := c.Issuers[name].CAFile; file != "" && file != podCA {
			all = append(all, namedFile{join("issuers", name) + ".ca_file", file})
		}
	}
	return all
}

func readPublic(name string) ([]byte, error) {
	switch info, err := os.Stat(name); {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPublicFile+1))
	if err == nil && len(text) > maxPublicFile {
		err = fmt.Errorf("%s has more than %d KiB", name, maxPublicFile>>10)
	}
	return text, err
}
