package audit

import (
	"bytes"
	"encoding/json"
	"net"
	"strconv"
	"strings"
)

// ocsfVersion is of the Open Cybersecurity Schema Framework, schema.ocsf.io.
const ocsfVersion = "1.7.0"

// Classes of events.
const (
	ocsfBase    = 0
	ocsfNetwork = 4001 // Network Activity
	ocsfHTTP    = 4002 // HTTP Activity
	ocsfAPI     = 6003 // API Activity
)

// ocsfMethods are the activities of ocsfHTTP.
var ocsfMethods = map[string]int{"CONNECT": 1, "DELETE": 2, "GET": 3, "HEAD": 4, "OPTIONS": 5, "POST": 6, "PUT": 7, "TRACE": 8, "PATCH": 9}

// object is one of the schema's. What is empty is left out.
type object map[string]any

func (o object) set(name, value string) object {
	if value != "" {
		o[name] = value
	}
	return o
}

func (o object) number(name string, value int64) object {
	if value != 0 {
		o[name] = value
	}
	return o
}

func (o object) part(name string, value object) {
	if len(value) > 0 {
		o[name] = value
	}
}

// OCSF is a record as an event of the Open Cybersecurity Schema Framework, in one line. product is our version.
func OCSF(r Record, product string) []byte {
	e := object{
		"time": r.Time.UnixMilli(),
		"metadata": object{
			"version": ocsfVersion, "log_name": "audit", "profiles": []string{"host", "security_control", "trace"},
			"product": object{"name": "Wayleave", "vendor_name": "Wayleave", "version": product},
		}.set("correlation_uid", r.Request).set("log_provider", r.Gate).number("sequence", int64(min(r.Seq, 1<<53))),
	}
	switch r.Kind {
	case Gap:
		e.gap(r)
	case Operator:
		e.operator(r)
	case Request, Tunnel:
		e.request(r)
	default:
		e.class(ocsfBase, 99, 1)
	}
	var b bytes.Buffer
	encode := json.NewEncoder(&b)
	encode.SetEscapeHTML(false)
	_ = encode.Encode(e) // maps, strings and numbers
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func (o object) class(class, activity, severity int) {
	o["class_uid"], o["category_uid"], o["activity_id"] = class, class/1000, activity
	o["type_uid"], o["severity_id"] = class*100+activity, severity
}

// success says whether it was done.
func (o object) success(done bool, detail string) {
	o["status_id"] = 1
	if !done {
		o["status_id"] = 2
	}
	o.set("status_detail", detail)
}

func (o object) request(r Record) {
	severity := 1
	if r.Outcome == Refused {
		severity = 2
	}
	if r.Kind == Tunnel {
		activity := 2 // close
		switch {
		case r.Outcome == Refused:
			activity = 5 // refuse
		case r.Open:
			activity = 1
		}
		o.class(ocsfNetwork, activity, severity)
	} else {
		activity := ocsfMethods[r.Method]
		if activity == 0 {
			activity = 99
			o["activity_name"] = r.Method
		}
		o.class(ocsfHTTP, activity, severity)
	}
	host, port := splitHost(r.Host)
	if r.Kind == Request {
		o["http_request"] = object{"url": object{"scheme": "https", "path": r.Path}.set("hostname", host).number("port", port)}.set("http_method", r.Method).set("version", r.Protocol).set("uid", r.Request)
		if r.Status > 0 {
			o["http_response"] = object{"code": r.Status}
		}
	}
	o.part("dst_endpoint", object{}.set("hostname", host).number("port", port).set("ip", ipOf(r.Upstream)))
	o.part("src_endpoint", object{}.set("ip", ipOf(r.Source)))
	if host == "" && r.Source == "" { // one of them must be there
		o["src_endpoint"] = object{"name": "unknown"}
	}
	actor := object{}
	actor.part("user", object{}.set("name", r.Worker))
	actor.part("session", object{}.set("uid", r.Session))
	o.part("actor", actor)
	if r.Received+r.Sent > 0 {
		o["traffic"] = object{"bytes": r.Received + r.Sent}.number("bytes_in", r.Received).number("bytes_out", r.Sent)
	}
	o.number("duration", int64(r.DurationMS))
	if r.Status > 0 {
		o["status_code"] = strconv.Itoa(r.Status)
	}
	o["action_id"], o["disposition_id"] = 1, 1 // allowed
	if r.Outcome == Refused {
		o["action_id"], o["disposition_id"] = 2, 2 // denied, blocked
	}
	o.success(r.Outcome != Refused && r.Status < 400, r.Reason)
	o.part("firewall_rule", object{}.set("name", r.Rule))
	o.part("trace", object{}.set("uid", r.Trace))
	rest := object{}.set("outcome", string(r.Outcome)).set("grant", r.Grant).set("route", r.Route).set("revision", r.Revision).set("token", r.Token).set("fingerprint", r.Fingerprint).set("lane", r.Lane).set("cause", r.Cause).set("placeholder_of", r.PlaceholderOf)
	rest.set("flags", r.Flags).set("details", r.Details).set("run", r.Run).number("attempts", int64(r.Attempts))
	if r.Open {
		rest["open"] = true
	}
	o.part("unmapped", rest)
}

func (o object) operator(r Record) {
	activity := 3 // update
	for _, verb := range []struct {
		id    int
		words []string
	}{{1, []string{"connect", "import", "create", "start", "add"}}, {4, []string{"disconnect", "delete", "revoke", "remove", "end", "forget", "abort"}}} {
		for _, w := range verb.words {
			if _, last, _ := strings.Cut(r.Action, "."); strings.HasPrefix(last, w) {
				activity = verb.id
			}
		}
	}
	o.class(ocsfAPI, activity, 1)
	o["api"] = object{"operation": r.Action}
	user := object{}.set("name", r.Actor).set("type", r.Role)
	if r.Actor == "" {
		user["name"] = "unknown"
	}
	o["actor"] = object{"user": user}
	o["src_endpoint"] = object{"name": "unknown"}
	if ip := ipOf(r.From); ip != "" {
		o["src_endpoint"] = object{"ip": ip}
	}
	if r.Target != "" {
		o["resources"] = []object{{"name": r.Target}}
	}
	o.success(r.Outcome == Done, r.Reason)
	o.part("unmapped", object{}.set("via", r.Via).set("run", r.Run))
}

func (o object) gap(r Record) {
	o.class(ocsfBase, 99, 4)
	o["activity_name"] = "Records are missing"
	o["message"] = "records of the audit are missing"
	if r.Undelivered > 0 {
		o["message"] = "records of the audit were not delivered to " + r.Sink
	}
	o["count"] = min(r.Dropped+r.Undelivered, 1<<53)
	o.success(false, r.Cause)
	o.part("unmapped", object{}.set("run", r.Run))
}

func splitHost(host string) (name string, port int64) {
	name, text, err := net.SplitHostPort(host)
	if err != nil {
		if host == "" {
			return "", 0
		}
		return host, 443
	}
	n, _ := strconv.ParseUint(text, 10, 16)
	return name, int64(n)
}

// ipOf is the IP address of an address that may have a port; empty: it is none.
func ipOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		address = host
	}
	if net.ParseIP(address) == nil {
		return ""
	}
	return address
}
