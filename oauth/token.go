package oauth

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"wayleave/secret"
)

// maxAnswer bounds a token endpoint's answer; identity tokens make some of them long.
const maxAnswer = 1 << 20

// Exchange trades an authorization code for tokens (RFC 6749 §4.1.3, RFC 7636 §4.5). redirectURL is the one of the
// authorization URL; empty is the configured one. A failure is an *Error.
func (c *Client) Exchange(ctx context.Context, code secret.Text, state string, p PKCE, redirectURL string) (Token, error) {
	params := map[string]string{
		"grant_type":    "authorization_code",
		"code":          code.Reveal(),
		"code_verifier": p.Verifier.Reveal(),
	}
	if r := c.redirect(redirectURL); r != "" {
		params["redirect_uri"] = r
	}
	if c.cfg.ExchangeSendsState {
		params["state"] = state
	}
	return c.token(ctx, params)
}

// Refresh trades a refresh token for a new access token (RFC 6749 §6). granted are the scopes the grant is known to hold
// (nil: not known), requested those the configuration asks for; RefreshScope decides which are sent.
//
// A definite invalid_scope leaves the refresh token unspent, so that answer, and no other, is followed by one more
// request, without scope. A failure is an *Error; only its Outcome says whether refresh may be presented again.
func (c *Client) Refresh(ctx context.Context, refresh secret.Text, granted, requested []string) (Token, error) {
	if refresh.IsZero() {
		return Token{}, c.notSent(c.cfg.TokenURL, errNoRefresh, "connect again; ask for offline access if the provider needs that")
	}
	params := map[string]string{"grant_type": "refresh_token", "refresh_token": refresh.Reveal()}
	scope := c.cfg.scopeAtRefresh(granted, requested)
	if scope == "" {
		return c.token(ctx, params)
	}
	params["scope"] = scope
	tok, err := c.token(ctx, params)
	if e, ok := errors.AsType[*Error](err); !ok || e.Outcome != Refused || e.Code != "invalid_scope" {
		return tok, err
	}
	delete(params, "scope")
	if tok, err = c.token(ctx, params); err == nil {
		tok.Notes = append(tok.Notes, "the provider refused the scope sent at refresh and took the request without: set refresh_scope to omit")
	}
	return tok, err
}

// Revoke tells the provider that a token is not needed any more (RFC 7009). Without a RevokeURL it does nothing.
func (c *Client) Revoke(ctx context.Context, token secret.Text) error {
	if c.cfg.RevokeURL == "" || token.IsZero() {
		return nil
	}
	params := map[string]string{"token": token.Reveal()}
	a, fail := c.post(ctx, c.cfg.RevokeURL, FormatForm, params)
	if fail != nil {
		return fail
	}
	if a.status/100 != 2 {
		return c.cfg.failure(a, secretsOf(params, c.cfg))
	}
	return nil
}

// token makes one request to the token endpoint and reads the answer.
func (c *Client) token(ctx context.Context, params map[string]string) (Token, error) {
	for k, v := range c.cfg.TokenParams {
		if !slices.Contains(tokenReserved, k) {
			params[k] = v
		}
	}
	a, fail := c.post(ctx, c.cfg.TokenURL, or(c.cfg.TokenFormat, FormatForm), params)
	if fail != nil {
		return Token{}, fail
	}
	tok, fail := c.cfg.read(a, secretsOf(params, c.cfg))
	if fail != nil {
		return Token{}, fail
	}
	return tok, nil
}

// post makes exactly one POST and returns the answer, whatever its status.
func (c *Client) post(ctx context.Context, endpoint string, format TokenFormat, params map[string]string) (answer, *Error) {
	if f := endpointFault(endpoint, c.cfg.AllowInsecure); f != "" {
		return answer{}, c.notSent(endpoint, errors.New("the endpoint "+f), "correct the provider's endpoints")
	}
	if err := ctx.Err(); err != nil {
		return answer{}, c.notSent(endpoint, err, "")
	}

	// Told by the transport itself: a connection was asked for, a connection (with TLS done) was had.
	var asked, had atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { asked.Store(true) },
		GotConn: func(httptrace.GotConnInfo) { had.Store(true) },
	})
	req, err := c.request(traced, endpoint, format, params)
	if err != nil {
		return answer{}, c.notSent(endpoint, errors.New("the request cannot be built"), "correct the provider's settings")
	}
	a := answer{host: req.URL.Host, sent: c.now()}
	resp, err := c.hc.Do(req)
	if err != nil {
		if asked.Load() && !had.Load() {
			return answer{}, c.notSent(endpoint, safeCause(err), "check the network, name resolution and trusted certificates between here and the provider")
		}
		return answer{}, &Error{Outcome: Unknown, host: a.host, Err: safeCause(err), Hint: hintUnknown}
	}
	defer resp.Body.Close()
	a.status, a.header = resp.StatusCode, resp.Header
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		a.fault = safeCause(err)
	} else if len(a.body) > maxAnswer {
		a.fault = errTooLarge
	}
	return a, nil
}

// request writes one request. Our own fields go last, so that no setting can replace them.
func (c *Client) request(ctx context.Context, endpoint string, format TokenFormat, params map[string]string) (*http.Request, error) {
	style := or(c.cfg.AuthStyle, AuthNone)
	if style != AuthBasic {
		params["client_id"] = c.cfg.ClientID
	}
	if style == AuthPost {
		params["client_secret"] = c.cfg.ClientSecret.Reveal()
	}
	body, contentType, err := encode(format, params)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.GetBody = nil // nothing may send it a second time
	for k, v := range c.cfg.TokenHeaders {
		req.Header.Set(k, v)
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", or(c.cfg.UserAgent, "wayleave"))
	if style == AuthBasic {
		user, pass := url.QueryEscape(c.cfg.ClientID), url.QueryEscape(c.cfg.ClientSecret.Reveal())
		req.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+pass)))
	}
	return req, nil
}

func encode(format TokenFormat, params map[string]string) (body []byte, contentType string, err error) {
	if format == FormatJSON {
		body, err = json.Marshal(params)
		return body, "application/json", err
	}
	values := url.Values{}
	for k, v := range params {
		values.Set(k, v)
	}
	return []byte(values.Encode()), "application/x-www-form-urlencoded", nil
}

func (c *Client) notSent(endpoint string, err error, hint string) *Error {
	host := "(none)"
	if u, perr := url.Parse(endpoint); perr == nil && u.Host != "" {
		host = u.Host
	}
	return &Error{Outcome: NotSent, Err: err, Hint: hint, host: host}
}

// secretsOf lists what an answer must not be able to make us repeat.
func secretsOf(params map[string]string, cfg Config) []string {
	list := []string{cfg.ClientSecret.Reveal()}
	for _, k := range []string{"refresh_token", "code", "code_verifier", "token"} {
		list = append(list, params[k])
	}
	return slices.DeleteFunc(list, func(s string) bool { return strings.TrimSpace(s) == "" })
}
