package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"wayleave/approval"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/loopback"
	"wayleave/operate"
	"wayleave/rollout"
	"wayleave/secret"
	"wayleave/worker"
)

const (
	callTime  = operate.ConnectTime + 15*time.Second
	maxAnswer = 64 << 20         // bytes; more than all sessions that a gate has
	sayAfter  = time.Second      // that a gate is waited for
	endTime   = 5 * time.Second  // for giving something up
	pollTime  = time.Second      // between two looks at what a gate does
	longest   = 10 * time.Minute // that a console waits for a gate
)

// Client does at a gate's console what operators want done there. It may be used concurrently.
type Client struct {
	root  *url.URL
	token secret.Text
	http  *http.Client
	every time.Duration
	warn  func(string)
}

// Options are optional.
type Options struct {
	Roots *x509.CertPool // that may sign for the gate; nil: the system's
	Every time.Duration  // between two looks at what a gate does; 0: a second
	Warn  func(string)   // is told why an answer is not all that could be said; nil: nobody
}

// ParseURL reads the address of a console. It is https, but for loopback, since a token is sent there.
func ParseURL(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, errors.New("it is not the address of a gate's console, which looks like https://gate.example.com") // and may hold a secret
	}
	if u.Scheme == "http" && !loopback.Host(u.Hostname()) {
		return nil, fmt.Errorf("http://%s is beyond this machine, and whoever is on the way would get the token; use https", u.Host)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// New returns a Client of the console at an address that ParseURL accepted.
func New(at *url.URL, token secret.Text, o Options) *Client {
	c := &Client{root: at.JoinPath(Root), token: token, every: o.Every, warn: o.Warn}
	if c.every == 0 {
		c.every = pollTime
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: o.Roots, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 30 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// Close lets go of connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// passing is an error that may be over before long: the gate, or its Vault, does not answer now.
type passing struct{ error }

func (p passing) Unwrap() error { return p.error }

// Passes reports whether an error may be over before long.
func Passes(err error) bool {
	var p passing
	return errors.As(err, &p)
}

// call sends a request, and reads the answer into out. Its errors have the words of the gate.
func (c *Client) call(ctx context.Context, timeout time.Duration, method string, in, out any, path ...string) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("writing a request: %w", err)
		}
		body = bytes.NewReader(text)
	}
	escaped := ""
	for _, step := range path {
		escaped += "/" + url.PathEscape(step)
	}
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(within, method, c.root.String()+escaped, body)
	if err != nil {
		return fmt.Errorf("asking %s: %w", c.root.Host, err)
	}
	r.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	r.Header.Set("User-Agent", "Wayleave")
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	late := func(err error) error {
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil: // which is no fault of the gate's
			return fmt.Errorf("asking %s: %w", c.root.Host, context.Cause(ctx))
		case within.Err() != nil:
			return passing{fmt.Errorf("the gate at %s has not answered within %v: %w; see whether it is well", c.root.Host, timeout, err)}
		}
		return nil
	}
	resp, err := c.http.Do(r)
	if err != nil {
		var withURL *url.Error
		if errors.As(err, &withURL) {
			err = withURL.Err
		}
		if over := late(err); over != nil {
			return over
		}
		return c.unreached(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if over := late(err); over != nil {
		return over
	} else if err != nil {
		return passing{fmt.Errorf("reading the answer of %s: %w", c.root.Host, err)}
	}
	if resp.StatusCode != http.StatusOK {
		return c.problem(resp, text)
	}
	if err := json.Unmarshal(text, out); err != nil {
		return c.stranger(resp)
	}
	return nil
}

// unreached says why a gate was not reached.
func (c *Client) unreached(err error) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("the certificate of %s is of an authority that this machine does not know: %w; name its file with --api-ca-file", c.root.Host, err)
	case errors.As(err, &name), errors.As(err, &invalid):
		return fmt.Errorf("the certificate of %s is not good: %w", c.root.Host, err)
	}
	return passing{fmt.Errorf("the gate at %s cannot be reached: %w; see whether it runs and has a console there", c.root.Host, err)}
}

