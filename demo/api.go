package demo

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// Scopes that the API asks for.
const (
	ScopeInference = "user:inference"
	ScopeSessions  = "user:sessions:claude_code"
)

// API is a demo API that accepts the access tokens of a Provider, as Bearer or as the password of Basic, and answers
// refusals in Anthropic's error shape. It serves
//
//	POST /v1/messages                        user:inference; the Messages API, also streaming
//	POST /v1/code/sessions                   user:sessions:claude_code; {"session":{"id":…}}
//	POST /v1/code/sessions/{id}/bridge       user:sessions:claude_code; gives out a bearer of the session's own
//	     /v1/code/sessions/{id}/worker/…     that bearer only
//	     /v1/environments/…, /api/…, and others  what Claude Code asks for (claudecode.go)
//	     /echo                               any live token; what it received, credentials masked
//	GET  /sse?n=&ms=                         any live token; n server-sent events, ms apart
//	GET  /ws                                 any live token; a WebSocket that echoes
//	POST /upload                             any live token; counts and hashes the body
//	     /public                             needs nothing
//	GET  /.well-known/oauth-protected-resource  RFC 9728, when started by Start; refusals for want of a token lead there
type API struct {
	provider *Provider
	mux      *http.ServeMux
	rec      recorder
	issuer   string // of its tokens, as it tells clients; empty: it does not

	mu      sync.Mutex
	bearers map[string]string // session id → its own bearer, empty before the bridge call
}

// NewAPI returns an API that shares p's table of tokens.
func NewAPI(p *Provider) *API {
	a := &API{provider: p, mux: http.NewServeMux(), bearers: map[string]string{}}
	a.mux.HandleFunc("POST /v1/messages", a.require(ScopeInference, messages))
	a.mux.HandleFunc("POST /v1/code/sessions", a.require(ScopeSessions, a.openSession))
	a.mux.HandleFunc("POST /v1/code/sessions/{id}/bridge", a.require(ScopeSessions, a.bridge))
	a.mux.HandleFunc("/v1/code/sessions/{id}/worker/{rest...}", a.sessionWorker)
	a.handleClaudeCode()
	a.mux.HandleFunc("/echo", a.require("", echo))
	a.mux.HandleFunc("GET /sse", a.require("", events))
	a.mux.HandleFunc("GET /ws", a.require("", echoMessages))
	a.mux.HandleFunc("POST /upload", a.require("", upload))
	a.mux.HandleFunc("/public", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]bool{"public": true})
	})
	a.mux.HandleFunc("GET "+wellKnownResource, a.metadata)
	a.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusNotFound, "not_found_error", "Not found")
	})
	return a
}

func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.rec.add(r, a.provider.opts.Now())
	w.Header().Set("Request-Id", newSecret("req_"))
	a.mux.ServeHTTP(w, r)
}

// Requests returns the last requests received, oldest first.
func (a *API) Requests() []Request { return a.rec.requests() }

// Saw reports whether any request since the start carried s in its address or in a header value, as it stood there or
// inside a Basic credential. Bodies are not looked at.
func (a *API) Saw(s string) bool { return a.rec.saw(s) }

// require lets requests through that carry a live token with a scope; an empty scope is any.
func (a *API) require(scope string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		token := bearer(r)
		scopes, live := a.provider.scopesOf(token)
		if !live && a.issuer != "" {
			w.Header().Set("WWW-Authenticate", `Bearer resource_metadata="`+base(r)+wellKnownResource+`"`)
		}
		switch {
		case token == "":
			refuse(w, http.StatusUnauthorized, "authentication_error", "No credentials: send Authorization: Bearer")
		case !live:
			refuse(w, http.StatusUnauthorized, "authentication_error", "The OAuth token is not valid or has expired")
		case scope != "" && !slices.Contains(scopes, scope):
			refuse(w, http.StatusForbidden, "permission_error", "OAuth token does not meet scope requirement "+scope)
		default:
			next(w, r)
		}
	}
}

const wellKnownResource = "/.well-known/oauth-protected-resource"

// metadata says where the API's tokens come from (RFC 9728 §2).
func (a *API) metadata(w http.ResponseWriter, r *http.Request) {
	if a.issuer == "" {
		refuse(w, http.StatusNotFound, "not_found_error", "Not found")
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"resource": base(r), "authorization_servers": []string{a.issuer}, "scopes_supported": []string{ScopeInference, ScopeSessions},
	})
}

// bearer returns the token of a request. Two Authorization headers are none.
func bearer(r *http.Request) string {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return ""
	}
	if plain, ok := basicCredentials(values[0]); ok {
		_, password, _ := strings.Cut(plain, ":")
		return password
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}

