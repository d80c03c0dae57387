package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Kubernetes can be asked about a token: it then also knows of pods and accounts that are gone, which a signature cannot
// tell. The gate needs the right to create tokenreviews (the cluster role system:auth-delegator).

const reviewPath = "/apis/authentication.k8s.io/v1/tokenreviews"

// tokenReview is the part of authentication.k8s.io/v1 TokenReview that we use.
type tokenReview struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		Token     string   `json:"token"`
		Audiences []string `json:"audiences"`
	} `json:"spec"`
	Status *reviewStatus `json:"status,omitempty"`
}

type reviewStatus struct {
	Authenticated bool `json:"authenticated"`
	User          struct {
		Username string              `json:"username"`
		UID      string              `json:"uid"`
		Groups   []string            `json:"groups"`
		Extra    map[string][]string `json:"extra"`
	} `json:"user"`
	Audiences []string `json:"audiences"`
	Error     string   `json:"error"`
}

// review asks the API server about a token. Nothing is kept: what it says holds for the moment.
func (i *issuer) review(ctx context.Context, token string) (Proof, *Refusal) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	status, err := i.ask(ctx, token)
	if err != nil {
		i.log.Warn("a Kubernetes API server cannot be asked about a worker's token", "issuer", i.Name, "err", err)
		return Proof{}, &Refusal{
			Reason: Unavailable, After: time.Second, Cause: err,
			Words: fmt.Sprintf("the Kubernetes of issuer %s cannot be asked at the moment, so its token cannot be verified: try again, and if it lasts ask the gate's operator, whose log has the cause", i.Name),
		}
	}
	switch {
	case !status.Authenticated:
		r := i.notSigned()
		r.Words = fmt.Sprintf("the Kubernetes of issuer %s does not accept its token: use that of a pod that runs, from a projected volume", i.Name)
		if status.Error != "" {
			r.Cause = errors.New(quote(status.Error))
		}
		return Proof{}, r
	case !slices.Contains(status.Audiences, i.Audience):
		// An authenticator that knows nothing of audiences names none: the token is then one for the API server itself.
		return Proof{}, &Refusal{Reason: WrongAudience, Words: fmt.Sprintf("the Kubernetes of issuer %s does not say that its token is for %s: use a projected token with that audience", i.Name, quote(i.Audience))}
	case status.User.Username == "":
		return Proof{}, &Refusal{Reason: Invalid, Words: fmt.Sprintf("the Kubernetes of issuer %s does not say whose its token is: use that of a service account", i.Name)}
	}
	claims := map[string]any{Subject: status.User.Username, "uid": status.User.UID, "groups": anys(status.User.Groups)}
	for name, values := range status.User.Extra {
		if _, ours := claims[name]; !ours {
			claims[name] = anys(values)
		}
	}
	return Proof{Issuer: i.Name, Subject: status.User.Username, Claims: claims}, nil
}

func (i *issuer) ask(ctx context.Context, token string) (*reviewStatus, error) {
	own, err := i.APIToken()
	if err != nil {
		return nil, err
	}
	review := tokenReview{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview"}
	review.Spec.Token, review.Spec.Audiences = token, []string{i.Audience}
	body, err := json.Marshal(review)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(i.API, "/")+reviewPath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("authorization", "Bearer "+own.Reveal())
	req.Header.Set("content-type", "application/json")
	req.Header.Set("accept", "application/json")
	var answered tokenReview
	if err := answer(i.HTTP, req, http.StatusCreated, &answered); err != nil {
		if e, ok := errors.AsType[*statusError](err); ok && (e.status == http.StatusUnauthorized || e.status == http.StatusForbidden) {
			err = fmt.Errorf("%w: let the gate's service account create tokenreviews (bind it to the cluster role system:auth-delegator)", err)
		}
		return nil, err
	}
	if answered.Kind != "TokenReview" || answered.Status == nil {
		return nil, fmt.Errorf("%s does not answer with a TokenReview: is issuers.%s.api the address of a Kubernetes API server?", i.API, i.Name)
	}
	return answered.Status, nil
}

func anys(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}
