package console

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"wayleave/api"
	"wayleave/grant"
	"wayleave/operate"
	"wayleave/vault"
)

// grants is every grant. When the store does not answer it is what this gate knows by itself, and the reason.
func (s *Server) grants(ctx context.Context) (api.Grants, error) {
	all, err := s.Desk().List(ctx)
	if err == nil {
		out := api.Grants{Grants: []grant.Summary{}}
		for _, g := range all {
			out.Grants = append(out.Grants, whole(g))
		}
		return out, nil
	}
	if !errors.Is(err, vault.ErrUnavailable) {
		return api.Grants{}, err
	}
	out := api.Grants{Grants: []grant.Summary{}, Warning: fmt.Sprintf("Vault does not answer; this is what this gate remembers: %v", err)}
	for _, spec := range s.Desk().Specs {
		out.Grants = append(out.Grants, whole(s.Grants.Summary(spec.Name)))
	}
	return out, nil
}

// whole is a summary whose lists are lists where there is nothing in them.
func whole(g grant.Summary) grant.Summary {
	g.Requested, g.Granted = append([]string{}, g.Requested...), append([]string{}, g.Granted...)
	return g
}

func (s *Server) listGrants(c *call) (any, error) { return s.grants(c.Context()) }

func (s *Server) detail(ctx context.Context, name string) (api.GrantDetail, error) {
	g, err := s.Desk().Find(ctx, name)
	d := api.GrantDetail{Account: s.Desk().Config.Grants[name].Account, Routes: []string{}, Workers: s.workersOf(name)}
	if err != nil {
		if _, serr := s.Desk().Spec(name); serr != nil || !errors.Is(err, vault.ErrUnavailable) {
			return d, err
		}
		g, d.Warning = s.Grants.Summary(name), fmt.Sprintf("Vault does not answer; this is what this gate remembers: %v", err)
	}
	d.Grant = whole(g)
	d.Ways, _ = s.Desk().Ways(name) // none for what nobody connects
	for _, r := range s.Desk().Config.Routes {
		if r.Grant == name {
			d.Routes = append(d.Routes, r.Name)
		}
	}
	return d, nil
}

// workersOf are the workers that may use a grant, by name.
func (s *Server) workersOf(grant string) []string {
	cfg, names := s.Desk().Config, []string{}
	for _, w := range slices.Sorted(maps.Keys(cfg.Workers)) {
		if slices.Contains(cfg.Profiles[cfg.Workers[w].Profile].Grants, grant) {
			names = append(names, w)
		}
	}
	return names
}

func (s *Server) showGrant(c *call) (any, error) { return s.detail(c.Context(), c.PathValue("grant")) }

func (s *Server) connect(c *call) (any, error) {
	in := c.in.(*api.ConnectRequest)
	return s.beginConnect(c.Context(), c.who, c.from(), c.PathValue("grant"), in.Way, comesBack{pasted: true, redirect: in.Redirect})
}

func (s *Server) showConnect(c *call) (any, error) {
	f, ok := s.flows.find(c.PathValue("id"), c.who.owner())
	if !ok {
		return nil, errFlowGone
	}
	return f, nil
}

func (s *Server) endConnect(c *call) (any, error) {
	f, ok := s.flows.giveUp(c.PathValue("id"), c.who.owner())
	if !ok {
		return nil, errFlowGone
	}
	return f, nil
}

func (s *Server) answerConnect(c *call) (any, error) {
	return s.answer(c.Context(), c.who, c.PathValue("id"), c.in.(*api.AnswerRequest).Answer)
}

// answer finishes a connect. An answer that is sent a second time, as by two clicks, is that of the first.
func (s *Server) answer(ctx context.Context, who actor, id, answer string) (api.Flow, error) {
	this := func(x *flow) bool { return x.ID == id }
	if x, ok := s.flows.take(who.owner(), this); ok {
		return s.finishConnect(ctx, x, strings.TrimSpace(answer)), nil
	}
	if f, known := s.flows.known(who.owner(), this); known && (f.State == api.FlowStoring || f.State == api.FlowConnected) {
		return f, nil
	}
	return api.Flow{}, errFlowGone
}

func (s *Server) refresh(c *call) (any, error) {
	name := c.PathValue("grant")
	if !c.in.(*api.RefreshRequest).NoWait {
		return s.refreshNow(c.Context(), name)
	}
	id, err := s.Desk().AskRefresh(c.Context(), name)
	if err != nil {
		return nil, err
	}
	d, err := s.detail(c.Context(), name)
	d.Asked = id
	return d, err
}

// refreshNow has a gate refresh a grant. That the provider refused is an error.
func (s *Server) refreshNow(ctx context.Context, name string) (api.GrantDetail, error) {
	id, err := s.Desk().AskRefresh(ctx, name)
	if err != nil {
		return api.GrantDetail{}, err
	}
	g, err := s.Desk().Answer(ctx, name, id, operate.AnswerTime)
	if errors.Is(err, operate.ErrNotInTime) {
		return api.GrantDetail{}, &operate.Refusal{Kind: operate.NotNow, Words: fmt.Sprintf("no gate has refreshed %s within %v; the request stands for ten minutes", name, operate.AnswerTime)}
	}
	if err != nil {
		return api.GrantDetail{}, err
	}
	if e := operate.Last(g, grant.Refreshed, grant.Failed, grant.Ended, grant.GivenUp, grant.Declined); e.What != grant.Refreshed {
		return api.GrantDetail{}, &operate.Refusal{Kind: operate.NotNow, Words: fmt.Sprintf("%s was not refreshed: %s", name, e.Error)}
	}
	return s.detail(ctx, name)
}

// longest is how long a request may have a gate waited for.
const longest = 10 * time.Minute

func (s *Server) disconnect(c *call) (any, error) {
	in := c.in.(*api.DisconnectRequest)
	wait := operate.AnswerTime
	if in.WaitSeconds != 0 {
		if wait = time.Duration(in.WaitSeconds) * time.Second; wait < 0 || wait > longest {
			return nil, fmt.Errorf("%w: wait_seconds is not between 1 and %.0f", errBadRequest, longest.Seconds())
		}
	}
	return s.disconnectNow(c.Context(), c.PathValue("grant"), !in.KeepValid, wait)
}

func (s *Server) disconnectNow(ctx context.Context, name string, revoke bool, wait time.Duration) (api.Disconnected, error) {
	g, err := s.Desk().Find(ctx, name)
	if err != nil {
		return api.Disconnected{}, err
	}
	end, err := s.Desk().Disconnect(ctx, g, revoke, wait, nil)
	s.Grants.Reread(name)
	return api.Disconnected{Grant: name, Revocation: end}, err
}

func (s *Server) importGrant(c *call) (any, error) {
	return s.importNow(c.Context(), c.PathValue("grant"), c.in.(*api.ImportRequest).Value)
}

func (s *Server) importNow(ctx context.Context, name, value string) (operate.Imported, error) {
	got, err := s.Desk().Import(ctx, name, []byte(value))
	s.Grants.Reread(name)
	return got, err
}
