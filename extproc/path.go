package extproc

import (
	"slices"
	"strings"

	rules "wayleave/policy"
)

// readings returns the ways in which a server may read a path, without its query: as it is, percent-decoded, and cleaned
// before or after that as servers do, which differ. Nearly always that is one, the path as it is, which comes first. It
// reports false for a path that somebody made to have very many.
func readings(path string) (all []string, few bool) {
	path, _, _ = strings.Cut(path, "?")
	size := 0
	for forms, round := []string{path}, 0; len(forms) > 0; round++ {
		var decoded []string
		for _, form := range forms {
			for _, reading := range cleaned(form) {
				if slices.Contains(all, reading) {
					continue
				}
				all = append(all, reading)
				if size += len(reading); size > maxReadings {
					return all, false
				}
				if next := percentDecode(reading); round < maxDecodings && next != reading {
					next, _, _ = strings.Cut(next, "?")
					decoded = append(decoded, next)
					if short := overlong.Replace(next); short != next {
						decoded = append(decoded, short)
					}
				}
			}
		}
		forms = decoded
	}
	return all, true
}

// overlong makes letters of what are none in UTF-8 (RFC 3629 section 3), and letters to old decoders: / and . are written so to be overlooked.
var overlong = func() *strings.Replacer {
	var pairs []string
	for c := range byte(0x80) {
		pairs = append(pairs, string([]byte{0xc0 | c>>6, 0x80 | c&0x3f}), string(rune(c)))
	}
	return strings.NewReplacer(pairs...)
}()

// maxReadings is how long the readings of one path may be together, in bytes; it bounds the time they take.
const maxReadings = 256 << 10

// cleaned returns a path and what cleaning makes of it.
func cleaned(path string) []string {
	all := []string{path}
	if odd(path) {
		for c := range everyCleaning + 1 {
			clean := c.clean(path)
			all = append(all, clean)
			if strings.HasPrefix(clean, "//") { // some make one of the first slashes only, as Go's net/url does
				all = append(all, "/"+strings.TrimLeft(clean, "/"))
			}
		}
	}
	return all
}

// odd reports whether servers may differ in how they read a path.
func odd(path string) bool {
	return strings.ContainsAny(path, `\;`) || strings.Contains(path, "//") || strings.Contains(path, "/.")
}

// cleaner resolves dot segments (RFC 3986 section 5.2.4) as one kind of server does. A segment that one takes for .. is to
// another a name, or takes an empty one away, so that each leads to another path.
type cleaner uint8

const (
	backslashes cleaner = 1 << iota // are slashes
	parameters                      // after ; in a segment are not part of the path
	slashes                         // in a row are one

	everyCleaning = backslashes | parameters | slashes
)

// clean keeps a final slash, which rules tell apart.
func (c cleaner) clean(path string) string {
	if c&backslashes != 0 {
		path = strings.ReplaceAll(path, `\`, "/")
	}
	var kept []string
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, s := range segments {
		if c&parameters != 0 {
			s, _, _ = strings.Cut(s, ";")
		}
		last := i == len(segments)-1
		switch {
		case s == "..":
			kept = kept[:max(0, len(kept)-1)]
		case s == ".", s == "" && (last || c&slashes != 0):
		default:
			kept = append(kept, s)
		}
		if last && (s == "" || s == "." || s == "..") && len(kept) > 0 {
			kept = append(kept, "")
		}
	}
	return "/" + strings.Join(kept, "/")
}

// ruleFor returns the rule that decides for method and path, or nil when none does. It reports false when different
// readings of them lead to different rules: then nobody knows which rule the upstream's reading would have needed.
func ruleFor(list []Rule, methods, paths []string) (rule *Rule, plain bool) {
	if len(list) == 0 { // as of most routes, and nothing is to be read for it
		return nil, true
	}
	all := make([]loose, len(paths))
	for i, path := range paths {
		all[i] = loosely(path)
	}
	found := func(method string, i int) int {
		return slices.IndexFunc(list, func(r Rule) bool {
			if len(r.Methods) > 0 && !slices.Contains(r.Methods, method) {
				return false
			}
			switch {
			case r.PathExact != "":
				return paths[i] == r.PathExact || r.Deny != "" && all[i].is(r.PathExact)
			case r.Deny != "":
				return all[i].under(r.PathPrefix)
			}
			return strings.HasPrefix(paths[i], r.PathPrefix)
		})
	}
	first := found(methods[0], 0)
	for _, method := range methods {
		for i := range paths {
			if found(method, i) != first {
				return nil, false
			}
		}
	}
	if first < 0 {
		return nil, true
	}
	return &list[first], true
}

// loose is a reading of a path as servers take it that tell less apart: letter case and a final slash are nothing to many, final dots and
// spaces of a name to Windows, and what follows # or a NUL to a few. What is denied is denied however it is written; what else a rule says
// holds for its own spelling.
type loose struct {
	folded string
	short  string // without final dots and spaces of its names
	whole  string // short, as far as # or a NUL, without a final slash
}

func loosely(path string) loose {
	l := loose{folded: rules.Fold(path)}
	l.short = withoutFinal(l.folded)
	l.whole = l.short
	if i := strings.IndexAny(l.whole, "#\x00"); i >= 0 {
		l.whole = withoutFinal(l.whole[:i])
	}
	l.whole = strings.TrimRight(l.whole, "/")
	return l
}

// withoutFinal is a path without the dots and spaces at the end of its names.
func withoutFinal(path string) string {
	if !strings.Contains(path, "./") && !strings.Contains(path, " /") && !strings.HasSuffix(path, ".") && !strings.HasSuffix(path, " ") {
		return path // as nearly all
	}
	names := strings.Split(path, "/")
	for i := range names {
		names[i] = strings.TrimRight(names[i], ". ")
	}
	return strings.Join(names, "/")
}

// is reports whether some server could take the path for this one.
func (l loose) is(path string) bool { return l.whole == loosely(path).whole }

// under reports whether some server could take it for one that starts with the prefix.
func (l loose) under(prefix string) bool {
	prefix = rules.Fold(prefix)
	return strings.HasPrefix(l.folded, prefix) || strings.HasPrefix(l.short, prefix) || l.short == strings.TrimSuffix(prefix, "/")
}

// deniedUnder reports whether some server could take one of the paths for one that starts with one of the prefixes.
func deniedUnder(paths, prefixes []string) bool {
	return len(prefixes) > 0 && slices.ContainsFunc(paths, func(path string) bool { return slices.ContainsFunc(prefixes, loosely(path).under) })
}

// underAny reports whether some reading of the path starts with one of the prefixes.
func underAny(paths, prefixes []string) bool {
	return slices.ContainsFunc(paths, func(path string) bool {
		return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(path, prefix) })
	})
}
