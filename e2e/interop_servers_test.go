package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// authServer is a real authorization server, written by others, that runs as a process of its own and listens on unix
// sockets. Whoever speaks to it, the product first of all, does so through front, whose address is its issuer.
type authServer struct {
	name   string
	issuer string
	front  *front
	dir    string // its sockets and settings, and the client secrets of the test: all that may hold secrets
	// introspect says what the server knows about a token (RFC 7662).
	introspect func(token string) (map[string]any, error)

	turn sync.Mutex
}

// newAuthServer prepares a server whose public socket is public.sock in its directory.
func newAuthServer(t *testing.T, name string) *authServer {
	s := &authServer{name: name, dir: shortDir(t)}
	s.front = newFront(t, s.way("public.sock"))
	s.issuer = s.front.URL
	return s
}

// file is one in the server's directory.
func (s *authServer) file(name string) string { return filepath.Join(s.dir, name) }

// way leads to one of the server's sockets, for one request at a time: with SQLite in memory, Hydra refuses what would
// have to wait for another transaction.
func (s *authServer) way(socket string) http.RoundTripper {
	return takingTurns{&s.turn, &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.file(socket))
	}}}
}

// start runs a server until the test ends, or dies, and waits until it answers.
func (s *authServer) start(t *testing.T, env []string, command ...string) {
	t.Helper()
	// The pipe to cat closes when this process ends, however it ends, and the server ends with it.
	const untilEOF = `exec 3<&0; "$@" 3<&- & server=$!; { cat <&3; kill -9 $server; } >/dev/null 2>&1 & wait $server`
	out := newOutput(s.file(s.name + ".log"))
	c := exec.Command("sh", append([]string{"-c", untilEOF, "sh"}, command...)...)
	c.Dir, c.Env, c.Stdout, c.Stderr = s.dir, append(os.Environ(), env...), out, out
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stop, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = c.Wait(); close(ended) }()
	t.Cleanup(func() {
		stop.Close()
		select {
		case <-ended:
		case <-time.After(patience):
			_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
			<-ended
			t.Errorf("%s did not end", s.name)
		}
		if t.Failed() {
			t.Logf("%s printed:\n%.20000s", s.name, tail(out.String(), 20_000))
		}
	})
	if err := eventually(func() error {
		select {
		case <-ended:
			t.Fatalf("%s ended at once:\n%s", s.name, tail(out.String(), 20_000))
		default:
		}
		_, err := fetchJSON(s.front.Client(), http.MethodGet, s.issuer+"/.well-known/openid-configuration", nil)
		return err
	}); err != nil {
		t.Fatalf("%s does not answer: %v", s.name, err)
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func (s *authServer) write(t *testing.T, file string, content []byte) string {
	t.Helper()
	path := s.file(file)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// keyPair makes a client's key: a file for the product and the public half for the server.
func (s *authServer) keyPair(t *testing.T, file string) (jwks map[string]any) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	point, err := key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return map[string]any{"keys": []any{map[string]any{
		"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:]), "kid": keyID, "use": "sig", "alg": "ES256",
	}}}
}

const keyID = "wayleave-1"

// Grant types, as requests name them.
const (
	codeGrant      = "authorization_code"
	refreshGrant   = "refresh_token"
	clientGrant    = "client_credentials"
	jwtBearerGrant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	deviceGrant    = "urn:ietf:params:oauth:grant-type:device_code"
)

// accessLife is how long the servers' access tokens last, in seconds: short enough that a test sees several.
const accessLife = 6

// newClientSecret has characters that Basic authentication must encode (RFC 6749 §2.3.1).
func newClientSecret() string { return "+/%:&=" + rand.Text() }

// oidcProvider runs oidc-provider of npm, with its own pages for signing in and consent.
func oidcProvider(t *testing.T) *authServer {
	module := filepath.Join(filepath.Dir(toolsBin), "oidc-provider", "node_modules", "oidc-provider", "lib", "index.js")
	node, err := exec.LookPath("node")
	if _, missing := os.Stat(module); err != nil || missing != nil {
		t.Skip("oidc-provider or node is not here; install Node.js and run 'make tools'")
	}
	s := newAuthServer(t, "oidc-provider")
	secret := newClientSecret()
	s.write(t, "client-secret", []byte(secret))
	enabled := map[string]any{"enabled": true}
	client := func(id, auth string, more map[string]any) map[string]any {
		c := map[string]any{
			"client_id": id, "token_endpoint_auth_method": auth, "application_type": "native", "response_types": []string{},
			"redirect_uris": []string{}, "grant_types": []string{},
		}
		maps.Copy(c, more)
		return c
	}
	withCode := map[string]any{"grant_types": []string{codeGrant, refreshGrant}, "response_types": []string{"code"}, "redirect_uris": []string{"http://127.0.0.1/callback"}}
	withKey := map[string]any{"jwks": s.keyPair(t, "client-key.pem"), "token_endpoint_auth_signing_alg": "ES256"}
	maps.Copy(withKey, withCode)
	settings, err := json.Marshal(map[string]any{
		"module": module, "socket": s.file("public.sock"), "issuer": s.issuer,
		"configuration": map[string]any{
			"scopes":             []string{"openid", "offline_access", "email", "contact", "api:read", "api:write"},
			"rotateRefreshToken": true,
			"ttl": map[string]int{
				"AccessToken": accessLife, "ClientCredentials": accessLife, "RefreshToken": 3600, "IdToken": 3600, "Grant": 3600,
				"Session": 3600, "Interaction": 600, "DeviceCode": 600, "AuthorizationCode": 60,
			},
			"cookies": map[string]any{"keys": []string{newClientSecret()}},
			"features": map[string]any{
				"devInteractions": enabled, "introspection": enabled, "revocation": enabled, "clientCredentials": enabled,
				"deviceFlow": enabled, "registration": enabled,
			},
			"clients": []any{
				client("public", "none", withCode),
				client("narrow", "none", withCode),
				client("signing", "private_key_jwt", withKey),
				client("machine", "client_secret_basic", map[string]any{"grant_types": []string{clientGrant}, "client_secret": secret}),
				client("device", "none", map[string]any{"grant_types": []string{deviceGrant, refreshGrant}}),
				client("console", "client_secret_basic", map[string]any{
					"grant_types": []string{codeGrant}, "response_types": []string{"code"}, "redirect_uris": []string{"http://127.0.0.1/login/callback"}, "client_secret": secret,
				}),
				client("resource", "client_secret_post", map[string]any{"client_secret": secret}),
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs(filepath.Join("interop", "oidc-provider.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	s.introspect = func(token string) (map[string]any, error) {
		return fetchJSON(s.front.Client(), http.MethodPost, s.issuer+"/token/introspection",
			url.Values{"token": {token}, "client_id": {"resource"}, "client_secret": {secret}})
	}
	s.start(t, nil, node, script, s.write(t, "settings.json", settings))
	return s
}
