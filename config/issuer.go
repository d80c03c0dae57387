package config

import (
	"maps"

	"wayleave/identity"
)

// This file has what workers are known by beside tokens of the gate's.

// Values of Issuer.Method.
const (
	ByKeys        = "jwks"
	ByTokenReview = "token_review"
)

// Where Kubernetes puts what a pod needs to speak with it.
const (
	podCA     = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
	podServer = "https://kubernetes.default.svc"
)

// An Issuer vouches for workers with JSON web tokens: a CI system, a Kubernetes cluster, any OpenID Connect provider.
type Issuer struct {
	// Who issues the tokens, to the byte as their claim iss has it, such as https://token.actions.githubusercontent.com. Of JWT-SVIDs without that claim, their trust domain:
	// spiffe://example.org, with its trust bundle as jwks_url.
	Issuer string `yaml:"issuer" jsonschema:"required"`

	// Who a token must be for (its claim aud): a name that no other service goes by, or a token that a worker has shown
	// elsewhere would be good here. `wayleave run` asks GitHub Actions for one with the URL of the gate.
	Audience string `yaml:"audience" jsonschema:"required"`

	// How tokens are verified.
	// jwks: with the issuer's public keys, which are fetched when they are needed and go on being used while they cannot be.
	// token_review: Kubernetes is asked about each, and then knows of pods and accounts that are gone. The gate's service
	// account needs the cluster role system:auth-delegator.
	Method string `yaml:"method" jsonschema:"enum=jwks,enum=token_review,default=jwks"`

	// Where the keys are, for method jwks. Default: where <issuer>/.well-known/openid-configuration says.
	JWKSURL string `yaml:"jwks_url"`

	// Address of the Kubernetes API server, for method token_review. Default: https://kubernetes.default.svc.
	API string `yaml:"api"`

	// File that holds the gate's own token for the API server, for method token_review. It is read each time.
	// Default: /var/run/secrets/kubernetes.io/serviceaccount/token.
	TokenFile string `yaml:"token_file"`

	// PEM file of the authorities that may sign the certificate of who is asked, in place of the system's. Default for method
	// token_review: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt.
	CAFile string `yaml:"ca_file"`
}

// A From says what a worker's token must say about it: its subject, claims, or both. A pattern is the whole value, or its beginning
// and *. Where a token fits several workers the one whose patterns are narrower is meant; workers of which neither is are a
// fault.
type From struct {
	// Entry of issuers.
	Issuer string `yaml:"issuer" jsonschema:"required"`

	// Pattern of the subject, the claim sub, such as system:serviceaccount:builds:agent.
	Subject string `yaml:"subject"`

	// Patterns of further claims, such as repository: acme/app. Of a claim that is a list one item has to fit.
	Claims map[string]string `yaml:"claims"`
}

// Given reports whether there is any.
func (f From) Given() bool { return f.Issuer != "" || f.Subject != "" || len(f.Claims) > 0 }

// Match says which proofs are the worker's; it is zero for one with a token of the gate's.
func (w Worker) Match() identity.Match {
	if w.SPIFFEID != "" {
		return identity.Match{Claims: map[string]string{identity.Subject: w.SPIFFEID}}
	}
	if !w.From.Given() {
		return identity.Match{}
	}
	claims := map[string]string{}
	maps.Copy(claims, w.From.Claims)
	if w.From.Subject != "" {
		claims[identity.Subject] = w.From.Subject
	}
	return identity.Match{Issuer: w.From.Issuer, Claims: claims}
}

func (i *Issuer) applyDefaults() {
	fill(&i.Method, ByKeys)
	if i.Method == ByTokenReview {
		fill(&i.API, podServer)
		fill(&i.TokenFile, podToken)
		fill(&i.CAFile, podCA)
	}
}