// stranger is what answers and is no console.
func (c *Client) stranger(resp *http.Response) error {
	return fmt.Errorf("%s does not answer as a gate's console: %s; name the console's address with --api", c.root.Host, resp.Status)
}

// problem is why a gate did not do something.
func (c *Client) problem(resp *http.Response, text []byte) error {
	var p Problem
	if json.Unmarshal(text, &p) != nil || p.Error == "" {
		switch {
		case resp.StatusCode/100 == 3:
			to := "elsewhere"
			if u, err := resp.Location(); err == nil {
				to = u.Scheme + "://" + u.Host
			}
			return fmt.Errorf("%s sends its callers to %s, and a token is not sent after them; name the console's own address with --api", c.root.Host, to)
		case resp.StatusCode >= http.StatusInternalServerError: // of what stands before the gate
			return passing{c.stranger(resp)}
		}
		return c.stranger(resp)
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return fmt.Errorf("%s does not take the token: %s on the console's page Access, and it goes into WAYLEAVE_API_TOKEN or the file of --api-token-file", c.root.Host, p.Error)
	case http.StatusForbidden:
		return fmt.Errorf("%s; use a token that may, of somebody who may", p.Error)
	case http.StatusMisdirectedRequest:
		return fmt.Errorf("%s: name that address with --api", p.Error)
	case http.StatusNotFound:
		return &operate.Refusal{Kind: operate.NoSuch, Words: p.Error}
	case http.StatusConflict:
		if len(p.Objections) > 0 {
			return &operate.Objections{All: p.Objections}
		}
		return &operate.Refusal{Kind: operate.NotNow, Words: p.Error}
	case http.StatusUnprocessableEntity:
		return &operate.Refusal{Kind: operate.Misused, Words: p.Error}
	case http.StatusServiceUnavailable:
		return passing{errors.New(p.Error)}
	}
	return errors.New(p.Error)
}

// warned passes on why an answer is not all.
func (c *Client) warned(text string) {
	if text != "" && c.warn != nil {
		c.warn(text)
	}
}

// List is every grant, configured or stored.
func (c *Client) List(ctx context.Context) ([]grant.Summary, error) {
	var out Grants
	err := c.call(ctx, callTime, http.MethodGet, nil, &out, "grants")
	c.warned(out.Warning)
	return out.Grants, err
}

// Find is one grant.
func (c *Client) Find(ctx context.Context, name string) (grant.Summary, error) {
	d, err := c.Detail(ctx, name)
	c.warned(d.Warning)
	return d.Grant, err
}

// Detail is one grant, with what the configuration says of it.
func (c *Client) Detail(ctx context.Context, name string) (GrantDetail, error) {
	var d GrantDetail
	err := c.call(ctx, callTime, http.MethodGet, nil, &d, "grants", name)
	return d, err
}

// Watch is [operate.Watch] for a grant. A gate that does not answer for a while is waited out, and so is its Vault.
func (c *Client) Watch(ctx context.Context, name string, done func(grant.Summary) bool) (grant.Summary, error) {
	look := func(ctx context.Context) (grant.Summary, error) {
		d, err := c.Detail(ctx, name)
		return d.Grant, err
	}
	return operate.Watch(ctx, c.every, look, done, Passes)
}

// AskRefresh asks for a new token; the grant's request is the id when a gate has tried to get one.
func (c *Client) AskRefresh(ctx context.Context, name string) (id string, err error) {
	var d GrantDetail
	err = c.call(ctx, callTime, http.MethodPost, RefreshRequest{NoWait: true}, &d, "grants", name, "refresh")
	return d.Asked, err
}

// Disconnect is [operate.Desk.Disconnect]; waits is told when that takes a while.
func (c *Client) Disconnect(ctx context.Context, s grant.Summary, revoke bool, timeout time.Duration, waits func()) (operate.Revocation, error) {
	in := DisconnectRequest{KeepValid: !revoke, WaitSeconds: int(min(max(timeout.Round(time.Second), time.Second), longest).Seconds())}
	var out Disconnected
	done := make(chan error, 1)
	go func() {
		done <- c.call(ctx, timeout+callTime, http.MethodPost, in, &out, "grants", s.Name, "disconnect")
	}()
	long := time.NewTimer(sayAfter)
	defer long.Stop()
	for {
		select {
		case err := <-done:
			return out.Revocation, err
		case <-long.C:
			waits()
		}
	}
}

