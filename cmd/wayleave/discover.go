package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"wayleave/oauth"
)

// loopbackCallback is where `grant connect` listens, on whatever port is free (RFC 8252 section 7.3).
const loopbackCallback = "http://127.0.0.1/callback"

func newProviderDiscover() *cobra.Command {
	var o discoverOptions
	c := &cobra.Command{
		Use:   "discover URL",
		Short: "Find an API's authorization server and print the configuration it takes",
		Long: `Discover asks an API, or an issuer, which authorization server it uses (RFC 9728) and that server for its endpoints (RFC 8414,
OpenID Connect Discovery), and prints the entries of providers and grants for you to review and paste. With --register it
registers a client there (RFC 7591); a client secret goes into a file that only you can read. Nothing else is changed, and
the gate itself never discovers: it calls what the configuration says.`,
		Example: `  wayleave provider discover https://mcp.example.com/mcp
  wayleave provider discover https://login.example.com --name example --register`,
		Args: exactArgs("URL"),
		RunE: func(c *cobra.Command, args []string) error {
			return discover(c.Context(), nil, args[0], o, c.OutOrStdout(), c.ErrOrStderr())
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	c.Flags().StringVar(&o.name, "name", "", "name of the provider and the grant (default the host of the URL)")
	c.Flags().BoolVar(&o.register, "register", false, "register a client")
	c.Flags().StringVar(&o.clientName, "client-name", "Wayleave", "what the provider calls the client on its consent page, with --register")
	c.Flags().StringVar(&o.grantType, "grant-type", "", "how the grant gets its first token: authorization_code, device_code or client_credentials (default the first that the server has)")
	c.Flags().StringVar(&o.redirect, "redirect-uri", "", "where the provider sends the browser, if it does not take any port of "+loopbackCallback)
	c.Flags().StringVar(&o.secretFile, "secret-file", "", "where the client secret goes, with --register (default NAME.secret)")
	c.Flags().BoolVar(&o.AllowInsecure, "allow-insecure", false, "let http and loopback addresses count, for demonstrations")
	c.Flags().BoolVar(&o.AllowPrivate, "allow-private", false, "let servers have private addresses")
	c.Flags().BoolVar(&o.json, "json", false, "print the entries as JSON")
	return c
}

type discoverOptions struct {
	oauth.DiscoverOptions
	name, clientName, grantType, redirect, secretFile string
	register, json                                    bool
}

// discoveredProvider and discoveredGrant are what is to be pasted.
type discoveredProvider struct {
	Preset           string `yaml:"preset"`
	oauth.Config     `yaml:",inline"`
	ClientSecretFile string `yaml:"client_secret_file,omitempty"`
	ClientKeyFile    string `yaml:"client_key_file,omitempty"`
}

type discoveredGrant struct {
	Provider string   `yaml:"provider"`
	Scopes   []string `yaml:"scopes,omitempty,flow"`
}

// discover prints the entries to out and what there is to say about them to log. hc may be nil.
func discover(ctx context.Context, hc *http.Client, address string, o discoverOptions, out, log io.Writer) error {
	if o.name == "" {
		if u, err := url.Parse(address); err == nil {
			o.name = strings.TrimPrefix(u.Hostname(), "www.")
		}
	}
	if o.secretFile == "" {
		o.secretFile = o.name + ".secret"
	}
	if o.grantType != "" && !slices.Contains(grantTypes, oauth.GrantType(o.grantType)) {
		return usageError{fmt.Errorf("--grant-type %q is not one of authorization_code, device_code, client_credentials", o.grantType)}
	}
	m, err := oauth.Discover(ctx, hc, address, o.DiscoverOptions)
	if err != nil {
		return err
	}
	say(log, whatWasFound(m)...)
	first := oauth.GrantType(o.grantType)
	if first == "" {
		first = bestGrantType(m)
	}
	client := oauth.Registration{AuthStyle: styleFor(m, first)}
	if o.register {
		if client, err = register(ctx, hc, m, first, o, log); err != nil {
			return err
		}
	}
	p := discoveredProvider{Preset: "oauth2", Config: m.Config(client)}
	if first != oauth.GrantCode {
		p.GrantType = first
	}
	p.RedirectURL = o.redirect
	if first == oauth.GrantCode && slices.Contains(scopesFor(m, first), "offline_access") {
		p.AuthorizeParams = map[string]string{"prompt": "consent"} // without it there is no refresh token (OpenID Connect Core section 11)
	}
	switch p.AuthStyle {
	case oauth.AuthBasic, oauth.AuthPost:
		p.ClientSecretFile = o.secretFile
	case oauth.AuthPrivateKeyJWT:
		p.ClientKeyFile = o.name + ".pem"
	case oauth.AuthNone:
	}
	if p.ClientID == "" {
		at := ""
		if first == oauth.GrantCode {
			at = " with the redirect address " + cmp.Or(o.redirect, loopbackCallback)
		}
		say(log, "", "Register a client at the provider"+at+", and write its client_id below; or try --register.")
		if f := p.ClientSecretFile + p.ClientKeyFile; f != "" {
			say(log, "Its secret or key goes into "+f+", beside the configuration, readable by the gate only.")
		}
	}
	entries := map[string]any{
		"providers": map[string]discoveredProvider{o.name: p},
		"grants":    map[string]discoveredGrant{o.name: {Provider: o.name, Scopes: scopesFor(m, first)}},
	}
	return printEntries(out, entries, o.json)
}

// whatWasFound says what was found, and what the server does not do.
func whatWasFound(m oauth.Metadata) []string {
	lines := []string{"Authorization server: " + m.Issuer}
	if m.Resource != "" {
		lines = append(lines, "It is named by the API "+m.Resource)
	}
	if len(m.Others) > 0 {
		lines = append(lines, "The API names others too, which were not asked: "+strings.Join(m.Others, ", "))
	}
	for _, e := range []struct{ url, lacking string }{
		{m.DeviceURL, "no device flow: connecting takes a browser that reaches this machine, or a paste"},
		{m.RevokeURL, "no revocation: `wayleave grant disconnect` can only forget tokens"},
		{m.RegistrationURL, "no registration: register a client by hand"},
	} {
		if e.url == "" {
			lines = append(lines, "It has "+e.lacking)
		}
	}
	if !m.PKCE {
		lines = append(lines, "It does not say that it knows PKCE with S256, which is sent anyway")
	}
	if !slices.Contains(m.GrantTypes, "refresh_token") {
		lines = append(lines, "It does not say that it gives out refresh tokens: without, a grant ends with its first token")
	}
	if len(m.Asked) > 0 {
		lines = append(lines, "Scopes that the API asks for: "+strings.Join(m.Asked, " "))
	}
	if len(m.Scopes) > 0 {
		lines = append(lines, "Scopes it knows: "+strings.Join(m.Scopes, " "))
	}
	return lines
}

// styleFor is how a client best proves who it is: by nothing where a consent and PKCE do, never by nothing where it acts for
// itself.
func styleFor(m oauth.Metadata, first oauth.GrantType) oauth.AuthStyle {
	styles := []oauth.AuthStyle{oauth.AuthNone, oauth.AuthBasic, oauth.AuthPost, oauth.AuthPrivateKeyJWT}
	if first == oauth.GrantClient {
		styles = styles[1:]
	}
	for _, style := range styles {
		if slices.Contains(m.AuthStyles, style) {
			return style
		}
	}
	return styles[0]
}

// grantTypes are those that discovery can set up.
var grantTypes = []oauth.GrantType{oauth.GrantCode, oauth.GrantDevice, oauth.GrantClient}

// bestGrantType is how a grant best gets its first token.
func bestGrantType(m oauth.Metadata) oauth.GrantType {
	switch {
	case m.AuthorizeURL != "":
		return oauth.GrantCode
	case m.DeviceURL != "":
		return oauth.GrantDevice
	case slices.Contains(m.GrantTypes, string(oauth.GrantClient)):
		return oauth.GrantClient
	}
	return oauth.GrantCode
}

// scopesFor are the scopes to begin with: what the API asks for, and of what the server knows only what a refresh token takes, which is no
// API's business and which few name.
func scopesFor(m oauth.Metadata, first oauth.GrantType) []string {
	scopes := slices.Clone(m.Asked)
	if first == oauth.GrantClient { // which has no refresh tokens
		return scopes
	}
	for _, s := range []string{"openid", "offline_access"} {
		if slices.Contains(m.Scopes, s) && !slices.Contains(scopes, s) && (s == "offline_access" || m.Asked == nil) {
			scopes = append(scopes, s)
		}
	}
	return scopes
}

// register registers a client and keeps its secret. The file is made first: a secret that came and could not be kept would be
// lost.
func register(ctx context.Context, hc *http.Client, m oauth.Metadata, first oauth.GrantType, o discoverOptions, log io.Writer) (oauth.Registration, error) {
	f, err := os.OpenFile(o.secretFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return oauth.Registration{}, fmt.Errorf("%s is there already, and may hold another client's secret; name another with --secret-file", o.secretFile)
	}
	if err != nil {
		return oauth.Registration{}, err
	}
	defer f.Close()
	about := oauth.ClientMetadata{Name: o.clientName, Scopes: scopesFor(m, first)}
	switch first {
	case oauth.GrantDevice:
		about.GrantTypes = []string{"urn:ietf:params:oauth:grant-type:device_code", "refresh_token"}
	case oauth.GrantClient:
		about.GrantTypes, about.AuthStyle = []string{string(oauth.GrantClient)}, styleFor(m, first)
	case oauth.GrantCode, oauth.GrantJWT:
		about.RedirectURIs = []string{cmp.Or(o.redirect, loopbackCallback)}
	}
	client, err := oauth.Register(ctx, hc, m, about)
	if err != nil || client.ClientSecret.IsZero() {
		_ = os.Remove(o.secretFile)
	}
	if err != nil {
		return client, err
	}
	say(log, "", fmt.Sprintf("Registered the client %s.", client.ClientID))
	say(log, client.Notes...)
	if client.ClientSecret.IsZero() {
		return client, nil
	}
	if _, err := f.WriteString(client.ClientSecret.Reveal() + "\n"); err != nil {
		return client, fmt.Errorf("keeping the client's secret: %w; the client is of no use, register another", err)
	}
	say(log, "Its secret is in "+o.secretFile+"; move it beside the configuration.")
	return client, f.Close()
}

func printEntries(w io.Writer, entries map[string]any, asJSON bool) error {
	var text bytes.Buffer
	e := yaml.NewEncoder(&text)
	e.SetIndent(2)
	if err := e.Encode(entries); err != nil {
		return err
	}
	if !asJSON {
		_, err := w.Write(text.Bytes())
		return err
	}
	var plain map[string]any // under the names of the configuration
	if err := yaml.Unmarshal(text.Bytes(), &plain); err != nil {
		return err
	}
	return printJSON(w, plain)
}
