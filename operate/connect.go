package operate

import (
	"context"
	"fmt"

	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/secret"
)

// Way is a way to a consent.
type Way string

// Ways to a consent.
const (
	ByCode   Way = "code"   // the provider's consent page (RFC 6749 section 4.1), whose answer comes back or is pasted
	ByDevice Way = "device" // a code that is entered in another browser (RFC 8628)
)

// Ways are those a grant can be connected by, the usual one first. It refuses grants that nobody connects.
func (d Desk) Ways(name string) ([]Way, error) {
	spec, err := d.Spec(name)
	if err == nil {
		err = CheckConnect(name, spec.Provider, spec.Kind)
	}
	if err != nil {
		return nil, err
	}
	p, _ := d.Config.ProviderOf(name)
	switch {
	case p.GrantType == oauth.GrantDevice:
		return []Way{ByDevice}, nil
	case p.DeviceURL != "":
		return []Way{ByCode, ByDevice}, nil
	}
	return []Way{ByCode}, nil
}

// CheckConnect refuses kinds of grants that nobody connects.
func CheckConnect(name, provider string, kind grant.Kind) error {
	switch kind {
	case grant.Static:
		return refuse(Misused, "%s is of the static provider %s, which has no consent page; run `wayleave grant import %s`", name, provider, name)
	case grant.Machine:
		return refuse(Misused, "%s needs no connect: the gate gets its tokens by itself", name)
	default:
		return nil
	}
}

// FixedRedirect is where the provider shows a code or sends the browser, whatever is asked for; "" where it comes back to
// whoever began, at an address of their own.
func (d Desk) FixedRedirect(name string) string {
	p, _ := d.Config.ProviderOf(name)
	return p.RedirectURL
}

// Client speaks to a grant's provider, with the secrets that are loaded.
func (d Desk) Client(name string) *oauth.Client { return clientOf(d.Config, name) }

// Consent is one run of the authorization code flow with PKCE (RFC 7636). It is used once.
type Consent struct {
	client   *oauth.Client
	redirect string
	scopes   []string
	state    string
	pkce     oauth.PKCE
}

// NewConsent prepares a consent to scopes, whose answer comes to redirect.
func NewConsent(client *oauth.Client, redirect string, scopes []string) *Consent {
	return &Consent{client: client, redirect: redirect, scopes: scopes, state: oauth.NewState(), pkce: oauth.NewPKCE()}
}

// URL is the page to open.
func (c *Consent) URL() string {
	return c.client.AuthorizationURL(c.state, c.pkce, c.redirect, c.scopes)
}

// State is what the answer must carry.
func (c *Consent) State() string { return c.state }

// Parse finds the code in an answer: an address, a code, or code#state. The error is [oauth.ErrDenied] when there will be none.
func (c *Consent) Parse(answer string) (secret.Text, error) {
	return c.client.ParseCallback(answer, c.state)
}

// Exchange trades the code for tokens. A code may be presented once.
func (c *Consent) Exchange(ctx context.Context, code secret.Text) (oauth.Token, error) {
	return c.client.Exchange(ctx, code, c.state, c.pkce, c.redirect)
}

// ConnectTime is how long it may take to exchange what an operator has agreed to for tokens, and to store these.
const ConnectTime = oauth.LongestCall + grant.StoreFor

// Stored is a grant as it was just stored.
type Stored struct {
	Grant     grant.Summary `json:"grant"`
	Refreshes bool          `json:"refreshes"` // there is a refresh token, so a gate can get another one
	// Before is the account that the grant had until now, where that was another one: consent pages take whichever is logged in.
	Before string `json:"account_before,omitempty"`
}

// Note says what whoever connected the grant may not have meant; "" for nothing.
func (s *Stored) Note() string {
	if s == nil || s.Before == "" {
		return ""
	}
	return fmt.Sprintf("its account was %s before, and is %s now; if that is not meant, log out at the provider and connect it again", s.Before, s.Grant.Account)
}

// Connect stores tokens as a new consent.
func (d Desk) Connect(ctx context.Context, name string, t oauth.Token) (Stored, error) {
	spec, err := d.Spec(name)
	if err != nil {
		return Stored{}, err
	}
	was, _ := d.Find(ctx, name) // for a word about it only
	s, err := grant.Connect(ctx, d.Docs, spec, t, d.Now())
	s.Requested, s.Granted = append([]string{}, s.Requested...), append([]string{}, s.Granted...) // lists in JSON, too
	stored := Stored{Grant: s, Refreshes: !t.Refresh.IsZero()}
	if was.Provider == s.Provider && was.Account != s.Account && s.Account != "" {
		stored.Before = was.Account
	}
	return stored, err
}
