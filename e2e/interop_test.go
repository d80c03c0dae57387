package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"wayleave/grant"
)

// Pieces of configuration.
const (
	withKey    = "auth_style: private_key_jwt, client_key_file: $KEYS/client-key.pem, client_key_id: " + keyID
	withSecret = "auth_style: client_secret_basic, client_secret_file: $KEYS/client-secret"
	askFor     = "scopes: [openid, offline_access, \"api:read\"]"
)

func TestInteropOIDCProvider(t *testing.T) {
	t.Parallel()
	// prompt=consent is this server's condition for offline access (OpenID Connect Core section 11).
	const code = "allow_insecure: true, issuer: $ISSUER, authorize_url: $ISSUER/auth, token_url: $ISSUER/token, revoke_url: $ISSUER/token/revocation, authorize_params: {prompt: consent}"
	i := newInterop(t, oidcProvider(t))
	found, registered := i.discover(t, i.api.URL)
	i.start(t, map[string]string{
		"found":   found,
		"public":  "client_id: public, " + code + ", " + askFor,
		"signing": "client_id: signing, " + withKey + ", " + code + ", " + askFor,
		"device":  "client_id: device, grant_type: device_code, allow_insecure: true, device_url: $ISSUER/device/auth, token_url: $ISSUER/token, " + askFor,
		"machine": "client_id: machine, grant_type: client_credentials, allow_insecure: true, token_url: $ISSUER/token, scopes: [\"api:write\"], " + withSecret,
		// The server knows no such scope, and says so by leaving it out.
		"narrow": "client_id: narrow, " + code + ", scopes: [openid, offline_access, \"api:read\", \"api:admin\"]",
	})
	i.begins(t, "machine")
	i.mustConnect(t, "public", "signing", "device", "found")
	i.lacks(t, "narrow", "api:admin")
	i.rotates(t, "public", "public", "api:read")
	i.rotates(t, "signing", "signing", "api:read")
	i.rotates(t, "device", "device", "api:read")
	i.renews(t, "machine", clientGrant, "machine", "api:write")
	i.rotates(t, "found", registered)
	i.healthy(t, "public", "signing", "machine", "found", "device")
	i.ends(t, "signing", "signing")
	i.reuse(t, "public", "public")
}

func TestInteropHydra(t *testing.T) {
	t.Parallel()
	const code = "allow_insecure: true, issuer: $ISSUER, authorize_url: $ISSUER/oauth2/auth, token_url: $ISSUER/oauth2/token, revoke_url: $ISSUER/oauth2/revoke"
	server, refuse := hydra(t)
	i := newInterop(t, server)
	found, registered := i.discover(t, server.issuer)
	i.start(t, map[string]string{
		"found":   found,
		"public":  "client_id: public, " + code + ", " + askFor,
		"signing": "client_id: signing, " + withKey + ", " + code + ", " + askFor,
		"machine": "client_id: machine, grant_type: client_credentials, allow_insecure: true, token_url: $ISSUER/oauth2/token, scopes: [\"api:write\"], " + withSecret,
		"narrow":  "client_id: narrow, " + code + ", " + askFor,
		"bearer": "client_id: machine, grant_type: jwt_bearer, allow_insecure: true, token_url: $ISSUER/oauth2/token, scopes: [\"api:read\"], " + withSecret +
			", client_key_file: $KEYS/client-key.pem, client_key_id: " + keyID + ", assertion: {issuer: fleet.interop.test, subject: worker@interop.test}",
	})
	i.begins(t, "machine", "bearer")
	refuse("api:read")
	i.lacks(t, "narrow", "api:read")
	refuse()
	i.mustConnect(t, "public", "signing", "found")
	i.rotates(t, "public", "public", "api:read")
	i.rotates(t, "signing", "signing", "api:read")
	i.renews(t, "machine", clientGrant, "machine", "api:write")
	i.renews(t, "bearer", jwtBearerGrant, "machine", "api:read")
	i.rotates(t, "found", registered)
	i.healthy(t, "public", "signing", "machine", "found", "bearer")
	i.ends(t, "signing", "signing")
	i.reuse(t, "public", "public")
}

// rotates proves that a grant is refreshed ahead, with a refresh token that is presented once and replaced each time, and
// that a worker gets the new token.
func (i *interop) rotates(t *testing.T, name, client string, scopes ...string) {
	t.Helper()
	calls := i.calls(t, refreshGrant, client, 2)
	presented := map[string]bool{}
	for n, c := range calls {
		sent, got := c.form.Get("refresh_token"), c.answer["refresh_token"]
		if c.status != http.StatusOK || got == nil || got == sent || presented[sent] {
			t.Fatalf("refresh %d of %s: %v; rotated: %v, presented before: %v", n, name, c, got != sent, presented[sent])
		}
		if n > 0 && sent != calls[n-1].answer["refresh_token"] {
			t.Fatalf("refresh %d of %s presents another token than the one that came last", n, name)
		}
		presented[sent] = true
	}
	i.renewed(t, name, scopes...)
}