// Import stores a credential.
func (c *Client) Import(ctx context.Context, name string, data []byte) (operate.Imported, error) {
	var out operate.Imported
	err := c.call(ctx, callTime, http.MethodPost, ImportRequest{Value: string(data)}, &out, "grants", name, "import")
	var refusal *operate.Refusal
	if errors.As(err, &refusal) && refusal.Kind == operate.Misused {
		refusal.Kind = operate.Unusable // kinds of grants that take none were refused before
	}
	return out, err
}

// Sessions are those that live.
func (c *Client) Sessions(ctx context.Context) ([]worker.Live, error) {
	var out Sessions
	err := c.call(ctx, callTime, http.MethodGet, nil, &out, "sessions")
	return out.Sessions, err
}

// EndSessions ends sessions before their time.
func (c *Client) EndSessions(ctx context.Context, q operate.SessionsToEnd) (operate.SessionsEnded, error) {
	var out operate.SessionsEnded
	err := c.call(ctx, callTime, http.MethodPost, q, &out, "sessions", "revoke")
	return out, err
}

// Approvals are the requests that wait, and what became of those of the last hour.
func (c *Client) Approvals(ctx context.Context) (approval.Held, error) {
	var out Approvals
	err := c.call(ctx, callTime, http.MethodGet, nil, &out, "approvals")
	c.warned(out.Warning)
	return approval.Held{Approvals: out.Approvals, Kept: out.Kept}, err
}

// Approval is one of those.
func (c *Client) Approval(ctx context.Context, id string) (a approval.Approval, err error) {
	return a, c.call(ctx, callTime, http.MethodGet, nil, &a, "approvals", id)
}

// Rule decides about a request that waits, and waits until a gate has acted on it. Who decides is who the token is of.
func (c *Client) Rule(ctx context.Context, id string, r operate.Ruling) (a approval.Approval, err error) {
	in := DecisionRequest{Verdict: r.Verdict, Note: r.Note}
	if r.For != 0 {
		in.For = r.For.String()
	}
	err = c.call(ctx, callTime, http.MethodPost, in, &a, "approvals", id, "decide")
	return a, err
}

// Forget ends a decision that holds for later requests.
func (c *Client) Forget(ctx context.Context, id string) (k approval.Kept, err error) {
	err = c.call(ctx, callTime, http.MethodPost, nil, &k, "approvals", id, "forget")
	return k, err
}

// Rollouts is how far the rollout is, and which were before.
func (c *Client) Rollouts(ctx context.Context) (operate.Rollouts, error) {
	var out Rollouts
	err := c.call(ctx, callTime, http.MethodGet, nil, &out, "rollout")
	c.warned(out.Warning)
	return out.Rollouts, err
}

// StartRollout begins to roll a configuration out. Who starts it is who the token is of.
func (c *Client) StartRollout(ctx context.Context, q operate.RolloutRequest) (out operate.Started, err error) {
	return out, c.call(ctx, callTime, http.MethodPost, StartRequest{Text: string(q.Text), Note: q.Note, Force: q.Force}, &out, "rollout")
}

// PauseRollout keeps the rollout at its step. Who does is who the token is of, here and below.
func (c *Client) PauseRollout(ctx context.Context, _, note string) (rollout.State, error) {
	return c.lead(ctx, "pause", note)
}

// ResumeRollout lets it go on.
func (c *Client) ResumeRollout(ctx context.Context, _, note string) (rollout.State, error) {
	return c.lead(ctx, "resume", note)
}

// PromoteRollout ends it with every Envoy on the new revision.
func (c *Client) PromoteRollout(ctx context.Context, _, note string) (rollout.State, error) {
	return c.lead(ctx, "promote", note)
}

// AbortRollout ends it with every Envoy on the old one.
func (c *Client) AbortRollout(ctx context.Context, _, note string) (rollout.State, error) {
	return c.lead(ctx, "abort", note)
}

