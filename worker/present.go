package worker

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"wayleave/identity"
	"wayleave/secret"
)

// Presented is what a worker shows the gate about who it is: a token, or a certificate.
type Presented struct {
	Token       secret.Text
	Certificate *tls.Certificate
	// Variables are those of the environment by which it was found, which are not for the programs that the worker starts.
	Variables []string
}

// IsZero reports whether there is nothing to show.
func (p Presented) IsZero() bool { return p.Token.IsZero() && p.Certificate == nil }

// Among are the variables of an environment that have the token too: those that WAYLEAVE_TOKEN was set from, most often.
func (p Presented) Among(env []string) (names []string) {
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if !p.Token.IsZero() && !ownVariable(name) && strings.TrimSpace(value) == p.Token.Reveal() {
			names = append(names, name)
		}
	}
	return names
}

// Variables of what a worker presents. WAYLEAVE_ID_TOKEN is for GitLab, which puts a token of its own in a variable that the job
// names.
const (
	tokenVariable     = "WAYLEAVE_TOKEN"
	tokenFileVariable = "WAYLEAVE_TOKEN_FILE"
	idTokenVariable   = "WAYLEAVE_ID_TOKEN"
	certVariable      = "WAYLEAVE_CERT"
	keyVariable       = "WAYLEAVE_KEY"

	githubURLVariable   = "ACTIONS_ID_TOKEN_REQUEST_URL"
	githubTokenVariable = "ACTIONS_ID_TOKEN_REQUEST_TOKEN" //nolint:gosec // a name
)

// ProofIn reports whether an environment has in it what proves who the worker is: a token, and not the name of a file with one.
func (e Enrolment) ProofIn(getenv func(string) string) bool {
	return slices.ContainsFunc(append([]string{tokenVariable, idTokenVariable, githubTokenVariable}, e.Proofs...), func(name string) bool { return getenv(name) != "" })
}

// Sources are where a worker finds what it presents.
type Sources struct {
	// TokenFile, CertFile and KeyFile are files that somebody named for this one time; with them nothing else is looked for.
	TokenFile, CertFile, KeyFile string
	// Audience is whom a token is asked for; empty: the gate's URL.
	Audience string
	// Getenv is the environment.
	Getenv func(string) string
	// Pause waits between two attempts; nil is a timer.
	Pause func(context.Context, time.Duration)
}

// Find returns what a worker presents to the gate: from the files named, else from the first of WAYLEAVE_TOKEN_FILE,
// WAYLEAVE_TOKEN, WAYLEAVE_ID_TOKEN, and WAYLEAVE_CERT with WAYLEAVE_KEY that is set, else a token that GitHub Actions makes for
// the purpose. It is zero when there is none of them. Files are read each time, since platforms replace them.
func (s Sources) Find(ctx context.Context, gate *url.URL) (Presented, error) {
	switch get := s.Getenv; {
	case s.TokenFile != "":
		return fromTokenFile(s.TokenFile)
	case s.CertFile != "" || s.KeyFile != "":
		return fromCertificate(s.CertFile, s.KeyFile)
	case get(tokenFileVariable) != "":
		return fromTokenFile(get(tokenFileVariable))
	case strings.TrimSpace(get(tokenVariable)) != "":
		return Presented{Token: secret.New(strings.TrimSpace(get(tokenVariable)))}, nil
	case strings.TrimSpace(get(idTokenVariable)) != "":
		return Presented{Token: secret.New(strings.TrimSpace(get(idTokenVariable)))}, nil
	case get(certVariable) != "" || get(keyVariable) != "":
		return fromCertificate(get(certVariable), get(keyVariable))
	case get(githubURLVariable) != "" && get(githubTokenVariable) != "":
		return s.fromGitHub(ctx, gate)
	}
	return Presented{}, nil
}

