package oauth

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"

	"wayleave/secret"
)

// Limits of the device flow.
const (
	defaultInterval = 5 * time.Second // RFC 8628 §3.2
	slowDown        = 5 * time.Second // RFC 8628 §3.5
	shortestPoll    = time.Second
	longestPoll     = 5 * time.Minute
	longestRetry    = 30 * time.Second // between polls that fail
	defaultDevice   = 15 * time.Minute // life of a code whose answer names none
	longestDevice   = time.Hour
	longestUserCode = 64
	longestURL      = 2048

	// lastAnswer is how long an answer is waited for that is under way when nobody waits any more: it may hold the only tokens.
	lastAnswer = 10 * time.Second
)

// Device is a login that waits for an operator (RFC 8628 §3.2).
type Device struct {
	// UserCode is what the operator types at VerificationURL. Printable.
	UserCode string
	// VerificationURL is the page to open, in any browser.
	VerificationURL string
	// VerificationURLComplete is the same with the code filled in; empty when the provider has none.
	VerificationURLComplete string
	// Expires is when the code ends.
	Expires time.Time

	code     secret.Text
	interval time.Duration
}

var errNoDeviceCode = errors.New("the answer has no usable code and verification address")

// StartDevice begins a login at the device endpoint (RFC 8628 §3.1). A failure is an *Error; there was nothing that could
// be spent.
func (c *Client) StartDevice(ctx context.Context, scopes []string) (Device, error) {
	c = c.fresh()
	at := place{"device endpoint", "device_url", c.cfg.DeviceURL}
	if f := endpointFault(c.cfg.TokenURL, c.cfg.AllowInsecure); f != "" { // AwaitDevice would try until the code expires
		return Device{}, notSent(c.tokenEndpoint(), errors.New("the endpoint "+f), "correct the provider's endpoints")
	}
	params, format := map[string]string{}, FormatForm
	if c.cfg.DeviceFlow == DeviceCodex {
		format = FormatJSON
	} else {
		c.aim(params)
		if len(scopes) > 0 {
			params["scope"] = strings.Join(scopes, " ") // also where answers have commas, as GitHub's
		}
	}
	a, fail := c.post(ctx, at, format, params)
	if fail != nil {
		return Device{}, fail
	}
	d, fail := c.cfg.readDevice(a, secretsOf(params, c.cfg))
	if fail != nil {
		return Device{}, fail
	}
	return d, nil
}

// readDevice reads the answer of the device endpoint.
func (c Config) readDevice(a answer, sent []string) (Device, *Error) {
	if a.status/100 != 2 {
		return Device{}, c.failure(a, sent)
	}
	if a.fault != nil {
		return Device{}, &Error{Outcome: Unknown, Err: a.fault, Hint: "start again", at: a.at}
	}
	f := object(a.body)
	if f == nil {
		return Device{}, &Error{Outcome: Unknown, Status: a.status, Err: errNotJSON, Hint: "the provider changed? check device_url and device_flow", at: a.at}
	}
	if f["error"] != nil && f.text("user_code") == "" { // with status 200
		return Device{}, c.failure(a, sent)
	}
	d := Device{
		UserCode:                f.text("user_code"),
		VerificationURL:         f.text("verification_uri"),
		VerificationURLComplete: f.text("verification_uri_complete"),
		Expires:                 a.sent.Add(span(f, "expires_in", defaultDevice, longestDevice)),
		interval:                max(span(f, "interval", defaultInterval, longestPoll), shortestPoll),
		code:                    secret.New(f.text("device_code")),
	}
	if d.VerificationURL == "" {
		d.VerificationURL = f.text("verification_url") // as before RFC 8628
	}
	if c.DeviceFlow == DeviceCodex {
		c.codexDevice(f, &d)
	}
	if !isPage(d.VerificationURLComplete, c.AllowInsecure) {
		d.VerificationURLComplete = ""
	}
	if d.code.IsZero() || !isShown(d.UserCode, longestUserCode) || !isPage(d.VerificationURL, c.AllowInsecure) {
		return Device{}, &Error{Outcome: Unknown, Status: a.status, Err: errNoDeviceCode, Hint: "the provider changed? check device_url and device_flow", at: a.at}
	}
	return d, nil
}

