package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"wayleave/config"
	"wayleave/demo"
	"wayleave/grant"
)

// atDemo has an office whose configuration names the stand-in provider.
func (o *office) atDemo() {
	o.t.Helper()
	d, err := demo.Start(demo.Options{})
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { _ = d.Close() })
	const text = `
providers:
  acme:
    authorize_url: $PROVIDER/authorize
    token_url: $PROVIDER/token
    device_url: $PROVIDER/device
    client_id: $CLIENT
    allow_insecure: true
  coded:
    authorize_url: $PROVIDER/authorize
    token_url: $PROVIDER/token
    redirect_url: $PROVIDER/code
    client_id: $CLIENT
    allow_insecure: true
grants:
  acme: {provider: acme, scopes: [read], account: build@acme.example}
  coded: {provider: coded, scopes: [read]}
`
	filled := strings.NewReplacer("$PROVIDER", d.ProviderURL, "$CLIENT", d.Provider.ClientID()).Replace(text)
	if o.cfg, err = config.Parse(filepath.Join(o.t.TempDir(), "wayleave.yaml"), []byte(filled)); err != nil {
		o.t.Fatal(err)
	}
}

var devicePage = regexp.MustCompile(`http\S+/activate\S*user_code=\S+`)

// A grant is connected in every way, at Vault and at a gate alike.
func TestConnectAtEveryDesk(t *testing.T) {
	follow := func(ctx context.Context, page string, _ io.Writer) error {
		answer, err := demo.Approve(ctx, page)
		if err != nil {
			return err
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, answer, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if text, _ := io.ReadAll(resp.Body); !strings.Contains(string(text), "Wayleave has the answer") {
			return fmt.Errorf("the page says %s", text)
		}
		return nil
	}
	paste := func(change func(string) string) func(context.Context, string, io.Writer) error {
		return func(ctx context.Context, page string, keyboard io.Writer) error {
			answer, err := demo.Approve(ctx, page)
			if err != nil {
				return err
			}
			_, err = io.WriteString(keyboard, change(answer)+"\n")
			return err
		}
	}
	agree := func(ctx context.Context, page string, _ io.Writer) error { return demo.ApproveDevice(ctx, page) }
	for _, c := range []struct {
		name, grant string
		o           connectOptions
		page        *regexp.Regexp
		operator    func(ctx context.Context, page string, keyboard io.Writer) error
		code        int
		says        []string
	}{
		{"the browser comes back", "acme", connectOptions{}, authorizeURL, follow, 0, []string{"Connect the account build@acme.example", "Exchanging", "healthy"}},
		{"an address that is pasted", "acme", connectOptions{}, authorizeURL, paste(func(a string) string { return a }), 0, []string{"healthy"}},
		{"a code", "coded", connectOptions{}, authorizeURL, paste(func(a string) string { return regexp.MustCompile("code=([^&]*)").FindStringSubmatch(a)[1] }), 0, []string{"Then paste the code", "healthy"}},
		{"something else first", "coded", connectOptions{}, authorizeURL, paste(func(a string) string { return "x#y\n" + a }), 0, []string{"; paste it again:", "healthy"}},
		{"a denial", "coded", connectOptions{}, authorizeURL, paste(func(a string) string {
			return "https://x.example/?error=access_denied&state=" + regexp.MustCompile("state=([^&]*)").FindStringSubmatch(a)[1]
		}), 1, []string{"connecting coded: ", "access_denied"}},
		{"a device", "acme", connectOptions{device: true}, devicePage, agree, 0, []string{"and enter this code", "This address has the code in it", "healthy"}},
		{"taken over", "acme", connectOptions{device: true, wait: true}, devicePage, agree, 0, []string{"Waiting for a gate", "healthy"}},
		{"given up", "acme", connectOptions{}, authorizeURL, nil, 1, []string{"connecting acme: given up; nothing was changed"}},
		{"given up, by device", "acme", connectOptions{device: true}, devicePage, nil, 1, []string{"connecting acme: given up; nothing was changed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			everyForm(t, func(t *testing.T, newOffice func(*testing.T) *office) {
				t.Setenv("BROWSER", "")
				t.Setenv("DISPLAY", "")
				t.Setenv("WAYLAND_DISPLAY", "")
				o := newOffice(t)
				o.atDemo()
				if c.o.wait {
					o.realGate()
				}
				d := o.desk("")
				in, keyboard := io.Pipe()
				defer keyboard.Close()
				shown := newTerminal()
				d.in, d.err = in, shown
				played := make(chan error, 1)
				ctx, giveUp := context.WithCancelCause(t.Context())
				defer giveUp(nil)
				go func() {
					page, err := shown.find(t.Context(), c.page)
					if c.operator == nil {
						giveUp(errors.New("given up"))
					} else if err == nil {
						err = c.operator(t.Context(), page, keyboard)
					}
					played <- err
				}()
				opts := c.o
				opts.timeout = time.Minute
				err := d.connect(ctx, c.grant, opts)
				if e := <-played; e != nil {
					t.Errorf("the operator: %v", e)
				}
				if text := shown.String(); strings.Contains(text, demo.AccessPrefix) || strings.Contains(text, demo.RefreshPrefix) {
					t.Error("a token is shown")
				}
				o.err.WriteString(shown.String())
				o.wants(err, c.code, c.says...)
				if want := map[bool]grant.State{true: grant.Healthy, false: grant.NeverConnected}[c.code == 0]; o.state(c.grant) != want {
					t.Errorf("it is %s", o.state(c.grant))
				}
			})
		})
	}
}

