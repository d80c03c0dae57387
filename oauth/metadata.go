package oauth

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Metadata is what a server says about itself: RFC 8414 or OpenID Connect Discovery, and RFC 9728 if an API led there.
// Its addresses are full, https and on public hosts, as far as DiscoverOptions did not allow more; a name is resolved, and
// looked at, only when it is connected to. All of it can be shown as it is.
type Metadata struct {
	Issuer   string
	Resource string // the API that led to the issuer, to be sent as resource (RFC 8707); empty: none did

	// Endpoints; empty where the server has none. There is always a TokenURL.
	AuthorizeURL, TokenURL, RevokeURL, DeviceURL, RegistrationURL string

	// Scopes that the server knows, and of these or others those that the API asks for.
	Scopes, Asked []string
	// AuthStyles are the ways to authenticate that both sides know, as the server lists them.
	AuthStyles []AuthStyle
	// GrantTypes that the server lists, by its own names; RFC 8414's default when it lists none.
	GrantTypes []string
	// PKCE reports whether the server lists S256 (RFC 7636). A challenge is sent anyway.
	PKCE bool
	// Others are further authorization servers of the API, which were not asked.
	Others []string

	opts DiscoverOptions
}

// Config returns what the configuration needs to use the server as the registered client. ClientSecret is set too; it is
// for the file that client_secret_file will name.
func (m Metadata) Config(r Registration) Config {
	return Config{
		AuthorizeURL: m.AuthorizeURL, TokenURL: m.TokenURL, RevokeURL: m.RevokeURL, DeviceURL: m.DeviceURL,
		RegistrationURL: m.RegistrationURL, Issuer: m.Issuer, Resource: m.Resource,
		ClientID: r.ClientID, ClientSecret: r.ClientSecret, AuthStyle: r.AuthStyle, AllowInsecure: m.opts.AllowInsecure,
	}
}

// authStyles are all that we speak.
var authStyles = []AuthStyle{AuthNone, AuthBasic, AuthPost, AuthPrivateKeyJWT}

// readMetadata reads an authorization server's metadata (RFC 8414 §2, OpenID Connect Discovery §3). Errors name fields and
// never quote them.
func readMetadata(f fields, issuer string, o DiscoverOptions) (Metadata, error) {
	m := Metadata{Issuer: f.text("issuer"), Scopes: scopeTokens(f.list("scopes_supported")), GrantTypes: f.list("grant_types_supported"), opts: o}
	if strings.TrimSuffix(m.Issuer, "/") != strings.TrimSuffix(issuer, "/") {
		return Metadata{}, otherIssuer(m.Issuer, issuer)
	}
	for _, e := range []struct {
		key  string
		into *string
	}{
		{"authorization_endpoint", &m.AuthorizeURL},
		{"token_endpoint", &m.TokenURL},
		{"revocation_endpoint", &m.RevokeURL},
		{"device_authorization_endpoint", &m.DeviceURL},
		{"registration_endpoint", &m.RegistrationURL},
	} {
		*e.into = f.text(e.key)
		if fault := o.fault(*e.into); *e.into != "" && fault != "" {
			return Metadata{}, fmt.Errorf("its %s %s", e.key, fault)
		}
	}
	if m.TokenURL == "" {
		return Metadata{}, errors.New("it names no token_endpoint")
	}
	m.GrantTypes = slices.DeleteFunc(m.GrantTypes, func(s string) bool { return !isToken(s) || len(s) > longestLabel })
	if m.GrantTypes == nil {
		m.GrantTypes = []string{"authorization_code", "implicit"} // RFC 8414 §2
	}
	styles := f.list("token_endpoint_auth_methods_supported")
	if styles == nil {
		styles = []string{string(AuthBasic)} // the same
	}
	for _, s := range styles {
		if slices.Contains(authStyles, AuthStyle(s)) {
			m.AuthStyles = append(m.AuthStyles, AuthStyle(s))
		}
	}
	m.PKCE = slices.Contains(f.list("code_challenge_methods_supported"), "S256")
	return m, nil
}

var errNoIssuer = errors.New("no metadata: it has no issuer")

// otherIssuer says what to do about metadata of another issuer than the one asked for.
func otherIssuer(got, asked string) error {
	next := "ask for the issuer by its exact name"
	switch {
	case strings.Contains(got, "{"): // Microsoft's, for the tenants common and organizations
		next = "it is the template of many: ask for that of your own tenant, by the tenant's id"
	case strings.TrimPrefix(strings.TrimSuffix(got, "/"), "http://") == strings.TrimPrefix(strings.TrimSuffix(asked, "/"), "https://"):
		next = "it takes itself for a server without TLS: tell it its public address, or make it believe its proxy's X-Forwarded-Proto"
	}
	return errors.New("its issuer is another than the one asked for, so it is not believed: " + next)
}

func scopeTokens(list []string) []string {
	return slices.DeleteFunc(list, func(s string) bool { return !isScope(s) })
}
