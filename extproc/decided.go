package extproc

import "time"

// Decided is what became of one request, or of one connection that was refused, for whoever watches. It has nothing of what the
// request carried.
type Decided struct {
	At        time.Time
	Swapped   bool   // a placeholder was replaced
	Reason    string // of a refusal; empty: it was let through
	Worker    string
	Session   string
	Host      string
	Method    string
	Route     string
	Grant     string
	RequestID string
}

// tell tells who watches of a decision.
func (s *Server) tell(d decision, r *request, id string) {
	if s.decided == nil {
		return
	}
	x := Decided{At: s.now(), Worker: d.session.Worker, Session: d.session.ID, Host: d.host, Method: shown(r.method), RequestID: id}
	if d.route != nil {
		x.Route, x.Grant = d.route.Name, d.route.Credential
	}
	if d.refusal != nil {
		x.Reason = d.refusal.reason
	} else {
		x.Swapped = d.swap != nil
	}
	s.decided(x)
}
