package extproc

import (
	"slices"
	"strings"

	rules "wayleave/policy"
)

// Some servers take the method or the path of a request from a header in place of the request's own. Nobody here knows which do, so that both
// readings are judged.

// Those headers, as canonical has them.
var (
	methodHeaders = []string{"x-http-method", "x-http-method-override", "x-method-override"}
	targetHeaders = []string{"x-original-url", "x-rewrite-url"}
)

const overridden = "a header asks the server for another method or path than the request has; send the request without it"

// overrides are the methods and targets that such headers put in place of the request's own.
func (r *request) overrides() (methods, targets []string) {
	for _, h := range r.headers {
		if !strings.HasPrefix(h.name, "x") { // as nearly all
			continue
		}
		switch name, value := canonical(h.name), strings.TrimSpace(h.value); {
		case value == "":
		case slices.Contains(methodHeaders, name):
			if method := strings.ToUpper(value); method != r.method {
				methods = append(methods, method)
			}
		case slices.Contains(targetHeaders, name) && value != r.path:
			targets = append(targets, value)
		}
	}
	return methods, targets
}

// evades reports whether a server could read another request than the one that the rules look at.
func (r *request) evades(set *rules.Set) bool {
	methods, targets := r.overrides()
	return len(methods) > 0 && set.LooksAt("method") || len(targets) > 0 && (set.LooksAt("path") || set.LooksAt("query"))
}

// twisted reports whether the request may be refused because of a header that makes more of it than it says.
func (r *request) twisted() bool {
	methods, targets := r.overrides()
	return len(methods)+len(targets) > 0 || r.bindsConnection()
}