// AwaitDevice asks the provider until the operator has agreed, and returns the tokens. It ends with an *Error when the
// operator refused (then it is ErrDenied too), when the code has expired, or when the answer is one that waiting does
// not mend; and with the error of ctx, when what was asked last is answered or ten seconds are over. Network failures and
// failures of the provider's are waited out; should such a failure have cost the answer that had the tokens, the next one
// is a refusal, and only a new login helps.
func (c *Client) AwaitDevice(ctx context.Context, d Device) (Token, error) {
	c = c.fresh()
	if c.cfg.DeviceFlow == DeviceCodex {
		return c.awaitCodex(ctx, d)
	}
	var tok Token
	err := c.await(ctx, d, func(ctx context.Context) (err error) {
		params := map[string]string{"grant_type": grantDeviceCode, "device_code": d.code.Reveal()}
		c.aim(params)
		tok, err = c.token(ctx, params)
		return err
	})
	return tok, err
}

// await polls until poll has what it wants, or waiting is of no use.
func (c *Client) await(ctx context.Context, d Device, poll func(context.Context) error) error {
	last, cancel := outlasting(ctx)
	defer cancel()
	asked := d.interval // between two polls, at least, as the provider wants it
	for wait := asked; ; {
		if err := pause(ctx, wait); err != nil {
			return err
		}
		if !c.now().Before(d.Expires) {
			return &Error{Outcome: Refused, Code: "expired_token", Hint: "nobody agreed in time: start again", at: c.tokenEndpoint()}
		}
		err := poll(last)
		e, failed := errors.AsType[*Error](err)
		if !failed {
			return err
		}
		var again bool
		if asked, wait, again = nextPoll(e, asked, wait); !again {
			if e.Code == "access_denied" {
				e.Err = ErrDenied
			}
			return err
		}
		// What was agreed to while polls failed is to be had once more before the code ends.
		wait = max(asked, min(wait, d.Expires.Sub(c.now())-time.Second))
	}
}

// nextPoll says whether to ask again after e, how long the provider wants polls apart from now on, and how long to wait before this one
// (RFC 8628 §3.5). Failures that are over slow nothing down.
func nextPoll(e *Error, asked, waited time.Duration) (next, wait time.Duration, again bool) {
	switch {
	case e.Code == "authorization_pending":
		wait = asked
	case e.Code == "slow_down":
		asked += slowDown
		wait = asked
	case e.Status == 429:
		asked += slowDown
		wait = max(asked, e.RetryAfter)
	case e.Outcome == NotSent, e.Outcome == Unknown && e.Kind() != KindBadAnswer:
		wait = max(asked, min(2*waited, longestRetry), e.RetryAfter)
	default:
		return 0, 0, false
	}
	return min(asked, longestPoll), min(wait, longestPoll), true
}

// outlasting is ctx for a call whose answer can be had once only.
func outlasting(ctx context.Context) (call context.Context, cancel context.CancelFunc) {
	call, end := context.WithCancel(context.WithoutCancel(ctx))
	late := context.AfterFunc(ctx, func() { time.AfterFunc(lastAnswer, end) })
	return call, func() { late(); end() }
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the operator's consent: %w", context.Cause(ctx))
	}
}

// span reads a number of seconds above zero, at most longest.
func span(f fields, key string, def, longest time.Duration) time.Duration {
	seconds, ok := f.number(key)
	if !ok || seconds <= 0 {
		return def
	}
	return time.Duration(min(seconds, longest.Seconds()) * float64(time.Second))
}

// isShown reports whether s may be shown on a terminal as it is.
func isShown(s string, longest int) bool {
	return s != "" && len(s) <= longest && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar })
}

// isPage reports whether s is an address that an operator may be sent to.
func isPage(s string, allowInsecure bool) bool {
	u, err := url.Parse(s)
	return err == nil && isShown(s, longestURL) && isHost(u.Hostname()) && endpointFault(s, allowInsecure) == ""
}
