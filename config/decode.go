package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// This file turns YAML into structs. The library's own strict mode stops at the first fault of a kind, knows no columns
// and accepts 1 for "1"; here the rules are:
//   - a key the struct does not have is a fault, and so is a key written twice;
//   - no value is converted: a string is a YAML string, a number a YAML number;
//   - a key without a value is as if it were not there;
//   - a list or map in the file replaces the one in place, it is never merged into it;
//   - every key's position is kept, so that later checks can point at it.

// seeder is a map entry that starts from something other than its zero value. get returns the string the file holds at a
// key of the entry, or "".
type seeder interface {
	seed(name string, get func(key string) string)
}

// read decodes the only document of the file into the struct out points to.
func (d *document) read(out any) {
	data := d.data
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var root, second yaml.Node
	if err := dec.Decode(&root); errors.Is(err, io.EOF) {
		return // an empty file is an empty configuration
	} else if err != nil {
		d.syntaxFault(err, data)
		return
	}
	d.value(root.Content[0], reflect.ValueOf(out).Elem(), "", "")
	if err := dec.Decode(&second); err == nil {
		d.fault("", place{second.Line, second.Column}, "a second YAML document", "keep one configuration in one file")
	} else if !errors.Is(err, io.EOF) {
		d.syntaxFault(err, data)
	}
}

var (
	yamlLine = regexp.MustCompile(`^line (\d+): `)
	// The library counts lines from 0 in what its parser (not its scanner) finds.
	yamlLineFromZero = regexp.MustCompile(`^did not find expected (<document start>|node content|'-' indicator|key|',' or)`)
)

// syntaxFault reports what the YAML library says. It names the line in its text only, and none for some errors.
func (d *document) syntaxFault(err error, data []byte) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	at := place{1, 1}
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		at.line, _ = strconv.Atoi(m[1])
		text = text[len(m[0]):]
		if yamlLineFromZero.MatchString(text) {
			at.line = min(at.line+1, 1+bytes.Count(bytes.TrimRight(data, "\n"), []byte("\n")))
		}
	}
	fix := "mend the syntax on this line or near it"
	switch found, ok := firstByte(data, unreadable); {
	case ok && strings.Contains(text, "octet"), ok && strings.Contains(text, "control character"): // of which the library knows no line
		at, fix = found, "write the file anew as plain UTF-8 text, which what is here is not"
	case text == "found character that cannot start any token" || strings.Contains(text, "tab character"):
		if found, ok := firstByte(data, tabbed(at.line)); ok {
			at, fix = found, "there is a tab here: indent with spaces"
		}
	}
	d.broken[""] = true
	d.fault("", at, "not YAML: "+text, fix)
}

// firstByte is the place of the first character that is one. Its line counts from 1.
func firstByte(data []byte, is func(r rune, width, line int) bool) (place, bool) {
	at := place{1, 1}
	for i := 0; i < len(data); {
		r, width := utf8.DecodeRune(data[i:])
		if is(r, width, at.line) {
			return at, true
		}
		i, at.column = i+width, at.column+1
		if r == '\n' {
			at = place{at.line + 1, 1}
		}
	}
	return place{}, false
}

// unreadable reports whether there is no text at all, or a control character that YAML does not allow (YAML 1.2 section 5.1).
func unreadable(r rune, width, _ int) bool {
	return r == utf8.RuneError && width == 1 || unicode.IsControl(r) && !strings.ContainsRune("\t\n\r\u0085", r)
}

// tabbed finds a tab on a line or the one after, since the library is not sure which it was on.
func tabbed(line int) func(r rune, width, at int) bool {
	return func(r rune, _, at int) bool { return r == '\t' && (at == line || at == line+1) }
}

