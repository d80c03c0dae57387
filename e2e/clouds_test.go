package e2e

import (
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const clouds = `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  bedrock:
    preset: static
    env: {AWS_BEARER_TOKEN_BEDROCK: "{placeholder}", AWS_REGION: us-east-1, CLAUDE_CODE_USE_BEDROCK: "1"}
    unset: [ANTHROPIC_BEDROCK_BASE_URL, CLAUDE_CODE_SKIP_BEDROCK_AUTH, AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_BEDROCK_RUNTIME]
  foundry:
    preset: static
    env: {ANTHROPIC_FOUNDRY_API_KEY: "{placeholder}", ANTHROPIC_FOUNDRY_RESOURCE: demo, CLAUDE_CODE_USE_FOUNDRY: "1"}
    unset: [ANTHROPIC_FOUNDRY_BASE_URL]
  google:
    authorize_url: $PROVIDER/authorize
    client_id: $CLIENT_ID
    auth_style: none
    redirect_url: ""
    token_url: $PROVIDER/token
    revoke_url: ""
    allow_insecure: true
    env: {ANTHROPIC_VERTEX_PROJECT_ID: demo, CLOUD_ML_REGION: us-east5, CLAUDE_CODE_USE_VERTEX: "1"}
    unset: [ANTHROPIC_VERTEX_BASE_URL, CLAUDE_CODE_SKIP_VERTEX_AUTH]
grants:
  bedrock: {provider: bedrock}
  foundry: {provider: foundry}
  google: {provider: google, scopes: [openid]}
routes:
  - {hosts: [bedrock.us-east-1.amazonaws.com, bedrock-runtime.us-east-1.amazonaws.com], grant: bedrock, connect_to: "$AWS"}
  - {hosts: [demo.services.ai.azure.com], grant: foundry, header: {in: x-api-key, also_in: api-key}, connect_to: "$AZURE"}
  - {hosts: [us-east5-aiplatform.googleapis.com, oauth2.googleapis.com], grant: google, connect_to: "$GOOGLE"}
profiles:
  bedrock: {grants: [bedrock]}
  foundry: {grants: [foundry]}
  vertex: {grants: [google]}
workers:
  bedrock: {profile: bedrock}
  foundry: {profile: foundry}
  vertex: {profile: vertex}
`

// Claude Code at other clouds: with a key of Bedrock's or Foundry's, and with a Google account.
func TestClaudeCodeAtOtherClouds(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	var accepted, others sync.Map // paths, with a real token and without
	serve := func(w http.ResponseWriter, r *http.Request) {
		got := r.Header.Get("Authorization")
		for _, name := range []string{"X-Api-Key", "Api-Key"} {
			if key := r.Header.Get(name); key != "" {
				got = "Bearer " + key
			}
		}
		which := &others
		if made.accepts(got) {
			which = &accepted
		}
		which.Store(r.Method+" "+r.Host+r.URL.Path, true)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest) // which ends it at once
		_, _ = w.Write([]byte(`{"type":"error","error":{"type":"invalid_request_error","message":"no model is here"},"message":"no model is here"}`))
	}
	for name, host := range map[string]string{"AWS": "*.us-east-1.amazonaws.com", "AZURE": "demo.services.ai.azure.com", "GOOGLE": "*.googleapis.com"} {
		made.env = append(made.env, name+"="+newUpstream(t, made.CA, host, serve).address)
	}
	g := startIn(t, made, clouds, "google")
	for _, name := range []string{"bedrock", "foundry"} {
		token, _ := made.Provider.Issue("openid")
		g.importValue(t, name, token)
	}
	list := func(m *sync.Map) (all []string) {
		m.Range(func(path, _ any) bool {
			all = append(all, path.(string))
			return true
		})
		return all
	}
	for worker, asks := range map[string]string{
		"bedrock": "POST bedrock-runtime.us-east-1.amazonaws.com/model/",
		"foundry": "POST demo.services.ai.azure.com/anthropic/v1/messages",
		"vertex":  "POST us-east5-aiplatform.googleapis.com/v1/projects/demo/locations/us-east5/publishers/anthropic/models/",
	} {
		home := g.newHome(t)
		run := g.command("wayleave", "run", "--worker", worker, "--", agent(t, "claude"), "-p", "hi")
		run.Dir = filepath.Join(home, "project")
		run.Env = append(run.Env, "HOME="+home, "DISABLE_AUTOUPDATER=1", "AWS_EC2_METADATA_DISABLED=true", "AWS_ACCESS_KEY_ID=inherited", "AWS_SECRET_ACCESS_KEY=inherited")
		out, _ := run.CombinedOutput() // it fails, in the words of the cloud
		arrived := false
		for _, path := range list(&accepted) {
			arrived = arrived || strings.HasPrefix(path, asks)
		}
		if !arrived || !strings.Contains(string(out), "no model is here") {
			t.Errorf("%s: %s\naccepted: %q\nothers: %q", worker, out, list(&accepted), list(&others))
		}
	}
}
