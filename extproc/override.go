package extproc

import (
	"slices"
	"strings"

	rules "wayleave/policy"
)

// Some servers take the method or the path of a request from a header or a parameter in place of the request's own, or a method in any letter
// case. Nobody here knows which do, so that all readings are judged.

// Those headers, as canonical has them. A parameter of the query does the same by the name of a header for methods, or by _method.
var (
	methodHeaders = []string{"x-http-method", "x-http-method-override", "x-method-override", "x-original-method"}
	targetHeaders = []string{"x-original-uri", "x-original-url", "x-override-url", "x-rewrite-uri", "x-rewrite-url"}
)

const overridden = "a header or a parameter asks the server for another method or path than the request has; send the request without it, and its method in upper case"

// overrides are the methods and targets that a server may read in place of the request's own.
type overrides struct {
	methods, targets []string
	many             bool // more of them than anybody means, and not all are here
}

// maxOverrides bounds what one request has judged.
const maxOverrides = 8

// overrides reads them once.
func (r *request) overrides() *overrides {
	if r.others == nil {
		r.others = r.readOverrides()
	}
	return r.others
}

func (r *request) readOverrides() *overrides {
	o := &overrides{}
	method := func(value string) {
		switch value = strings.ToUpper(value); {
		case value == r.method || slices.Contains(o.methods, value):
		case len(o.methods) == maxOverrides:
			o.many = true
		default:
			o.methods = append(o.methods, value)
		}
	}
	method(r.method)
	for _, h := range r.headers {
		if !strings.HasPrefix(h.name, "x") { // as nearly all
			continue
		}
		switch name, value := canonical(h.name), strings.TrimSpace(h.value); {
		case value == "":
		case slices.Contains(methodHeaders, name):
			method(value)
		case slices.Contains(targetHeaders, name) && value != r.path && !slices.Contains(o.targets, value):
			if len(o.targets) == maxOverrides {
				o.many = true
				continue
			}
			o.targets = append(o.targets, value)
		}
	}
	if _, query, ok := strings.Cut(r.path, "?"); ok && containsFold(percentDecode(query), "method") { // as few
		for name, values := range parameterMap(query, "&;") {
			if name = canonical(strings.ToLower(name)); name != "-method" && !slices.Contains(methodHeaders, name) {
				continue
			}
			for _, value := range values {
				if word(value) { // else it is of something else
					method(value)
				}
			}
		}
	}
	slices.Sort(o.methods)
	return o
}

// word reports whether s is made of letters.
func word(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool { return c|0x20 < 'a' || c|0x20 > 'z' })
}

// evades reports whether a server could read another request than the one that the rules look at.
func (r *request) evades(set *rules.Set) bool {
	o := r.overrides()
	return len(o.methods) > 0 && set.LooksAt("method") || len(o.targets) > 0 && (set.LooksAt("path") || set.LooksAt("query"))
}

// twisted reports whether the request may be refused because of something that makes more of it than it says.
func (r *request) twisted() bool {
	o := r.overrides()
	return len(o.methods)+len(o.targets) > 0 || r.bindsConnection()
}
