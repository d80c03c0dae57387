package console

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"

	"wayleave/config"
	"wayleave/oauth"
)

// askedFor is how long somebody may take to log in at the identity provider.
const askedFor = 10 * time.Minute

// So many log-ins may have begun, in all and from one source. The oldest gives way, and to its own source first: whoever begins many
// ends nobody else's.
const (
	maxAsked   = 10_000
	askedOfOne = 50
)

// oidcLogin logs operators in with OpenID Connect: code flow, PKCE, state and nonce.
type oidcLogin struct {
	cfg      config.OIDC
	redirect string
	http     *http.Client
	now      func() time.Time
	asking   singleflight.Group // the issuer

	mu       sync.Mutex
	provider *oidc.Provider   // guarded by mu; nil until its issuer has answered once
	client   *oauth2.Config   // guarded by mu; with provider
	asked    map[string]asked // guarded by mu; by the digest of its state
}

// asked is a log-in that has begun.
type asked struct {
	browser         string // digest of its cookie, which all that it has begun share
	nonce, verifier string
	next            string
	source          string // see source
	until           time.Time
}

func newOIDC(c Config) *oidcLogin {
	return &oidcLogin{
		cfg: c.OIDC, redirect: c.URL.JoinPath("/login/callback").String(), http: oauth.NewHTTPClient(c.OIDCRoots), now: c.Now,
		asked: map[string]asked{},
	}
}

// discover has the provider's issuer describe it, and returns us as its client. One that does not answer is asked again at the next log-in; all
// that wait for it at a time ask once.
func (o *oidcLogin) discover(ctx context.Context) (*oauth2.Config, error) {
	if _, client := o.known(); client != nil {
		return client, nil
	}
	client, err, _ := o.asking.Do("", func() (any, error) {
		// The provider keeps this context for its keys.
		p, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), o.http), o.cfg.Issuer)
		if err != nil {
			return nil, fmt.Errorf("the identity provider %s cannot be used: %w", o.cfg.Issuer, err)
		}
		c := o.clientOf(p)
		o.mu.Lock()
		defer o.mu.Unlock()
		o.provider, o.client = p, c
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	return client.(*oauth2.Config), nil
}

// known is the provider and we as its client; nil if its issuer has not answered yet.
func (o *oidcLogin) known() (*oidc.Provider, *oauth2.Config) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.provider, o.client
}

func (o *oidcLogin) clientOf(p *oidc.Provider) *oauth2.Config {
	at := p.Endpoint()
	at.AuthStyle = o.authStyle(p)
	return &oauth2.Config{
		ClientID: o.cfg.ClientID, ClientSecret: o.cfg.ClientSecret.Reveal(), Endpoint: at, RedirectURL: o.redirect, Scopes: o.cfg.Scopes,
	}
}

// authStyle is how the client says who it is when it presents a code, where there is one way only. Where there are more, oauth2 tries one and
// then the other, and remembers what worked; but some providers take a code as spent whatever was wrong with its first presentation.
func (o *oidcLogin) authStyle(p *oidc.Provider) oauth2.AuthStyle {
	var says struct {
		Methods []string `json:"token_endpoint_auth_methods_supported"`
	}
	_ = p.Claims(&says) // what was read before
	basic, post := slices.Contains(says.Methods, "client_secret_basic"), slices.Contains(says.Methods, "client_secret_post")
	switch {
	case o.cfg.ClientSecret.IsZero(), post && !basic: // who has no secret has its name in the form (RFC 6749 section 3.2.1)
		return oauth2.AuthStyleInParams
	case basic && !post:
		return oauth2.AuthStyleInHeader
	}
	return oauth2.AuthStyleAutoDetect
}

// begin returns where to send the browser, and what its cookie is to hold: what it holds already, if another of its tabs has begun
// too, whose log-in would be over otherwise.
func (o *oidcLogin) begin(ctx context.Context, source, next, had string) (to, cookie string, err error) {
	c, err := o.discover(ctx)
	if err != nil {
		return "", "", err
	}
	if cookie = had; !o.awaits(cookie) {
		cookie = rand.Text()
	}
	state := rand.Text()
	a := asked{browser: digest(cookie), nonce: rand.Text(), verifier: oauth2.GenerateVerifier(), next: next, source: source, until: o.now().Add(askedFor)}
	o.mu.Lock()
	now := o.now()
	maps.DeleteFunc(o.asked, func(_ string, other asked) bool { return now.After(other.until) })
	makeRoom(o.asked, askedOfOne, maxAsked, func(other asked) (bool, time.Time) { return other.source == source, other.until })
	o.asked[digest(state)] = a
	o.mu.Unlock()
	return c.AuthCodeURL(state, oidc.Nonce(a.nonce), oauth2.S256ChallengeOption(a.verifier)), cookie, nil
}

