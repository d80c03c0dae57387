package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/api"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// adminTimeout bounds one call of Setup: generating a key or mounting an engine may take a busy server seconds.
const adminTimeout = 30 * time.Second

// call runs f with the current log-in, and again with a newer one as long as the server refuses the token and there is
// one: an operator who revokes tokens may hit the newest too.
func (c *Client) call(ctx context.Context, timeout time.Duration, capability, path string, f func(context.Context, *api.Client) error) (failed error) {
	if c.cfg.Called != nil {
		began := time.Now()
		defer func() { c.cfg.Called(Call{capability, time.Since(began), failed}) }()
	}
	if c.cfg.Tracer != nil && trace.SpanContextFromContext(ctx).IsSampled() {
		var span trace.Span
		ctx, span = c.cfg.Tracer.Start(ctx, "vault "+capability, trace.WithSpanKind(trace.SpanKindClient))
		defer func() { ended(span, failed) }()
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	current := c.login.Load()
	err := f(ctx, current.api)
	for range healsToken {
		if status(err) != http.StatusForbidden && !tokenEnded(err) {
			break
		}
		newer, healErr := c.heal(ctx, current, err)
		if healErr != nil {
			return healErr
		}
		if !newer {
			break
		}
		current = c.login.Load()
		err = f(ctx, current.api)
	}
	return explain(capability, path, err)
}

// ended ends the span of a call. What a server says is not shown, only which kind of failure it is.
func ended(span trace.Span, err error) {
	switch {
	case err == nil:
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrConflict): // answers like any other
		span.SetAttributes(attribute.String("wayleave.outcome", kindOf(err).Error()))
	default:
		span.SetStatus(codes.Error, kindOf(err).Error())
	}
	span.End()
}

var errOther = errors.New("failed")

// kindOf is which of the four failures err is.
func kindOf(err error) error {
	for _, kind := range []error{ErrNotFound, ErrConflict, ErrDenied, ErrUnavailable} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return errOther
}

// read decodes the answer to a GET into out. A 404 decodes too if it has data: that is how a deleted version looks.
func (c *Client) read(ctx context.Context, path string, out any) error {
	return c.get(ctx, "read", path, nil, out)
}

func (c *Client) list(ctx context.Context, path string, out any) error {
	return c.get(ctx, "list", path, map[string][]string{"list": {"true"}}, out)
}

func (c *Client) get(ctx context.Context, capability, path string, query map[string][]string, out any) error {
	return c.call(ctx, callTimeout, capability, path, func(ctx context.Context, a *api.Client) error {
		resp, err := a.Logical().ReadRawWithDataWithContext(ctx, path, query)
		if resp == nil {
			return err
		}
		defer resp.Body.Close()
		if err == nil || resp.StatusCode == http.StatusNotFound {
			if decodeErr := json.NewDecoder(resp.Body).Decode(out); decodeErr != nil && err == nil {
				return fmt.Errorf("decoding the answer for %s: %w", path, decodeErr)
			}
		}
		return err
	})
}

// write sends body and decodes the answer's data into out, which may be nil.
func (c *Client) write(ctx context.Context, timeout time.Duration, path string, body, out any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encoding the request for %s: %w", path, err)
	}
	return c.call(ctx, timeout, "update", path, func(ctx context.Context, a *api.Client) error {
		s, err := a.Logical().WriteBytesWithContext(ctx, path, raw)
		if err != nil || out == nil || s == nil {
			return err
		}
		data, err := json.Marshal(s.Data)
		if err != nil {
			return fmt.Errorf("decoding the answer for %s: %w", path, err)
		}
		return json.Unmarshal(data, out)
	})
}

// remove deletes what is at path. Where nothing is, it is no error.
func (c *Client) remove(ctx context.Context, timeout time.Duration, path string) error {
	err := c.call(ctx, timeout, "delete", path, func(ctx context.Context, a *api.Client) error {
		_, err := a.Logical().DeleteWithContext(ctx, path)
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
