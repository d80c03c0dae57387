package config

import (
	"slices"
	"strings"
)

// Record says where the gate writes down each request that rules, routes and profiles decide about, one line of JSON each, for
// `wayleave policy test`. It holds methods, hosts and paths, so it is readable by the gate's user only; no credential of the gate's or
// of a worker is in it. A path may be a secret by itself at some providers: treat the file so.
type Record struct {
	// File to add to. What was before is kept in a second one, called so and .1 behind. With listen.replicas each gate has its
	// own: requests.a.jsonl for requests.jsonl. Default: nothing is recorded.
	File string `yaml:"file"`

	// Megabytes that both files take together at most, from 1 to 100000.
	MaxMB int `yaml:"max_mb" jsonschema:"minimum=1,maximum=100000,default=100"`

	// Headers whose values are recorded, in lower case, for rules that look at them. Those that hold credentials never are. Default: none.
	Headers []string `yaml:"headers" jsonschema:"uniqueItems=true,pattern=^[a-z0-9!#$%&'*+.^_|~-]{1\\,100}$"`

	// Query parameters whose values are recorded, for rules that look at them. Some APIs take secrets in the query. Default: none.
	Query []string `yaml:"query" jsonschema:"uniqueItems=true"`
}

// UsualCredentialHeaders are those in which APIs commonly take a credential, whatever the routes say.
var UsualCredentialHeaders = []string{"authorization", "proxy-authorization", "x-api-key", "x-goog-api-key", "api-key", "private-token", "cookie"}

func (k *checker) record() {
	r := k.Record
	if r.File == "" && !k.doc.isBroken("record.file") {
		for _, key := range []string{"max_mb", "headers", "query"} {
			if k.doc.given("record." + key) {
				k.fault("record."+key, "has no effect without record.file", "write record.file, or remove it")
			}
		}
	}
	k.megabytes("record.max_mb", r.MaxMB)
	k.unique("record.headers", r.Headers)
	k.unique("record.query", r.Query)
	canonical := func(name string) string { return strings.ReplaceAll(name, "_", "-") }
	for i, name := range r.Headers {
		at := item("record.headers", i)
		switch lower := strings.ToLower(name); {
		case !headerName.MatchString(lower):
			k.fault(at, quote(name)+" is not a header name", "write one such as x-environment")
		case lower != name:
			k.fault(at, quote(name)+" is not in lower case", "write "+lower)
		case slices.ContainsFunc(slices.Concat(UsualCredentialHeaders, k.CredentialHeaders()), func(h string) bool { return canonical(h) == canonical(name) }):
			k.fault(at, quote(name)+" holds credentials, which are never recorded", "remove it")
		}
	}
	for i, name := range r.Query {
		if name == "" || len(name) > 200 || strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			k.fault(item("record.query", i), quote(name)+" is not the name of a parameter", "write it decoded, such as force")
		}
	}
	for i, route := range k.Routes {
		if p := route.Header.InQuery; p != "" && slices.Contains(r.Query, p) {
			k.fault(item("record.query", slices.Index(r.Query, p)), quote(p)+" holds the credential of "+item("routes", i), "remove it")
		}
	}
}