func (c *Client) lead(ctx context.Context, what, note string) (rollout.State, error) {
	var out Rollouts
	err := c.call(ctx, callTime, http.MethodPost, LeadRequest{note}, &out, "rollout", what)
	return rollout.State{Stable: out.Stable, Current: out.Current, History: out.History}, err
}

// Envoys are those of the fleet, and its gates.
func (c *Client) Envoys(ctx context.Context) (operate.Fleet, error) {
	var out Fleet
	err := c.call(ctx, callTime, http.MethodGet, nil, &out, "fleet")
	c.warned(out.Warning)
	return out.Fleet, err
}

// Envoy is one of them.
func (c *Client) Envoy(ctx context.Context, id string) (e operate.EnvoyStatus, err error) {
	return e, c.call(ctx, callTime, http.MethodGet, nil, &e, "fleet", id)
}

// Drain has an Envoy close its listeners, or open them again.
func (c *Client) Drain(ctx context.Context, q operate.DrainRequest) (rollout.State, error) {
	what := map[bool]string{true: "drain", false: "undrain"}[q.Drained]
	var out Drained
	err := c.call(ctx, callTime, http.MethodPost, DrainRequest{q.Force}, &out, "fleet", q.Envoy, what)
	return rollout.State{Drained: out.Drained}, err
}

// Revisions are the configurations that are kept, without their texts.
func (c *Client) Revisions(ctx context.Context) ([]fleet.Revision, error) {
	var out Revisions
	err := c.call(ctx, callTime, http.MethodGet, nil, &out, "revisions")
	return out.Revisions, err
}

// Revision is one of them.
func (c *Client) Revision(ctx context.Context, id string) (r fleet.Revision, err error) {
	return r, c.call(ctx, callTime, http.MethodGet, nil, &r, "revisions", id)
}

// LogLevels are how much the gate logs.
func (c *Client) LogLevels(ctx context.Context) (l LogLevels, err error) {
	return l, c.call(ctx, callTime, http.MethodGet, nil, &l, "log")
}

// SetLogLevels changes that for a while.
func (c *Client) SetLogLevels(ctx context.Context, q LogRequest) (l LogLevels, err error) {
	return l, c.call(ctx, callTime, http.MethodPut, q, &l, "log")
}

// Connect begins to connect a grant.
func (c *Client) Connect(ctx context.Context, name string, in ConnectRequest) (Flow, error) {
	var f Flow
	err := c.call(ctx, callTime, http.MethodPost, in, &f, "grants", name, "connect")
	return f, err
}

// Answer gives the answer of a consent page. A flow that waits still says why it was not taken.
func (c *Client) Answer(ctx context.Context, id, answer string) (Flow, error) {
	var f Flow
	err := c.call(ctx, callTime, http.MethodPost, AnswerRequest{Answer: answer}, &f, "connects", id, "answer")
	return f, err
}

// Await waits for the end of a flow. When ctx ends before, the flow is given up, unless it is being stored.
func (c *Client) Await(ctx context.Context, id string) (Flow, error) {
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	var ended error
	for {
		var f Flow
		err := c.call(ctx, callTime, http.MethodGet, nil, &f, "connects", id)
		switch {
		case err == nil && f.State != FlowWaiting && f.State != FlowStoring:
			return f, nil
		case err != nil && ctx.Err() == nil && !Passes(err):
			return f, err
		}
		select {
		case <-ctx.Done():
			if ended != nil {
				return Flow{}, ended
			}
			ended = context.Cause(ctx)
			f, err := c.GiveUp(ctx, id)
			switch {
			case err == nil && f.State == FlowConnected:
				return f, nil
			case err != nil || f.State != FlowStoring:
				return Flow{}, ended
			}
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
			defer cancel()
			ctx = last
		case <-tick.C:
		}
	}
}

// GiveUp ends a flow that nobody has agreed to yet. It is for when ctx has ended, too.
func (c *Client) GiveUp(ctx context.Context, id string) (Flow, error) {
	var f Flow
	err := c.call(context.WithoutCancel(ctx), endTime, http.MethodDelete, nil, &f, "connects", id)
	return f, err
}
