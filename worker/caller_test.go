package worker

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"wayleave/identity"
	"wayleave/secret"
	"wayleave/vault/vaulttest"
)

const ciIssuer = "https://ci.example"

// newVouchedGate is newGate with two workers that an issuer vouches for, and two that it may take for one another.
func newVouchedGate(t *testing.T) (*gate, *vaulttest.Issuer) {
	t.Helper()
	issuer := vaulttest.NewIssuer(t)
	g := newGate(t, identity.Issuer{Name: "ci", Issuer: ciIssuer, Audience: "gate", JWKSURL: issuer.URL, HTTP: &http.Client{}})
	static, _ := g.registry.Lookup(secret.New(ciToken))
	of := func(name string, claims map[string]string) Worker {
		return Worker{Name: name, Profile: "default", Match: identity.Match{Issuer: "ci", Claims: claims}, SessionTTL: time.Hour, MaxSession: time.Hour}
	}
	if err := g.registry.Update([]Worker{
		static, of("acme", map[string]string{"sub": "repo:acme/*"}), of("release", map[string]string{"sub": "repo:acme/*", "environment": "release"}),
		of("a", map[string]string{"sub": "team", "groups": "a"}), of("b", map[string]string{"sub": "team", "groups": "b"}),
	}); err != nil {
		t.Fatal(err)
	}
	return g, issuer
}

func TestEnrolByIssuer(t *testing.T) {
	g, issuer := newVouchedGate(t)
	token := func(life time.Duration, changes map[string]any) string {
		claims := map[string]any{"iss": ciIssuer, "aud": "gate", "sub": "repo:acme/app"}
		for k, v := range changes {
			claims[k] = v
		}
		return issuer.Token(t, life, claims)
	}
	for _, c := range []struct {
		name, token, worker string // worker of the session, or
		status              int
		reason, says        string
	}{
		{"the worker it fits", token(time.Hour, nil), "acme", 200, "", ""},
		{"the narrower of two", token(time.Hour, map[string]any{"environment": "release"}), "release", 200, "", ""},
		{"a token of the gate's all the same", ciToken, "ci", 200, "", ""},
		{"no worker", token(time.Hour, map[string]any{"sub": "repo:evil/app\x1b[2J"}), "", 403, "identity_not_admitted", `"repo:evil/app [2J"`},
		{"two workers", token(time.Hour, map[string]any{"sub": "team", "groups": []string{"a", "b"}}), "", 403, "identity_ambiguous", "a and b"},
		{"expired", token(-time.Hour, nil), "", 401, "identity_expired", "get a new one"},
		{"wrong audience", token(time.Hour, map[string]any{"aud": "sts"}), "", 401, "identity_wrong_audience", `"gate"`},
		{"unknown issuer", token(time.Hour, map[string]any{"iss": "https://x"}), "", 401, "issuer_unknown", `"https://x"`},
		{"forged", vaulttest.NewIssuer(t).Token(t, time.Hour, map[string]any{"iss": ciIssuer, "aud": "gate", "sub": "repo:acme/app"}), "", 401, "identity_invalid", "not signed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.log.Reset()
			resp := g.post(t, "", "authorization", "Bearer "+c.token)
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			var said struct {
				Error, Message string
				Session        struct{ ID, Worker string }
				Proxy          struct{ Password string }
			}
			if err := json.Unmarshal(body, &said); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status || said.Session.Worker != c.worker || said.Error != c.reason || !strings.Contains(said.Message, c.says) {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
			if c.worker == "acme" {
				if s, err := g.sessions.Verify(said.Session.ID, secret.New(said.Proxy.Password)); err != nil || s.Subject != "repo:acme/app" {
					t.Errorf("its token proves %+v, %v", s, err)
				}
			}
			log := g.log.String()
			if strings.Contains(log, c.token) || strings.Contains(string(body), c.token) {
				t.Error("the token is shown")
			}
			if want := map[string]string{"acme": "subject=repo:acme/app", "": "reason=" + c.reason}[c.worker]; !strings.Contains(log, want) {
				t.Errorf("the log does not say %q: %s", want, log)
			}
		})
	}
}

// Only what may have been made up counts against an address: a token that is genuine and over says nothing bad about it.
func TestGenuineTokensAreNoGuesses(t *testing.T) {
	g, issuer := newVouchedGate(t)
	expired := issuer.Token(t, -time.Hour, map[string]any{"iss": ciIssuer, "aud": "gate", "sub": "repo:acme/app"})
	forged := vaulttest.NewIssuer(t).Token(t, time.Hour, map[string]any{"iss": ciIssuer, "aud": "gate", "sub": "repo:acme/app"})
	for range 2 * burst {
		if resp := g.post(t, "", "authorization", "Bearer "+expired); resp.StatusCode != 401 {
			t.Fatalf("%d", resp.StatusCode)
		}
	}
	for range burst {
		g.post(t, "", "authorization", "Bearer "+forged)
	}
	if resp := g.post(t, "", "authorization", "Bearer "+forged); resp.StatusCode != 429 {
		t.Errorf("after %d forged tokens: %d", burst, resp.StatusCode)
	}
}

