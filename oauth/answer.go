package oauth

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"wayleave/secret"
)

// Limits on what an answer can make us believe.
const (
	shortestLife  = time.Minute // for an expires_in below a second: such a token is used, and nothing spins
	longestLife   = 365 * 24 * time.Hour
	longestWait   = 24 * time.Hour
	longestLabel  = 200 // bytes of an account name
	longestCode   = 64  // bytes of an error code
	shortestClash = 8   // bytes of an error code that count as a piece of a secret
)

// fields is a JSON object whose values are looked at one by one: names match exactly, and a value of an unexpected type
// counts as absent rather than spoiling the rest.
type fields map[string]json.RawMessage

// object reads a JSON object; nil when data is something else. A byte order mark before it, which RFC 8259 §8.1 lets a
// reader ignore, some servers write.
func object(data []byte) fields {
	var f fields
	if json.Unmarshal(bytes.TrimPrefix(data, []byte("\ufeff")), &f) != nil {
		return nil
	}
	return f
}

// parameters reads the body of an answer: a JSON object, or the form that some providers answer with, whatever type they say
// it has. Nil when it is neither. A page that mentions a parameter is no form.
func parameters(body []byte) fields {
	if f := object(body); f != nil {
		return f
	}
	text := strings.TrimSpace(string(body))
	values, err := url.ParseQuery(text)
	if err != nil || !isToken(text) || strings.ContainsAny(text, `<>"{}`) || !values.Has("access_token") && !values.Has("error") {
		return nil
	}
	f := fields{}
	for key := range values {
		f[key], _ = json.Marshal(values.Get(key))
	}
	return f
}

// tokens is the object that holds the tokens: f itself, or one in it, as Slack answers for a person (beside a token of an
// app's own, which then has no scopes) and others do always.
func (f fields) tokens() fields {
	for _, key := range []string{"authed_user", "data"} {
		if in := f.object(key); in.text("access_token") != "" && (f.text("access_token") == "" || string(f["scope"]) == `""` && in.text("scope") != "") {
			return in
		}
	}
	return f
}

func (f fields) text(key string) string {
	var s string
	if json.Unmarshal(f[key], &s) != nil {
		return ""
	}
	return s
}

// list reads an array of strings; anything else in it is left out.
func (f fields) list(key string) []string {
	var raw []json.RawMessage
	if json.Unmarshal(f[key], &raw) != nil {
		return nil
	}
	var list []string
	for i := range raw {
		var s string
		if json.Unmarshal(raw[i], &s) == nil && s != "" {
			list = append(list, s)
		}
	}
	return list
}

// number reads a number that some providers send as a string.
func (f fields) number(key string) (float64, bool) {
	raw := f.text(key)
	if raw == "" {
		raw = string(f[key])
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(raw), 64)
	return n, err == nil && !math.IsNaN(n) || math.IsInf(n, 0)
}

func (f fields) object(key string) fields { return object(f[key]) }

// read turns an answer into a Token or an Error. sent are the secrets of the request.
func (c Config) read(a answer, sent []string) (Token, *Error) {
	if a.status/100 != 2 {
		return Token{}, c.failure(a, sent)
	}
	if a.fault != nil {
		return Token{}, &Error{Outcome: Unknown, Err: a.fault, Hint: hintUnknown, at: a.at}
	}
	f := parameters(a.body).tokens()
	unusable := func(err error, hint string) (Token, *Error) {
		return Token{}, &Error{Outcome: Unknown, Status: a.status, Rotated: secret.New(f.text("refresh_token")), Err: err, Hint: hint, at: a.at}
	}
	if f == nil {
		return unusable(errNotJSON, "something else than the token endpoint answered, or the provider changed: check token_url")
	}
	access := f.text("access_token")
	if access == "" {
		// Some providers report errors with status 200.
		if raw := string(f["error"]); raw != "" && raw != "null" || string(f["ok"]) == "false" || c.code(f, sent) != "" {
			return Token{}, c.failure(a, sent)
		}
		if f.text("id_token") != "" {
			return unusable(errNoToken, "there is only an identity token: add a scope of the API to those asked for, or set resource")
		}
		return unusable(errNoToken, "the provider changed? check token_url and token_format")
	}
	if !isToken(access) {
		return unusable(errBadToken, "it was not used; connect again if this lasts")
	}
	if t := f.text("issued_token_type"); t != "" && t != tokenTypeAccess && t != tokenTypeJWT { // RFC 8693 §2.2.1
		return unusable(errNoBearer, "the provider exchanges for another kind of token: check audience, resource and token_params")
	}
	// A refresh token may hold anything: it travels in bodies, encoded.
	tok := Token{Access: secret.New(access), Refresh: secret.New(f.text("refresh_token")), Account: account(f)}
	tok.Expiry, tok.RefreshExpiry = c.expiry(f, a, &tok.Notes), refreshExpiry(f, a.sent)
	tok.Scopes = c.scopes(f, &tok.Notes)
	tok.Facts = c.facts(f)
	if t := f.text("token_type"); t != "" && !strings.EqualFold(t, "bearer") {
		tok.Notes = append(tok.Notes, "token_type is not bearer; it is used as a bearer token")
	}
	return tok, nil
}

