package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// script answers one request after the other, and notes when each came and what it said. It is no network, so that a
// test's clock need not wait for one.
type script struct {
	t       *testing.T
	start   time.Time
	replies []reply
	got     []string
	last    map[string]string
}

type reply struct {
	status int
	body   string
	err    error
	header string // Retry-After
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	body, _ := io.ReadAll(r.Body)
	s.last = map[string]string{}
	if json.Unmarshal(body, &s.last) != nil {
		v, _ := url.ParseQuery(string(body))
		for k := range v {
			s.last[k] = v.Get(k)
		}
	}
	s.got = append(s.got, fmt.Sprintf("%v %s", time.Since(s.start), r.URL.Path))
	if len(s.replies) == 0 {
		s.t.Error("one request more than expected")
		return nil, errors.New("no more")
	}
	next := s.replies[0]
	s.replies = s.replies[1:]
	if next.err != nil {
		return nil, next.err
	}
	return &http.Response{
		StatusCode: next.status, Body: io.NopCloser(strings.NewReader(next.body)), Request: r,
		Header: http.Header{"Content-Type": {"application/json"}, "Retry-After": {next.header}},
	}, nil
}

// timeout is what net/http returns when nobody answers.
type timeout struct{}

func (timeout) Error() string   { return "i/o timeout" }
func (timeout) Timeout() bool   { return true }
func (timeout) Temporary() bool { return true }

const (
	deviceCode = "dc-7a1c9e3b5d"
	started    = `{"device_code":"` + deviceCode + `","user_code":"WDJB-MJHT","verification_uri":"https://as.example/activate","verification_uri_complete":"https://as.example/activate?user_code=WDJB-MJHT","expires_in":900,"interval":5}`
	pending    = `{"error":"authorization_pending"}`

	begunCodex  = `{"device_auth_id":"` + deviceCode + `","usercode":"ABCD-1234","interval":"3"}`
	agreedCodex = `{"authorization_code":"ac-1","code_challenge":"x","code_verifier":"cv-1"}`
)

// login runs the device flow against replies, with the clock of a synctest bubble.
func login(t *testing.T, cfg Config, replies ...reply) (*script, Device, Token, error) {
	t.Helper()
	s := &script{t: t, start: time.Now(), replies: replies}
	cfg.ClientID, cfg.TokenURL = "id", "https://as.example/token"
	if cfg.DeviceURL == "" {
		cfg.DeviceURL = "https://as.example/device"
	}
	c := NewClient(cfg, &http.Client{Transport: s}, nil)
	d, err := c.StartDevice(t.Context(), []string{"a", "b"})
	if err != nil {
		return s, d, Token{}, err
	}
	tok, err := c.AwaitDevice(t.Context(), d)
	return s, d, tok, err
}

