package demo

import "net/http"

// This file is what Claude Code asks of the API beside messages, as its versions 2.1.197 to 2.1.331 were seen to.

// Account and organization that the API knows its tokens by.
const (
	AccountID      = "6b1c1f0e-0000-4000-8000-000000000001"
	OrganizationID = "6b1c1f0e-0000-4000-8000-000000000002"
)

func (a *API) handleClaudeCode() {
	a.mux.HandleFunc("GET /api/oauth/profile", a.require("", profile))
	a.mux.HandleFunc("POST /api/eval/{sdk}", a.require("", features))
	a.mux.HandleFunc("GET /api/hello", hello)
	a.mux.HandleFunc("GET /v1/oauth/hello", hello)
	a.mux.HandleFunc("POST /v1/environments/bridge", a.require(ScopeSessions, a.openEnvironment))
	a.mux.HandleFunc("/v1/environments/{id}/{rest...}", a.environment)
	a.mux.HandleFunc("POST /v1/environments/bridge/{id}/offline", a.environment)
	a.mux.HandleFunc("POST /v1/sessions", a.require(ScopeSessions, func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"id": newSecret("session_")})
	}))
}

func hello(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"message": "hello"})
}

func profile(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{
		"account": map[string]any{
			"uuid": AccountID, "email": "operator@demo.test", "full_name": "Operator", "display_name": "Operator",
			"has_claude_max": true, "has_claude_pro": false,
		},
		"organization": map[string]any{
			"uuid": OrganizationID, "name": "Demo", "organization_type": "claude_max", "rate_limit_tier": "default_claude_max_5x",
			"billing_type": "stripe_subscription", "has_extra_usage_enabled": false,
		},
	})
}

// features has the one flag without which the client keeps remote control off.
func features(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{"features": map[string]any{
		"tengu_ccr_bridge": map[string]any{"defaultValue": true},
	}})
}

// openEnvironment gives an environment a bearer of its own, as bridge gives one to a session.
func (a *API) openEnvironment(w http.ResponseWriter, _ *http.Request) {
	id, own := newSecret("env_"), a.provider.newSecret(workerPrefix)
	a.mu.Lock()
	a.bearers[id] = own
	a.mu.Unlock()
	writeJSON(w, http.StatusOK, map[string]string{"environment_id": id, "environment_secret": own})
}

// environment takes the bearer of the environment only; there is never any work.
func (a *API) environment(w http.ResponseWriter, r *http.Request) {
	if !a.own(r) {
		refuse(w, http.StatusUnauthorized, "authentication_error", "This path takes the environment's own bearer")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
