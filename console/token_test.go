package console

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave/config"
	"wayleave/vault"
)

// makeToken makes one on the page Access, and returns a program that has it.
func (b *browser) makeToken(name string, role Role, days string) *program {
	b.t.Helper()
	b.get("/access")
	b.post("/access/tokens", "name", name, "role", string(role), "days", days)
	page := b.get("/access")
	b.wants("made", page, http.StatusOK, "is shown this once", name)
	return &program{b.browser(), page.body[strings.Index(page.body, tokenPrefix):][:len(tokenPrefix)+52]}
}

// A token is shown once, kept as its digest, and good until it is ended.
func TestTokens(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	script := b.makeToken("deploy", Operator, "")
	if again := b.get("/access"); strings.Contains(again.body, tokenPrefix) {
		t.Error("the token is shown again")
	}
	var kept json.RawMessage
	if _, err := w.docs.Get(t.Context(), tokenPath, &vault.Packed{Value: &kept}); err != nil || !strings.Contains(string(kept), `"deploy"`) || strings.Contains(string(kept), script.token) {
		t.Errorf("the store has the token: %v", err)
	}
	var me Me
	if status := script.call("GET", "/me", "", &me); status != http.StatusOK || me != (Me{"deploy of local operator", Operator, "token"}) {
		t.Errorf("%d %+v", status, me)
	}
	b.post("/access/tokens/deploy/end")
	w.later(tokensFor)
	if status := script.call("GET", "/me", "", nil); status != http.StatusUnauthorized {
		t.Errorf("ended: %d", status)
	}
	for _, what := range []string{"token.create", "token.end"} {
		if !strings.Contains(w.events(), what+" deploy by local operator via link from 127.0.0.1: <nil>") {
			t.Errorf("no %s in the audit:\n%s", what, w.events())
		}
	}
}

// A token ends by itself, and one that was made with it no later.
func TestTokensExpire(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	week, usual := b.makeToken("week", Admin, "7"), b.makeToken("usual", Viewer, "")
	var made NewToken
	if status := week.call("POST", "/tokens", `{"name":"child","role":"admin","days":366}`, &made); status != http.StatusOK || !made.Expires.Equal(w.expiry("week")) || made.By != "local operator" {
		t.Errorf("%d %+v", status, made)
	}
	child := &program{w.browser(), made.Secret}
	for _, p := range []*program{week, usual, child} {
		if status := p.call("GET", "/me", "", nil); status != http.StatusOK {
			t.Errorf("%d", status)
		}
	}
	w.later(7*24*time.Hour + time.Second)
	for what, p := range map[string]*program{"a week's": week, "its child": child} {
		a := p.do(p.authorized("/me"))
		if a.status != http.StatusUnauthorized || !strings.Contains(a.body, "ended 20") {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
	for range 2 * triesAtOnce { // which is no guessing
		week.do(week.authorized("/me"))
	}
	if status := usual.call("GET", "/me", "", nil); status != http.StatusOK {
		t.Errorf("the other: %d", status)
	}
	w.later((tokenDays - 7) * 24 * time.Hour)
	if status := usual.call("GET", "/me", "", nil); status != http.StatusUnauthorized {
		t.Errorf("after %d days: %d", tokenDays, status)
	}
	b = w.loggedIn()
	b.wants("ended ones are listed", b.get("/access"), http.StatusOK, "of no use", "usual")
	b.makeToken("week", Viewer, "1") // in place of the one that ended
	w.later(tokenShown + 48*time.Hour)
	b = w.loggedIn()
	b.makeToken("new", Viewer, "1")
	if page := b.get("/access"); strings.Contains(page.body, "usual") {
		t.Error("what ended long ago is still kept")
	}
}

// A token takes along what was made with it, makes no others when it is ended, and rules over none that may more.
func TestTokensOfTokens(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	strong, weak, other := b.makeToken("strong", Operator, ""), b.makeToken("weak", Viewer, ""), b.makeToken("other", Viewer, "")
	make := func(p *program, name string) *program {
		t.Helper()
		var made NewToken
		if status := p.call("POST", "/tokens", `{"name":"`+name+`","role":"viewer","days":1}`, &made); status != http.StatusOK {
			t.Fatalf("%s: %d", name, status)
		}
		return &program{w.browser(), made.Secret}
	}
	child := make(strong, "child")
	grandchild := make(child, "grandchild")
	if status := weak.call("DELETE", "/tokens/strong", "", nil); status != http.StatusNotFound {
		t.Errorf("a viewer's token ends an operator's: %d", status)
	}
	var seen TokenList
	if weak.call("GET", "/tokens", "", &seen); slices.ContainsFunc(seen.Tokens, func(k Token) bool { return k.Name == "strong" }) || len(seen.Tokens) != 4 {
		t.Errorf("a viewer's token sees %+v", seen)
	}
	all, _, err := w.console.tokens.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended := all.Tokens["strong"]
	b.post("/access/tokens/strong/end")
	w.later(tokensFor)
	for name, p := range map[string]*program{"it": strong, "its child": child, "its child's": grandchild} {
		if status := p.call("GET", "/me", "", nil); status != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, status)
		}
	}
	for name, p := range map[string]*program{"another": weak, "yet another": other} {
		if status := p.call("GET", "/me", "", nil); status != http.StatusOK {
			t.Errorf("%s: %d", name, status)
		}
	}
	who := actor{Role: Operator, id: ended.Owner, token: "strong", key: ended.SHA256, until: ended.Expires} // as a gate that has not heard of the end knows it
	if k, _, err := w.console.tokens.create(t.Context(), who, "late", Viewer, 1); err == nil {
		t.Errorf("an ended token made %+v", k)
	}
}

