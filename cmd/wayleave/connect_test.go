package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave/demo"
	"wayleave/oauth"
	"wayleave/operate"
)

// terminal is what an operator sees and types.
type terminal struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func newTerminal() *terminal { return &terminal{changed: make(chan struct{}, 1)} }

func (o *terminal) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.changed <- struct{}{}:
	default:
	}
	return o.text.Write(p)
}

func (o *terminal) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

var authorizeURL = regexp.MustCompile(`http\S+/authorize\?\S+`)

// url waits for the address of the consent page.
func (o *terminal) url(ctx context.Context) (string, error) { return o.find(ctx, authorizeURL) }

// find waits for something that is shown.
func (o *terminal) find(ctx context.Context, what *regexp.Regexp) (string, error) {
	for {
		if u := what.FindString(o.String()); u != "" {
			return u, nil
		}
		select {
		case <-o.changed:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// consenting begins consents, the answer of which the provider shows at fixed, if there is one. What they bring goes into token.
func consenting(client *oauth.Client, fixed string, token *oauth.Token) func(context.Context, string) (pageConsent, error) {
	return func(_ context.Context, redirect string) (pageConsent, error) {
		return askPage(client, cmp.Or(fixed, redirect), []string{"user:inference"}, fixed != "", func(_ context.Context, got oauth.Token) (operate.Stored, error) {
			*token = got
			return operate.Stored{}, nil
		}), nil
	}
}

func TestAuthorization(t *testing.T) {
	world, err := demo.Start(demo.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer world.Close()
	client := oauth.NewClient(oauth.Config{
		AuthorizeURL: world.ProviderURL + "/authorize", TokenURL: world.ProviderURL + "/token", ClientID: world.Provider.ClientID(),
		AuthStyle: oauth.AuthNone, TokenFormat: oauth.FormatForm, AllowInsecure: true,
	}, nil, nil)
	codePage := world.ProviderURL + "/code"

	// Each operator gets the address of the consent page, and something to type into.
	follow := func(ctx context.Context, url string) error {
		callback, err := demo.Approve(ctx, url)
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, callback, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	}
	type operator func(ctx context.Context, url string, keyboard io.Writer) error
	typing := func(lines func(callback string) string) operator {
		return func(ctx context.Context, url string, keyboard io.Writer) error {
			callback, err := demo.Approve(ctx, url)
			if err != nil {
				return err
			}
			_, err = io.WriteString(keyboard, lines(callback)+"\n")
			return err
		}
	}
	query := func(address, name string) string {
		return regexp.MustCompile(name + `=([^&]*)`).FindStringSubmatch(address)[1]
	}

	for _, c := range []struct {
		name     string
		redirect string
		operator operator
		err      string // empty: connected
		says     string
	}{
		{"the browser comes back by itself", "", func(ctx context.Context, url string, _ io.Writer) error { return follow(ctx, url) }, "", "Exchanging"},
		{"the address is pasted from another machine", "", typing(func(u string) string { return u }), "", "Exchanging"},
		{"the code and state of the provider's page", codePage, typing(func(u string) string { return query(u, "code") + "#" + query(u, "state") }), "", ""},
		{"the code alone", codePage, typing(func(u string) string { return query(u, "code") }), "", ""},
		{"a wrong state first", codePage, typing(func(u string) string { return "x#y\n\n" + u }), "", "paste it again"},
		{"denied, pasted", codePage, typing(func(u string) string { return "https://x.example/?error=access_denied&state=" + query(u, "state") }), "access_denied", ""},
		{"a denial that is not ours", codePage, typing(func(u string) string { return "https://x.example/?error=access_denied&state=y\n" + u }), "", "paste it again"},
		{"a code that is no code", codePage, typing(func(string) string { return "abcdef" }), "invalid_grant", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			in, keyboard := io.Pipe()
			defer keyboard.Close()
			out := newTerminal()
			played := make(chan error, 1)
			go func() {
				url, err := out.url(ctx)
				if err == nil {
					err = c.operator(ctx, url, keyboard)
				}
				played <- err
			}()
			var token oauth.Token
			_, err := authorization{begin: consenting(client, c.redirect, &token), in: in, out: out}.run(ctx)
			if e := <-played; e != nil {
				t.Fatalf("the operator: %v", e)
			}
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v; want one with %q", err, c.err)
				}
			} else if err != nil || token.Access.IsZero() {
				t.Errorf("not connected: %v", err)
			}
			if !strings.Contains(out.String(), c.says) {
				t.Errorf("the terminal shows no %q:\n%s", c.says, out)
			}
			if strings.Contains(out.String(), demo.AccessPrefix) || strings.Contains(out.String(), demo.RefreshPrefix) {
				t.Error("the terminal shows a token")
			}
		})
	}

	t.Run("nobody types and nobody comes", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		out := newTerminal()
		go func() { _, _ = out.url(ctx); cancel() }()
		_, err := authorization{begin: consenting(client, "", nil), in: strings.NewReader(""), out: out}.run(ctx)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the input ends where a code must be pasted", func(t *testing.T) {
		_, err := authorization{begin: consenting(client, codePage, nil), in: strings.NewReader("\n"), out: io.Discard}.run(t.Context())
		if err == nil || !strings.Contains(err.Error(), "before a code was pasted") {
			t.Errorf("got %v", err)
		}
	})
}

// An answer that is pasted arrives together with the end of the reading; which of them is seen first must not matter.
func TestPastedAnswerIsNotLost(t *testing.T) {
	world, err := demo.Start(demo.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer world.Close()
	client := oauth.NewClient(oauth.Config{
		AuthorizeURL: world.ProviderURL + "/authorize", TokenURL: world.ProviderURL + "/token", ClientID: world.Provider.ClientID(),
		AuthStyle: oauth.AuthNone, TokenFormat: oauth.FormatForm, AllowInsecure: true,
	}, nil, nil)
	for range 100 {
		_, err := authorization{begin: consenting(client, world.ProviderURL+"/code", nil), in: strings.NewReader("no-such-code\n"), out: io.Discard}.run(t.Context())
		if err == nil || !strings.Contains(err.Error(), "invalid_grant") {
			t.Fatalf("got %v; want the provider's own refusal", err)
		}
	}
}