// An issuer that cannot be asked is nobody's fault here: the worker may try again.
func TestIssuerUnavailable(t *testing.T) {
	g, issuer := newVouchedGate(t)
	issuer.Down.Store(true)
	token := issuer.Token(t, time.Hour, map[string]any{"iss": ciIssuer, "aud": "gate", "sub": "repo:acme/app"})
	for range 2 * burst {
		resp := g.post(t, "", "authorization", "Bearer "+token)
		if resp.StatusCode != 503 || resp.Header.Get(reasonHeader) != "issuer_unavailable" || resp.Header.Get("retry-after") == "" {
			t.Fatalf("%d %v", resp.StatusCode, resp.Header)
		}
	}
	if !strings.Contains(g.log.String(), "answers 503") {
		t.Errorf("the log does not say why: %s", g.log)
	}
	if resp := g.post(t, "", "authorization", "Bearer "+ciToken); resp.StatusCode != 200 {
		t.Errorf("a token of the gate's is answered %d", resp.StatusCode)
	}
}

func TestRegistryRefusesProofs(t *testing.T) {
	by := func(name string, claims map[string]string) Worker {
		return Worker{Name: name, Profile: "default", Match: identity.Match{Issuer: "ci", Claims: claims}, SessionTTL: time.Hour, MaxSession: time.Hour}
	}
	both := by("both", map[string]string{"sub": "x"})
	both.TokenSHA256[0] = 1
	for name, bad := range map[string][]Worker{
		"neither token nor match": {{Name: "none", Profile: "default", SessionTTL: time.Hour, MaxSession: time.Hour}},
		"both":                    {both},
		"no condition":            {by("all", nil)},
		"ambiguous":               {by("one", map[string]string{"sub": "x"}), by("two", map[string]string{"environment": "y"})},
	} {
		if _, err := NewRegistry(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A certificate that Envoy has verified is enough, and a token beside it is what counts.
func TestEnrolByCertificate(t *testing.T) {
	g := newGate(t)
	static, _ := g.registry.Lookup(secret.New(ciToken))
	if err := g.registry.Update([]Worker{static, {
		Name: "agent", Profile: "default", SessionTTL: time.Hour, MaxSession: time.Hour,
		Match: identity.Match{Claims: map[string]string{"sub": "spiffe://example.org/ns/builds/*"}},
	}}); err != nil {
		t.Fatal(err)
	}
	authority := vaulttest.NewAuthority(t, "workers")
	certified := func(ids ...string) string {
		_, cert, _ := strings.Cut(authority.SVID(t, time.Hour, ids...), "-----END PRIVATE KEY-----\n")
		return `Hash=aa;Cert="` + url.PathEscape(cert) + `"`
	}
	g.now = time.Now()
	const own = "spiffe://example.org/ns/builds/sa/agent"
	for _, c := range []struct {
		name    string
		headers []string
		worker  string
		status  int
		reason  string
	}{
		{"its own", []string{identity.ForwardedCertificate, certified(own)}, "agent", 200, ""},
		{"a token beside it", []string{identity.ForwardedCertificate, certified(own), "authorization", "Bearer " + ciToken}, "ci", 200, ""},
		{"a wrong token beside it", []string{identity.ForwardedCertificate, certified(own), "authorization", "Bearer wrong"}, "", 401, "unknown_worker"},
		{"of no worker", []string{identity.ForwardedCertificate, certified("spiffe://example.org/ns/other/sa/agent")}, "", 403, "identity_not_admitted"},
		{"two IDs", []string{identity.ForwardedCertificate, certified(own, own+"/b")}, "", 401, "identity_invalid"},
		{"two headers", []string{identity.ForwardedCertificate, certified(own), identity.ForwardedCertificate, certified(own)}, "", 401, "identity_invalid"},
		{"no certificate in it", []string{identity.ForwardedCertificate, "URI=" + own}, "", 401, "identity_invalid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp := g.post(t, "", c.headers...)
			var said struct {
				Error   string
				Session struct{ Worker string }
			}
			if err := json.NewDecoder(resp.Body).Decode(&said); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status || said.Session.Worker != c.worker || said.Error != c.reason {
				t.Errorf("%d %+v", resp.StatusCode, said)
			}
		})
	}
	if log := g.log.String(); !strings.Contains(log, "subject="+own) {
		t.Errorf("the log does not say whose session it is: %s", log)
	}
}
