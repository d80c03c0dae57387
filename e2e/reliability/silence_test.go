package reliability

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"wayleave/oauth"
	"wayleave/secret"
)

// hostile are token endpoints that fail and repeat what they were sent wherever somebody might print it.
var hostile = map[string]func(w http.ResponseWriter, r *http.Request, sent string){
	"description": func(w http.ResponseWriter, _ *http.Request, sent string) {
		answer(w, 400, map[string]any{"error": "invalid_request", "error_description": sent, "error_uri": "https://x/" + sent})
	},
	"code": func(w http.ResponseWriter, _ *http.Request, sent string) {
		answer(w, 400, map[string]any{"error": sent})
	},
	"dead": func(w http.ResponseWriter, _ *http.Request, sent string) {
		answer(w, 400, map[string]any{"error": "invalid_grant", "error_description": sent})
	},
	"page": func(w http.ResponseWriter, _ *http.Request, sent string) {
		http.Error(w, "<html>"+sent, http.StatusInternalServerError)
	},
	"wall": func(w http.ResponseWriter, _ *http.Request, sent string) {
		http.Error(w, "<html>"+sent, http.StatusForbidden)
	},
	"empty": func(w http.ResponseWriter, _ *http.Request, sent string) {
		answer(w, 200, map[string]any{"token_type": sent, "scope": sent})
	},
	"odd": func(w http.ResponseWriter, _ *http.Request, sent string) {
		answer(w, 200, map[string]any{"access_token": map[string]string{"x": sent}, "refresh_token": []string{sent}, "expires_in": sent})
	},
	"torn": func(w http.ResponseWriter, _ *http.Request, sent string) {
		w.Header().Set("Content-Length", "100000")
		fmt.Fprintf(w, `{"access_token": %q, "x": "`, sent)
		panic(http.ErrAbortHandler)
	},
	"away": func(w http.ResponseWriter, r *http.Request, sent string) {
		http.Redirect(w, r, "https://elsewhere.test/?"+r.PostForm.Encode(), http.StatusFound)
	},
	"busy": func(w http.ResponseWriter, _ *http.Request, sent string) {
		w.Header().Set("Retry-After", sent)
		w.Header().Set("Www-Authenticate", "Bearer error="+sent)
		http.Error(w, sent, http.StatusTooManyRequests)
	},
	"gone": func(http.ResponseWriter, *http.Request, string) { panic(http.ErrAbortHandler) },
}

// However a provider fails, nothing that was sent to it is in logs, in status documents or in what workers are told.
func TestSilence(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		var sent []string
		for _, v := range r.PostForm {
			sent = append(sent, v...)
		}
		hostile[strings.Split(r.URL.Path, "/")[1]](out, r, strings.Join(sent, " "))
	}))
	defer server.Close()
	s := settings{Reread: reread}
	for kind := range hostile {
		g := w.connect(w.strict, kind, time.Second)
		s.Grants = append(s.Grants, minded{kind, g.Provider, server.URL + "/" + kind + "/token", g.ClientSecret})
	}
	r := w.start(s)
	for _, g := range s.Grants {
		eventually(t, g.Name+" has failed", func() bool { return w.status(g).LastError != "" })
		eventually(t, g.Name+" is refused to workers", func() bool { return r.use(g.Name).Error != "" })
	}
	r.stop()

	// Codes and verifiers are sent by an operator's command.
	for _, g := range s.Grants {
		client := oauth.NewClient(oauth.Config{
			TokenURL: g.TokenURL, ClientID: clientID, ClientSecret: secret.New(g.ClientSecret), AuthStyle: oauth.AuthPost, AllowInsecure: true, ExchangeSendsState: true,
		}, nil, nil)
		token, err := client.Exchange(t.Context(), secret.New("wlac"+rand.Text()), "wlac"+rand.Text(), oauth.PKCE{Verifier: secret.New("wlcv" + rand.Text())}, "http://127.0.0.1/callback")
		if err == nil {
			t.Errorf("%s: it gave a token", g.Name)
		}
		for _, text := range []string{fmt.Sprint(err), fmt.Sprintf("%+v %#v", err, err), fmt.Sprintf("%+v", token)} {
			if hit := tokenish.FindString(text); hit != "" {
				t.Errorf("%s: a failed exchange says %.8s…", g.Name, hit)
			}
		}
	}
	w.searched()
}