func TestDevicePolling(t *testing.T) {
	ok := reply{status: 200, body: goodAnswer}
	for _, tt := range []struct {
		name    string
		start   string // answer of the device endpoint; default started
		replies []reply
		times   []string // of the polls
		code    string   // of the error; empty with a token
	}{
		{"at once", "", []reply{ok}, []string{"5s"}, ""},
		{"pending", "", []reply{{status: 400, body: pending}, {status: 400, body: pending}, ok}, []string{"5s", "10s", "15s"}, ""},
		{"pending with status 200", "", []reply{{status: 200, body: pending}, ok}, []string{"5s", "10s"}, ""},
		{"slow down adds five seconds for good", "", []reply{{status: 400, body: `{"error":"slow_down"}`}, {status: 200, body: `{"error":"slow_down","interval":10}`}, {status: 400, body: pending}, ok}, []string{"5s", "15s", "30s", "45s"}, ""},
		{"time-outs double", "", []reply{{err: timeout{}}, {err: timeout{}}, ok}, []string{"5s", "15s", "35s"}, ""},
		{"time-outs that are over", "", []reply{{err: timeout{}}, {err: timeout{}}, {err: timeout{}}, {status: 400, body: pending}, {status: 400, body: pending}, ok}, []string{"5s", "15s", "35s", "1m5s", "1m10s", "1m15s"}, ""},
		{"agreed while the network was away", strings.Replace(started, "900", "12", 1), []reply{{err: timeout{}}, ok}, []string{"5s", "11s"}, ""},
		{"a limit that is over", "", []reply{{status: 429, header: "60"}, {status: 400, body: pending}, ok}, []string{"5s", "1m5s", "1m15s"}, ""},
		{"failures of the server", "", []reply{{status: 503}, {status: 502, body: "<html>"}, ok}, []string{"5s", "15s", "35s"}, ""},
		{"limited", "", []reply{{status: 429, header: "60"}, ok}, []string{"5s", "1m5s"}, ""},
		{"quoted interval", strings.Replace(started, `"interval":5`, `"interval":"7"`, 1), []reply{ok}, []string{"7s"}, ""},
		{"no interval", strings.Replace(started, `,"interval":5`, ``, 1), []reply{ok}, []string{"5s"}, ""},
		{"no time", strings.Replace(started, `"interval":5`, `"interval":0.01`, 1), []reply{ok}, []string{"1s"}, ""},
		{"much time", strings.Replace(started, `"interval":5`, `"interval":1e99`, 1), []reply{ok}, []string{"5m0s"}, ""},
		{"nobody agrees", strings.Replace(started, "900", `"12"`, 1), []reply{{status: 400, body: pending}, {status: 400, body: pending}}, []string{"5s", "10s"}, "expired_token"},
		{"expired there", "", []reply{{status: 400, body: `{"error":"expired_token"}`}}, []string{"5s"}, "expired_token"},
		{"refused", "", []reply{{status: 400, body: pending}, {status: 400, body: `{"error":"access_denied"}`}}, []string{"5s", "10s"}, "access_denied"},
		{"refused with status 200", "", []reply{{status: 200, body: `{"error":"access_denied","error_description":"` + deviceCode + `"}`}}, []string{"5s"}, "access_denied"},
		{"refused, as Microsoft says it", "", []reply{{status: 400, body: `{"error":"authorization_declined"}`}}, []string{"5s"}, "access_denied"},
		{"expired, as Microsoft said it", "", []reply{{status: 400, body: `{"error":"code_expired"}`}}, []string{"5s"}, "expired_token"},
		{"as Google says it", "", []reply{{status: 428, body: pending}, {status: 403, body: `{"error":"slow_down"}`}, {status: 403, body: `{"error":"access_denied"}`}}, []string{"5s", "10s", "20s"}, "access_denied"},
		{"slow down as a limit", "", []reply{{status: 429, body: `{"error":"slow_down"}`}, {status: 429, body: `{"error":"temporarily_unavailable"}`, header: "30"}, {status: 429, body: `<html>`}, ok}, []string{"5s", "15s", "45s", "1m5s"}, ""},
		{"pending as a form", "", []reply{{status: 200, body: "error=authorization_pending&error_uri=x"}, ok}, []string{"5s", "10s"}, ""},
		{"names from before the RFC", strings.Replace(started, `"verification_uri":`, `"verification_url":`, 1), []reply{ok}, []string{"5s"}, ""},
		{"another client", "", []reply{{status: 401, body: `{"error":"invalid_client"}`}}, []string{"5s"}, "invalid_client"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := reply{status: 200, body: started}
				if tt.start != "" {
					start.body = tt.start
				}
				s, d, tok, err := login(t, Config{}, append([]reply{start}, tt.replies...)...)
				want := []string{"0s /device"}
				for _, at := range tt.times {
					want = append(want, at+" /token")
				}
				if diff := cmp.Diff(want, s.got); diff != "" {
					t.Errorf("requests (-want +got):\n%s", diff)
				}
				if d.UserCode != "WDJB-MJHT" || d.VerificationURL != "https://as.example/activate" || !strings.HasPrefix(d.VerificationURLComplete, d.VerificationURL+"?") {
					t.Errorf("%+v", d)
				}
				if tt.code == "" {
					if err != nil || tok.Access.Reveal() != newAccess {
						t.Errorf("got %v", err)
					}
					want := map[string]string{"grant_type": grantDeviceCode, "device_code": deviceCode, "client_id": "id"}
					if diff := cmp.Diff(want, s.last); diff != "" {
						t.Error(diff)
					}
					return
				}
				e := asError(t, err)
				if e.Code != tt.code || errors.Is(err, ErrDenied) != (tt.code == "access_denied") || strings.Contains(fmt.Sprintf("%v %+v %+v", e, *e, d), deviceCode) {
					t.Errorf("got %v", e)
				}
			})
		})
	}
}

func TestDeviceGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t, start: time.Now(), replies: []reply{{status: 200, body: started}, {status: 400, body: pending}}}
		c := NewClient(Config{ClientID: "id", TokenURL: "https://as.example/token", DeviceURL: "https://as.example/device"}, &http.Client{Transport: s}, nil)
		d, err := c.StartDevice(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		if _, err := c.AwaitDevice(ctx, d); !errors.Is(err, context.DeadlineExceeded) || time.Since(s.start) != 7*time.Second {
			t.Errorf("after %v: %v", time.Since(s.start), err)
		}
	})
}

// slow is a provider that answers after a while, unless nobody waits for it any more.
type slow struct {
	to    *script
	takes time.Duration
}

func (s slow) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := s.to.RoundTrip(r)
	select {
	case <-time.After(s.takes):
		return answer, err
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// An answer that is under way when nobody waits any more is taken: it may hold tokens that nobody can get again.
func TestDeviceGivenUpDuringAnAnswer(t *testing.T) {
	codex := Config{
		DeviceFlow: DeviceCodex, DeviceURL: "https://as.example/api/deviceauth/usercode",
		DeviceVerificationURL: "https://as.example/codex/device", DeviceRedirectURL: "https://as.example/deviceauth/callback",
	}
	ok, wait := reply{status: 200, body: goodAnswer}, reply{status: 400, body: pending}
	for name, tt := range map[string]struct {
		cfg     Config
		replies []reply
		takes   time.Duration
		ends    time.Duration // after the log-in began
		tokens  bool
	}{
		"agreed":            {Config{}, []reply{{status: 200, body: started}, ok}, 3 * time.Second, 8 * time.Second, true},
		"agreed, to Codex":  {codex, []reply{{status: 200, body: begunCodex}, {status: 200, body: agreedCodex}, ok}, 4 * time.Second, 11 * time.Second, true},
		"not agreed":        {Config{}, []reply{{status: 200, body: started}, wait}, 3 * time.Second, 8 * time.Second, false},
		"nobody answers":    {Config{}, []reply{{status: 200, body: started}, ok}, time.Hour, 16 * time.Second, false},
		"between two polls": {Config{}, []reply{{status: 200, body: strings.Replace(started, `:5}`, `:9}`, 1)}}, 3 * time.Second, 6 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{t: t, start: time.Now(), replies: tt.replies}
				tt.cfg.ClientID, tt.cfg.TokenURL = "id", "https://as.example/token"
				if tt.cfg.DeviceURL == "" {
					tt.cfg.DeviceURL = "https://as.example/device"
				}
				begin := NewClient(tt.cfg, &http.Client{Transport: s}, nil)
				d, err := begin.StartDevice(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
				defer cancel()
				tok, err := NewClient(tt.cfg, &http.Client{Transport: slow{s, tt.takes}}, nil).AwaitDevice(ctx, d)
				if took := time.Since(s.start); took != tt.ends || tok.Access.IsZero() == tt.tokens || errors.Is(err, context.DeadlineExceeded) == tt.tokens {
					t.Errorf("after %v, want %v: %v", took, tt.ends, err)
				}
			})
		})
	}
}

func TestDeviceStartRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		r    reply
		kind Kind
	}{
		{"not enabled", reply{status: 400, body: `{"error":"unauthorized_client"}`}, KindInvalidClient},
		{"an error with status 200", reply{status: 200, body: `{"error":"device_flow_disabled"}`}, KindRefused},
		{"gone", reply{status: 404}, KindProviderChanged},
		{"page", reply{status: 200, body: `<html>` + deviceCode}, KindBadAnswer},
		{"no code", reply{status: 200, body: `{"user_code":"` + deviceCode + `"}`}, KindBadAnswer},
		{"escape sequences", reply{status: 200, body: strings.Replace(started, "WDJB", `\u001b[2J`, 1)}, KindBadAnswer},
		{"page that is no page", reply{status: 200, body: strings.Replace(started, `_uri":"https`, `_uri":"javascript`, 1)}, KindBadAnswer},
		{"page over http", reply{status: 200, body: strings.Replace(started, `_uri":"https`, `_uri":"http`, 1)}, KindBadAnswer},
		{"nobody answers", reply{err: timeout{}}, KindNoAnswer},
	} {
		_, _, _, err := login(t, Config{}, tt.r)
		if e := asError(t, err); e.Kind() != tt.kind || strings.Contains(fmt.Sprintf("%v %+v", e, *e), deviceCode) {
			t.Errorf("%s: %s, %v", tt.name, e.Kind(), e)
		}
	}
}

