package demo

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// ProviderOptions of NewProvider. The zero value is usable.
type ProviderOptions struct {
	// ClientID of the one public client that is there from the start; default "wayleave-demo".
	ClientID string
	// Clients are further clients.
	Clients []Client
	// RedirectURIs are compared exactly, except that a loopback address may have any port (RFC 8252 §7.3). Default: the
	// provider's own /code page on loopback, and /callback on 127.0.0.1.
	RedirectURIs []string
	// DeviceInterval is the shortest time between two polls of a device; default a second.
	DeviceInterval time.Duration
	// AccessTTL of access tokens; default an hour.
	AccessTTL time.Duration
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Issued is told of every secret that is made, before anybody else has it. Nil: nobody is.
	Issued func(secret string)
}

// codeTTL is how long an authorization code may be exchanged (RFC 6749 §4.1.2 allows ten minutes at most).
const codeTTL = time.Minute

// Provider is a demo OAuth 2 authorization server. It serves
//
//	GET  /authorize  approves at once; PKCE S256 required (RFC 7636)
//	GET  /code       shows code#state to paste, for clients without a callback
//	POST /token      every grant type that its metadata lists, form or JSON
//	POST /revoke     RFC 7009
//	POST /device     RFC 8628
//	GET  /activate   approves the device whose user_code it gets
//	POST /register   RFC 7591
//	GET  /.well-known/oauth-authorization-server and /openid-configuration, RFC 8414
//
// Refresh tokens rotate, and presenting a spent one revokes everything that came from the same consent.
type Provider struct {
	opts ProviderOptions
	mux  *http.ServeMux
	rec  recorder
	done chan struct{}
	once sync.Once

	mu      sync.Mutex // guards what follows; not held while sleeping or writing
	ledger  ledger
	clients map[string]Client
	codes   map[string]authorization
	devices map[string]*device // by device code
	proofs  map[string]bool    // JWTs seen, by issuer and jti
	knobs   knobs
	stats   Stats
}

type authorization struct {
	client              string
	redirect, challenge string
	scopes              []string
	expires             time.Time
	spent               *family // set by the exchange
}

// NewProvider returns a provider; serve it with net/http. Close it if it was made slow.
func NewProvider(opts ProviderOptions) *Provider {
	if opts.ClientID == "" {
		opts.ClientID = "wayleave-demo"
	}
	if opts.RedirectURIs == nil {
		opts.RedirectURIs = []string{"http://127.0.0.1/code", "http://127.0.0.1/callback"}
	}
	if opts.AccessTTL == 0 {
		opts.AccessTTL = time.Hour
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.DeviceInterval == 0 {
		opts.DeviceInterval = time.Second
	}
	p := &Provider{
		opts: opts, mux: http.NewServeMux(), done: make(chan struct{}),
		clients: map[string]Client{opts.ClientID: {ID: opts.ClientID, RedirectURIs: opts.RedirectURIs}},
		codes:   map[string]authorization{}, devices: map[string]*device{}, proofs: map[string]bool{},
	}
	p.ledger = newLedger(p.newSecret)
	for _, c := range opts.Clients {
		p.clients[c.ID] = c
	}
	p.knobs.accessTTL, p.knobs.rotate = opts.AccessTTL, true
	p.mux.HandleFunc("GET /authorize", p.authorize)
	p.mux.HandleFunc("GET /code", showCode)
	p.mux.HandleFunc("POST /token", p.token)
	p.mux.HandleFunc("POST /revoke", p.revoke)
	p.mux.HandleFunc("POST /device", p.deviceCode)
	p.mux.HandleFunc("GET /activate", p.activate)
	p.mux.HandleFunc("POST /register", p.register)
	p.mux.HandleFunc("GET /.well-known/oauth-authorization-server", p.metadata)
	p.mux.HandleFunc("GET /.well-known/openid-configuration", p.metadata)
	return p
}

// newSecret makes a secret, and tells of it.
func (p *Provider) newSecret(prefix string) string {
	s := newSecret(prefix)
	if p.opts.Issued != nil {
		p.opts.Issued(s)
	}
	return s
}

// ClientID returns the client's identifier.
func (p *Provider) ClientID() string { return p.opts.ClientID }

// Close ends every delay.
func (p *Provider) Close() { p.once.Do(func() { close(p.done) }) }

func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.rec.add(r, p.opts.Now())
	if p.isDown() {
		reset(w)
		return
	}
	p.mux.ServeHTTP(w, r)
}

