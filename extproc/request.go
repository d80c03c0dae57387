package extproc

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/structpb"
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
}

// header has its name in lower case.
type header struct{ name, value string }

// repeated stands for a pseudo header given more than once. It is neither a method, nor an authority, nor a path.
const repeated = "\x00"

func newRequest(headers *extprocv3.HttpHeaders, attributes map[string]*structpb.Struct) request {
	var r request
	pseudo := map[string]*string{":method": &r.method, ":authority": &r.authority, ":path": &r.path}
	list := headers.GetHeaders().GetHeaders()
	r.headers = make([]header, 0, len(list))
	for _, h := range list {
		value := string(h.GetRawValue())
		if value == "" {
			value = h.GetValue()
		}
		name := strings.ToLower(h.GetKey())
		field, isPseudo := pseudo[name]
		switch {
		case !isPseudo && strings.HasPrefix(name, ":"): // :scheme, :protocol: not ours to judge
		case !isPseudo:
			r.headers = append(r.headers, header{name, value})
		case *field != "":
			*field = repeated
		default:
			*field = value
		}
	}
	fields := attributes[attributeNamespace].GetFields()
	r.identity = fields[attributeIdentity].GetStringValue()
	r.connectAuthority = fields[attributeAuthority].GetStringValue()
	r.node = fields[attributeNode].GetStringValue()
	r.serverName = fields[attributeSNI].GetStringValue()
	if source, err := netip.ParseAddrPort(fields[attributeSource].GetStringValue()); err == nil {
		r.source = source.Addr().Unmap().String()
	}
	return r
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
