package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/hashicorp/vault/api"
)

// status returns the HTTP status of the server's refusal, 0 when err is none, or somebody else's: a proxy's on the way.
func status(err error) int {
	var refused *api.ResponseError
	if errors.As(err, &refused) && !refused.RawError {
		return refused.StatusCode
	}
	return 0
}

// tokenEnded reports whether a refusal is of the token itself: OpenBao says so in these two words, Vault adds that the
// token is invalid, and where we ask what we may do both answer so with 400. A policy's refusal comes as a list of errors.
func tokenEnded(err error) bool {
	var refused *api.ResponseError
	if !errors.As(err, &refused) {
		return false
	}
	text := said(refused)
	switch status(err) {
	case http.StatusForbidden:
		return text == "permission denied" || strings.Contains(text, "invalid token")
	case http.StatusBadRequest:
		return strings.HasSuffix(text, "invalid token")
	}
	return false
}

// explain turns what the API client returned into one of the four failures, or a plain error that says what to do.
// The capability and path name what a policy must grant.
func explain(capability, path string, err error) error {
	if err == nil {
		return nil
	}
	for _, already := range []error{ErrNotFound, ErrConflict, ErrDenied, ErrUnavailable} {
		if errors.Is(err, already) {
			return err
		}
	}
	var refused *api.ResponseError
	if !errors.As(err, &refused) {
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("%w: no answer in time for %s: %w", ErrUnavailable, path, err)
		}
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	text := said(refused)
	switch code := refused.StatusCode; {
	case refused.RawError:
		return fmt.Errorf("%w: %d on %s is not the server's own answer, but of something on the way to it: %s", ErrUnavailable, code, path, text)
	case tokenEnded(err):
		return fmt.Errorf("%w: the server does not accept our token any longer, for %q on %s: see who revokes it, or whether its role limits it by token_num_uses or token_bound_cidrs: %s",
			ErrDenied, capability, path, text)
	case code == http.StatusForbidden:
		return fmt.Errorf("%w: the policy must grant %q on %s (run `wayleave vault setup`): %s", ErrDenied, capability, path, text)
	case code == http.StatusBadRequest && strings.Contains(text, "check-and-set parameter did not match"):
		return ErrConflict
	case code == http.StatusNotFound && strings.Contains(text, "namespace not found"):
		return fmt.Errorf("there is no such namespace: name another in vault.namespace, or have it made: %s", text)
	case code == http.StatusNotFound && text != "":
		return fmt.Errorf("there is nothing mounted for %s (run `wayleave vault setup`, or check mount and namespace): %s", path, text)
	case code == http.StatusNotFound:
		return ErrNotFound
	case code == http.StatusBadRequest && strings.Contains(text, "Upgrading from non-versioned"): // for a moment, after the mount was made
		return fmt.Errorf("%w: %d on %s: %s", ErrUnavailable, code, path, text)
	case code >= 500, code == 472, code == 473, code == http.StatusTooManyRequests, code == http.StatusPreconditionFailed: // 472, 473: nodes that do not serve
		return fmt.Errorf("%w: %d on %s: %s", ErrUnavailable, code, path, text)
	default:
		return fmt.Errorf("%d on %s: %s", code, path, text)
	}
}

// said is the server's own words on one line. They never repeat what we sent. An answer that is not Vault's (a proxy's
// page) is cut short.
func said(r *api.ResponseError) string {
	text := strings.Join(strings.Fields(strings.Join(r.Errors, " ")), " ")
	const enough = 200
	if r.RawError && len(text) > enough {
		text = text[:enough] + "…"
	}
	return text
}