// authorize is RFC 6749 §4.1.1. Faults in who is asking or where the answer would go are shown, not redirected.
func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	client, known := p.clientOf(q.Get("client_id"))
	if !known {
		http.Error(w, "unknown client_id", http.StatusBadRequest)
		return
	}
	redirect, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || !client.registered(redirect) {
		http.Error(w, "redirect_uri is not registered", http.StatusBadRequest)
		return
	}
	answer := redirect.Query()
	answer.Set("iss", base(r)) // RFC 9207
	if q.Has("state") {
		answer.Set("state", q.Get("state"))
	}
	switch scopes := p.allowed(strings.Fields(q.Get("scope"))); {
	case q.Get("response_type") != "code":
		answer.Set("error", "unsupported_response_type")
	case q.Get("code_challenge") == "" || q.Get("code_challenge_method") != "S256":
		answer.Set("error", "invalid_request")
		answer.Set("error_description", "PKCE with S256 is required")
	case len(scopes) == 0:
		answer.Set("error", "invalid_scope")
	case p.isDenied():
		answer.Set("error", "access_denied")
	default:
		code := p.newSecret(codePrefix)
		p.mu.Lock()
		p.codes[code] = authorization{client: client.ID, redirect: q.Get("redirect_uri"), challenge: q.Get("code_challenge"), scopes: scopes, expires: p.opts.Now().Add(codeTTL)}
		p.mu.Unlock()
		answer.Set("code", code)
	}
	redirect.RawQuery = answer.Encode()
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, redirect.String(), http.StatusFound)
}

// showCode is the page of a provider whose clients cannot receive a callback.
func showCode(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	q := r.URL.Query()
	if q.Has("error") {
		fmt.Fprintln(w, "not authorized")
		return
	}
	fmt.Fprintf(w, "Paste this code:\n\n%s#%s\n", q.Get("code"), q.Get("state"))
}

// token is RFC 6749 §4.1.3 and §6. Faults that a test asked for come before and after the commit, where they hurt.
func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	params, err := readParams(r)
	if err != nil {
		oauthError(w, "invalid_request")
		return
	}
	plan := p.planCall()
	p.pause(plan.before)
	if plan.fail != nil && plan.fail(w, params) {
		return
	}
	t, ttl, code := p.commit(params, base(r))
	p.pause(plan.after)
	if plan.lose {
		reset(w)
		return
	}
	if code != "" {
		oauthError(w, code)
		return
	}
	answer := map[string]any{
		"token_type":   "Bearer",
		"access_token": t.access,
		"expires_in":   int(ttl / time.Second),
		"scope":        strings.Join(t.scopes, " "),
	}
	if t.family.consented {
		answer["account"] = map[string]string{"uuid": "00000000-0000-4000-8000-000000000001", "email_address": "operator@demo.test"}
	}
	if params["grant_type"] == grantExchange {
		answer["issued_token_type"] = typeAccessToken
	}
	if t.refresh != "" {
		answer["refresh_token"] = t.refresh
	}
	if plan.edit != nil {
		plan.edit(params, answer)
	}
	writeJSON(w, http.StatusOK, answer)
}