// failure judges an answer that is not a success. Only a parsed code in a 400, 401, 403 (Auth0's) or 2xx answer can say
// that the grant is invalid; a 5xx proves nothing, whatever its body says.
func (c Config) failure(a answer, sent []string) *Error {
	e := &Error{Outcome: Refused, Status: a.status, RetryAfter: retryAfter(a.header, a.there()), at: a.at}
	if a.status >= 500 || a.status == http.StatusRequestTimeout || a.status == http.StatusConflict {
		e.Outcome = Unknown
	} else if a.fault == nil {
		f := parameters(a.body)
		e.Code = c.code(f, sent)
		for _, key := range []string{"code", "status"} { // HubSpot's name for it, and others'
			if s := f.text(key); e.Code == "" && a.status/100 == 4 && (strings.Contains(s, "_") || c.ErrorCodes[s] != "") {
				e.Code = c.code(fields{"error": f[key]}, sent)
			}
		}
	}
	if e.Code == "server_error" || e.Code == "temporarily_unavailable" {
		e.Outcome = Unknown // a failure of the provider's, under whatever status
	}
	definite := a.status == http.StatusBadRequest || a.status == http.StatusUnauthorized || a.status == http.StatusForbidden || a.status/100 == 2
	if definite && e.Code == "invalid_grant" {
		e.Outcome = InvalidGrant
	}
	e.Hint = c.hint(a.at.key, a.status, e.Code)
	return e
}

// code finds the error code of an answer: error (RFC 6749 §5.2), also with a text after it, error.code, error.type,
// error_code, errors[0].errorType or errors[0].code. What does not look like a code, or could be a piece of what we sent, is
// not repeated. RFC 6749's own codes are known in any letter case.
func (c Config) code(f fields, sent []string) string {
	var list []json.RawMessage
	var first fields
	if json.Unmarshal(f["errors"], &list) == nil && len(list) > 0 {
		first = object(list[0])
	}
	object := f.object("error")
	code := cmp.Or(f.text("error"), object.text("code"), object.text("type"), f.text("error_code"), first.text("errorType"), first.text("code"))
	if rfc, ok := c.ErrorCodes[code]; ok {
		return rfc
	}
	code, _, _ = strings.Cut(code, ":")
	if rfc, ok := c.ErrorCodes[code]; ok {
		return rfc
	}
	if rfc, ok := synonyms[code]; ok {
		return rfc
	}
	if rfc := strings.ToLower(code); slices.Contains(errorCodes, rfc) {
		return rfc
	}
	if !isErrorCode(code) {
		return ""
	}
	for _, s := range sent {
		if strings.Contains(code, s) || len(code) >= shortestClash && strings.Contains(s, code) {
			return ""
		}
	}
	return code
}

// synonyms are Microsoft's names, from before RFC 8628.
var synonyms = map[string]string{"authorization_declined": "access_denied", "code_expired": "expired_token"}

// isErrorCode is narrower than RFC 6749 §5.2 allows, and as wide as codes in use are. A word with capitals is none: some servers write
// the reason phrase of the status.
func isErrorCode(s string) bool {
	if strings.Contains(s, "_") {
		s = strings.ToLower(s)
	}
	return s != "" && len(s) <= longestCode && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_'
	})
}

