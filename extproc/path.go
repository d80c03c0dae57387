package extproc

import (
	"slices"
	"strings"
)

// readings returns the ways in which a server may read a path, without its query: as it is, percent-decoded, and each
// of them with dot segments, doubled slashes, backslashes and ;parameters resolved. Nearly always that is one.
func readings(path string) []string {
	path, _, _ = strings.Cut(path, "?")
	var out []string
	for _, form := range decodings(path) {
		form, _, _ = strings.Cut(form, "?")
		for _, reading := range []string{form, clean(form)} {
			if !slices.Contains(out, reading) {
				out = append(out, reading)
			}
		}
	}
	return out
}

// clean resolves what servers resolve. It keeps a final slash, which rules tell apart.
func clean(path string) string {
	if !strings.ContainsAny(path, `\;`) && !strings.Contains(path, "//") && !strings.Contains(path, "/.") {
		return path
	}
	var kept []string
	segments := strings.Split(strings.ReplaceAll(path, `\`, "/"), "/")
	for i, s := range segments {
		s, _, _ = strings.Cut(s, ";")
		last := i == len(segments)-1
		switch {
		case s == "..":
			kept = kept[:max(0, len(kept)-1)]
		case s != "" && s != ".":
			kept = append(kept, s)
		}
		if last && (s == "" || s == "." || s == "..") && len(kept) > 0 {
			kept = append(kept, "")
		}
	}
	return "/" + strings.Join(kept, "/")
}

// ruleFor returns the rule that decides for method and path, or nil when none does. It reports false when different
// readings of the path lead to different rules: then nobody knows which rule the upstream's reading would have needed.
func ruleFor(rules []Rule, method string, paths []string) (rule *Rule, plain bool) {
	found := func(path string) int {
		return slices.IndexFunc(rules, func(r Rule) bool {
			if len(r.Methods) > 0 && !slices.Contains(r.Methods, method) {
				return false
			}
			if r.PathExact != "" {
				return path == r.PathExact
			}
			return strings.HasPrefix(path, r.PathPrefix)
		})
	}
	first := found(paths[0])
	for _, path := range paths[1:] {
		if found(path) != first {
			return nil, false
		}
	}
	if first < 0 {
		return nil, true
	}
	return &rules[first], true
}

// underAny reports whether some reading of the path starts with one of the prefixes.
func underAny(paths, prefixes []string) bool {
	return slices.ContainsFunc(paths, func(path string) bool {
		return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(path, prefix) })
	})
}
