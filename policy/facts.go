package policy

import (
	"slices"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// Facts are what is known about one request. Each is a variable of the same name in CEL.
type Facts struct {
	Worker  string `json:"worker"`
	Profile string `json:"profile"`
	// Session is its id; empty for a worker that is known by its address.
	Session string `json:"session,omitempty"`
	// Subject is who the worker proved to be; empty when it proved a token of the gate's, or is known by its address.
	Subject string `json:"subject,omitempty"`
	// Credential is the name of the grant whose token the request gets; empty when it gets none.
	Credential string `json:"credential,omitempty"`
	// Route is the name of the route; empty when the request is not of one.
	Route string `json:"route,omitempty"`
	// Host is a DNS name in lower case.
	Host   string `json:"host"`
	Port   int    `json:"port"`
	Method string `json:"method,omitempty"`
	Reading
	// Headers by their names in lower case, without those that hold credentials. Lines of one name are joined by ", ".
	Headers map[string]string `json:"headers,omitempty"`
	// Source is the IP address that the worker has for the gate; empty when it is not known.
	Source string    `json:"source,omitempty"`
	Now    time.Time `json:"now,omitzero"`

	// Opaque says that the connection is a tunnel: method, path, query and headers are unknown, and nothing is known to be true
	// or false that depends on them.
	Opaque bool `json:"opaque,omitempty"`
	// Known are the facts of which not everything is known, by their names in CEL, and of those that are maps the keys that are. It is
	// for requests of the past, and those that somebody only asks about; nil for one that is decided about.
	Known map[string][]string `json:"known,omitempty"`
	// Others are the other ways in which servers may read path and query.
	Others []Reading `json:"others,omitempty"`
}

// Reading is one way in which a server may read a request target.
type Reading struct {
	// Path is without its query.
	Path string `json:"path,omitempty"`
	// Query has the values of each parameter, decoded.
	Query map[string][]string `json:"query,omitempty"`
}

// variable is one fact as CEL knows it.
type variable struct {
	name   string
	kind   *cel.Type
	size   uint64 // of its text, at most; of a map, the number of its keys
	hidden bool   // inside a tunnel
	value  func(*activation) ref.Val
}

const (
	maxName    = 253
	maxHeaders = 96 << 10 // bytes, path and query included: Envoy takes no more
)

var variables = []variable{
	{"worker", cel.StringType, maxName, false, func(a *activation) ref.Val { return types.String(a.facts.Worker) }},
	{"profile", cel.StringType, maxName, false, func(a *activation) ref.Val { return types.String(a.facts.Profile) }},
	{"session", cel.StringType, maxName, false, func(a *activation) ref.Val { return types.String(a.facts.Session) }},
	{"subject", cel.StringType, maxHeaders, false, func(a *activation) ref.Val { return types.String(a.facts.Subject) }},
	{"credential", cel.StringType, maxName, false, func(a *activation) ref.Val { return types.String(a.facts.Credential) }},
	{"route", cel.StringType, maxName, false, func(a *activation) ref.Val { return types.String(a.facts.Route) }},
	{"host", cel.StringType, maxName, false, func(a *activation) ref.Val { return types.String(a.facts.Host) }},
	{"port", cel.IntType, 0, false, func(a *activation) ref.Val { return types.Int(a.facts.Port) }},
	{"source", cel.StringType, maxName, false, func(a *activation) ref.Val { return types.String(a.facts.Source) }},
	{"now", cel.TimestampType, 0, false, func(a *activation) ref.Val { return types.Timestamp{Time: a.facts.Now} }},
	{"method", cel.StringType, maxHeaders, true, func(a *activation) ref.Val { return types.String(a.facts.Method) }},
	{"path", cel.StringType, maxHeaders, true, func(a *activation) ref.Val { return types.String(a.reading.Path) }},
	{"query", cel.MapType(cel.StringType, cel.ListType(cel.StringType)), maxHeaders, true, func(a *activation) ref.Val {
		return types.DefaultTypeAdapter.NativeToValue(a.reading.Query)
	}},
	{"headers", cel.MapType(cel.StringType, cel.StringType), maxHeaders, true, func(a *activation) ref.Val {
		return types.NewStringStringMap(types.DefaultTypeAdapter, a.facts.Headers)
	}},
}

// hidden are the facts that are unknown of a tunnel.
var hidden = func() (patterns []*cel.AttributePatternType) {
	for _, v := range variables {
		if v.hidden {
			patterns = append(patterns, cel.AttributePattern(v.name))
		}
	}
	return patterns
}()

// activation gives facts to a program.
type activation struct {
	facts   *Facts
	reading Reading
	whole   []string // facts that the condition takes as a whole
}

func (a *activation) ResolveName(name string) (any, bool) {
	for i := range variables {
		if v := &variables[i]; v.name == name {
			value := v.value(a)
			if keys, partly := a.facts.Known[name]; partly {
				return knownPart(name, value, keys, slices.Contains(a.whole, name)), true
			}
			return value, true
		}
	}
	return nil, false
}

func (a *activation) Parent() cel.Activation { return nil }