// isToken reports whether s can stand in a header as it is: visible ASCII only. The empty string can.
func isToken(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// there is the time at the provider when it answered, as far as it told; by our clock otherwise.
func (a answer) there() time.Time {
	if t, err := http.ParseTime(a.header.Get("Date")); err == nil {
		return t
	}
	return a.sent
}

// until reads a point in time, seconds or milliseconds since 1970 or RFC 3339, as the seconds that are left at now.
func (f fields) until(key string, now time.Time) (float64, bool) {
	if at, err := time.Parse(time.RFC3339, f.text(key)); err == nil {
		return at.Sub(now).Seconds(), true
	}
	at, ok := f.number(key)
	if at > 1e11 { // seconds of the year 5138
		at /= 1000
	}
	return at - float64(now.Unix()), ok && at > 1e9 // 2001: less is no point in time
}

// expiry reads expires_in, or where there is none, what some providers say in its place: the time of the end.
func (c Config) expiry(f fields, a answer, notes *[]string) time.Time {
	sent := a.sent
	seconds, ok := f.number("expires_in")
	if left, is := f.until("expires_in", a.there()); is && left > 0 && left <= longestLife.Seconds() {
		seconds = left
		*notes = append(*notes, "expires_in is a point in time; taken as that")
	}
	for _, key := range []string{"expires_at", "expires_on"} {
		if !ok {
			seconds, ok = f.until(key, a.there())
		}
	}
	switch {
	case !ok:
		if c.DefaultTTL > 0 {
			return sent.Add(c.DefaultTTL)
		}
		return time.Time{}
	case seconds < 1:
		*notes = append(*notes, "the token lives for less than a second; it is used for a minute")
		return sent.Add(shortestLife)
	case seconds > longestLife.Seconds():
		*notes = append(*notes, "the token lives for more than a year; taken as a year")
		return sent.Add(longestLife)
	}
	return sent.Add(time.Duration(seconds * float64(time.Second)))
}

// refreshExpiry reads the life of the refresh token: GitHub's and Microsoft's name, Keycloak's, Intuit's. 0 is for ever.
func refreshExpiry(f fields, sent time.Time) time.Time {
	for _, key := range []string{"refresh_token_expires_in", "refresh_expires_in", "x_refresh_token_expires_in"} {
		if seconds, ok := f.number(key); ok && seconds >= 1 && seconds <= longestLife.Seconds() {
			return sent.Add(time.Duration(seconds * float64(time.Second)))
		}
	}
	return time.Time{}
}

// scopes reads scope, which some call scopes, a list in one string or an array. Absent and empty both mean unchanged: an empty string is no
// scope value (RFC 6749 §3.3), so it cannot mean "no scopes".
func (c Config) scopes(f fields, notes *[]string) []string {
	raw, has := f["scope"]
	if !has {
		raw, has = f["scopes"]
	}
	if !has || string(raw) == "null" {
		return nil
	}
	var list string
	_ = json.Unmarshal(raw, &list) // an array: below
	if list == "" {
		var parts []string
		if json.Unmarshal(raw, &parts) == nil {
			list = strings.Join(parts, " ")
		}
	}
	scopes, dropped := splitScopes(list, c.ScopeSeparator)
	if scopes == nil {
		*notes = append(*notes, "scope is present but empty; taken as unchanged")
	}
	if dropped > 0 {
		*notes = append(*notes, "scope holds values with characters that RFC 6749 does not allow; they are not counted as granted")
	}
	return scopes
}

// account names the consenting account: the provider's own field, else the identity token's e-mail or subject. The
// identity token came straight from the token endpoint over TLS, which OpenID Connect Core §3.1.3.7 accepts in place of
// checking its signature; and it is only displayed.
func account(f fields) string {
	claims := idClaims(f.text("id_token"))
	own := f.object("account")
	for _, s := range []string{own.text("email_address"), own.text("email"), claims.text("email"), own.text("name"), own.text("uuid"), claims.text("sub")} {
		if s != "" && len(s) <= longestLabel && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
			return s
		}
	}
	return ""
}

func idClaims(jwt string) fields {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil
	}
	return object(payload)
}

// retryAfter reads Retry-After, seconds or a date (RFC 9110 §10.2.3).
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	var wait time.Duration
	if seconds, err := strconv.ParseFloat(v, 64); err == nil {
		if !(seconds > 0) {
			return 0
		}
		wait = time.Duration(min(seconds, longestWait.Seconds()) * float64(time.Second))
	} else if at, err := http.ParseTime(v); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), longestWait)
}
