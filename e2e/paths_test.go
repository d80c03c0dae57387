package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

const deniedPaths = `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic:
    authorize_url: $PROVIDER/authorize
    token_url: $PROVIDER/token
    client_id: $CLIENT_ID
    redirect_url: ""
    allow_insecure: true
    refused_hosts: [fast.demo.test/oauth/token, slow.demo.test/oauth/token]
grants:
  claude: {provider: anthropic}
routes:
  - {hosts: [fast.demo.test], grant: claude, connect_to: "{fast}", paths: &denied [
      {prefix: /adm, deny: not for workers}, {prefix: /Private/, deny: not for workers},
      {exact: /v1/keys, deny: not for workers}, {prefix: /items, methods: [DELETE], deny: nothing is deleted}]}
  - {hosts: [slow.demo.test], grant: claude, connect_to: "{slow}", lane: ext_proc, paths: *denied}
profiles:
  default: {grants: [claude]}
  ruled:
    grants: [claude]
    rules:
      - {name: admin, when: 'path.startsWith("/adm") || path.startsWith("/Private/") || path == "/v1/keys"', deny: not for workers}
      - {name: deletes, when: 'method == "DELETE"', deny: nothing is deleted}
workers:
  w: {profile: default}
  r: {profile: ruled}
audit: {file: audit.jsonl}
`

// What an operator denies is denied however it is written, by routes and by rules, on a connection in the fast lane too; what is beside it
// goes on as it came.
func TestDeniedPathsHoweverWritten(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	upstream := &recorder{}
	at := func(host string) string { return newRawUpstream(t, made.CA, host, upstream.serve) }
	g := startIn(t, made, strings.NewReplacer("{fast}", at("fast.demo.test"), "{slow}", at("slow.demo.test")).Replace(deniedPaths), "claude")
	w, ruled := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN"), g.enrol(t, "r", "ANTHROPIC_AUTH_TOKEN")
	g.awaitLane(t, w, "fast.demo.test")
	hosts := []string{"fast.demo.test", "slow.demo.test"}
	// send makes a request on a connection whose last one was let out, and in the fast lane.
	send := func(w worker, host, method, path string) answer {
		t.Helper()
		conn := g.primed(t, w, host)
		defer conn.Close()
		fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: 0\r\n\r\n", method, path, host, w.placeholder)
		resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
		if err != nil {
			return answer{body: err.Error()}
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		return answer{status: resp.StatusCode, reason: resp.Header.Get("x-wayleave-reason")}
	}
	check := func(w worker, host, method, path, reason string) {
		t.Helper()
		upstream.drain("")
		a := send(w, host, method, path)
		arrived := 0
		all, _ := upstream.drain("")
		for _, r := range all {
			if r.path != "/prime" {
				arrived++
			}
		}
		if let := a.status == http.StatusOK && arrived == 1; a.reason != reason || let != (reason == "") || arrived > 1 || !let && arrived != 0 {
			t.Errorf("%s %s at %s: %v, and %d arrived; want %q", method, path, host, a, arrived, reason)
		}
	}
	for _, host := range hosts {
		inAnyForm := []string{
			"/adm", "/adm/x?y", "/ADM", "/Admin", "/%61dm", "/%41dm", "/ad%6D", "/%2561dm", "//adm", "/./adm", "/x/../adm", "/x/%2e%2e/adm", "/x/..%2fadm",
			`/x/..\adm`, "/x/..%5cADM", "/x/%c0%ae%c0%ae%c0%afadm", "/;a=b/adm", "/x/..;a/adm", "/adm;x", "/x/../ADM/y",
			"/private/x", "/private%2f", "/private;x/y", "/v1/keys", "/v1/Keys", "/v1/keys?a", "/v1/KEYS;a", "/v1/ke%79s",
		}
		for _, path := range inAnyForm {
			check(ruled, host, http.MethodGet, path, "policy_denied")
		}
		for _, path := range append(inAnyForm, "/Private", "/PRIVATE", "/v1/keys/", "/v1/%6Beys/", "/v1/keys%00", "/v1/keys%23", "/v1/keys.") { // which are no condition's
			check(w, host, http.MethodGet, path, "policy_denied")
		}
		for _, path := range []string{"/oauth/token", "/OAuth/Token", "/oauth//token", "/oauth/%54oken", "/x/../oauth/TOKEN/"} {
			check(w, host, http.MethodPost, path, "token_endpoint")
		}
		for _, worker := range []worker{w, ruled} {
			for _, path := range []string{"/a", "/v1/key", "/a%20b", "/A?adm", "/x/adm", "/v1/keys.json", "/itemsX?method=DELETE"} {
				check(worker, host, http.MethodGet, path, "")
			}
			check(worker, host, http.MethodPost, "/items/1?a=b", "")
			check(worker, host, http.MethodPost, "/items/1?_method=post", "")
			check(worker, host, http.MethodDelete, "/items/1", "policy_denied")
			for _, path := range []string{"/items/1?_method=DELETE", "/Items/1?a&_Method=delete", "/items/1?x-http-method-override=DELETE"} {
				check(worker, host, http.MethodPost, path, "policy_denied")
			}
			conn := tls.Client(g.tunnel(t, worker, host+":443"), &tls.Config{ServerName: host, RootCAs: worker.roots, NextProtos: []string{"h2"}})
			fields := [][2]string{{":method", "delete"}, {":scheme", "https"}, {":authority", host}, {":path", "/items/1"}, {"authorization", "Bearer " + worker.placeholder}}
			if a, err := exchange(conn, fields); err != nil || a.reason != "policy_denied" {
				t.Errorf("delete in lower case at %s: %v, %v", host, a, err)
			}
		}
	}
	if fast := g.inFastLane(t); fast == 0 {
		t.Error("no request took the fast lane")
	}
}