func refuse(w http.ResponseWriter, status int, kind, message string) {
	writeJSON(w, status, map[string]any{
		"type":       "error",
		"error":      map[string]string{"type": kind, "message": message},
		"request_id": w.Header().Get("Request-Id"),
	})
}

func (a *API) openSession(w http.ResponseWriter, _ *http.Request) {
	id := newSecret("cse_")
	a.mu.Lock()
	a.bearers[id] = ""
	a.mu.Unlock()
	writeJSON(w, http.StatusOK, map[string]any{"session": map[string]string{"id": id}})
}

// bridge gives a session a bearer of its own. What lies between must pass that one on untouched.
func (a *API) bridge(w http.ResponseWriter, r *http.Request) {
	id, own := r.PathValue("id"), a.provider.newSecret(workerPrefix)
	a.mu.Lock()
	_, known := a.bearers[id]
	if known {
		a.bearers[id] = own
	}
	a.mu.Unlock()
	if !known {
		refuse(w, http.StatusNotFound, "not_found_error", "No such session")
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"worker_jwt": own, "expires_in": 3600, "api_base_url": "https://" + r.Host, "worker_epoch": 1})
}

// own reports whether a request has the bearer of the session or environment it names.
func (a *API) own(r *http.Request) bool {
	a.mu.Lock()
	own := a.bearers[r.PathValue("id")]
	a.mu.Unlock()
	return own != "" && bearer(r) == own
}

func (a *API) sessionWorker(w http.ResponseWriter, r *http.Request) {
	if !a.own(r) {
		refuse(w, http.StatusUnauthorized, "authentication_error", "This path takes the session's own bearer")
		return
	}
	if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/events/stream") {
		_ = newStream(w).send("ready", map[string]bool{"ok": true})
		<-r.Context().Done() // nothing ever happens
		return
	}
	writeJSON(w, http.StatusOK, map[string]bool{"ok": true})
}

// echo describes the request. Credentials are masked, so that its answers can be shown; a hash tells them apart.
func echo(w http.ResponseWriter, r *http.Request) {
	size, sum, err := consume(w, r)
	if err != nil {
		return
	}
	headers := map[string][]string{}
	for name, values := range r.Header {
		for _, v := range values {
			if slices.Contains([]string{"Authorization", "Cookie", "Proxy-Authorization", "X-Api-Key"}, name) || strings.Contains(v, AccessPrefix) {
				v = mask(v)
			}
			headers[name] = append(headers[name], v)
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"method": r.Method, "host": r.Host, "path": r.URL.Path, "query": r.URL.RawQuery, "proto": r.Proto,
		"headers": headers, "body_bytes": size, "body_sha256": sum,
		"authorization_sha256": fingerprint(r.Header.Get("Authorization")),
	})
}

func upload(w http.ResponseWriter, r *http.Request) {
	size, sum, err := consume(w, r)
	if err != nil {
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"bytes": size, "sha256": sum})
}

// consume reads a body of any length and says what it was; after an error it has answered.
func consume(w http.ResponseWriter, r *http.Request) (size int64, sum string, err error) {
	h := sha256.New()
	size, err = io.Copy(h, r.Body)
	if err != nil {
		refuse(w, http.StatusBadRequest, "invalid_request_error", "The body did not arrive whole")
	}
	return size, hex.EncodeToString(h.Sum(nil)), err
}

// events sends n events (default 3, at most 10,000), ms milliseconds apart (default 0, at most a minute).
func events(w http.ResponseWriter, r *http.Request) {
	n, gap := number(r, "n", 3, 10_000), time.Duration(number(r, "ms", 0, 60_000))*time.Millisecond
	s := newStream(w)
	for i := range n {
		if i > 0 && !wait(r, gap) {
			panic(http.ErrAbortHandler) // so that a stream cut short does not look like a whole one
		}
		if s.send("tick", map[string]int{"n": i}) != nil {
			return
		}
	}
}

func number(r *http.Request, name string, def, most int) int {
	n, err := strconv.Atoi(r.URL.Query().Get(name))
	if err != nil || n < 0 {
		return def
	}
	return min(n, most)
}

// wait reports whether d passed before the client left or the server closed.
func wait(r *http.Request, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

// echoMessages sends every WebSocket message back until the client leaves.
func echoMessages(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(16 << 20)
	for {
		kind, data, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		if err := conn.Write(r.Context(), kind, data); err != nil {
			return
		}
	}
}

// stream is a server-sent event stream, flushed after each event.
type stream struct {
	w http.ResponseWriter
	c *http.ResponseController
}

func newStream(w http.ResponseWriter) stream {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	return stream{w, http.NewResponseController(w)}
}

func (s stream) send(event string, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", event, b); err != nil {
		return err
	}
	return s.c.Flush()
}
