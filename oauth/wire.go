package oauth

import (
	"bytes"
	"compress/gzip"
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
	"time"
)

// maxAnswer bounds an endpoint's answer; identity tokens make some of them long.
const maxAnswer = 1 << 20

// place is an endpoint: its name and configuration key for people, and its address.
type place struct{ name, key, url string }

func (p place) String() string {
	if u, err := url.Parse(p.url); err == nil && u.Host != "" {
		return p.name + " " + u.Host
	}
	return p.name + " (none)"
}

func (c *Client) tokenEndpoint() place { return place{"token endpoint", "token_url", c.cfg.TokenURL} }

// refreshEndpoint is where refresh tokens are presented.
func (c *Client) refreshEndpoint() place {
	if c.cfg.RefreshURL == "" {
		return c.tokenEndpoint()
	}
	return place{"refresh endpoint", "refresh_url", c.cfg.RefreshURL}
}

// answer is one HTTP answer, read.
type answer struct {
	at     place
	sent   time.Time
	status int
	header http.Header
	body   []byte
	fault  error // the body is not whole
}

// post makes exactly one POST and returns the answer, whatever its status. What it adds to params to authenticate the
// client stays there.
func (c *Client) post(ctx context.Context, at place, format TokenFormat, params map[string]string) (answer, *Error) {
	if f := endpointFault(at.url, c.cfg.AllowInsecure); f != "" {
		return answer{}, notSent(at, errors.New("the endpoint "+f), "correct the provider's endpoints")
	}
	req, err := c.request(ctx, at.url, format, params)
	if err != nil {
		return answer{}, notSent(at, err, "correct the provider's settings")
	}
	return send(c.hc, c.now, at, req)
}

// send makes exactly one request.
func send(hc *http.Client, now func() time.Time, at place, req *http.Request) (answer, *Error) {
	if err := req.Context().Err(); err != nil {
		return answer{}, notSent(at, err, "")
	}
	// Told by the transport itself: a connection was asked for, a connection (with TLS done) was had.
	var asked, had atomic.Bool
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GetConn: func(string) { asked.Store(true) },
		GotConn: func(httptrace.GotConnInfo) { had.Store(true) },
	}))
	a := answer{at: at, sent: now()}
	resp, err := hc.Do(req)
	if err != nil {
		if asked.Load() && !had.Load() {
			return answer{}, notSent(at, safeCause(err), "check the network, name resolution and trusted certificates between here and the provider")
		}
		return answer{}, &Error{Outcome: Unknown, at: at, Err: safeCause(err), Hint: hintUnknown}
	}
	defer resp.Body.Close()
	a.status, a.header = resp.StatusCode, resp.Header
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && bytes.HasPrefix(a.body, []byte("\x1f\x8b")) { // packed, and a proxy on the way has removed the header that says so
		a.body, err = unpack(a.body)
	}
	if err != nil {
		a.fault = safeCause(err)
	} else if len(a.body) > maxAnswer {
		a.fault = errTooLarge
	}
	return a, nil
}

func unpack(body []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, maxAnswer+1))
}

// request writes one request. Our own fields go last, so that no setting can replace them.
func (c *Client) request(ctx context.Context, endpoint string, format TokenFormat, params map[string]string) (*http.Request, error) {
	header := http.Header{}
	for k, v := range c.cfg.TokenHeaders {
		header.Set(k, v)
	}
	header.Set("Accept", "application/json")
	header.Set("User-Agent", or(c.cfg.UserAgent, "wayleave"))
	if err := c.authenticate(params, header); err != nil {
		return nil, err
	}
	body, contentType, err := encode(format, params)
	if err != nil {
		return nil, errNoRequest
	}
	header.Set("Content-Type", contentType)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, bytes.NewReader(body))
	if err != nil {
		return nil, errNoRequest
	}
	req.GetBody = nil // nothing may send it a second time
	req.Header = header
	return req, nil
}

// authenticate adds what proves who the client is (RFC 6749 §2.3, RFC 7523 §2.2).
func (c *Client) authenticate(params map[string]string, header http.Header) error {
	id, pass := c.cfg.ClientID, c.cfg.ClientSecret.Reveal()
	style := or(c.cfg.AuthStyle, AuthNone)
	if style == AuthBasic {
		both := url.QueryEscape(id) + ":" + url.QueryEscape(pass)
		header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(both)))
		return nil
	}
	if id != "" {
		params["client_id"] = id
	}
	switch style {
	case AuthPost:
		params["client_secret"] = pass
	case AuthPrivateKeyJWT:
		assertion, err := c.clientAssertion()
		if err != nil {
			return err
		}
		params["client_assertion_type"], params["client_assertion"] = assertionTypeJWT, assertion
	case AuthNone, AuthBasic:
	}
	return nil
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

func notSent(at place, err error, hint string) *Error {
	return &Error{Outcome: NotSent, Err: err, Hint: hint, at: at}
}

// secretParams are the parameters of requests that nobody else may see.
var secretParams = []string{
	"refresh_token", "code", "code_verifier", "token", "client_assertion", "assertion", "device_code", "device_auth_id", "user_code",
	"subject_token", "actor_token",
}

// secretsOf lists what an answer must not be able to make us repeat.
func secretsOf(params map[string]string, cfg Config) []string {
	list := []string{cfg.ClientSecret.Reveal()}
	for _, k := range secretParams {
		list = append(list, params[k])
	}
	return slices.DeleteFunc(list, func(s string) bool { return strings.TrimSpace(s) == "" })
}
