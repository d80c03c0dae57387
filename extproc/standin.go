package extproc

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
)

// A client that was given a log-in refreshes it by itself, at its provider's token endpoint. Nothing of ours may go there:
// what it presents is a placeholder, and the answer would be a real token. Where the profile wants that, the gate answers
// in the endpoint's place, with the placeholder that the client has already.

// TokenEndpoint is where clients refresh some credentials.
type TokenEndpoint struct {
	Host, Path string // a DNS name, at port 443, and the exact path
	// Credentials by name, with what their placeholders start with.
	Credentials []Credential
}

// Credential is the name of a grant, and what its placeholders start with.
type Credential struct{ Name, PlaceholderPrefix string }

// standIn returns the credential that a request of a session of the profile to a token endpoint would refresh, or nil when
// it is not for the gate to answer.
func (p *policy) standIn(e endpoint, r *request, profile string) *Credential {
	path, _, _ := strings.Cut(r.path, "?")
	if e.port != httpsPort || r.method != http.MethodPost || !p.standIns[profile] {
		return nil
	}
	for _, c := range p.tokenEndpoints[e.host][path] {
		if p.mayUse(profile, c.Name) {
			return &c
		}
	}
	return nil
}

// standsInAt reports whether the gate answers some request of the profile's sessions at e's host.
func (p *policy) standsInAt(e endpoint, profile string) bool {
	return e.port == httpsPort && p.standIns[profile] && p.tokenEndpoints[e.host] != nil
}

// standInAnswer is a token response (RFC 6749 section 5.1) that changes nothing for the client: the placeholder lasts as long as
// the session. The scopes are those that the grant holds; when they are not known none are named, which means the same
// as before.
func (s *Server) standInAnswer(ctx context.Context, d decision) *extprocv3.ProcessingResponse {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	placeholder := s.sessions.Placeholder(d.session, d.standIn.Name, d.standIn.PlaceholderPrefix)
	body := map[string]any{
		"access_token": placeholder, "refresh_token": placeholder, "token_type": "Bearer",
		"expires_in": int(s.sessions.Ends(d.session).Sub(s.now()).Seconds()),
	}
	if t, err := s.tokens.Token(ctx, d.standIn.Name, d.session.Worker, nil); err == nil && len(t.Scopes) > 0 {
		body["scope"] = strings.Join(t.Scopes, " ")
	}
	text, _ := json.Marshal(body) // strings and a number only
	return immediate(answer{
		status:  http.StatusOK,
		headers: [][2]string{{"content-type", "application/json"}, {"cache-control", "no-store"}},
		body:    text,
	}, "stand_in")
}
