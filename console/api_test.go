package console

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"wayleave/api"
	"wayleave/approval"
	"wayleave/demo"
	"wayleave/grant"
)

var update = flag.Bool("update", false, "rewrite docs/openapi.json")

// The document in the documentation is the one that is served, and every answer is as it says.
func TestOpenAPI(t *testing.T) {
	w := newWorld(t, nil)
	document := []byte(w.browser().get(api.Root + "/openapi.json").body)
	const file = "../docs/openapi.json"
	if *update {
		if err := os.WriteFile(file, append(document, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if had, err := os.ReadFile(file); err != nil || !bytes.Equal(bytes.TrimSpace(had), bytes.TrimSpace(document)) {
		t.Errorf("docs/openapi.json is not what the console serves (%v); run 'go test ./console -update'", err)
	}
	decoded, err := jsonschema.UnmarshalJSON(bytes.NewReader(document))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("openapi.json", decoded); err != nil {
		t.Fatal(err)
	}
	fits := func(what, pointer string, answered json.RawMessage) {
		t.Helper()
		schema, err := compiler.Compile("openapi.json#" + pointer)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(answered))
		if err == nil {
			err = schema.Validate(v)
		}
		if err != nil {
			t.Errorf("%s is not as documented: %v\n%.500s", what, err, answered)
		}
	}
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	at := func(method, path, status string) string {
		return "/paths/" + escape.Replace(path) + "/" + strings.ToLower(method) + "/responses/" + status + "/content/application~1json/schema"
	}

	admin := w.as(Admin)
	s, _, err := w.sessions.Issue("ci", "default", time.Hour, w.now())
	if err != nil {
		t.Fatal(err)
	}
	w.sessions.Issued(s, "", "10.0.0.7")
	w.console.Decisions.Add(Decision{At: w.now(), Outcome: Swapped, Worker: "ci", Host: "api.acme.example"})
	var listed Workers
	eventually(t, "the session is listed", func() bool {
		admin.call("GET", "/workers", "", &listed)
		return len(listed.Workers) == 1 && len(listed.Workers[0].Sessions) == 1
	})
	var f api.Flow
	admin.call("POST", "/grants/acme/connect", "{}", &f)
	back, err := demo.Approve(t.Context(), f.URL)
	if err != nil {
		t.Fatal(err)
	}
	pasted, _ := json.Marshal(api.AnswerRequest{Answer: back})

	var left api.Flow
	admin.call("POST", "/grants/acme/connect", `{"redirect":"http://127.0.0.1:4711/callback"}`, &left)

	waits := func() string {
		return w.hold(approval.Request{Worker: "ci", Session: "s1", Rule: "eyes", Method: "DELETE", Host: "api.acme.example:443", Path: "/"})
	}
	kept := w.hold(approval.Request{Worker: "ci", Session: "s2", Rule: "other", Method: "GET", Host: "api.acme.example:443", Path: "/"})
	admin.call("POST", "/approvals/"+kept+"/decide", `{"verdict":"deny","for":"15m"}`, &struct{}{})
	done := map[string]bool{}
	for _, c := range []struct{ method, path, template, body string }{
		{"POST", "/connects/" + f.ID + "/answer", "/connects/{id}/answer", string(pasted)},
		{"GET", "/connects/" + f.ID, "/connects/{id}", ""},
		{"POST", "/grants/acme/connect", "/grants/{grant}/connect", `{"way":"device"}`},
		{"DELETE", "/connects/" + left.ID, "/connects/{id}", ""},
		{"POST", "/grants/acme/refresh", "/grants/{grant}/refresh", ""},
		{"POST", "/grants/acme/refresh", "/grants/{grant}/refresh", `{"no_wait":true}`},
		{"GET", "/me", "/me", ""},
		{"GET", "/grants", "/grants", ""},
		{"GET", "/grants/acme", "/grants/{grant}", ""},
		{"POST", "/grants/key/import", "/grants/{grant}/import", `{"value":"k-` + hush + `"}`},
		{"GET", "/routes", "/routes", ""},
		{"GET", "/workers", "/workers", ""},
		{"GET", "/sessions", "/sessions", ""},
		{"POST", "/sessions/revoke", "/sessions/revoke", `{"workers":["nobody"]}`},
		{"POST", "/sessions/" + s.ID + "/revoke", "/sessions/{id}/revoke", ""},
		{"POST", "/workers/ci/revoke", "/workers/{worker}/revoke", ""},
		{"GET", "/decisions?worker=ci&limit=1", "/decisions", ""},
		{"GET", "/audit?worker=ci&from=2026-01-01T00:00:00Z&limit=1", "/audit", ""},
		{"GET", "/approvals", "/approvals", ""},
		{"GET", "/approvals/" + waits(), "/approvals/{id}", ""},
		{"POST", "/approvals/" + waits() + "/decide", "/approvals/{id}/decide", `{"verdict":"allow","for":"15m","note":"planned"}`},
		{"POST", "/approvals/" + kept + "/forget", "/approvals/{id}/forget", ""},
		{"POST", "/rollout", "/rollout", w.startRequest("", "")},
		{"POST", "/rollout", "/rollout", w.startRequest("pypi.org", "pypi.example")},
		{"GET", "/rollout", "/rollout", ""},
		{"POST", "/rollout/pause", "/rollout/pause", `{"note":"lunch"}`},
		{"POST", "/rollout/resume", "/rollout/resume", ""},
		{"POST", "/rollout/promote", "/rollout/promote", ""},
		{"POST", "/rollout", "/rollout", w.startRequest("", "")},
		{"POST", "/rollout/abort", "/rollout/abort", `{"note":"wrong"}`},
		{"GET", "/rollout", "/rollout", ""},
		{"GET", "/revisions", "/revisions", ""},
		{"GET", "/revisions/stable", "/revisions/{id}", ""},
		{"GET", "/fleet", "/fleet", ""},
		{"GET", "/fleet/envoy-1", "/fleet/{envoy}", ""},
		{"POST", "/fleet/envoy-1/drain", "/fleet/{envoy}/drain", `{"force":true}`},
		{"POST", "/fleet/envoy-1/undrain", "/fleet/{envoy}/undrain", ""},
		{"GET", "/configuration", "/configuration", ""},
		{"GET", "/log", "/log", ""},
		{"PUT", "/log", "/log", `{"levels":{"grant":"debug"},"for":"1h"}`},
		{"POST", "/tokens", "/tokens", `{"name":"maria","role":"viewer"}`},
		{"GET", "/tokens", "/tokens", ""},
		{"DELETE", "/tokens/maria", "/tokens/{token}", ""},
		{"POST", "/grants/acme/disconnect", "/grants/{grant}/disconnect", `{}`},
	} {
		var raw json.RawMessage
		if status := admin.call(c.method, c.path, c.body, &raw); status != http.StatusOK {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, raw)
			continue
		}
		fits(c.method+" "+c.path, at(c.method, c.template, "200"), raw)
		done[c.method+" "+c.template] = true
	}
	for _, e := range w.console.endpoints() {
		if !done[e.method+" "+e.path] {
			t.Errorf("%s %s is not tried", e.method, e.path)
		}
	}
	if said := w.events(); !strings.Contains(said, "session.revoke nobody by admin-script of local operator") {
		t.Errorf("the audit does not say whose sessions were ended:\n%s", said)
	}
	var raw json.RawMessage
	admin.call("GET", "/grants/nobody", "", &raw)
	fits("a problem", at("GET", "/grants/{grant}", "default"), raw)
}

func TestAPIFaults(t *testing.T) {
	w := newWorld(t, nil)
	admin := w.as(Admin)
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/nowhere", "", 404, "nothing at this address"},
		{"GET", "/grants/acme/refresh", "", 405, "/api/v1/grants/acme/refresh takes POST, and not \"GET\""},
		{"PUT", "/tokens", "{}", 405, "takes GET and POST"},
		{"GET", "/audit?limit=0", "", 400, "limit is not a number from 1 to 1000"},
		{"GET", "/audit?from=yesterday", "", 400, "from is no time"},
		{"GET", "/approvals/none", "", 404, "no approval"},
		{"POST", "/approvals/none/decide", `{"verdict":"allow"}`, 404, "no approval"},
		{"POST", "/approvals/none/decide", `{"verdict":"perhaps"}`, 400, "neither allow nor deny"},
		{"POST", "/approvals/none/decide", `{"verdict":"allow","for":"long"}`, 400, "for is no time"},
		{"POST", "/approvals/none/decide", `{"verdict":"allow","for":"999h"}`, 422, "at most"},
		{"GET", "/fleet/none", "", 404, "there are: envoy-1"},
		{"POST", "/fleet/none/drain", "{}", 404, "there are: envoy-1"},
		{"POST", "/fleet/envoy-1/drain", "{}", 409, "the last one"},
		{"POST", "/rollout/pause", "{}", 409, "no rollout is under way"},
		{"POST", "/rollout", `{"text":"grants: ["}`, 400, "the configuration:1"},
		{"POST", "/rollout", `{"text":"","force":["everything"]}`, 422, "drops_worker"},
		{"GET", "/revisions/abcdef", "", 404, "no such revision"},
		{"GET", "/revisions/stable", "", 404, "no revision is stable"},
		{"GET", "/grants/nobody", "", 404, "there are: acme"},
		{"POST", "/grants/key/connect", "{}", 422, "no consent page"},
		{"POST", "/grants/acme/connect", `{"way":"carrier pigeon"}`, 422, "there are: [code device]"},
		{"POST", "/grants/acme/connect", `{"wya":"code"}`, 400, "openapi.json"},
		{"POST", "/grants/acme/connect", `{"redirect":"https://evil.example/callback"}`, 422, "waits on loopback"},
		{"POST", "/grants/acme/connect", `{"redirect":"http://127.0.0.1:80/elsewhere"}`, 422, "waits on loopback"},
		{"POST", "/grants/acme/connect", `{"redirect":"http://localhost:80/callback"}`, 422, "waits on loopback"},
		{"DELETE", "/connects/none", "", 404, "no such connect"},
		{"POST", "/grants/acme/disconnect", `{"wait_seconds":601}`, 400, "wait_seconds"},
		{"POST", "/grants/acme/refresh", "", 409, "cannot be refreshed, it is never_connected"},
		{"POST", "/grants/key/import", `{"value":"your-api-key"}`, 422, "an example"},
		{"POST", "/grants/acme/import", `{"value":"` + hush + `"}`, 422, "not a JSON object"},
		{"POST", "/sessions/none/revoke", "", 404, "no live session"},
		{"POST", "/sessions/revoke", `{}`, 422, "say which sessions"},
		{"POST", "/sessions/revoke", `{"all":true,"workers":["ci"]}`, 422, "exclude one another"},
		{"POST", "/sessions/revoke", `{"all":true,"not_before":"2999-01-01T00:00:00Z"}`, 422, "is to come"},
		{"GET", "/decisions?limit=many", "", 400, "limit"},
		{"POST", "/tokens", `{"name":"A B","role":"viewer"}`, 422, "is not a name"},
		{"POST", "/tokens", `{"name":"a","role":"king"}`, 422, "there is no role"},
		{"POST", "/tokens", `{"name":"admin-script","role":"viewer"}`, 409, "already"},
		{"DELETE", "/tokens/none", "", 404, "there is no token"},
	} {
		var p api.Problem
		if status := admin.call(c.method, c.path, c.body, &p); status != c.status || p.Status != status || !strings.Contains(p.Error, c.says) {
			t.Errorf("%s %s: %d %+v, want %d %q", c.method, c.path, status, p, c.status, c.says)
		}
	}
}

