package extproc

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
)

// Attributes that Envoy sends with each request, and the key they arrive under.
const (
	attributeNamespace = "envoy.filters.http.ext_proc"
	attributeSNI       = "connection.requested_server_name"
	attributeIdentity  = "filter_state['wayleave.identity']"
	attributeSource    = "source.address"
	attributeNode      = "xds.node.id"
	attributeAuthority = "filter_state['wayleave.connect_authority']"
)

// request is what is decided about: one HTTP request and the connection it came on.
type request struct {
	method, authority, path string
	scheme                  string   // known of requests to the proxy alone
	headers                 []header // in order, without the pseudo headers

	// What is known of the connection, independently of the request.
	identity         string // of the session that opened it; "" when unknown
	connectAuthority string // what CONNECT asked for
	serverName       string // what TLS asked for
	source           string // the worker's address

	came time.Time // as far as what is counted from it is the gate's

	node     string // the Envoy that asks
	revision string // that it says it has

	approved string // the rule that holds it, and an operator has allowed

	others *overrides // nil: not read yet
}

// header has its name in lower case.
type header struct{ name, value string }

// repeated stands for a pseudo header given more than once. It is neither a method, nor an authority, nor a path.
const repeated = "\x00"

// newRequest reads the headers of an answer, or of a question that was made a message.
func newRequest(headers *extprocv3.HttpHeaders) request {
	list := headers.GetHeaders().GetHeaders()
	r := request{headers: make([]header, 0, len(list))}
	for _, h := range list {
		value := string(h.GetRawValue())
		if value == "" {
			value = h.GetValue()
		}
		r.add(strings.ToLower(h.GetKey()), value)
	}
	return r
}

// add notes a header, whose name is in lower case.
func (r *request) add(name, value string) {
	var field *string
	switch {
	case name == ":method":
		field = &r.method
	case name == ":authority":
		field = &r.authority
	case name == ":path":
		field = &r.path
	case strings.HasPrefix(name, ":"): // :scheme, :protocol: not ours to judge
		return
	default:
		r.headers = append(r.headers, header{name, value})
		return
	}
	if *field != "" {
		value = repeated
	}
	*field = value
}

// addressOf is the address of an address and a port; empty when it is none.
func addressOf(s string) string {
	source, err := netip.ParseAddrPort(s)
	if err != nil {
		return ""
	}
	return source.Addr().Unmap().String()
}

// values are those of the header called name, one for each line.
func (r *request) values(name string) []string {
	var out []string
	for _, h := range r.headers {
		if h.name == name {
			out = append(out, h.value)
		}
	}
	return out
}

// has reports whether the header called name is there and not empty.
func (r *request) has(name string) bool {
	return slices.ContainsFunc(r.headers, func(h header) bool { return h.name == name && h.value != "" })
}

// speaksGRPC reports whether a status is expected in place of an answer of HTTP; as Envoy tells it.
func (r *request) speaksGRPC() bool {
	return slices.ContainsFunc(r.values("content-type"), func(v string) bool { return v == "application/grpc" || strings.HasPrefix(v, "application/grpc+") })
}

// lists reports whether item, in lower case, is in the comma-separated list header called name.
func (r *request) lists(name string, match func(item string) bool) bool {
	for _, h := range r.headers {
		if h.name != name {
			continue
		}
		for item := range strings.SplitSeq(h.value, ",") {
			if match(strings.ToLower(strings.TrimSpace(item))) {
				return true
			}
		}
	}
	return false
}
