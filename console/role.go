package console

import "slices"

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

// actor is who makes a request.
type actor struct {
	Name string
	Role Role
	Via  string // oidc, link or token

	login *login // nil: came with a token
}

// owner is whose a connect is: that of one log-in or of one token, and nobody else's.
func (a actor) owner() string {
	if a.login != nil {
		return "login " + a.login.key
	}
	return "token " + a.Name
}