// value decodes n into v. tag is that of the field v belongs to: its jsonschema part is the only place where enumerations
// are written, its why part says why other values are refused.
func (d *document) value(n *yaml.Node, v reflect.Value, path string, tag reflect.StructTag) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if isNull(n) {
		return
	}
	if _, ok := d.at[path]; !ok {
		d.at[path] = placeOf(n)
	}
	if d.text(n, v, path) {
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if d.expect(n, yaml.MappingNode, "!!map", "a section of key: value pairs", path) {
			d.section(n, v, path)
		}
	case reflect.Map:
		if d.expect(n, yaml.MappingNode, "!!map", "a map of key: value pairs", path) {
			d.table(n, v, path, tag)
		}
	case reflect.Slice:
		if d.expect(n, yaml.SequenceNode, "!!seq", "a list", path) {
			d.list(n, v, path, tag)
		}
	case reflect.String:
		if d.expect(n, yaml.ScalarNode, "!!str", "a string", path) {
			if allowed := enum(tag); len(allowed) > 0 && !slices.Contains(allowed, n.Value) {
				d.notOneOf(path, n, allowed)
				return
			}
			v.SetString(n.Value)
		}
	case reflect.Bool:
		if d.expect(n, yaml.ScalarNode, "!!bool", "true or false", path) {
			_ = n.Decode(v.Addr().Interface()) // the tag is the result of the same parse
		}
	case reflect.Int:
		if d.expect(n, yaml.ScalarNode, "!!int", "a whole number", path) && n.Decode(v.Addr().Interface()) != nil {
			d.badValue(path, n, "the number is out of range", "use a smaller one")
		}
	default:
		panic("config: cannot decode into " + v.Type().String())
	}
}

func (d *document) notOneOf(path string, n *yaml.Node, allowed []string) {
	what, fix := quote(n.Value)+" is not one of "+strings.Join(allowed, ", "), "write one of them"
	if meant := nearest(n.Value, allowed); meant != "" {
		fix = fmt.Sprintf("did you mean %q?", meant)
	}
	d.badValue(path, n, what, fix)
}

// expect reports whether n is of the wanted kind, and the fault when it is not.
func (d *document) expect(n *yaml.Node, kind yaml.Kind, tag, wanted, path string) bool {
	if n.Kind == kind && n.ShortTag() == tag {
		return true
	}
	scalar := n.Kind == yaml.ScalarNode
	var fix string
	switch {
	case strings.HasPrefix(n.Tag, "!") && !strings.HasPrefix(n.Tag, "!!"):
		fix = "remove the tag"
	case kind == yaml.MappingNode:
		fix = "write its keys below it, indented"
	case kind == yaml.SequenceNode && scalar:
		fix = "put it in brackets: [ ]"
	case kind == yaml.SequenceNode:
		fix = "start each item with -"
	case !scalar:
		fix = "write one value"
	case tag == "!!str":
		fix = "put it in quotes"
	default:
		fix = "write it without quotes"
	}
	d.badValue(path, n, "must be "+wanted+", is "+kindName(n), fix)
	return false
}

func kindName(n *yaml.Node) string {
	switch n.ShortTag() {
	case "!!map":
		return "a map"
	case "!!seq":
		return "a list"
	case "!!str":
		return "a string"
	case "!!bool":
		return "true or false"
	case "!!int", "!!float":
		return "a number"
	case "!!timestamp":
		return "a date"
	}
	return "a value tagged " + quote(n.Tag)
}

// text decodes the types that are written as one string but are not strings, and reports whether v is one.
func (d *document) text(n *yaml.Node, v reflect.Value, path string) bool {
	var what, fix string
	switch p := v.Addr().Interface().(type) {
	case *time.Duration:
		*p, what, fix = parseDuration(n.Value)
	case *netip.Prefix:
		*p, what, fix = parsePrefix(n.Value)
	case *netip.AddrPort:
		*p, what, fix = parseAddrPort(n.Value)
	default:
		return false
	}
	switch {
	case n.Kind != yaml.ScalarNode:
		d.badValue(path, n, "must be a string, is "+kindName(n), "write one value")
	case what != "":
		d.badValue(path, n, what, fix)
	}
	return true
}

// field is one key a struct can be written with.
type field struct {
	key   string
	index []int
	tag   reflect.StructTag
}

// fields lists the keys of a struct as yaml.Marshal would write them, inlined structs included.
func fields(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case options == "inline":
			for _, inner := range fields(f.Type) {
				inner.index = append([]int{i}, inner.index...)
				out = append(out, inner)
			}
		case name == "":
			out = append(out, field{strings.ToLower(f.Name), []int{i}, f.Tag})
		default:
			out = append(out, field{name, []int{i}, f.Tag})
		}
	}
	return out
}

// enum returns the values a jsonschema tag allows; none means any.
func enum(tag reflect.StructTag) []string {
	var values []string
	for option := range strings.SplitSeq(tag.Get("jsonschema"), ",") {
		if v, ok := strings.CutPrefix(option, "enum="); ok {
			values = append(values, v)
		}
	}
	return values
}

