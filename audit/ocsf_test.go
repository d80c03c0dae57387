package audit

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// Required attributes, and those of which one must be there, of schema.ocsf.io 1.7.0.
var (
	ocsfAlways = []string{"activity_id", "category_uid", "class_uid", "metadata.version", "metadata.product.name", "severity_id", "time", "type_uid"}
	ocsfOf     = map[float64][]string{
		ocsfBase: nil, ocsfNetwork: {"dst_endpoint|src_endpoint"}, ocsfHTTP: {"dst_endpoint|src_endpoint", "http_request|http_response"}, ocsfAPI: {"actor.user.name", "api.operation", "src_endpoint"},
	}
	ocsfParts = map[string]string{ // one of which each of these has when it is there
		"dst_endpoint": "ip|name|hostname", "src_endpoint": "ip|name|hostname", "http_response": "code", "trace": "uid", "actor": "user|session", "firewall_rule": "name", "http_request.url": "path",
	}
)

func at(e map[string]any, path string) (any, bool) {
	var v any = e
	for name := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = m[name]; !ok {
			return nil, false
		}
	}
	return v, true
}

func has(e map[string]any, prefix, oneOf string) bool {
	return slices.ContainsFunc(strings.Split(oneOf, "|"), func(name string) bool { _, ok := at(e, prefix+name); return ok })
}

func TestOCSF(t *testing.T) {
	full := Record{
		Time: start, Kind: Request, Gate: "g", Outcome: Swapped, Worker: "ci", Session: "s", Grant: "acme", Route: "r", Host: "api.example.com", Method: "PATCH", Path: "/v1", Request: "id", Source: "10.0.0.7",
		Revision: "abc", Token: "1", Fingerprint: "9f86d081884c7d65", Rule: "reads", Trace: "t", Status: 201, Received: 10, Sent: 20, DurationMS: 12.5, Attempts: 1, Upstream: "192.0.2.1:443", Protocol: "HTTP/2", Run: "x", Seq: 7,
	}
	refused := full
	refused.Outcome, refused.Reason, refused.Status, refused.Method = Refused, "scope_missing", 403, "BREW"
	tunnel := full
	tunnel.Kind, tunnel.Method, tunnel.Host = Tunnel, "CONNECT", "pypi.org:8443"
	open := tunnel
	open.Open = true
	for name, c := range map[string]struct {
		r    Record
		want map[string]any
	}{
		"a request": {full, map[string]any{
			"class_uid": 4002., "activity_id": 9., "type_uid": 400209., "status_id": 1., "action_id": 1., "http_response.code": 201., "traffic.bytes": 30., "traffic.bytes_in": 10., "duration": 12.,
			"dst_endpoint.hostname": "api.example.com", "dst_endpoint.port": 443., "dst_endpoint.ip": "192.0.2.1", "src_endpoint.ip": "10.0.0.7", "actor.user.name": "ci", "actor.session.uid": "s",
			"unmapped.grant": "acme", "unmapped.fingerprint": "9f86d081884c7d65", "firewall_rule.name": "reads", "trace.uid": "t", "metadata.correlation_uid": "id", "metadata.sequence": 7., "time": float64(start.UnixMilli()),
		}},
		"a refused one":       {refused, map[string]any{"activity_id": 99., "activity_name": "BREW", "status_id": 2., "action_id": 2., "disposition_id": 2., "status_detail": "scope_missing"}},
		"a tunnel":            {tunnel, map[string]any{"class_uid": 4001., "activity_id": 2., "dst_endpoint.hostname": "pypi.org", "dst_endpoint.port": 8443.}},
		"one that is open":    {open, map[string]any{"activity_id": 1., "unmapped.open": true}},
		"of nobody":           {Record{Time: start, Kind: Tunnel, Outcome: Refused}, map[string]any{"activity_id": 5., "src_endpoint.name": "unknown"}},
		"an operator":         {Record{Time: start, Kind: Operator, Outcome: Done, Actor: "maria", Role: "admin", From: "192.0.2.9", Action: "grant.connect", Target: "acme"}, map[string]any{"class_uid": 6003., "activity_id": 1., "api.operation": "grant.connect", "src_endpoint.ip": "192.0.2.9"}},
		"one who may not":     {Record{Time: start, Kind: Operator, Outcome: Failed, Reason: "no", Action: "grant.disconnect"}, map[string]any{"activity_id": 4., "status_id": 2., "status_detail": "no", "actor.user.name": "unknown"}},
		"records are missing": {Record{Time: start, Kind: Gap, Dropped: 5, Cause: Killed}, map[string]any{"class_uid": 0., "type_uid": 99., "count": 5., "severity_id": 4.}},
	} {
		var e map[string]any
		if err := json.Unmarshal(OCSF(c.r, "1.2.3"), &e); err != nil {
			t.Fatal(err)
		}
		class, known := e["class_uid"].(float64)
		required, ok := ocsfOf[class]
		if !known || !ok {
			t.Fatalf("%s: class %v", name, e["class_uid"])
		}
		for _, r := range append(required, ocsfAlways...) {
			if !has(e, "", r) {
				t.Errorf("%s: %s is missing: %v", name, r, e)
			}
		}
		for part, oneOf := range ocsfParts {
			if _, there := at(e, part); there && !has(e, part+".", oneOf) {
				t.Errorf("%s: %s has none of %s", name, part, oneOf)
			}
		}
		if e["type_uid"] != class*100+e["activity_id"].(float64) || e["category_uid"] != float64(int(class)/1000) {
			t.Errorf("%s: %v", name, e)
		}
		for path, want := range c.want {
			if got, _ := at(e, path); got != want {
				t.Errorf("%s: %s is %v, want %v", name, path, got, want)
			}
		}
	}
}