// renews proves that a grant without an operator gets its tokens, and the next ones ahead of their end.
func (i *interop) renews(t *testing.T, name, grantType, client string, scopes ...string) {
	t.Helper()
	for n, c := range i.calls(t, grantType, client, 3) {
		if c.status != http.StatusOK {
			t.Fatalf("call %d of %s: %v", n, name, c)
		}
	}
	i.renewed(t, name, scopes...)
}

// renewed waits until another token than the first arrives.
func (i *interop) renewed(t *testing.T, name string, scopes ...string) {
	t.Helper()
	if err := eventually(func() error {
		if i.arrives(t, name, scopes...) == i.first[name] {
			return fmt.Errorf("the first token of %s arrives still", name)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// healthy checks what is listed of grants that were refreshed.
func (i *interop) healthy(t *testing.T, names ...string) {
	t.Helper()
	all, err := i.listed()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		s := all[name]
		if (s.State != grant.Healthy && s.State != grant.Refreshing) || s.Generation < 2 || s.LastError != "" || len(s.Missing) > 0 {
			t.Errorf("%s is listed as %+v", name, s)
		}
	}
}

// reuse presents a spent refresh token, as a thief would, and proves that the server then ends the whole family, that the
// product says so, and that one more connect heals it.
func (i *interop) reuse(t *testing.T, name, client string) {
	t.Helper()
	stolen := i.calls(t, refreshGrant, client, 1)[0].form.Get("refresh_token")
	answer, err := fetchJSON(i.server.front.Client(), http.MethodPost, i.metadata(t, "token_endpoint"),
		url.Values{"grant_type": {"refresh_token"}, "refresh_token": {stolen}, "client_id": {client}, byTest: {"1"}})
	if err == nil || answer["error"] != "invalid_grant" {
		t.Fatalf("a spent refresh token was presented, and the server says %v, %v", answer, err)
	}
	s := i.inState(t, name, grant.NeedsReconnect)
	if !strings.Contains(s.LastError, "invalid_grant") || !strings.Contains(s.Next, "grant connect "+name) {
		t.Errorf("after a reuse %s is listed as %+v", name, s)
	}
	// The proof that reuse detection is on: the product's last call presents the token that came last, and in vain.
	calls := i.calls(t, refreshGrant, client, 2)
	last, newest := calls[len(calls)-1], ""
	for _, c := range calls {
		if c.status == http.StatusOK {
			newest, _ = c.answer["refresh_token"].(string)
		}
	}
	if last.form.Get("refresh_token") != newest || last.answer["error"] != "invalid_grant" {
		t.Errorf("the last refresh of %s presents the newest token: %v, and its answer is %v", name, last.form.Get("refresh_token") == newest, last)
	}
	i.refused(t, name, http.StatusForbidden, "needs_reconnect")
	i.mustConnect(t, name)
	i.arrives(t, name)
	i.inState(t, name, grant.Healthy)
}

// lacks connects a grant to which the server gives fewer scopes than were asked for.
func (i *interop) lacks(t *testing.T, name, scope string) {
	t.Helper()
	out, err := i.connect(name)
	if s := i.inState(t, name, grant.ScopeMissing); !slices.Equal(s.Missing, []string{scope}) || !strings.Contains(out, scope) {
		t.Errorf("%s is listed as %+v, and the command says %v:\n%s", name, s, err, out)
	}
	i.arrives(t, name)
}

// ends disconnects a grant, and asks the server whether its refresh token was revoked.
func (i *interop) ends(t *testing.T, name, client string) {
	t.Helper()
	if out, err := i.command("wayleave", "grant", "disconnect", name).CombinedOutput(); err != nil || !strings.Contains(string(out), "were revoked at the provider") {
		t.Errorf("disconnecting %s: %v\n%s", name, err, out)
	}
	newest := ""
	for _, c := range i.calls(t, refreshGrant, client, 1) {
		newest, _ = c.answer["refresh_token"].(string)
	}
	if known, err := i.server.introspect(newest); err != nil || known["active"] != false {
		t.Errorf("after the disconnect of %s the server says of its refresh token %v, %v", name, known, err)
	}
	i.inState(t, name, grant.NeverConnected)
	i.refused(t, name, http.StatusForbidden, "never_connected")
}