// commit does what a token request asks for; from here on a lost answer loses tokens. base is our address.
func (p *Provider) commit(params map[string]string, base string) (t issued, ttl time.Duration, code string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	client, code := p.authenticate(params, base)
	if code != "" {
		return t, 0, code
	}
	var want []string
	if s := params["scope"]; s != "" {
		want = strings.Fields(s)
	}
	now, ttl := p.opts.Now(), p.knobs.accessTTL
	count := new(int)
	switch params["grant_type"] {
	case "authorization_code":
		count = &p.stats.Exchanges
		t, code = p.exchange(client, params, now, ttl)
	case "refresh_token":
		count = &p.stats.Refreshes
		t, code = p.ledger.renew(client.ID, params["refresh_token"], want, p.allowedLocked, p.knobs.rotate, now, ttl)
	case grantDevice:
		t, code = p.claim(client, params["device_code"], now, ttl)
	case "client_credentials":
		count = &p.stats.Mints
		t, code = p.mint(client, client.confidential(), want, now, ttl)
	case grantJWT:
		count = &p.stats.Mints
		t, code = p.mint(client, p.proves(client, params["assertion"], base, now), want, now, ttl)
	case grantExchange:
		count = &p.stats.Trades
		t, code = p.trade(client, params, base, want, now, ttl)
	default:
		code = "unsupported_grant_type"
	}
	if code == "" {
		*count++
	}
	return t, ttl, code
}

// exchange spends a code; one that is presented again takes its tokens with it (RFC 6749 §4.1.2).
func (p *Provider) exchange(client Client, params map[string]string, now time.Time, ttl time.Duration) (t issued, code string) {
	a, ok := p.codes[params["code"]]
	if ok && a.spent != nil {
		p.ledger.kill(a.spent)
		return t, "invalid_grant"
	}
	sum := sha256.Sum256([]byte(params["code_verifier"]))
	challenge := base64.RawURLEncoding.EncodeToString(sum[:])
	if !ok || a.client != client.ID || now.After(a.expires) || params["redirect_uri"] != a.redirect || subtle.ConstantTimeCompare([]byte(challenge), []byte(a.challenge)) != 1 {
		return t, "invalid_grant"
	}
	t = p.ledger.open(client.ID, a.scopes, now, ttl)
	a.spent = t.family
	p.codes[params["code"]] = a
	return t, ""
}

func (p *Provider) revoke(w http.ResponseWriter, r *http.Request) {
	params, err := readParams(r)
	if err != nil || params["token"] == "" {
		oauthError(w, "invalid_request")
		return
	}
	p.mu.Lock()
	client, code := p.authenticate(params, base(r))
	if code == "" {
		code = p.ledger.revoke(client.ID, params["token"])
	}
	p.mu.Unlock()
	if code != "" {
		oauthError(w, code)
		return
	}
	w.WriteHeader(http.StatusOK) // also for a token nobody knows
}

// scopesOf is how the API asks about a bearer.
func (p *Provider) scopesOf(access string) ([]string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ledger.scopesOf(access, p.opts.Now())
}

// readParams reads a form or a JSON object; of the latter only strings count. HTTP Basic may carry the client.
func readParams(r *http.Request) (map[string]string, error) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	params := map[string]string{}
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t == "application/json" {
		var m map[string]any
		if err := json.Unmarshal(body, &m); err != nil {
			return nil, err
		}
		for k, v := range m {
			if s, ok := v.(string); ok {
				params[k] = s
			}
		}
	} else {
		v, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, err
		}
		for k := range v {
			params[k] = v.Get(k)
		}
	}
	if user, pass, ok := r.BasicAuth(); ok {
		if params["client_id"], err = url.QueryUnescape(user); err != nil {
			return nil, err
		}
		if params["client_secret"], err = url.QueryUnescape(pass); err != nil {
			return nil, err
		}
	}
	return params, nil
}

// oauthError is RFC 6749 §5.2.
func oauthError(w http.ResponseWriter, code string) {
	status := http.StatusBadRequest
	if code == "invalid_client" {
		status = http.StatusUnauthorized
	}
	writeJSON(w, status, map[string]string{"error": code})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // fails only when the client has left
}

// reset breaks the connection with a RST where it can, without any answer.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil { // HTTP/2
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}
