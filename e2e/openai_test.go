package e2e

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// openAI is a stand-in for one of the hosts of OpenAI's APIs, as far as Codex and the SDKs ask for them.
type openAI struct {
	*upstream
	mu  sync.Mutex
	got []string // method, host, path and the account of each request that had a real token
}

// heard is how it answers.
const heard = "the stand-in heard you"

func newOpenAI(t *testing.T, w *world, host string) *openAI {
	t.Helper()
	api := &openAI{}
	api.upstream = newUpstream(t, w.CA, host, func(rw http.ResponseWriter, r *http.Request) { api.serve(w, rw, r) })
	return api
}

func (api *openAI) serve(w *world, rw http.ResponseWriter, r *http.Request) {
	if !w.accepts(r.Header.Get("Authorization")) {
		http.Error(rw, `{"error":{"message":"no real token","type":"invalid_request_error"}}`, http.StatusUnauthorized)
		return
	}
	api.mu.Lock()
	api.got = append(api.got, strings.Join([]string{r.Method, r.Host, r.URL.Path, r.Header.Get("Chatgpt-Account-Id")}, " "))
	api.mu.Unlock()
	switch {
	case strings.HasSuffix(r.URL.Path, "/chat/completions"): // the SDKs
		rw.Header().Set("Content-Type", "application/json")
		fmt.Fprint(rw, `{"id":"1","object":"chat.completion","created":1,"model":"demo","choices":[{"index":0,"message":{"role":"assistant","content":"`+heard+`"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`)
	case !strings.HasSuffix(r.URL.Path, "/responses"):
		http.Error(rw, `{}`, http.StatusNotFound)
	case r.Method == http.MethodGet: // a WebSocket is wanted; the client then asks by POST
		http.Error(rw, `{}`, http.StatusUpgradeRequired)
	default:
		rw.Header().Set("Content-Type", "text/event-stream")
		for _, event := range []string{
			`{"type":"response.created","response":{"id":"resp_1"}}`,
			`{"type":"response.output_item.done","item":{"type":"message","id":"msg_1","role":"assistant","content":[{"type":"output_text","text":"` + heard + `"}]}}`,
			`{"type":"response.completed","response":{"id":"resp_1","usage":{"input_tokens":1,"input_tokens_details":null,"output_tokens":1,"output_tokens_details":null,"total_tokens":2}}}`,
		} {
			kind, _, _ := strings.Cut(strings.TrimPrefix(event, `{"type":"`), `"`)
			fmt.Fprintf(rw, "event: %s\ndata: %s\n\n", kind, event)
		}
	}
}

const codexModes = `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  openai-codex: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, device_flow: rfc8628, device_url: "", client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true}
grants:
  codex: {provider: openai-codex, scopes: [openid]}
  key: {provider: openai-api}
routes:
  - {hosts: [chatgpt.com], grant: codex, connect_to: "$CHATGPT"}
  - {hosts: [api.openai.com], grant: key, connect_to: "$OPENAI"}
profiles:
  chatgpt: {grants: [codex]}
  key: {grants: [key]}
workers:
  chatgpt: {profile: chatgpt}
  key: {profile: key}
`

// startOpenAI is a gate with a ChatGPT log-in and an API key.
func startOpenAI(t *testing.T) (g *gate, chatGPT, platform *openAI) {
	t.Helper()
	made := makeWorld(t)
	made.Provider.EditAnswers(func(_ map[string]string, answer map[string]any) {
		claims := base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"s","https://api.openai.com/auth":{"chatgpt_account_id":"acc-real","chatgpt_plan_type":"pro"}}`))
		answer["id_token"] = "e30." + claims + ".x"
	})
	chatGPT, platform = newOpenAI(t, made, "chatgpt.com"), newOpenAI(t, made, "api.openai.com")
	made.env = append(made.env, "CHATGPT="+chatGPT.address, "OPENAI="+platform.address)
	g = startIn(t, made, codexModes, "codex")
	key, _ := made.Provider.Issue("openid")
	g.importValue(t, "key", key)
	return g, chatGPT, platform
}

// codex prepares a run of Codex as a worker, with a home of its own.
func (g *gate) codex(t *testing.T, worker string) *command {
	t.Helper()
	c := g.command("wayleave", "run", "--worker", worker, "--", agent(t, "codex"), "exec", "--skip-git-repo-check", "hi")
	c.Dir = g.newHome(t)
	c.Env = append(c.Env, "HOME="+c.Dir, "CODEX_HOME="+c.Dir)
	return c
}

// Codex, with each of its variables, gets its answer through the gate. With a ChatGPT log-in it asks who it is before, which the gate answers, and the
// API hears of the grant's account and never of the worker's.
func TestCodex(t *testing.T) {
	t.Parallel()
	g, chatGPT, platform := startOpenAI(t)
	for worker, api := range map[string]*openAI{"chatgpt": chatGPT, "key": platform} {
		out, err := g.codex(t, worker).CombinedOutput()
		if err != nil || !strings.Contains(string(out), heard) {
			t.Errorf("%s: %v\n%s", worker, err, out)
		}
		if api.sawText(placeholderMarker) {
			t.Errorf("%s: a placeholder arrived", worker)
		}
	}
	for _, r := range chatGPT.got {
		if !strings.HasSuffix(r, " acc-real") || strings.Contains(r, "/accounts/check") {
			t.Errorf("chatgpt.com got %s", r)
		}
	}
}