// Hint says how a worker of this platform gets something to present; empty where the platform is none we know.
func (s Sources) Hint(gate *url.URL) string {
	audience := s.audience(gate)
	switch {
	case s.Getenv("GITHUB_ACTIONS") != "":
		return "in GitHub Actions give the job 'permissions: {id-token: write}'"
	case s.Getenv("GITLAB_CI") != "":
		return "in GitLab give the job 'id_tokens: {" + idTokenVariable + ": {aud: \"" + audience + "\"}}'"
	case s.Getenv("KUBERNETES_SERVICE_HOST") != "":
		return "in Kubernetes mount a projected serviceAccountToken with audience " + audience + " and set " + tokenFileVariable + " to it"
	}
	return ""
}

func (s Sources) audience(gate *url.URL) string {
	if s.Audience != "" {
		return s.Audience
	}
	return gate.Scheme + "://" + gate.Host
}

func fromTokenFile(name string) (Presented, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return Presented{}, fmt.Errorf("reading the worker's token: %w", err)
	}
	text := strings.TrimSpace(string(raw))
	switch {
	case text == "":
		return Presented{}, fmt.Errorf("%s is empty: it should hold the worker's token", name)
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }):
		return Presented{}, fmt.Errorf("%s holds more than a token: it should be one line", name)
	}
	return Presented{Token: secret.New(text)}, nil
}

func fromCertificate(certFile, keyFile string) (Presented, error) {
	if certFile == "" || keyFile == "" {
		return Presented{}, errors.New("a worker's certificate needs its key, and the other way round: name both, with --cert and --key, which may be one file")
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return Presented{}, fmt.Errorf("reading the worker's certificate %s and its key %s: %w", certFile, keyFile, err)
	}
	return Presented{Certificate: &pair}, nil
}

const (
	githubAttempts = 4
	githubTimeout  = 10 * time.Second
)

// fromGitHub asks GitHub Actions for a token. Its service fails now and then, so it is asked again.
func (s Sources) fromGitHub(ctx context.Context, gate *url.URL) (Presented, error) {
	ask, err := url.Parse(s.Getenv(githubURLVariable))
	if err != nil || identity.AddressFault(ask.String()) != "" {
		return Presented{}, fmt.Errorf("%s is not an https address: unset it, or let GitHub Actions set it", githubURLVariable)
	}
	query := ask.Query()
	query.Set("audience", s.audience(gate))
	ask.RawQuery = query.Encode()
	for attempt := 1; ; attempt++ {
		token, again, err := s.askGitHub(ctx, ask)
		if err == nil {
			return Presented{Token: token, Variables: []string{githubURLVariable, githubTokenVariable}}, nil
		}
		if !again || attempt == githubAttempts {
			return Presented{}, fmt.Errorf("asking GitHub Actions for a token: %w", err)
		}
		pause(ctx, s.Pause, time.Duration(attempt)*time.Second)
		if ctx.Err() != nil {
			return Presented{}, ctx.Err()
		}
	}
}

func (s Sources) askGitHub(ctx context.Context, ask *url.URL) (token secret.Text, again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, githubTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ask.String(), nil)
	if err != nil {
		return token, false, fmt.Errorf("%s is not an address", githubURLVariable)
	}
	req.Header.Set("authorization", "bearer "+s.Getenv(githubTokenVariable))
	req.Header.Set("accept", "application/json")
	client := &http.Client{
		// A runner may be behind a proxy of its own.
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return token, true, err
	}
	defer resp.Body.Close()
	var said struct {
		Value string `json:"value"`
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxEnrolment))
	switch {
	case err != nil:
		return token, true, err
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return token, true, fmt.Errorf("%s answers %d: try again", ask.Host, resp.StatusCode)
	case resp.StatusCode != http.StatusOK:
		return token, false, fmt.Errorf("%s answers %d: give the job 'permissions: {id-token: write}', or run the job again if it is an old one", ask.Host, resp.StatusCode)
	case json.Unmarshal(body, &said) != nil || !plain(said.Value):
		return token, false, fmt.Errorf("%s does not answer with a token: is %s the one that GitHub Actions set?", ask.Host, githubURLVariable)
	}
	return secret.New(said.Value), false, nil
}

// pause waits with f, or a timer.
func pause(ctx context.Context, f func(context.Context, time.Duration), d time.Duration) {
	if f != nil {
		f(ctx, d)
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