// What a program of the operator's waits for on loopback is posted by it, and wrong answers do no harm. A connect that is given up
// stores nothing, whoever agrees later.
func TestConnectOfAProgram(t *testing.T) {
	w := newWorld(t, nil)
	p, other := w.as(Operator), w.as(Admin)
	var f api.Flow
	p.call("POST", "/grants/acme/connect", `{"redirect":"http://127.0.0.1:4711/callback"}`, &f)
	if f.Pasted || f.Account != "build@acme.example" {
		t.Errorf("%+v", f)
	}
	answer, err := demo.Approve(t.Context(), f.URL)
	if err != nil || !strings.HasPrefix(answer, "http://127.0.0.1:4711/callback?") {
		t.Fatalf("%v %s", err, answer)
	}
	post := func(answer string) {
		t.Helper()
		body, _ := json.Marshal(api.AnswerRequest{Answer: answer})
		p.call("POST", "/connects/"+f.ID+"/answer", string(body), &f)
	}
	if post("/callback?code=x&state=y"); f.State != api.FlowWaiting || f.Error == "" {
		t.Errorf("a wrong answer: %+v", f)
	}
	if post(answer); f.State != api.FlowConnected || f.Stored == nil || !f.Stored.Refreshes || f.Stored.Grant.State != grant.Healthy {
		t.Errorf("%+v", f)
	}
	if status := p.call("DELETE", "/connects/"+f.ID, "", &f); status != http.StatusOK || f.State != api.FlowConnected {
		t.Errorf("giving up what is connected: %d %+v", status, f)
	}

	// The browser of a program is no browser of ours.
	p.call("POST", "/grants/acme/connect", `{"redirect":"http://127.0.0.1:4711/callback"}`, &f)
	if answer, err = demo.Approve(t.Context(), f.URL); err != nil {
		t.Fatal(err)
	}
	if a := w.loggedIn().get(answer[strings.Index(answer, "/callback"):]); a.status != http.StatusForbidden {
		t.Errorf("%d", a.status)
	}
	if status := other.call("DELETE", "/connects/"+f.ID, "", nil); status != http.StatusNotFound {
		t.Errorf("somebody else's: %d", status)
	}
	if status := p.call("DELETE", "/connects/"+f.ID, "", &f); status != http.StatusOK || f.State != api.FlowFailed {
		t.Errorf("%d %+v", status, f)
	}
	if status := p.call("POST", "/connects/"+f.ID+"/answer", `{"answer":"x"}`, nil); status != http.StatusNotFound {
		t.Errorf("answered after it was given up: %d", status)
	}
	p.call("POST", "/grants/acme/disconnect", `{}`, nil)
	p.call("POST", "/grants/acme/connect", `{"way":"device"}`, &f)
	p.call("DELETE", "/connects/"+f.ID, "", nil)
	if err := demo.ApproveDevice(t.Context(), f.URL); err != nil {
		t.Fatal(err)
	}
	if g, err := w.console.Desk().Find(t.Context(), "acme"); err != nil || g.State != grant.NeverConnected {
		t.Errorf("%v %s", err, g.State)
	}
}

