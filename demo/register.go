package demo

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// metadata is RFC 8414, with its OpenID Connect address too. The issuer is the address that was asked.
func (p *Provider) metadata(w http.ResponseWriter, r *http.Request) {
	us := base(r)
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer":                                         us,
		"authorization_endpoint":                         us + "/authorize",
		"token_endpoint":                                 us + "/token",
		"revocation_endpoint":                            us + "/revoke",
		"device_authorization_endpoint":                  us + "/device",
		"registration_endpoint":                          us + "/register",
		"scopes_supported":                               []string{ScopeInference, ScopeSessions},
		"response_types_supported":                       []string{"code"},
		"grant_types_supported":                          []string{"authorization_code", "refresh_token", "client_credentials", grantDevice, grantJWT, grantExchange},
		"token_endpoint_auth_methods_supported":          []string{"none", "client_secret_basic", "client_secret_post", "private_key_jwt"},
		"code_challenge_methods_supported":               []string{"S256"},
		"authorization_response_iss_parameter_supported": true,
	})
}

// register is RFC 7591 for clients that use the browser or a device.
func (p *Provider) register(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		Name         string   `json:"client_name"`
		RedirectURIs []string `json:"redirect_uris"`
		GrantTypes   []string `json:"grant_types"`
		AuthMethod   string   `json:"token_endpoint_auth_method"`
	}
	if json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&ask) != nil {
		oauthError(w, "invalid_client_metadata")
		return
	}
	if len(ask.GrantTypes) == 0 {
		ask.GrantTypes = []string{"authorization_code"}
	}
	if len(ask.RedirectURIs) == 0 && slices.Contains(ask.GrantTypes, "authorization_code") {
		oauthError(w, "invalid_redirect_uri")
		return
	}
	for _, uri := range ask.RedirectURIs {
		if u, err := url.Parse(uri); err != nil || !u.IsAbs() || u.Fragment != "" {
			oauthError(w, "invalid_redirect_uri")
			return
		}
	}
	c := Client{ID: newSecret("demo-client-"), RedirectURIs: ask.RedirectURIs}
	answer := map[string]any{
		"client_id": c.ID, "client_id_issued_at": p.opts.Now().Unix(), "client_name": ask.Name,
		"grant_types": ask.GrantTypes, "redirect_uris": ask.RedirectURIs, "token_endpoint_auth_method": ask.AuthMethod,
	}
	switch ask.AuthMethod {
	case "none":
	case "", "client_secret_basic", "client_secret_post":
		c.Secret = p.newSecret(clientPrefix)
		answer["client_secret"], answer["client_secret_expires_at"] = c.Secret, p.opts.Now().Add(365*24*time.Hour).Unix()
		if ask.AuthMethod == "" {
			answer["token_endpoint_auth_method"] = "client_secret_basic" // the default of RFC 7591 §2
		}
	default:
		oauthError(w, "invalid_client_metadata")
		return
	}
	p.mu.Lock()
	p.clients[c.ID] = c
	p.mu.Unlock()
	writeJSON(w, http.StatusCreated, answer)
}
