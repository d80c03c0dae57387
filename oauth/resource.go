package oauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// protected is what an API says about itself (RFC 9728 §2).
type protected struct {
	resource string
	servers  []string // nil: it says nothing
	scopes   []string // that it asks for
}

// resource looks for the metadata of the API at base: at the address that its refusal names, else at the well-known ones
// of its path and of its host. To have none is no error.
func (d discovery) resource(ctx context.Context, base *url.URL) (protected, error) {
	probe, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	a, err := d.get(probe, base.String())
	if err != nil {
		return protected{}, err
	}
	var asked []string
	if a.status == http.StatusUnauthorized || a.status == http.StatusForbidden {
		challenges := a.header.Values("WWW-Authenticate")
		asked, _ = splitScopes(challengeParam(challenges, "scope"), "")
		if at := challengeParam(challenges, "resource_metadata"); at != "" {
			if f := d.o.fault(at); f != "" {
				return protected{}, fmt.Errorf("the address of its metadata %s", f)
			}
			doc, err := d.document(ctx, at)
			if err != nil {
				return protected{}, fmt.Errorf("its metadata cannot be had: %w", err)
			}
			return readProtected(doc, base, asked)
		}
	}
	// What some hosts answer for every address is no metadata of an API.
	const name = "oauth-protected-resource"
	for _, at := range slices.Compact([]string{wellKnown(base, name), wellKnown(&url.URL{Scheme: base.Scheme, Host: base.Host}, name)}) {
		if doc, err := d.document(ctx, at); err == nil && doc["resource"] != nil {
			return readProtected(doc, base, asked)
		}
	}
	return protected{scopes: asked}, nil
}

// readProtected reads an API's metadata. Its resource must be base or what base lies below (RFC 9728 §3.3, and what APIs
// with one document for several paths do). asked are scopes that the API itself asked for.
func readProtected(f fields, base *url.URL, asked []string) (protected, error) {
	p := protected{resource: f.text("resource"), servers: f.list("authorization_servers"), scopes: asked}
	if !covers(p.resource, base) {
		return protected{}, errors.New("its metadata is that of another resource, so it is not believed: ask for the API by its exact address")
	}
	if p.servers == nil {
		return protected{}, errors.New("its metadata names no authorization server")
	}
	if p.scopes == nil {
		p.scopes = scopeTokens(f.list("scopes_supported"))
	}
	return p, nil
}

// covers reports whether address is resource itself or lies below it.
func covers(resource string, address *url.URL) bool {
	r, err := url.Parse(resource)
	if err != nil || !isShown(resource, longestURL) || r.Scheme != address.Scheme || r.Host != address.Host || r.User != nil || r.RawQuery != "" || r.Fragment != "" {
		return false
	}
	above := strings.TrimSuffix(r.EscapedPath(), "/")
	return strings.HasPrefix(address.EscapedPath()+"/", above+"/")
}