// Who is told of a change hears of it at once.
func TestEvents(t *testing.T) {
	w := newWorld(t, nil)
	p := w.as(Viewer)
	r := p.request(http.MethodGet, api.Root+"/events", "")
	r.Header.Set("Authorization", "Bearer "+p.token)
	resp, err := p.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	heard := make(chan string, 100)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := resp.Body.Read(buf)
			if err != nil {
				close(heard)
				return
			}
			heard <- string(buf[:n])
		}
	}()
	next := func(topic string) {
		t.Helper()
		for text := range heard {
			if strings.Contains(text, "event: "+topic+"\n") {
				return
			}
		}
		t.Errorf("the stream ended before %q", topic)
	}
	next(topicAll) // at the start
	w.console.Decisions.Add(Decision{At: w.now(), Outcome: Passed, Host: "pypi.org"})
	next(topicDecisions)
	access, refresh := w.demo.Provider.Issue("read", "write")
	w.store("acme", access, refresh, []string{"read", "write"})
	eventually(t, "the gate has it", func() bool { return w.console.Grants.Summary("acme").State == grant.Healthy })
	next(topicGrants)
}

// Who is slow misses nothing, and hears of each topic once.
func TestHubForgetsNothing(t *testing.T) {
	h := newHub()
	l := h.listen()
	for range 1000 {
		for _, topic := range []string{topicGrants, topicFleet, topicDecisions} {
			h.publish(topic)
		}
	}
	h.publish(topicApprovals)
	<-l.news
	if heard := h.heard(l); !slices.Equal(heard, []string{topicApprovals, topicDecisions, topicFleet, topicGrants}) {
		t.Errorf("heard %q", heard)
	}
	h.publish(topicTick)
	<-l.news
	if heard := h.heard(l); !slices.Equal(heard, []string{topicTick}) {
		t.Errorf("then %q", heard)
	}
}