// pairs calls f for each key of a mapping that is a string written for the first time, and reports the others.
func (d *document) pairs(n *yaml.Node, path string, f func(key, value *yaml.Node)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		line, twice := seen[key.Value]
		switch {
		case key.ShortTag() == "!!merge":
			d.broken[path] = true // what it would have brought is not missing
			d.fault(path, placeOf(key), "merge keys (<<) are not supported", "repeat the keys, or use an alias for a whole value")
		case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str":
			d.fault(path, placeOf(key), "a key must be a string, is "+kindName(key), "put it in quotes")
		case twice:
			d.fault(join(path, key.Value), placeOf(key), fmt.Sprintf("written twice, first on line %d", line), "keep one of the two")
		default:
			seen[key.Value] = key.Line
			f(key, value)
		}
	}
}

// mark records where the value of a key is: a scalar where it stands, anything longer at its key.
func (d *document) mark(path string, key, value *yaml.Node) {
	switch {
	case isNull(value):
	case value.Kind == yaml.ScalarNode:
		d.at[path] = placeOf(value)
	default:
		d.at[path] = placeOf(key)
	}
}

func (d *document) section(n *yaml.Node, v reflect.Value, path string) {
	known := fields(v.Type())
	d.pairs(n, path, func(key, value *yaml.Node) {
		if path == "" && d.skip != nil && d.skip(key.Value) {
			return
		}
		i := slices.IndexFunc(known, func(f field) bool { return f.key == key.Value })
		if i < 0 {
			d.unknownKey(key, known, path)
			return
		}
		at := join(path, key.Value)
		d.mark(at, key, value)
		d.value(value, v.FieldByIndex(known[i].index), at, known[i].tag)
	})
}

// secretKeys are keys under which people write a secret itself.
var secretKeys = []string{"access_token", "api_key", "apikey", "client_secret", "password", "refresh_token", "secret", "secret_id", "token"}

func (d *document) unknownKey(key *yaml.Node, known []field, path string) {
	names := make([]string, len(known))
	var kept []string // keys that say where the secret is kept
	for i, f := range known {
		names[i] = f.key
		if rest, ok := strings.CutPrefix(f.key, key.Value); ok && slices.Contains([]string{"_file", "_env", "_sha256"}, rest) {
			kept = append(kept, f.key)
		}
	}
	at := join(path, key.Value)
	switch {
	case len(kept) > 0:
		d.fault(at, placeOf(key), "secrets do not belong in this file", "use "+strings.Join(kept, " or "))
		for _, k := range kept {
			d.broken[join(path, k)] = true // so that nobody asks for it as well
		}
	case slices.Contains(secretKeys, key.Value):
		d.fault(at, placeOf(key), "secrets do not belong in this file", "tokens come from `wayleave grant connect`, keys from `wayleave grant import`; other secrets are read from files, see the keys that end in _file")
	default:
		if meant := nearest(key.Value, names); meant != "" {
			d.broken[join(path, meant)] = true
		}
		d.fault(at, placeOf(key), "unknown key", choose(key.Value, names))
	}
}

func (d *document) table(n *yaml.Node, v reflect.Value, path string, tag reflect.StructTag) {
	t := v.Type()
	v.Set(reflect.MakeMap(t))
	d.pairs(n, path, func(key, value *yaml.Node) {
		at := join(path, key.Value)
		d.at[at] = placeOf(key)
		if isNull(value) && t.Elem().Kind() != reflect.Struct {
			d.badValue(at, value, "has no value", `write one, or "" for an empty one`)
			return
		}
		d.mark(at, key, value)
		entry := reflect.New(t.Elem()).Elem()
		if s, ok := entry.Addr().Interface().(seeder); ok {
			s.seed(key.Value, func(k string) string { return scalarAt(value, k) })
		}
		d.value(value, entry, at, tag)
		v.SetMapIndex(reflect.ValueOf(key.Value).Convert(t.Key()), entry)
	})
}

// scalarAt returns the scalar at a key of a mapping, or "".
func scalarAt(n *yaml.Node, key string) string {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind != yaml.MappingNode {
		return ""
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key && n.Content[i+1].Kind == yaml.ScalarNode {
			return n.Content[i+1].Value
		}
	}
	return ""
}

func (d *document) list(n *yaml.Node, v reflect.Value, path string, tag reflect.StructTag) {
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, element := range n.Content {
		at := item(path, i)
		d.at[at] = placeOf(element)
		if isNull(element) {
			d.badValue(at, element, "an empty item", "remove it")
			continue
		}
		d.value(element, v.Index(i), at, tag)
	}
}
