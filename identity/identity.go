// Package identity proves who a worker is by what its platform says about it, so that it needs no token of the gate's:
// a JSON web token of an OpenID Connect issuer (CI systems, SPIFFE helpers), of a Kubernetes service account, or an
// X.509-SVID that Envoy has verified. Which worker that is, a Match of the configuration says.
//
//	token ──▶ Verifier.Verify ──▶ Proof ──▶ Choose among each worker's Match
//
// A token may be presented again for as long as it is valid: workers share no state with their platform by which a second use
// could be told from a retry. What keeps a token of one service from being used at another is its audience, which is why
// every issuer has one.
package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"wayleave/secret"
)

const (
	skew       = time.Minute // by which clocks may differ
	maxToken   = 32 << 10
	maxSubject = 200 // bytes that are shown

	longestSubject = maxSPIFFEID // that is taken
)

// algorithms are those by which who verifies cannot sign (RFC 7518 section 3.1, RFC 8037).
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// Issuer is somebody who vouches for workers.
type Issuer struct {
	// Name is that of the configuration.
	Name string
	// Issuer is the claim iss of its tokens, to the byte.
	Issuer string
	// Audience must be among those of a token.
	Audience string
	// HTTP asks the issuer; it follows no redirect.
	HTTP *http.Client

	// JWKSURL is where the keys are (RFC 7517); empty: where the issuer's discovery document says.
	JWKSURL string

	// API is the address of a Kubernetes API server, which then judges each token in place of keys (TokenReview).
	API string
	// APIToken is what the gate proves itself with there.
	APIToken func() (secret.Text, error)
}

// Proof is what was proved about a caller.
type Proof struct {
	// Issuer is the issuer's name; empty for a certificate.
	Issuer string
	// Subject is the issuer's name for the caller: the claim sub, the user of a TokenReview, a SPIFFE ID.
	Subject string
	// Claims are all that the issuer says, sub among them.
	Claims map[string]any
}

// Reason is why a caller is refused, as programs and logs have it.
type Reason string

// The reasons.
const (
	Invalid       Reason = "identity_invalid"
	Expired       Reason = "identity_expired"
	NotYetValid   Reason = "identity_not_yet_valid"
	WrongAudience Reason = "identity_wrong_audience"
	UnknownIssuer Reason = "issuer_unknown"
	Unavailable   Reason = "issuer_unavailable"
)

// A Refusal is why a token proves nothing. Its words are for whoever started the worker, say what to do next, and never
// quote the token.
type Refusal struct {
	Reason Reason
	Words  string
	// Cause is for the log; nil where the words say it all.
	Cause error
	// After is when to try again, for Unavailable.
	After time.Duration
}

func (r *Refusal) Error() string {
	if r.Cause == nil {
		return r.Words
	}
	return r.Words + ": " + r.Cause.Error()
}

func (r *Refusal) Unwrap() error { return r.Cause }

// ErrNoJWT says that a token is no JSON web token at all, and so of no issuer.
var ErrNoJWT = errors.New("not a JSON web token")

// Options are what a Verifier needs beside its issuers.
type Options struct {
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Log is told when an issuer cannot be asked; nil discards it.
	Log *slog.Logger
}

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	issuers []*issuer
	now     func() time.Time
}

// issuer is an Issuer at work.
type issuer struct {
	Issuer
	keys *keySet // nil: it is asked about each token
	now  func() time.Time
	log  *slog.Logger
}

// NewVerifier returns a Verifier of these issuers. It asks none before the first token comes.
func NewVerifier(issuers []Issuer, o Options) *Verifier {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	v := &Verifier{now: o.Now}
	for _, i := range issuers {
		at := &issuer{Issuer: i, now: o.Now, log: o.Log}
		if i.API == "" {
			at.keys = newKeySet(i, o)
		}
		v.issuers = append(v.issuers, at)
	}
	return v
}

// Verify returns what a token proves. The error is a *Refusal, or ErrNoJWT.
//
// Issuers may share a name, as Kubernetes clusters do that nobody gave one: each is then tried.
//
// A nil Verifier knows no issuer.
func (v *Verifier) Verify(ctx context.Context, token secret.Text) (Proof, error) {
	if v == nil {
		v = new(Verifier)
	}
	text := token.Reveal()
	if len(text) > maxToken || strings.Count(text, ".") != 2 || !strings.HasPrefix(text, "ey") { // {" in base64
		return Proof{}, ErrNoJWT
	}
	parsed, err := jwt.ParseSigned(text, algorithms)
	if err != nil {
		return Proof{}, &Refusal{Reason: Invalid, Words: "its token cannot be read, or is not signed by a private key (RS, PS, ES or EdDSA): present the issuer's token as it is", Cause: errors.New("not a JWS by an accepted algorithm")}
	}
	var said jwt.Claims // by whoever made the token
	if err := parsed.UnsafeClaimsWithoutVerification(&said); err != nil {
		return Proof{}, &Refusal{Reason: Invalid, Words: "the claims of its token cannot be read: present the issuer's token as it is"}
	}
	named := said.Issuer
	if named == "" && SPIFFEFault(said.Subject) == "" {
		named = "spiffe://" + TrustDomain(said.Subject) // a JWT-SVID has no other issuer, unless somebody gave it one
	}
	refusal := &Refusal{Reason: UnknownIssuer, Words: fmt.Sprintf("its token is of issuer %s, which this gate does not know: ask its operator to add it to issuers", quote(named))}
	if named == "" {
		refusal.Words = "its token names no issuer, so that nobody can be asked about it: present one that does (iss)"
	}
	for _, i := range v.issuers {
		if i.Issuer.Issuer != named {
			continue
		}
		proof, r := i.verify(ctx, text, parsed, said)
		if r == nil {
			return proof, nil
		}
		// Of several issuers with one name, the one that cannot be asked may be the right one; one whose key it is not is wrong.
		if refusal.Reason == UnknownIssuer || r.Reason == Unavailable || refusal.Reason == Invalid && r.Reason != Invalid {
			refusal = r
		}
	}
	return Proof{}, refusal
}