func TestCodexDevice(t *testing.T) {
	cfg := Config{
		DeviceFlow: DeviceCodex, DeviceURL: "https://as.example/api/deviceauth/usercode",
		DeviceVerificationURL: "https://as.example/codex/device", DeviceRedirectURL: "https://as.example/deviceauth/callback",
	}
	synctest.Test(t, func(t *testing.T) {
		s, d, tok, err := login(t, cfg, reply{status: 200, body: begunCodex}, reply{status: 403, body: `{"error":{"code":"deviceauth_authorization_unknown"}}`},
			reply{status: 404}, reply{status: 200, body: agreedCodex}, reply{status: 200, body: goodAnswer})
		if err != nil || tok.Access.Reveal() != newAccess {
			t.Fatal(err)
		}
		want := []string{"0s /api/deviceauth/usercode", "3s /api/deviceauth/token", "6s /api/deviceauth/token", "9s /api/deviceauth/token", "9s /token"}
		if diff := cmp.Diff(want, s.got); diff != "" {
			t.Error(diff)
		}
		wantLast := map[string]string{"grant_type": "authorization_code", "code": "ac-1", "code_verifier": "cv-1", "redirect_uri": cfg.DeviceRedirectURL, "client_id": "id"}
		if diff := cmp.Diff(wantLast, s.last); diff != "" {
			t.Error(diff)
		}
		if d.VerificationURL != cfg.DeviceVerificationURL || d.UserCode != "ABCD-1234" || d.Expires.Sub(s.start) != defaultDevice {
			t.Errorf("%+v", d)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s, _, _, err := login(t, cfg, reply{status: 200, body: begunCodex}, reply{status: 200, body: agreedCodex}, reply{err: timeout{}})
		if e := asError(t, err); e.Outcome != Unknown || len(s.got) != 3 {
			t.Errorf("a code that may be spent is presented again: %v, %v", s.got, err)
		}
		_, _, _, err = login(t, cfg, reply{status: 200, body: begunCodex}, reply{status: 403, body: `{"error":"access_denied"}`})
		if e := asError(t, err); e.Code != "access_denied" {
			t.Errorf("%v", e)
		}
		_, _, _, err = login(t, cfg, reply{status: 200, body: begunCodex}, reply{status: 200, body: `{"authorization_code":"` + deviceCode + `"}`})
		if e := asError(t, err); e.Kind() != KindBadAnswer || strings.Contains(e.Error(), deviceCode) {
			t.Errorf("%v", e)
		}
	})
}

// Whatever the device endpoint answers: no panic, a login only if it can be shown and will end, an error that repeats
// nothing.
func FuzzReadDevice(f *testing.F) {
	f.Add(200, started, false)
	f.Add(200, `{"error":"slow_down"}`, false)
	f.Add(200, `{"device_auth_id":"d","user_code":"A","interval":"5"}`, true)
	f.Add(400, `{"error":"invalid_client"}`, false)
	f.Fuzz(func(t *testing.T, status int, body string, codex bool) {
		status = 200 + (status%400+400)%400
		cfg := Config{}
		if codex {
			cfg.DeviceFlow, cfg.DeviceVerificationURL = DeviceCodex, "https://as.example/codex"
		}
		a := answer{at: place{url: "https://h/t"}, sent: noon, status: status, body: []byte(body)}
		d, err := cfg.readDevice(a, []string{oldRefresh})
		if err != nil {
			if strings.Contains(fmt.Sprintf("%v%+v", err, *err), oldRefresh) {
				t.Fatal("the error repeats what we sent")
			}
		} else if !isShown(d.UserCode, longestUserCode) || !strings.HasPrefix(d.VerificationURL, "https://") || d.code.IsZero() ||
			!d.Expires.After(noon) || d.Expires.After(noon.Add(longestDevice)) || d.interval < shortestPoll || d.interval > longestPoll {
			t.Fatalf("%+v", d)
		}
		if code, verifier, err := cfg.readCodex(a, nil); err == nil && (code.IsZero() || verifier.IsZero()) {
			t.Fatal("no code and no error")
		}
	})
}
