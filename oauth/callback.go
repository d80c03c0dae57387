package oauth

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"wayleave/secret"
)

// Reasons why a callback is not accepted.
var (
	// ErrStateMismatch: the answer does not belong to the authorization we began.
	ErrStateMismatch = errors.New("the answer's state is not the one of this login: start again and use the newest browser tab")
	// ErrIssuerMismatch: another authorization server than ours answered (RFC 9207 §2.4).
	ErrIssuerMismatch = errors.New("the answer comes from another authorization server than the configured issuer: start again, and check issuer")
	// ErrNoCode: what was pasted holds no usable code.
	ErrNoCode = errors.New("no usable authorization code in the answer: paste the whole address the browser ended at, or the code it showed")
	// ErrDenied: the operator or the provider refused (RFC 6749 §4.1.2.1); asking again for this login is of no use.
	ErrDenied = errors.New("the provider did not authorize us")
)

// maxCallback bounds what is looked at; codes are a few hundred bytes.
const maxCallback = 16 << 10

// ParseCallback finds the authorization code in what an operator pasted or a loopback callback received: a full address
// with code in its query or fragment, a bare query, the form code#state that some providers display, or the code alone.
//
// Where the form carries a state it must be wantState. A code alone carries none and is accepted: PKCE binds the code to
// our verifier, so a code from somebody else's login fails at the exchange. Where it carries iss, and Config.Issuer is not
// empty, the two must be the same (RFC 9207 §2.4). An error=… answer is ErrDenied; its text is not repeated, except the
// error code.
func (c *Client) ParseCallback(pasted, wantState string) (secret.Text, error) {
	return parseCallback(pasted, wantState, c.cfg.Issuer)
}

func parseCallback(pasted, wantState, wantIssuer string) (secret.Text, error) {
	s := strings.Trim(strings.TrimSpace(pasted), `"'`)
	if s == "" || len(s) > maxCallback {
		return secret.Text{}, ErrNoCode
	}
	query, fragment, isQuery := splitCallback(s)
	if !isQuery {
		code, state, hasState := strings.Cut(s, "#")
		if hasState && !sameState(state, wantState) {
			return secret.Text{}, ErrStateMismatch
		}
		return usableCode(code)
	}

	values, err := url.ParseQuery(query)
	if err != nil || len(values["code"]) > 1 || len(values["state"]) > 1 || len(values["error"]) > 1 || len(values["iss"]) > 1 {
		return secret.Text{}, ErrNoCode
	}
	state := values.Get("state")
	if !values.Has("state") {
		state = fragment // address?code=…#state
	}
	foreign := wantIssuer != "" && values.Has("iss") && values.Get("iss") != wantIssuer
	if values.Has("error") {
		if state != "" && !sameState(state, wantState) {
			return secret.Text{}, ErrStateMismatch
		}
		if foreign {
			return secret.Text{}, ErrIssuerMismatch
		}
		code := values.Get("error")
		if !isErrorCode(code) {
			code = "an error without a readable code"
		}
		return secret.Text{}, fmt.Errorf("%w: %s: start again and approve, or check client_id, redirect_url and scopes", ErrDenied, code)
	}
	if !values.Has("code") {
		return secret.Text{}, ErrNoCode
	}
	if !sameState(state, wantState) {
		return secret.Text{}, ErrStateMismatch
	}
	if foreign {
		return secret.Text{}, ErrIssuerMismatch
	}
	return usableCode(values.Get("code"))
}

// splitCallback separates the query from the rest of an address, or says that s is no address and no query.
func splitCallback(s string) (query, fragment string, ok bool) {
	before, after, _ := strings.Cut(s, "#")
	if isAnswerQuery(after) { // response_mode=fragment
		return after, "", true
	}
	if _, q, found := strings.Cut(before, "?"); found {
		return q, after, true
	}
	if isAnswerQuery(before) {
		return before, after, true
	}
	return "", "", strings.Contains(before, "://") || strings.HasPrefix(before, "/")
}

// isAnswerQuery tells a query from a code, which may contain "=" too.
func isAnswerQuery(s string) bool {
	for _, name := range []string{"code=", "error=", "state="} {
		if strings.HasPrefix(s, name) {
			return true
		}
	}
	return strings.Contains(s, "&code=") || strings.Contains(s, "&error=")
}

func sameState(got, want string) bool {
	return subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1
}

func usableCode(code string) (secret.Text, error) {
	if code == "" || !isToken(code) {
		return secret.Text{}, ErrNoCode
	}
	return secret.New(code), nil
}