// Probe asks each issuer as a token would make it, for whoever wants to know before one comes. It returns what fails, by name.
func (v *Verifier) Probe(ctx context.Context) map[string]error {
	failed := map[string]error{}
	for _, i := range v.issuers {
		var err error
		if i.keys == nil {
			_, err = i.ask(ctx, "no token, to see whether the gate may ask")
		} else {
			_, err = fetchKeys(ctx, i.Issuer)
		}
		if err != nil {
			failed[i.Name] = err
		}
	}
	return failed
}

func (i *issuer) verify(ctx context.Context, text string, parsed *jwt.JSONWebToken, said jwt.Claims) (Proof, *Refusal) {
	if i.keys == nil {
		// The API server judges; what it would refuse without doubt need not be asked.
		if r := i.judge(said); r != nil {
			return Proof{}, r
		}
		return i.review(ctx, text)
	}
	header := parsed.Headers[0]
	for again := false; ; again = true {
		before := i.keys.asOf()
		keys, r := i.keys.find(ctx, header.KeyID, header.Algorithm)
		if r != nil {
			return Proof{}, r
		}
		for _, key := range keys {
			var claims jwt.Claims
			all := map[string]any{}
			if parsed.Claims(key.Key, &claims, &all) != nil {
				continue
			}
			if r := i.judge(claims); r != nil {
				return Proof{}, r
			}
			return Proof{Issuer: i.Name, Subject: claims.Subject, Claims: all}, nil
		}
		// Some issuers name no keys, or another one as before.
		switch {
		case again:
			return Proof{}, i.notSigned()
		case !i.keys.asOf().Equal(before): // fetched meanwhile
		case i.keys.mayFetch() > 0:
			return Proof{}, i.notSigned()
		default:
			if r := i.keys.fetch(ctx); r != nil {
				return Proof{}, r
			}
		}
	}
}

func (i *issuer) notSigned() *Refusal {
	return &Refusal{Reason: Invalid, Words: fmt.Sprintf("its token is not signed by the issuer it names (%s): present a token of that issuer, unchanged", i.Name)}
}

// judge looks at the claims that every token has.
func (i *issuer) judge(c jwt.Claims) *Refusal {
	now := i.now()
	refuse := func(reason Reason, format string, args ...any) *Refusal {
		return &Refusal{Reason: reason, Words: fmt.Sprintf("its token of issuer %s ", i.Name) + fmt.Sprintf(format, args...)}
	}
	switch {
	case !c.Audience.Contains(i.Audience):
		return refuse(WrongAudience, "is for %s, and this gate takes those for %s: ask the issuer for that audience", quote(strings.Join(c.Audience, ", ")), quote(i.Audience))
	case c.Expiry == nil:
		return refuse(Invalid, "never expires, and so is not taken: ask the issuer for one that does")
	case c.Subject == "":
		return refuse(Invalid, "has no subject: ask the issuer for one that names whom it is for")
	case len(c.Subject) > longestSubject: // it goes along with every connection
		return refuse(Invalid, "has a subject of %d bytes, and this gate takes at most %d: ask the issuer for a shorter one", len(c.Subject), longestSubject)
	}
	switch err := c.ValidateWithLeeway(jwt.Expected{Time: now}, skew); {
	case errors.Is(err, jwt.ErrExpired):
		return refuse(Expired, "expired at %s: get a new one, and let a file hold it if the platform replaces it (WAYLEAVE_TOKEN_FILE)", utc(c.Expiry.Time()))
	case err != nil: // ErrNotValidYet, ErrIssuedInTheFuture
		return refuse(NotYetValid, "is of a time to come, and the gate has %s: set both clocks right", utc(now))
	}
	return nil
}

func utc(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// quote shows what somebody else wrote, in ASCII and cut when it is long.
func quote(s string) string {
	if len(s) > maxSubject {
		s = s[:maxSubject] + "…"
	}
	return fmt.Sprintf("%+q", s)
}
