// Package webhook owns how a gate calls an address of the operators' with a signed message, by the Standard Webhooks
// specification (standardwebhooks.com). What is in a message, and whether it is tried again, is its caller's.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"wayleave/loopback"
	"wayleave/secret"
)

const (
	callTime  = 10 * time.Second
	maxAnswer = 64 << 10 // bytes

	minKey, maxKey = 24, 64 // bytes, as the specification has them
)

// Key signs messages.
type Key struct{ bytes []byte }

// String implements fmt.Stringer. It tells nothing.
func (Key) String() string { return "[redacted]" }

// GoString implements fmt.GoStringer. It tells nothing.
func (Key) GoString() string { return "[redacted]" }

// ParseKey reads a key as it is handed out: whsec_ and 24 to 64 bytes in base64. The prefix may be missing.
func ParseKey(s secret.Text) (Key, error) {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s.Reveal(), "whsec_"))
	if err != nil || len(raw) < minKey || len(raw) > maxKey {
		return Key{}, fmt.Errorf("is no key of a webhook: that is whsec_ and %d to %d bytes in base64; make one with: echo whsec_$(openssl rand -base64 32)", minKey, maxKey)
	}
	return Key{raw}, nil
}

// sign is the header webhook-signature of a message.
func (k Key) sign(id string, at time.Time, body []byte) string {
	mac := hmac.New(sha256.New, k.bytes)
	fmt.Fprintf(mac, "%s.%d.", id, at.Unix())
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// CheckURL says what is wrong with an address to call; nil when nothing is. It must be https, but for loopback.
func CheckURL(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
		return errors.New("is no https URL") // and may hold a secret
	}
	if u.Scheme == "http" && !loopback.Host(u.Hostname()) {
		return errors.New("is an http URL beyond this machine; use https, so that nobody reads or changes what is sent")
	}
	return nil
}

// Client calls one address.
type Client struct {
	url  secret.Text // addresses of chat services are secrets
	key  Key
	http *http.Client
	now  func() time.Time
}

// New returns a Client. Without a key its messages are not signed. client must not follow redirects. now is time.Now when it is
// nil.
func New(address secret.Text, key Key, client *http.Client, now func() time.Time) *Client {
	if now == nil {
		now = time.Now
	}
	return &Client{url: address, key: key, http: client, now: now}
}

// StatusError is an answer that says that the message was not taken.
type StatusError struct {
	Code int
	// RetryAfter is how long the server wants to be left alone; 0: it does not say.
	RetryAfter time.Duration
}

// Error implements error.
func (e *StatusError) Error() string {
	return fmt.Sprintf("the server answered %d %s", e.Code, http.StatusText(e.Code))
}

// Post sends message as JSON and returns the answer's body when its status is 2xx. id is the same when a message is sent again,
// so that it is acted on once. An error never holds the address.
func (c *Client) Post(ctx context.Context, id string, message any) ([]byte, error) {
	body, err := json.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("writing the message: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url.Reveal(), bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("the address is no URL")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "Wayleave")
	if at := c.now(); c.key.bytes != nil {
		req.Header.Set("Webhook-Id", id)
		req.Header.Set("Webhook-Timestamp", strconv.FormatInt(at.Unix(), 10))
		req.Header.Set("Webhook-Signature", c.key.sign(id, at, body))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var withURL *url.Error
		if errors.As(err, &withURL) {
			err = withURL.Err
		}
		return nil, fmt.Errorf("calling %s: %w", req.URL.Host, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", req.URL.Host, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("calling %s: %w", req.URL.Host, &StatusError{resp.StatusCode, retryAfter(resp.Header.Get("Retry-After"), c.now())})
	}
	return answer, nil
}

// retryAfter reads seconds or a date (RFC 9110 section 10.2.3).
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil {
		return time.Duration(max(0, seconds)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