// What the commands need is said before anything is sent, and what a gate refuses is said with what to do.
func TestAPIFlags(t *testing.T) {
	o := newOffice(t)
	o.useAPI()
	o.connect("acme")
	file := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, viewer, wrong := file("token", "wlop_hush\n"), file("viewer", "wlop_viewer-hush\n"), file("wrong", "wlop_no-token-hush")
	elsewhere := httptest.NewServer(http.RedirectHandler("https://other.example/api", http.StatusFound))
	defer elsewhere.Close()
	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer secure.Close()
	ca := file("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})))
	gone := httptest.NewServer(nil)
	gone.Close()

	for _, c := range []struct {
		name string
		args []string
		env  map[string]string
		code int
		says string
	}{
		{"a file", []string{"grant", "show", "acme", "--api", o.at, "--api-token-file", good}, nil, 0, "healthy"},
		{"a slash at the end", []string{"grant", "show", "acme", "--api", o.at + "/", "--api-token-file", good}, nil, 0, "healthy"},
		{"variables", []string{"grant", "list", "--json"}, map[string]string{"WAYLEAVE_API": o.at, "WAYLEAVE_API_TOKEN": "wlop_hush"}, 0, `"state": "healthy"`},
		{"a variable that names a file", []string{"session", "list"}, map[string]string{"WAYLEAVE_API": o.at, "WAYLEAVE_API_TOKEN_FILE": good}, 0, "no live sessions"},
		{"the command line names a configuration", []string{"grant", "list", "-c", "nowhere.yaml"}, map[string]string{"WAYLEAVE_API": o.at, "WAYLEAVE_API_TOKEN": "wlop_hush"}, 1, "nowhere.yaml"},
		{"both", []string{"grant", "list", "-c", "nowhere.yaml", "--api", o.at}, nil, 2, "leave one of them out"},
		{"no token", []string{"grant", "list", "--api", o.at}, nil, 2, "WAYLEAVE_API_TOKEN"},
		{"a file that is not there", []string{"grant", "list", "--api", o.at, "--api-token-file", "nowhere"}, nil, 1, "nowhere"},
		{"a token and no gate", []string{"grant", "list", "--api-token-file", good}, nil, 2, "name its console with --api"},
		{"beyond this machine", []string{"grant", "list", "--api", "http://gate.example.com", "--api-token-file", good}, nil, 2, "use https"},
		{"no address", []string{"grant", "list", "--api", "gate.example.com", "--api-token-file", good}, nil, 2, "looks like https://"},
		{"a secret in the address", []string{"grant", "list", "--api", "https://a:sk-hush@gate.example.com", "--api-token-file", good}, nil, 2, "looks like https://"},
		{"a path", []string{"grant", "list", "--api", "https://gate.example.com/api/v1", "--api-token-file", good}, nil, 2, "looks like https://"},
		{"a wrong token", []string{"grant", "list", "--api", o.at, "--api-token-file", wrong}, nil, 1, "does not take the token"},
		{"too few rights", []string{"grant", "disconnect", "acme", "--yes", "--api", o.at, "--api-token-file", viewer}, nil, 1, "needs the role operator, and viewer of local operator is viewer; use a token that may"},
		{"somebody else", []string{"grant", "list", "--api", stranger.URL, "--api-token-file", good}, nil, 1, "does not answer as a gate's console: 404"},
		{"a redirect", []string{"grant", "list", "--api", elsewhere.URL, "--api-token-file", good}, nil, 1, "sends its callers to https://other.example"},
		{"nobody", []string{"grant", "list", "--api", gone.URL, "--api-token-file", good}, nil, 1, "cannot be reached"},
		{"an unknown authority", []string{"grant", "list", "--api", secure.URL, "--api-token-file", good}, nil, 1, "name its file with --api-ca-file"},
		{"an authority that is named", []string{"grant", "list", "--api", secure.URL, "--api-token-file", good, "--api-ca-file", ca}, nil, 1, "does not answer as a gate's console"},
		{"no authority in the file", []string{"grant", "list", "--api", secure.URL, "--api-token-file", good, "--api-ca-file", good}, nil, 1, "no PEM certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, name := range []string{"WAYLEAVE_CONFIG", "WAYLEAVE_API", "WAYLEAVE_API_TOKEN", "WAYLEAVE_API_TOKEN_FILE", "WAYLEAVE_API_CA_FILE"} {
				t.Setenv(name, c.env[name])
			}
			code := run(t.Context(), c.args, strings.NewReader(""), &o.out, &o.err)
			o.wants(errIf(code), c.code, c.says)
		})
	}
}

// errIf is an exit code as the error it came of.
func errIf(code int) error { return exitCode(code).asError() }

// When its Vault does not answer, a gate says what it remembers, and that it does.
func TestGateWithoutVault(t *testing.T) {
	o := newOffice(t)
	o.useAPI()
	d := o.desk("")
	o.wants(d.list(t.Context(), false), 0, "never_connected")
	o.breakStore()
	o.wants(d.list(t.Context(), false), 0, "warning: Vault does not answer")
	o.wants(d.listSessions(t.Context(), ""), 1, "listing sessions", "vault is unavailable")
	if _, err := d.AskRefresh(t.Context(), "acme"); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
