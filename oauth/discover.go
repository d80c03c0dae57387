package oauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	maxMetadata  = 256 << 10        // bytes of a metadata document
	probeTimeout = 10 * time.Second // of the first look at an address, which may be that of an endless stream
)

// DiscoverOptions say where discovery may go beyond public https servers.
type DiscoverOptions struct {
	// AllowInsecure allows http on loopback addresses, for demonstrations.
	AllowInsecure bool
	// AllowPrivate allows private, link-local and loopback addresses, for a server of one's own.
	AllowPrivate bool
}

// Discover finds the authorization server of address, which is an issuer, a protected resource, or any address of an API:
//
//  1. what the API itself names: WWW-Authenticate with resource_metadata, else its well-known address (RFC 9728)
//  2. the metadata of the authorization server named there, else of address and of its host: RFC 8414, then OpenID
//     Connect Discovery
//
// It sends no secret. hc gives roots and timeouts, nil is NewHTTPClient(nil). Its connections are checked as the options
// say, it follows redirects on the same host only, and its answers are bounded. The issuer in an answer must be the one
// that was asked for, to the byte but for a slash at the end: servers and APIs do not agree on it, Google's among them, and
// both forms have the same metadata (RFC 8414 §3.1). Errors repeat nothing of an answer but the host that it names.
func Discover(ctx context.Context, hc *http.Client, address string, o DiscoverOptions) (Metadata, error) {
	base, err := o.discoverable(address)
	if err != nil {
		return Metadata{}, err
	}
	guarded, err := o.guard(hc)
	if err != nil {
		return Metadata{}, err
	}
	d := discovery{guarded, o}
	api, err := d.resource(ctx, base)
	if err != nil {
		return Metadata{}, fmt.Errorf("discovering %s: %w", address, err)
	}
	var m Metadata
	if api.servers == nil {
		m, err = d.guess(ctx, base)
	} else {
		m, err = d.server(ctx, api.servers[0])
	}
	if err != nil {
		return Metadata{}, fmt.Errorf("discovering %s: %w; if there is none, write the endpoints into the configuration from the provider's documentation", address, err)
	}
	if api.servers != nil {
		m.Resource = api.resource
		m.Others = slices.DeleteFunc(api.servers[1:], func(s string) bool { return o.fault(s) != "" })
	}
	m.Asked = api.scopes
	return m, nil
}

// discoverable reads what an operator typed. The address of a metadata document stands for what it describes.
func (o DiscoverOptions) discoverable(typed string) (*url.URL, error) {
	if f := endpointFault(typed, o.AllowInsecure); f != "" {
		return nil, fmt.Errorf("the address to discover %s", f)
	}
	u, err := url.Parse(typed)
	if err != nil || !isHost(u.Hostname()) {
		return nil, errors.New("the address to discover is not a full address such as https://host/path")
	}
	path := u.EscapedPath()
	if before, after, ok := strings.Cut(path, "/.well-known/"); ok {
		if _, rest, more := strings.Cut(after, "/"); more {
			before += "/" + rest
		}
		path = before
	}
	return url.Parse(u.Scheme + "://" + u.Host + path)
}

// discovery is one run.
type discovery struct {
	hc *http.Client
	o  DiscoverOptions
}

// guess takes base for an issuer, and then its host alone.
func (d discovery) guess(ctx context.Context, base *url.URL) (Metadata, error) {
	var faults faultList
	for _, issuer := range slices.Compact([]string{strings.TrimSuffix(base.String(), "/"), base.Scheme + "://" + base.Host}) {
		m, err := d.server(ctx, issuer)
		if err == nil {
			return m, nil
		}
		faults = append(faults, err)
	}
	return Metadata{}, faults
}

// server reads the metadata of an authorization server. What some hosts answer for every address is none.
func (d discovery) server(ctx context.Context, issuer string) (Metadata, error) {
	if f := d.o.fault(issuer); f != "" {
		return Metadata{}, fmt.Errorf("the API names an authorization server whose address %s", f)
	}
	u, err := url.Parse(issuer)
	if err != nil || u.RawQuery != "" {
		return Metadata{}, errors.New("the API names an authorization server whose address has a query (RFC 8414, section 2)")
	}
	var faults faultList
	for _, at := range slices.Compact([]string{wellKnown(u, "oauth-authorization-server"), wellKnown(u, "openid-configuration"), appended(u, "openid-configuration")}) {
		doc, err := d.document(ctx, at)
		if err == nil && doc["issuer"] == nil {
			err = errNoIssuer
		}
		if err != nil {
			faults = append(faults, err)
			continue
		}
		m, err := readMetadata(doc, issuer, d.o)
		if err != nil {
			return Metadata{}, fmt.Errorf("metadata at %s: %w", u.Host, err)
		}
		return m, nil
	}
	return Metadata{}, fmt.Errorf("%s has no metadata of an authorization server (%w)", u.Host, faults)
}

// document gets one metadata document.
func (d discovery) document(ctx context.Context, at string) (fields, error) {
	a, err := d.get(ctx, at)
	if err == nil {
		switch {
		case a.status != http.StatusOK:
			err = fmt.Errorf("status %d", a.status)
		case a.fault != nil:
			err = a.fault
		case len(a.body) > maxMetadata:
			err = errTooLarge
		}
	}
	if err != nil {
		return nil, err
	}
	if f := object(a.body); f != nil {
		return f, nil
	}
	return nil, errNotJSON
}

// get makes one request; its error repeats nothing of the other side's.
func (d discovery) get(ctx context.Context, at string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return answer{}, errNoRequest
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "wayleave")
	a, fail := send(d.hc, time.Now, place{name: "metadata", url: at}, req)
	if fail != nil {
		return answer{}, fail.Err
	}
	return a, nil
}

// wellKnown is the address of a document between host and path (RFC 8414 §3.1, RFC 9728 §3.1).
func wellKnown(u *url.URL, name string) string {
	return u.Scheme + "://" + u.Host + "/.well-known/" + name + strings.TrimSuffix(u.EscapedPath(), "/")
}

// appended is the address of a document after the path (OpenID Connect Discovery §4.1).
func appended(u *url.URL, name string) string {
	return u.Scheme + "://" + u.Host + strings.TrimSuffix(u.EscapedPath(), "/") + "/.well-known/" + name
}

// faultList is several errors on one line, each once.
type faultList []error

func (l faultList) Error() string {
	var texts []string
	for _, err := range l {
		if text := err.Error(); !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	return strings.Join(texts, "; ")
}

func (l faultList) Unwrap() []error { return l }
