package oauth

import (
	"context"
	"net/url"
	"strings"

	"wayleave/secret"
)

// The device flow of OpenAI's Codex CLI resembles RFC 8628 and speaks another dialect:
//
//	POST device_url (…/usercode)   {client_id}                    → {device_auth_id, user_code, interval}
//	POST its sibling …/token       {device_auth_id, user_code}    → 403 or 404 while nobody has agreed, then
//	                                                                {authorization_code, code_verifier}
//	POST token_url                 the code exchange, with device_redirect_url and a verifier that the server made

// CodexPollURL returns the sibling of a codex device_url that is asked until the operator has agreed.
func CodexPollURL(deviceURL string) string {
	u, err := url.Parse(deviceURL)
	if err != nil {
		return ""
	}
	return u.JoinPath("..", "token").String()
}

// codexDevice fills in what this dialect names otherwise, or not at all.
func (c Config) codexDevice(f fields, d *Device) {
	d.code = secret.New(f.text("device_auth_id"))
	if d.UserCode == "" {
		d.UserCode = f.text("usercode")
	}
	d.VerificationURL, d.VerificationURLComplete = c.DeviceVerificationURL, ""
}

func (c *Client) awaitCodex(ctx context.Context, d Device) (Token, error) {
	anonymous := *c // the poll names no client
	anonymous.cfg.ClientID, anonymous.cfg.AuthStyle = "", AuthNone
	at := place{"device endpoint", "device_url", CodexPollURL(c.cfg.DeviceURL)}
	var code, verifier secret.Text
	err := c.await(ctx, d, func(ctx context.Context) error {
		params := map[string]string{"device_auth_id": d.code.Reveal(), "user_code": d.UserCode}
		a, fail := anonymous.post(ctx, at, FormatJSON, params)
		if fail == nil {
			code, verifier, fail = c.cfg.readCodex(a, secretsOf(params, c.cfg))
		}
		if fail != nil {
			return fail
		}
		return nil
	})
	if err != nil {
		return Token{}, err
	}
	last, cancel := outlasting(ctx)
	defer cancel()
	return c.Exchange(last, code, "", PKCE{Verifier: verifier}, c.cfg.DeviceRedirectURL)
}

// readCodex reads one answer of the poll. Until the operator agrees its error code is authorization_pending, as in RFC
// 8628.
func (c Config) readCodex(a answer, sent []string) (code, verifier secret.Text, fail *Error) {
	if a.status/100 != 2 {
		fail = c.failure(a, sent)
		if (a.status == 403 || a.status == 404) && fail.Code != "access_denied" && fail.Code != "expired_token" {
			fail.Code = "authorization_pending"
		}
		return code, verifier, fail
	}
	f := object(a.body)
	text, proof := f.text("authorization_code"), f.text("code_verifier")
	if a.fault != nil || text == "" || proof == "" || !isToken(text) || strings.TrimSpace(proof) != proof {
		return code, verifier, &Error{Outcome: Unknown, Status: a.status, Err: errNoDeviceCode, Hint: "start again; if it lasts, the provider changed", at: a.at}
	}
	return secret.New(text), secret.New(proof), nil
}
