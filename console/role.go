package console

import (
	"slices"
	"time"
)

// Role is what somebody may do.
type Role string

// Roles. Each may do what the one before it may.
const (
	Viewer   Role = "viewer"
	Operator Role = "operator"
	Admin    Role = "admin"
)

var roles = []Role{Viewer, Operator, Admin}

// may reports whether r may do what needs is needed for. Who has no role may do nothing.
func (r Role) may(needs Role) bool {
	have, want := slices.Index(roles, r), slices.Index(roles, needs)
	return have >= 0 && want >= 0 && have >= want
}

// within is r, or the other where that is less.
func (r Role) within(other Role) Role {
	if r.may(other) {
		return other
	}
	if other.may(r) {
		return r
	}
	return ""
}

// actor is who makes a request.
type actor struct {
	Name string
	Role Role
	Via  string // oidc, link or token

	// Who that is whatever they are called, for what lasts longer than a log-in: byLink, or subject and issuer. Of a token: whose it is.
	id string
	// is what they are at the identity provider, as far as it gives a role.
	is    []string
	token string    // the name of the token they came with; empty: none
	key   string    // its digest
	until time.Time // when that ends

	login *login // nil: came with a token
}

// byLink is the actor.id of whoever may read this machine's links.
const byLink = "link"

// owner is whose a connect is: that of one log-in or of one token, and nobody else's.
func (a actor) owner() string {
	if a.login != nil {
		return "login " + a.login.key
	}
	return "token " + a.token
}
