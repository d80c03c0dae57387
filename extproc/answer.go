package extproc

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"wayleave/grant"
)

// Some clients ask before they begin: whether anybody is there, and who they are. One that was given a log-in refreshes it by itself,
// at its provider's token endpoint. Nothing of ours may go there: what it presents is a placeholder, and the answer might be a real token. So the
// gate answers in the provider's place, with the placeholder that the client has already.

// Answer is a request that is answered so.
type Answer struct {
	Host, Path string // a DNS name, at port 443, and the exact path
	Method     string
	// Credential is the name of a grant, and PlaceholderPrefix what its placeholders start with.
	Credential, PlaceholderPrefix string
	// Token answers as a token endpoint does. Otherwise Status and JSON do, a template: {placeholder}, {scopes}, {scopes_json}, {expires_in}
	// and the grant's facts.
	Token  bool
	Status int
	JSON   string
}

const inPlaceholder = "{placeholder}"

// tellsPlaceholder reports whether it has a session's placeholder in it.
func (a Answer) tellsPlaceholder() bool { return a.Token || strings.Contains(a.JSON, inPlaceholder) }

// answerTo returns how the gate answers a request of a session by itself, or nil when it does not. The worker at an address has no session,
// so no placeholder that could be told.
func (p *policy) answerTo(e endpoint, r *request, profile, session string) *Answer {
	path, _, _ := strings.Cut(r.path, "?")
	if e.port != httpsPort {
		return nil
	}
	for _, a := range p.answers[profile][e.host] {
		if a.Path == path && a.Method == r.method && p.mayUse(profile, a.Credential) && (session != "" || !a.tellsPlaceholder()) {
			return &a
		}
	}
	return nil
}

// answersAt reports whether the gate answers some request of the profile's sessions at e's host.
func (p *policy) answersAt(e endpoint, profile string) bool {
	return e.port == httpsPort && p.answers[profile][e.host] != nil
}

// ownAnswer writes the answer. What it says of the grant is what is known at once: a client that cannot begin is worse off than one that is told less.
func (s *Server) ownAnswer(ctx context.Context, d decision) *extprocv3.ProcessingResponse {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	a := d.answer
	t, err := s.tokens.Token(ctx, a.Credential, d.session.Worker, nil)
	if err != nil {
		t = grant.Token{}
	}
	placeholder := ""
	if d.session.ID != "" {
		placeholder = s.sessions.Placeholder(d.session, a.Credential, a.PlaceholderPrefix)
	}
	expiresIn := int(s.sessions.Ends(d.session).Sub(s.now()).Seconds())
	out := answer{status: cmp.Or(a.Status, http.StatusOK), headers: [][2]string{{"cache-control", "no-store"}}}
	if a.Token {
		out.body = tokenResponse(placeholder, t.Scopes, expiresIn)
	} else {
		out.body = []byte(fill(a.JSON, placeholder, t, expiresIn))
	}
	if len(out.body) > 0 {
		out.headers = append(out.headers, [2]string{"content-type", "application/json"})
	}
	return immediate(out, "answered")
}

// tokenResponse is one (RFC 6749 section 5.1) that changes nothing for the client: the placeholder lasts as long as the session. When the scopes
// that the grant holds are not known none are named, which means the same as before.
func tokenResponse(placeholder string, scopes []string, expiresIn int) []byte {
	body := map[string]any{"access_token": placeholder, "refresh_token": placeholder, "token_type": "Bearer", "expires_in": expiresIn}
	if len(scopes) > 0 {
		body["scope"] = strings.Join(scopes, " ")
	}
	text, _ := json.Marshal(body) // strings and a number only
	return text
}

var templateWord = regexp.MustCompile(`\{[a-z_]+\}`)

// fill fills in a template of JSON. Of the token it looks at what is no secret; a fact that is not known is empty.
func fill(template, placeholder string, t grant.Token, expiresIn int) string {
	return templateWord.ReplaceAllStringFunc(template, func(word string) string {
		value := t.Facts[strings.Trim(word, "{}")]
		switch word {
		case inPlaceholder:
			value = placeholder
		case "{scopes}":
			value = strings.Join(t.Scopes, " ")
		case "{scopes_json}":
			list, _ := json.Marshal(append([]string{}, t.Scopes...))
			return string(list)
		case "{expires_in}":
			return strconv.Itoa(expiresIn)
		}
		quoted, _ := json.Marshal(value)
		return string(quoted[1 : len(quoted)-1]) // the template has the quotation marks
	})
}
