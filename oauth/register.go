package oauth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"wayleave/loopback"
	"wayleave/secret"
)

// ClientMetadata is what a client says about itself when it registers (RFC 7591 §2).
type ClientMetadata struct {
	// Name is shown to operators on the consent page.
	Name string
	// RedirectURIs for grant type authorization_code.
	RedirectURIs []string
	// GrantTypes in RFC 7591's names. Default: authorization_code and refresh_token.
	GrantTypes []string
	// Scopes that the client may ask for; none leaves it to the server.
	Scopes []string
	// AuthStyle is none, client_secret_basic or client_secret_post. Default: the first of these that the server knows; none
	// where the server does PKCE.
	AuthStyle AuthStyle
}

// Registration is a client that the server made (RFC 7591 §3.2.1).
type Registration struct {
	ClientID      string
	ClientSecret  secret.Text // zero with AuthNone
	AuthStyle     AuthStyle
	SecretExpires time.Time // zero: never
	// Notes say what the server made different from what was asked for.
	Notes []string
}

// Register registers a client with a server that Discover found. It makes one request; a failure is an *Error, and with
// Outcome Unknown a client may have been made that nobody can use.
func Register(ctx context.Context, hc *http.Client, m Metadata, r ClientMetadata) (Registration, error) {
	at := place{"registration endpoint", "registration_url", m.RegistrationURL}
	if m.RegistrationURL == "" {
		return Registration{}, notSent(at, errors.New("the server registers no clients by itself"), "register a client by hand, at the provider")
	}
	if r.GrantTypes == nil {
		r.GrantTypes = []string{"authorization_code", "refresh_token"}
	}
	style, err := m.chooseStyle(r.AuthStyle)
	if err != nil {
		return Registration{}, notSent(at, err, "register a client by hand, at the provider")
	}
	r.AuthStyle = style
	body, err := json.Marshal(r.document())
	if err != nil {
		return Registration{}, notSent(at, errNoRequest, "")
	}
	if f := m.opts.fault(m.RegistrationURL); f != "" {
		return Registration{}, notSent(at, errors.New("the endpoint "+f), "register a client by hand, at the provider")
	}
	guarded, err := m.opts.guard(hc)
	if err != nil {
		return Registration{}, notSent(at, err, "")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.RegistrationURL, bytes.NewReader(body))
	if err != nil {
		return Registration{}, notSent(at, errNoRequest, "")
	}
	req.GetBody = nil
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "wayleave")
	a, fail := send(guarded, time.Now, at, req)
	if fail != nil {
		return Registration{}, fail
	}
	reg, fail := readRegistration(a, r)
	if fail != nil {
		return Registration{}, fail
	}
	return reg, nil
}

// chooseStyle picks how the new client is to authenticate.
func (m Metadata) chooseStyle(want AuthStyle) (AuthStyle, error) {
	order := []AuthStyle{AuthBasic, AuthPost, AuthNone}
	if m.PKCE {
		order = []AuthStyle{AuthNone, AuthBasic, AuthPost}
	}
	if want != "" {
		order = []AuthStyle{want}
	}
	for _, style := range order {
		if style != AuthPrivateKeyJWT && slices.Contains(m.AuthStyles, style) {
			return style, nil
		}
	}
	return "", fmt.Errorf("the server does not register clients that authenticate by %s", join(order))
}

func join[T ~string](list []T) string {
	var b strings.Builder
	for i, s := range list {
		if i > 0 {
			b.WriteString(" or ")
		}
		b.WriteString(string(s))
	}
	return b.String()
}

// document is the body of a registration.
func (r ClientMetadata) document() map[string]any {
	doc := map[string]any{
		"client_name":                r.Name,
		"grant_types":                r.GrantTypes,
		"response_types":             []string{},
		"token_endpoint_auth_method": r.AuthStyle,
	}
	if slices.Contains(r.GrantTypes, "authorization_code") {
		doc["response_types"], doc["redirect_uris"] = []string{"code"}, r.RedirectURIs
		if r.native() {
			doc["application_type"] = "native"
		}
	}
	if len(r.Scopes) > 0 {
		doc["scope"] = strings.Join(r.Scopes, " ")
	}
	return doc
}

// native reports whether the client runs where its browser does: then a server of OpenID Connect takes any port of its loopback
// addresses (Dynamic Client Registration section 2, RFC 8252 section 7.3).
func (r ClientMetadata) native() bool {
	return !slices.ContainsFunc(r.RedirectURIs, func(uri string) bool {
		u, err := url.Parse(uri)
		return err != nil || u.Scheme != "http" || !loopback.Host(u.Hostname())
	})
}

// readRegistration reads the answer to r, and holds it against what was asked for.
func readRegistration(a answer, r ClientMetadata) (Registration, *Error) {
	if a.status/100 != 2 {
		e := Config{}.failure(a, nil)
		if e.Outcome == InvalidGrant {
			e.Outcome = Refused
		}
		e.Hint = "register a client by hand, at the provider"
		return Registration{}, e
	}
	bad := func(err error) (Registration, *Error) {
		return Registration{}, &Error{Outcome: Unknown, Status: a.status, Err: err, Hint: "a client may have been made: register one by hand, at the provider", at: a.at}
	}
	f := object(a.body)
	if a.fault != nil {
		return bad(a.fault)
	}
	if f == nil {
		return bad(errNotJSON)
	}
	reg := Registration{ClientID: f.text("client_id"), AuthStyle: AuthStyle(f.text("token_endpoint_auth_method"))}
	pass := f.text("client_secret")
	if reg.AuthStyle == "" {
		reg.AuthStyle = r.AuthStyle
	}
	if !isShown(reg.ClientID, longestURL) {
		return bad(errors.New("the answer has no usable client_id"))
	}
	switch reg.AuthStyle {
	case AuthBasic, AuthPost:
		if pass == "" {
			return bad(errors.New("the answer has no client_secret although the client is to authenticate with one"))
		}
		reg.ClientSecret = secret.New(pass)
		if at, ok := f.number("client_secret_expires_at"); ok && at > 0 && at < 1<<40 {
			reg.SecretExpires = time.Unix(int64(at), 0)
			reg.Notes = append(reg.Notes, "the client's secret ends at "+reg.SecretExpires.UTC().Format(time.RFC3339)+": register another client before, and connect again what was connected with this one")
		}
	case AuthNone:
		if pass != "" {
			reg.Notes = append(reg.Notes, "the server gave a secret to a client that needs none; it is not used")
		}
	default:
		return bad(errors.New("the server wants the client to authenticate in a way that we do not know"))
	}
	if reg.AuthStyle != r.AuthStyle {
		reg.Notes = append(reg.Notes, "the server chose another auth_style than the one asked for")
	}
	if got := f.list("redirect_uris"); got != nil {
		for _, want := range r.RedirectURIs {
			if !slices.Contains(got, want) {
				return bad(errors.New("the server registered other redirect addresses than those asked for"))
			}
		}
	}
	if got := f.list("grant_types"); got != nil {
		for _, want := range r.GrantTypes {
			if !slices.Contains(got, want) {
				reg.Notes = append(reg.Notes, "the server does not allow the client the grant type "+want)
			}
		}
	}
	return reg, nil
}
