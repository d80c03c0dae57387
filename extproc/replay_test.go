package extproc

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave/vault/vaulttest"
	"wayleave/worker"
)

// A placeholder is worth nothing in any other hand, and the log says how it came into it.
func TestReplays(t *testing.T) {
	docs := vaulttest.NewMemory()
	open := func(now time.Time) *worker.Sessions {
		s, err := worker.OpenSessions(t.Context(), docs, worker.LedgerOptions{Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	sessions := open(now)
	issue := func(name, profile string) worker.Session {
		s, _, err := sessions.Issue(name, profile, time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	mine, second, revoked, theirs := issue("ci", "default"), issue("ci", "default"), issue("ci", "default"), issue("poor", "poor")
	if err := worker.Revoke(t.Context(), docs, worker.Revocation{Sessions: []string{revoked.ID}}, now); err != nil {
		t.Fatal(err)
	}
	sessions.Renew(second, now.Add(2*time.Hour))
	learned := open(now) // what the others have read by now
	learned.Renew(second, now.Add(2*time.Hour))
	foreign, err := worker.LoadKeyring(t.Context(), vaulttest.NewMemory())
	if err != nil {
		t.Fatal(err)
	}

	const prefix = "sk-ant-oat01-"
	claude := func(s worker.Session) string { return sessions.Placeholder(s, "claude", prefix) }
	unknown := foreign.Placeholder(second, "claude", prefix)
	at := len(prefix + worker.Marker)
	unknown = unknown[:at] + "74" + unknown[at+2:] // no key has that id
	byAddress := "address|10.1.2.3"

	cfg := testConfig
	cfg.Addresses = map[string][]netip.Prefix{"ci": {netip.MustParsePrefix("10.1.2.3/32")}}
	for _, c := range []struct {
		name, identity, host, value string
		at                          time.Time
		reason, cause, of           string
	}{
		{"its own", mine.Identity(), "api.anthropic.com", claude(mine), now, "", "", ""},
		{"its own, of an address", byAddress, "api.anthropic.com", claude(mine), now, "", "", ""},
		{"from another session", second.Identity(), "api.anthropic.com", claude(mine), now, notYourPlaceholder, "other_session", mine.ID},
		{"at another host", mine.Identity(), "plain.example.com", claude(mine), now, notYourPlaceholder, "other_credential", mine.ID},
		{"at another host, of an address", byAddress, "plain.example.com", claude(mine), now, notYourPlaceholder, "other_credential", mine.ID},
		{"from another worker's connection", theirs.Identity(), "api.anthropic.com", claude(mine), now, notYourPlaceholder, "other_worker", mine.ID},
		{"from another worker's address", byAddress, "api.anthropic.com", claude(theirs), now, notYourPlaceholder, "other_worker", theirs.ID},
		{"after expiry", mine.Identity(), "api.anthropic.com", claude(mine), mine.Expires, sessionExpired, "", ""},
		{"after expiry, of an address", byAddress, "api.anthropic.com", claude(mine), mine.Expires, sessionExpired, "", ""},
		{"after expiry, from another session", second.Identity(), "api.anthropic.com", claude(mine), mine.Expires, notYourPlaceholder, "other_session", mine.ID},
		{"after a renewal", second.Identity(), "api.anthropic.com", claude(second), second.Expires, "", "", ""},
		{"after a renewal, of an address", byAddress, "api.anthropic.com", claude(second), second.Expires, "", "", ""},
		{"after the end of a renewal", second.Identity(), "api.anthropic.com", claude(second), second.Expires.Add(time.Hour), sessionExpired, "", ""},
		{"after revocation", revoked.Identity(), "api.anthropic.com", claude(revoked), now, sessionRevoked, "", ""},
		{"after revocation, of an address", byAddress, "api.anthropic.com", claude(revoked), now, sessionRevoked, "", ""},
		{"after revocation, from another session", mine.Identity(), "api.anthropic.com", claude(revoked), now, notYourPlaceholder, "other_session", revoked.ID},
		{"altered", mine.Identity(), "api.anthropic.com", claude(mine)[:at+30] + "a" + claude(mine)[at+31:], now, notYourPlaceholder, "altered", ""},
		{"of an unknown key", mine.Identity(), "api.anthropic.com", unknown, now, notYourPlaceholder, "unknown_key", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log bytes.Buffer
			server := New(cfg, learned, &vault{}, Options{Now: func() time.Time { return c.at }, Log: slog.New(slog.NewTextHandler(&log, nil))})
			r := request{
				method: "POST", authority: c.host, path: "/v1/messages", serverName: c.host, connectAuthority: c.host + ":443",
				identity: c.identity, headers: []header{{"authorization", "Bearer " + c.value}},
			}
			d := decide(server.live.Load().stable, learned, &r, c.at)
			if c.reason == "" {
				if d.swap == nil {
					t.Fatalf("refused: %+v", d.refusal)
				}
				return
			}
			if d.swap != nil || d.refusal == nil || d.refusal.reason != c.reason {
				t.Fatalf("swapped %v, refused as %+v", d.swap != nil, d.refusal)
			}
			if strings.Contains(d.refusal.message(), "other_") {
				t.Errorf("the worker is told: %s", d.refusal.message())
			}
			server.logRefusal(t.Context(), d, "r")
			line := log.String()
			for name, want := range map[string]string{"reason": c.reason, "cause": c.cause, "placeholder_of": c.of} {
				if got := strings.Contains(line, " "+name+"="); got != (want != "") || want != "" && !strings.Contains(line, " "+name+"="+want) {
					t.Errorf("%s should be %q in: %s", name, want, line)
				}
			}
			if strings.Contains(line, worker.Marker) {
				t.Errorf("the log shows a placeholder: %s", line)
			}
		})
	}
}

// A placeholder with one character altered is never swapped and never forwarded, whichever it is.
func TestReplaysAltered(t *testing.T) {
	f := newFixture(t)
	claude := f.claude()
	for i := range claude {
		for _, c := range "a2-Z" {
			altered := claude[:i] + string(c) + claude[i+1:]
			if altered == claude {
				continue
			}
			for _, value := range []string{"Bearer " + altered, basicAuth("u", altered), basicAuth(altered, "x")} {
				r := f.anthropic("POST", "/v1/messages", "authorization", value)
				d := decide(f.policy, f.sessions, &r, now)
				if d.swap != nil || d.refusal == nil || d.refusal.reason != notYourPlaceholder || d.refusal.mismatch != worker.Altered {
					t.Fatalf("character %d as %c: swapped %v, %+v", i, c, d.swap != nil, d.refusal)
				}
			}
		}
	}
}

// At the proxy, what is over is told from what never was.
func TestCheckOfSessionsThatAreOver(t *testing.T) {
	docs := vaulttest.NewMemory()
	sessions, err := worker.OpenSessions(t.Context(), docs, worker.LedgerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s, token, err := sessions.Issue("ci", "default", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	r := request{method: "CONNECT", authority: "api.anthropic.com:443", headers: []header{{"proxy-authorization", basicAuth(s.ID, token.Reveal())}}}
	p := newPolicy(testConfig)
	check := func(at time.Time, want string) {
		t.Helper()
		d := arrive(p, sessions, &r, at)
		got := ""
		if d.refusal != nil {
			got = d.refusal.reason
			if d.refusal.status != 407 || d.session.ID != s.ID {
				t.Errorf("status %d, session %q", d.refusal.status, d.session.ID)
			}
		}
		if got != want {
			t.Errorf("at %v: %q, want %q", at, got, want)
		}
	}
	check(s.Expires.Add(-1), "")
	check(s.Expires, sessionExpired)
	sessions.Renew(s, s.Expires.Add(time.Hour))
	check(s.Expires, "")
	check(s.Expires.Add(time.Hour), sessionExpired)
	sessions.End(s)
	check(now, sessionExpired)
	if err := worker.Revoke(t.Context(), docs, worker.Revocation{Workers: []string{"ci"}, NotBefore: now.Add(time.Second)}, now); err != nil {
		t.Fatal(err)
	}
	if sessions, err = worker.OpenSessions(t.Context(), docs, worker.LedgerOptions{Now: func() time.Time { return now }}); err != nil {
		t.Fatal(err)
	}
	check(now, sessionRevoked)
}
