package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"wayleave/api"
	"wayleave/fleet"
	"wayleave/operate"
	"wayleave/rollout"
	"wayleave/vault"
)

// view is what is known of the fleet: how far a rollout is by the store, since somebody may have written it a moment ago, and what gates
// see as this one knows it. When the store does not answer, warning says so.
func (s *Server) view(ctx context.Context) (v fleet.View, warning string, err error) {
	v = s.Fleet()
	now, _, err := fleet.ReadState(ctx, s.Desk().Docs)
	switch {
	case errors.Is(err, vault.ErrUnavailable):
		return v, fmt.Sprintf("Vault does not answer; this is what this gate remembers: %v", err), nil
	case err != nil:
		return v, "", err
	case now.Stable != "" || v.State.Stable == "":
		v.State = now
	}
	return v, "", nil
}

func (s *Server) showRollout(c *call) (any, error) { return s.rollouts(c.Context()) }

func (s *Server) rollouts(ctx context.Context) (api.Rollouts, error) {
	v, warning, err := s.view(ctx)
	return api.Rollouts{Rollouts: operate.RolloutsOf(v, s.now()), Warning: warning}, err
}

func (s *Server) startRollout(c *call) (any, error) {
	in := c.in.(*api.StartRequest)
	return s.start(c.Context(), c.who, *in)
}

func (s *Server) start(ctx context.Context, who actor, in api.StartRequest) (operate.Started, error) {
	if err := operate.CheckNote(in.Note); err != nil {
		return operate.Started{}, err
	}
	return s.Desk().StartRollout(ctx, operate.RolloutRequest{File: "the configuration", Text: []byte(in.Text), Author: who.Name, Note: in.Note, Force: in.Force})
}

// leading is what an operator does to a rollout that is under way.
type leading func(d operate.Desk, ctx context.Context, by, note string) (rollout.State, error)

func (s *Server) lead(do leading) func(*call) (any, error) {
	return func(c *call) (any, error) {
		if _, err := do(s.Desk(), c.Context(), c.who.Name, c.in.(*api.LeadRequest).Note); err != nil {
			return nil, err
		}
		return s.rollouts(c.Context())
	}
}

func (s *Server) listFleet(c *call) (any, error) {
	v, warning, err := s.view(c.Context())
	return api.Fleet{Fleet: operate.FleetOf(v), Version: s.Version, Since: s.began, Warning: warning}, err
}

func (s *Server) showEnvoy(c *call) (any, error) {
	v, _, err := s.view(c.Context())
	if err != nil {
		return nil, err
	}
	return operate.EnvoyOf(v, c.PathValue("envoy"))
}

func (s *Server) drainEnvoy(c *call) (any, error) {
	return s.drain(c.Request, true, c.in.(*api.DrainRequest).Force)
}

func (s *Server) undrainEnvoy(c *call) (any, error) { return s.drain(c.Request, false, false) }

func (s *Server) drain(r *http.Request, drained, force bool) (api.Drained, error) {
	now, err := s.Desk().Drain(r.Context(), operate.DrainRequest{Envoy: r.PathValue("envoy"), Drained: drained, Force: force})
	return api.Drained{Drained: append([]string{}, now.Drained...)}, err
}

func (s *Server) listRevisions(c *call) (any, error) {
	all, err := s.Desk().Revisions(c.Context())
	return api.Revisions{Revisions: all}, err
}

func (s *Server) showRevision(c *call) (any, error) {
	return s.Desk().Revision(c.Context(), c.PathValue("id"))
}