// awaits reports whether the browser with this cookie has a log-in that has begun and is not over.
func (o *oidcLogin) awaits(cookie string) bool {
	browser := digest(cookie)
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, a := range o.asked {
		if a.browser == browser && !o.now().After(a.until) {
			return true
		}
	}
	return false
}

var (
	errLoginOver   = errors.New("this log-in was not begun in this browser, or is over; begin again")
	errOtherAnswer = errors.New("this is no answer to the log-in that was begun in this browser; begin again")
)

// finish is who came back, and where they wanted to go. A log-in is finished once, by the browser that began it.
func (o *oidcLogin) finish(r *http.Request, cookie string) (who actor, next string, err error) {
	q := r.URL.Query()
	key := digest(q.Get("state"))
	o.mu.Lock()
	a, ok := o.asked[key]
	if ok = ok && a.browser == digest(cookie); ok {
		delete(o.asked, key)
	}
	o.mu.Unlock()
	p, c := o.known()
	switch {
	case !ok || p == nil || o.now().After(a.until):
		return actor{}, "", errLoginOver
	case q.Has("iss") && q.Get("iss") != o.cfg.Issuer: // RFC 9207
		return actor{}, "", errOtherAnswer
	case q.Get("error") != "":
		return actor{}, "", refusedLogin(q)
	}
	ctx, cancel := context.WithTimeout(oidc.ClientContext(r.Context(), o.http), 30*time.Second)
	defer cancel()
	tok, err := c.Exchange(ctx, q.Get("code"), oauth2.VerifierOption(a.verifier))
	if err != nil {
		return actor{}, "", notExchanged(err)
	}
	raw, _ := tok.Extra("id_token").(string)
	id, err := p.Verifier(&oidc.Config{ClientID: o.cfg.ClientID, Now: o.now}).Verify(ctx, raw)
	if late, ok := errors.AsType[*oidc.TokenExpiredError](err); ok {
		return actor{}, "", fmt.Errorf("the identity token that was just made ended at %s: tell whoever runs the gate to compare its clock with that of the identity provider", late.Expiry.UTC().Format(time.RFC3339))
	}
	if err != nil {
		return actor{}, "", fmt.Errorf("the identity token is not good: %w", err)
	}
	if id.Nonce != a.nonce {
		return actor{}, "", errOtherAnswer
	}
	who, err = o.who(ctx, p, id, tok)
	return who, a.next, err
}

// refusedLogin is why the provider lets somebody not log in here, in its own words if it has some: most name what is to be changed there.
func refusedLogin(q url.Values) error {
	why := fmt.Sprintf("the identity provider refused the log-in (%.100q)", q.Get("error"))
	if words := shortened(q.Get("error_description"), 300); words != "" {
		why += ": " + words
	}
	return errors.New(why)
}

// notExchanged is why there is no token for a code, without the answer's body, which may have anything in it.
func notExchanged(err error) error {
	e, answered := errors.AsType[*oauth2.RetrieveError](err)
	switch {
	case !answered:
		return fmt.Errorf("the identity provider did not take its own code: %w", err)
	case e.ErrorCode == "invalid_client" || e.ErrorCode == "unauthorized_client":
		return fmt.Errorf("the identity provider does not know the gate by its client_id and secret (%s, %q): tell whoever runs the gate to compare console.oidc with the client that is registered there", e.Response.Status, e.ErrorCode)
	}
	return fmt.Errorf("the identity provider did not take its own code: %s (%.100q)", e.Response.Status, e.ErrorCode)
}

