package extproc

import (
	"encoding/base64"
	"slices"
	"strings"
)

// presented is a credential as a worker sent it, taken apart.
type presented struct {
	scheme         string // the word before the credential as written; "" when the route reads none
	value          string // what follows the scheme
	basic          bool   // value is a user and a password
	user, password string
	understood     bool // the form is one the route reads
	parameter      bool // it came in the query, where there is no scheme
	parameters     bool // of another scheme, whose value may be a comma-separated list (RFC 9110 section 11.4)
}

// present takes the value of the credential header apart. In authorization it understands Bearer, token, Basic and the route's
// scheme; there and in any other header also the bare value when the route has no scheme.
func present(r *Route, value string) presented {
	common := r.HeaderIn == "authorization"
	if r.SchemeIn == "" && !common {
		return presented{value: value, understood: true}
	}
	scheme, rest, ok := strings.Cut(value, " ")
	rest = strings.TrimLeft(rest, " ") // 1*SP, RFC 9110 section 11.4
	is := func(s string) bool { return ok && strings.EqualFold(scheme, s) }
	switch {
	case is("basic") && (common || is(r.SchemeIn)):
		user, password, ok := basic(rest)
		return presented{scheme: scheme, value: rest, basic: true, user: user, password: password, understood: ok}
	case is(r.SchemeIn), common && (is("bearer") || is("token")):
		return presented{scheme: scheme, value: rest, understood: true}
	case r.SchemeIn == "" && !ok:
		return presented{value: value, understood: true}
	}
	return presented{value: value, parameters: ok}
}

// basic decodes user and password, RFC 7617 section 2.
func basic(s string) (user, password string, ok bool) {
	raw, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || strings.ContainsAny(s, "\r\n") { // which the decoder skips
		return "", "", false
	}
	return strings.Cut(string(raw), ":")
}

// nobody reports whether the credential is no one's: a client that asks to be challenged sends Basic of an empty name (git with http.emptyAuth).
func (p presented) nobody() bool { return p.basic && p.understood && p.user == "" && p.password == "" }

// nameOnly reports whether the credential is a user without a password, which git sends of an address that names one (https://me@github.com/) before it
// asks for the password.
func (p presented) nameOnly() bool {
	return p.basic && p.understood && p.user != "" && p.password == ""
}

// bindsConnection reports whether the request has a credential of a scheme that authenticates the connection it comes by (RFC 4559 section 6). Upstream
// connections are shared, so that whoever is next on that one would be taken for the same user.
func (r *request) bindsConnection() bool {
	for _, h := range r.headers {
		if canonical(h.name) != "authorization" {
			continue
		}
		for credential := range strings.SplitSeq(h.value, ",") { // as repeated lines are joined
			if words := strings.Fields(credential); len(words) > 0 && connectionSchemes[strings.ToLower(words[0])] {
				return true
			}
		}
	}
	return false
}

var connectionSchemes = map[string]bool{"kerberos": true, "negotiate": true, "ntlm": true}

const connectionBound = "NTLM, Negotiate and Kerberos authenticate a connection, and connections to the upstream are shared by workers; the operator can list the host in tunnel"

// candidates are the parts that hold a placeholder, of whomever. Each must be this session's own to be swapped.
func (p presented) candidates(sessions Sessions) []string {
	parts := []string{p.value}
	if p.basic && p.understood {
		parts = []string{p.user, p.password}
	}
	return slices.DeleteFunc(parts, func(part string) bool { return !holdsMarker(part) && !sessions.Damaged(part) })
}

// joined reports whether the value is several credentials in one line, which is what Envoy and others make of repeated
// headers. No form we read has a comma in it.
func (p presented) joined() bool { return !p.parameters && strings.Contains(p.value, ",") }

// outgoing is the form in which the real token leaves.
type outgoing struct {
	header, scheme               string
	basic                        bool
	user, password               string
	tokenIsUser, tokenIsPassword bool // the token takes the place of one, or of both
}

// outgoingFor is the route's own form or, when the route changes nothing, the one the worker used if that is one it reads.
func outgoingFor(r *Route, p presented) outgoing {
	out := outgoing{header: r.HeaderOut, scheme: p.scheme, basic: p.basic}
	if r.HeaderOut != r.HeaderIn || !strings.EqualFold(r.SchemeOut, r.SchemeIn) || p.parameter || !p.understood {
		out.scheme, out.basic = r.SchemeOut, strings.EqualFold(r.SchemeOut, "basic")
	}
	switch {
	case !out.basic:
	case r.BasicUser != "" || !p.basic:
		out.user, out.tokenIsPassword = r.BasicUser, true
	default:
		out.user, out.password = p.user, p.password
		out.tokenIsUser, out.tokenIsPassword = holdsMarker(p.user), holdsMarker(p.password)
		if !out.tokenIsUser && !out.tokenIsPassword { // the credential of somebody else, which is replaced
			out.tokenIsPassword = true
		}
	}
	return out
}

// value is the header's value with the token in it.
func (o outgoing) value(token string) string {
	credential := token
	if o.basic {
		user, password := o.user, o.password
		if o.tokenIsUser {
			user = token
		}
		if o.tokenIsPassword {
			password = token
		}
		credential = base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	}
	if o.scheme == "" {
		return credential
	}
	return o.scheme + " " + credential
}

// longestToken is what fits beside other headers into what Envoy sends on.
const longestToken = 64 << 10

// Sendable reports whether a token can stand in a header unchanged: visible ASCII, some of it and not too much, and no placeholder. Envoy skips a
// mutation with an empty value, which would send the placeholder; white space and control characters would be cut off,
// or end the header.
func Sendable(token string) bool {
	return token != "" && len(token) <= longestToken && !holdsMarker(token) && !strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
}
