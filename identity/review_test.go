package identity

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"wayleave/secret"
)

const (
	cluster  = "https://kubernetes.default.svc.cluster.local"
	account  = "system:serviceaccount:builds:agent"
	ownToken = "token-of-the-gate-itself"
)

// apiServer answers TokenReviews as Kubernetes writes them.
func apiServer(t *testing.T, status int, body string) (*Verifier, *atomic.Pointer[http.Request], *atomic.Value) {
	t.Helper()
	var asked atomic.Pointer[http.Request]
	var sent atomic.Value
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		asked.Store(r)
		sent.Store(raw)
		w.Header().Set("content-type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(s.Close)
	v := NewVerifier([]Issuer{{
		Name: "cluster", Issuer: cluster, Audience: audience, HTTP: s.Client(), API: s.URL + "/",
		APIToken: func() (secret.Text, error) { return secret.New(ownToken), nil },
	}}, Options{Now: func() time.Time { return start }})
	return v, &asked, &sent
}

func podToken(t *testing.T, changes map[string]any) secret.Text {
	t.Helper()
	claims := map[string]any{"sub": account, "aud": []string{audience}, "repository": nil}
	for k, v := range changes {
		claims[k] = v
	}
	return newSigner(t, "k1", jose.RS256).sign(cluster, claims)
}

const authenticated = `{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","metadata":{"creationTimestamp":null},
 "spec":{"token":"…","audiences":["` + audience + `"]},
 "status":{"authenticated":true,"user":{"username":"` + account + `","uid":"5f4c","groups":["system:serviceaccounts","system:serviceaccounts:builds","system:authenticated"],
  "extra":{"authentication.kubernetes.io/pod-name":["agent-7"],"sub":["somebody else"]}},"audiences":["` + audience + `"]}}`

func TestReview(t *testing.T) {
	v, asked, sent := apiServer(t, http.StatusCreated, authenticated)
	token := podToken(t, nil)
	proof, err := v.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	want := Proof{Issuer: "cluster", Subject: account, Claims: map[string]any{
		"sub": account, "uid": "5f4c", "groups": []any{"system:serviceaccounts", "system:serviceaccounts:builds", "system:authenticated"},
		"authentication.kubernetes.io/pod-name": []any{"agent-7"},
	}}
	if diff := cmp.Diff(want, proof); diff != "" {
		t.Error(diff)
	}
	if r := asked.Load(); r.Method != "POST" || r.URL.Path != "/apis/authentication.k8s.io/v1/tokenreviews" || r.Header.Get("authorization") != "Bearer "+ownToken {
		t.Errorf("%s %s", r.Method, r.URL)
	}
	var got any
	if err := json.Unmarshal(sent.Load().([]byte), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": map[string]any{"token": token.Reveal(), "audiences": []any{audience}},
	}, got); diff != "" {
		t.Error(diff)
	}
}

func TestReviewRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		status int
		body   string
		reason Reason
		says   string
	}{
		{"not authenticated", 201, `{"kind":"TokenReview","status":{"user":{},"error":"[invalid bearer token, service account token has been invalidated]"}}`, Invalid, "has been invalidated"},
		{"not authenticated, no word why", 201, `{"kind":"TokenReview","status":{}}`, Invalid, "a pod that runs"},
		{"another audience", 201, strings.ReplaceAll(authenticated, `"audiences":["`+audience+`"]}}`, `"audiences":["x"]}}`), WrongAudience, audience},
		{"knows no audiences", 201, strings.ReplaceAll(authenticated, `,"audiences":["`+audience+`"]}}`, `}}`), WrongAudience, "projected"},
		{"nobody", 201, strings.ReplaceAll(authenticated, `"username":"`+account+`",`, ``), Invalid, "whose"},
		{"the gate may not ask", 403, `{"kind":"Status","reason":"Forbidden"}`, Unavailable, "system:auth-delegator"},
		{"the gate is unknown", 401, `{"kind":"Status","reason":"Unauthorized"}`, Unavailable, "system:auth-delegator"},
		{"fails", 500, `{}`, Unavailable, "answers 500"},
		{"something else", 201, `{"kind":"Status","status":"Success"}`, Unavailable, "JSON"},
		{"another kind", 201, `{"kind":"SubjectAccessReview","status":{"authenticated":true}}`, Unavailable, "issuers.cluster.api"},
		{"no status", 201, `{"kind":"TokenReview"}`, Unavailable, "issuers.cluster.api"},
		{"status 200", 200, authenticated, Unavailable, "answers 200"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, _, _ := apiServer(t, c.status, c.body)
			token := podToken(t, nil)
			_, err := v.Verify(t.Context(), token)
			refusedWith(t, err, token, c.reason, c.says)
			if strings.Contains(err.Error(), ownToken) {
				t.Error("the gate's own token is shown")
			}
		})
	}
	// What a token says of itself is enough to refuse it, and Kubernetes is not asked.
	for reason, changes := range map[Reason]map[string]any{
		Expired: {"exp": start.Add(-time.Hour).Unix()}, WrongAudience: {"aud": []string{"https://kubernetes.default.svc"}},
		NotYetValid: {"nbf": start.Add(time.Hour).Unix()}, Invalid: {"exp": nil},
	} {
		v, asked, _ := apiServer(t, http.StatusCreated, authenticated)
		token := podToken(t, changes)
		_, err := v.Verify(t.Context(), token)
		refusedWith(t, err, token, reason)
		if asked.Load() != nil {
			t.Errorf("%s: Kubernetes was asked", reason)
		}
	}
	t.Run("the gate has no token", func(t *testing.T) {
		v, asked, _ := apiServer(t, http.StatusCreated, authenticated)
		v.issuers[0].APIToken = func() (secret.Text, error) { return secret.Text{}, errors.New("no such file") }
		token := podToken(t, nil)
		_, err := v.Verify(t.Context(), token)
		refusedWith(t, err, token, Unavailable, "no such file")
		if asked.Load() != nil {
			t.Error("asked without a token")
		}
	})
}