// who reads name and role from the identity token, and from the provider's userinfo what is not in it.
func (o *oidcLogin) who(ctx context.Context, p *oidc.Provider, id *oidc.IDToken, tok *oauth2.Token) (actor, error) {
	claims := map[string]any{}
	if err := id.Claims(&claims); err != nil {
		return actor{}, fmt.Errorf("reading the identity token: %w", err)
	}
	o.distrust(claims)
	said := values(claims, o.cfg.RolesClaim)
	if len(said) == 0 && p.UserInfoEndpoint() != "" {
		info, err := p.UserInfo(ctx, oauth2.StaticTokenSource(tok))
		switch { // without it nobody knows whether they have a role
		case err != nil && leftOut(claims, o.cfg.RolesClaim):
			return actor{}, errLeftOut
		case err != nil:
			return actor{}, fmt.Errorf("the identity provider does not say what you may; try again: %w", err)
		case info.Subject != id.Subject: // OpenID Connect Core section 5.3.2
			return actor{}, errors.New("the identity provider says of somebody else what they may; tell whoever runs it")
		}
		more := map[string]any{}
		if err := info.Claims(&more); err != nil {
			return actor{}, fmt.Errorf("reading what the identity provider says of you: %w", err)
		}
		o.distrust(more)
		said = values(more, o.cfg.RolesClaim)
		for k, v := range more {
			if _, known := claims[k]; !known {
				claims[k] = v
			}
		}
	}
	text := func(claim string) string { s, _ := claims[claim].(string); return s }
	name := cmp.Or(text("email"), id.Subject)
	if called := text("preferred_username"); name == id.Subject && called != "" && called != name { // which people may choose (OpenID Connect Core section 5.7)
		name = shortened(called, 40) + " (" + id.Subject + ")"
	}
	a := actor{Name: shortened(name, 100), Via: "oidc", id: o.id(id.Subject), is: o.counted(said)}
	a.Role = o.role(a.is)
	if a.Role == "" && leftOut(claims, o.cfg.RolesClaim) {
		return a, errLeftOut
	}
	switch {
	case a.Role == "" && len(said) == 0: // some put it into access tokens alone, unless they are told otherwise
		return a, fmt.Errorf("%s has none of the roles that may come in, as the identity provider says nothing in the claim %s; if you should have one, whoever runs it is to put that claim into the identity token or userinfo", a.Name, o.cfg.RolesClaim)
	case a.Role == "":
		return a, fmt.Errorf("%s has none of the roles that may come in: the identity provider says %s in the claim %s; ask whoever runs the gate, who lists them in console.oidc.roles", a.Name, listed(said), o.cfg.RolesClaim)
	}
	return a, nil
}

// listed are values as they are written in a list, of which nobody reads more than a few.
func listed(all []string) string {
	few, more := cut(all, 8)
	var quoted []string
	for _, v := range few {
		quoted = append(quoted, strconv.Quote(shortened(v, 60)))
	}
	line := strings.Join(quoted, ", ")
	if more > 0 {
		line += fmt.Sprintf(" and %d more", more)
	}
	return line
}

// leftOut reports whether a provider says of a claim that it is to be had elsewhere (OpenID Connect Core section 5.6.2). Nobody asks there:
// Microsoft's, which does so with groups where there are many, names an API of its own that wants a token of its own.
func leftOut(claims map[string]any, path string) bool {
	elsewhere, _ := claims["_claim_names"].(map[string]any)
	first, _, _ := strings.Cut(path, ".")
	return elsewhere[path] != nil || elsewhere[first] != nil
}

var errLeftOut = errors.New("the identity provider does not say what you may, as you are in too many groups: whoever runs it is to send only the groups that are assigned to this application, or roles of the application")

// distrust forgets an address that its provider does not call verified (OpenID Connect Core section 5.1): whoever may write
// there what they like would be whom they like. The claims are those of one answer, as one does not vouch for another's.
func (o *oidcLogin) distrust(claims map[string]any) {
	verified := claims["email_verified"]
	if verified != true && verified != "true" && !o.cfg.AllowUnverifiedEmail { // some providers write it as a string
		delete(claims, "email")
	}
}

// id is the actor.id of a subject of the issuer's (OpenID Connect Core section 5.7).
func (o *oidcLogin) id(subject string) string { return "oidc " + o.cfg.Issuer + " " + subject }

// counted are those of the values that give a role.
func (o *oidcLogin) counted(have []string) []string {
	return slices.DeleteFunc(slices.Clone(have), func(v string) bool { return o.role([]string{v}) == "" })
}

// role is the highest that these values give.
func (o *oidcLogin) role(have []string) Role {
	for _, r := range slices.Backward(roles) {
		for _, v := range map[Role][]string{Viewer: o.cfg.Roles.Viewer, Operator: o.cfg.Roles.Operator, Admin: o.cfg.Roles.Admin}[r] {
			if slices.Contains(have, v) {
				return r
			}
		}
	}
	return ""
}

// values are those of a claim, at a path whose steps dots separate: a string, a list of strings, or the names in an object of objects, as
// Zitadel writes roles. A name may have dots itself, as those of clients at Keycloak.
func values(claims map[string]any, path string) []string {
	if v, ok := claims[path]; ok {
		return texts(v)
	}
	for i, c := range path {
		if inner, isObject := claims[path[:i]].(map[string]any); c == '.' && isObject {
			if found := values(inner, path[i+1:]); found != nil {
				return found
			}
		}
	}
	return nil
}

// texts are the strings that a claim's value has.
func texts(v any) (out []string) {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		for _, e := range v {
			if s, ok := e.(string); ok {
				out = append(out, s)
			}
		}
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			if of, isObject := v[name].(map[string]any); isObject && len(of) > 0 { // of whom it is a role; one that is false is none
				out = append(out, name)
			}
		}
	}
	return out
}

// shortened is a name that fits a page and a log, without what is not seen and changes what is (Unicode's Cc and Cf).
func shortened(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.In(r, unicode.Cc, unicode.Cf) {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
