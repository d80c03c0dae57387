package console

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"wayleave/api"
	"wayleave/operate"
	"wayleave/vault"
	"wayleave/worker"
)

// Worker is one of the configuration, with its live sessions.
type Worker struct {
	Name     string        `json:"name"`
	Profile  string        `json:"profile"`
	Grants   []string      `json:"grants"`
	Sessions []worker.Live `json:"sessions"`
}

// Workers is all of them.
type Workers struct {
	Workers []Worker `json:"workers"`
	Warning string   `json:"warning,omitempty"`
}

func (s *Server) listWorkers(c *call) (any, error) { return s.workers(c.Context()) }

func (s *Server) workers(ctx context.Context) (Workers, error) {
	cfg := s.Desk().Config
	live, err := s.Desk().Sessions(ctx)
	out := Workers{Workers: []Worker{}}
	if errors.Is(err, vault.ErrUnavailable) {
		out.Warning, err = fmt.Sprintf("Vault does not answer, so sessions are not known: %v", err), nil
	}
	if err != nil {
		return out, err
	}
	names := slices.Collect(maps.Keys(cfg.Workers))
	for _, l := range live {
		if !slices.Contains(names, l.Worker) {
			names = append(names, l.Worker) // of a worker that is configured no more
		}
	}
	slices.Sort(names)
	for _, name := range names {
		w := Worker{Name: name, Profile: cfg.Workers[name].Profile, Grants: append([]string{}, cfg.Profiles[cfg.Workers[name].Profile].Grants...), Sessions: []worker.Live{}}
		for _, l := range live {
			if l.Worker == name {
				w.Sessions = append(w.Sessions, l)
			}
		}
		out.Workers = append(out.Workers, w)
	}
	return out, nil
}

// Revoked is what will be refused from now on.
type Revoked struct {
	Worker  string `json:"worker,omitempty"`
	Session string `json:"session,omitempty"`
}

func (s *Server) revokeWorker(c *call) (any, error) {
	return s.revoke(c.Context(), Revoked{Worker: c.PathValue("worker")})
}

func (s *Server) revokeSession(c *call) (any, error) {
	return s.revoke(c.Context(), Revoked{Session: c.PathValue("id")})
}

// revoke ends sessions of those there are, as this gate knows or, where it does not, the store. A worker's are those that were issued
// until now.
func (s *Server) revoke(ctx context.Context, what Revoked) (Revoked, error) {
	q := operate.SessionsToEnd{Workers: []string{what.Worker}}
	_, known := s.Desk().Config.Workers[what.Worker]
	none := &operate.Refusal{Kind: operate.NoSuch, Words: fmt.Sprintf("there is no worker %q", what.Worker)}
	if what.Worker == "" {
		q = operate.SessionsToEnd{Sessions: []string{what.Session}}
		_, known = s.Sessions.Lookup(what.Session)
		none.Words = fmt.Sprintf("there is no live session %q", what.Session)
	}
	if !known {
		live, err := s.Desk().Sessions(ctx)
		if err != nil {
			return what, err
		}
		if !slices.ContainsFunc(live, func(l worker.Live) bool { return l.ID == what.Session || l.Worker == what.Worker }) {
			return what, none
		}
	}
	_, err := s.endSessions(ctx, q)
	return what, err
}

// endSessions ends them, and has this gate know of it at once, if it can: else it does in a moment.
func (s *Server) endSessions(ctx context.Context, q operate.SessionsToEnd) (operate.SessionsEnded, error) {
	ended, err := s.Desk().EndSessions(ctx, q)
	if err == nil {
		_ = s.Sessions.Reread(ctx)
	}
	return ended, err
}

func (s *Server) listSessions(c *call) (any, error) {
	live, err := s.Desk().Sessions(c.Context())
	return api.Sessions{Sessions: live}, err
}

func (s *Server) revokeSessions(c *call) (any, error) {
	return s.endSessions(c.Context(), *c.in.(*operate.SessionsToEnd))
}