// expiry is when a token ends, by the store.
func (w *world) expiry(name string) time.Time {
	w.t.Helper()
	all, _, err := w.console.tokens.get(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return all.Tokens[name].Expires
}

// authorized is a question to the API.
func (p *program) authorized(path string) *http.Request {
	r := p.request(http.MethodGet, "/api/v1"+path, "")
	r.Header.Set("Authorization", "Bearer "+p.token)
	return r
}

// A token may what its operator may now, as of the last log-in and by the configuration of now, and never more than it was made for.
func TestTokensFollowTheirOperator(t *testing.T) {
	p := newIdentity(t)
	w := newWorld(t, withIdentity(p))
	p.now = w.now
	enter := func(sub string, groups ...string) (*browser, answer) {
		w.later(10 * time.Minute)
		p.claims = func(c map[string]any) map[string]any {
			return with("email", sub+"@example.com")(with("sub", sub)(with("groups", groups)(c)))
		}
		b := w.browser()
		b.get(p.begin(b))
		return b, b.get("/access")
	}
	may := func(who string, token *program, want Role) {
		t.Helper()
		w.later(tokensFor)
		var me Me
		status := token.call("GET", "/me", "", nil)
		if want == "" {
			if status != http.StatusUnauthorized {
				t.Errorf("%s: the token of nobody any more: %d", who, status)
			}
			return
		}
		if status = token.call("GET", "/me", "", &me); status != http.StatusOK || me.Role != want {
			t.Errorf("%s: %d %+v, want %s", who, status, me, want)
		}
	}
	maria, _ := enter("maria", "sales", "leads")
	asAdmin, asViewer := maria.makeToken("marias", Admin, "30"), maria.makeToken("looks", Viewer, "30")
	otto, _ := enter("otto", "platform")
	ottos := otto.makeToken("ottos", Operator, "30")
	may("maria, an admin", asAdmin, Admin)
	may("maria, an admin, a viewer's token", asViewer, Viewer)
	may("otto", ottos, Operator)

	// Nobody makes one that may more than they, and nobody but an admin sees or ends another's.
	if a := otto.post("/access/tokens", "name", "more", "role", "admin"); a.status != http.StatusSeeOther {
		t.Fatal(a.status)
	}
	otto.wants("more than oneself", otto.get("/access"), http.StatusOK, "may no more than you, and you are operator")
	if page := otto.get("/access").body; strings.Contains(page, "marias") || !strings.Contains(page, "ottos") || strings.Contains(page, "<option>admin") {
		t.Errorf("an operator sees others' tokens, or is offered what is not to be had: %s", page)
	}
	otto.post("/access/tokens/marias/end")
	otto.wants("another's", otto.get("/access"), http.StatusOK, "there is no token &#34;marias&#34; of yours")
	if status := ottos.call("DELETE", "/tokens/marias", "", nil); status != http.StatusNotFound {
		t.Errorf("another's, by the API: %d", status)
	}
	var seen TokenList
	if ottos.call("GET", "/tokens", "", &seen); len(seen.Tokens) != 1 || seen.Tokens[0].Name != "ottos" || seen.Tokens[0].Now != Operator {
		t.Errorf("an operator's list: %+v", seen)
	}

	// Maria is an operator from now on.
	maria, _ = enter("maria", "platform")
	may("maria, who was an admin", asAdmin, Operator)
	may("maria, who was an admin, a viewer's token", asViewer, Viewer)
	may("otto, of whom nothing changed", ottos, Operator)
	maria.wants("what it may now", maria.get("/access"), http.StatusOK, "operator now")
	if status := asAdmin.call("POST", "/tokens", `{"name":"child","role":"admin"}`, nil); status != http.StatusUnprocessableEntity {
		t.Errorf("a token makes one that may more: %d", status)
	}

	// And then she has no role: she does not come in, nor go on where she is, and neither do her tokens.
	if _, page := enter("maria", "sales"); page.status != http.StatusSeeOther {
		t.Fatalf("in without a role: %d", page.status)
	}
	if page := maria.get("/access"); page.status != http.StatusSeeOther {
		t.Errorf("her log-in of before goes on: %d", page.status)
	}
	before := actor{Name: "maria", Role: Admin, id: w.console.oidc.id("maria"), is: []string{"leads"}} // at another gate, which has not heard of it
	if _, _, err := w.console.tokens.create(t.Context(), before, "late", Admin, 1); err != nil {
		t.Fatal(err)
	}
	may("maria, who may not come in", asAdmin, "")
	may("maria, who may not come in, a viewer's token", asViewer, "")
	maria, _ = enter("maria", "leads")
	may("maria, an admin again", asAdmin, Admin)

	// An identity provider that does not say what she may changes nothing.
	p.info = map[string]any{"sub": 1}
	if _, page := enter("maria"); page.status != http.StatusSeeOther {
		t.Fatalf("in without a role: %d", page.status)
	}
	may("maria, of whom nothing is known", asAdmin, Admin)
	p.info = nil

	// The roles of the configuration are those of now.
	console := func(change func(*config.OIDC)) {
		w.console.oidc.mu.Lock()
		defer w.console.oidc.mu.Unlock()
		change(&w.console.oidc.cfg)
	}
	console(func(c *config.OIDC) { c.Roles.Operator, c.Roles.Viewer = nil, append(c.Roles.Viewer, "platform") })
	may("otto, since the configuration changed", ottos, Viewer)
	console(func(c *config.OIDC) { c.Roles.Viewer = nil })
	may("otto, since he is in no role", ottos, "")

	// An admin ends everybody's.
	maria.post("/access/tokens/ottos/end")
	maria.wants("another's, by an admin", maria.get("/access"), http.StatusOK, "The token ottos is ended.")

	// A log-in while the store is away is one all the same.
	w.breakStore()
	if _, page := enter("maria", "leads"); page.status != http.StatusServiceUnavailable {
		t.Errorf("without Vault: %d", page.status)
	}
}

// A stream ends with the token that it was begun with.
func TestStreamsEndWithTheirToken(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	p := b.makeToken("listens", Viewer, "")
	resp, err := p.http.Do(p.authorized("/events"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	heard := make(chan string)
	go func() {
		defer close(heard)
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			heard <- lines.Text()
		}
	}()
	until := func(want string) (all []string) {
		for line := range heard {
			if all = append(all, line); line == want {
				break
			}
		}
		return all
	}
	until("event: " + topicGrants)
	w.console.hub.publish(topicDecisions)
	if all := until("event: " + topicDecisions); slices.Contains(all, "event: over") {
		t.Fatalf("it ended before: %q", all)
	}
	b.post("/access/tokens/listens/end")
	w.console.hub.publish(topicFleet)
	if all := until(""); !slices.Contains(append(all, until("nothing")...), "event: over") {
		t.Errorf("the stream goes on: %q", all)
	}
}

// The token of whoever may read the links of a machine is good where there are links.
func TestTokensOfLinks(t *testing.T) {
	w := newWorld(t, nil)
	token := w.loggedIn().makeToken("mine", Admin, "")
	w.console.NewLink = nil
	if a := token.do(token.authorized("/me")); a.status != http.StatusUnauthorized || !strings.Contains(a.body, "local operator may not come in any more") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// Somebody cannot fill the store with tokens.
func TestTokensAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	p := w.as(Viewer)
	statuses := []int{}
	for i := range tokensOfOne {
		statuses = append(statuses, p.call("POST", "/tokens", fmt.Sprintf(`{"name":"t%d","role":"viewer"}`, i), nil))
	}
	if !slices.Equal(statuses, append(slices.Repeat([]int{http.StatusOK}, tokensOfOne-1), http.StatusConflict)) {
		t.Errorf("%v", statuses)
	}
	if status := p.call("POST", "/tokens", `{"name":"x","role":"viewer","days":367}`, nil); status != http.StatusUnprocessableEntity {
		t.Errorf("too long: %d", status)
	}
}
