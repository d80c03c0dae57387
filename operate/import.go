package operate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/secret"
)

// MaxImport is more than any key or token file holds.
const MaxImport = 1 << 20

// ErrTooLarge is that something to be imported is larger than MaxImport.
var ErrTooLarge = errors.New("it is larger than any credential; name the right file")

// CanImport refuses a grant that takes no import.
func (d Desk) CanImport(name string) (grant.Spec, error) {
	spec, err := d.Spec(name)
	if err == nil {
		err = CheckImport(name, spec.Kind)
	}
	return spec, err
}

// CheckImport refuses kinds of grants that take no import.
func CheckImport(name string, kind grant.Kind) error {
	if kind == grant.Machine {
		return refuse(Misused, "%s takes no import: the gate gets its tokens by itself", name)
	}
	return nil
}

// Imported is what came of an import.
type Imported struct {
	Stored
	Warning string `json:"warning,omitempty"`
}

// Import reads a credential as Read does, and stores it. The warning is there even with an error.
func (d Desk) Import(ctx context.Context, name string, data []byte) (Imported, error) {
	t, warning, err := d.Read(name, data)
	if err != nil {
		return Imported{}, err
	}
	s, err := d.Connect(ctx, name, t)
	return Imported{s, warning}, err
}

// Read reads a credential that an operator has: the bare value of a static grant, or the tokens of another one. warning is
// something to tell them, "" for nothing. Neither it nor an error repeats what was read.
func (d Desk) Read(name string, data []byte) (t oauth.Token, warning string, err error) {
	spec, err := d.CanImport(name)
	if err != nil {
		return oauth.Token{}, "", err
	}
	if spec.Kind == grant.Static {
		t, warning, err = d.readValue(name, data)
	} else {
		t, warning, err = d.readTokens(name, data)
	}
	if err != nil {
		return oauth.Token{}, "", refuse(Unusable, "importing %s: %v; nothing was changed", name, err)
	}
	return t, warning, nil
}

// readValue is a static value.
func (d Desk) readValue(name string, data []byte) (t oauth.Token, warning string, err error) {
	// Editors and echo end a line; that one is not meant.
	value := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if problem := valueProblem(value, exists); problem != "" {
		return oauth.Token{}, "", errors.New(problem)
	}
	if p, _ := d.Config.ProviderOf(name); !strings.HasPrefix(value, p.PlaceholderPrefix) {
		warning = fmt.Sprintf("values of %s usually begin with %s, and this one does not; it is stored as it is", p.Name, p.PlaceholderPrefix)
	}
	return oauth.Token{Access: secret.New(value)}, warning, nil
}

// readTokens are tokens of an OAuth provider.
func (d Desk) readTokens(name string, data []byte) (t oauth.Token, warning string, err error) {
	tokens, err := readTokens(data, d.Now())
	if err != nil {
		return oauth.Token{}, "", err
	}
	if preset := d.Config.Providers[d.Config.Grants[name].Provider].Preset; tokens.preset != "" && tokens.preset != preset {
		return oauth.Token{}, "", fmt.Errorf("this is %s, whose tokens are of preset %s, and the grant's provider is of preset %s", tokens.what, tokens.preset, preset)
	}
	p, _ := d.Config.ProviderOf(name)
	if tokens.client != "" && p.ClientID != "" && tokens.client != p.ClientID {
		return oauth.Token{}, "", fmt.Errorf("this is %s of another client, and refresh tokens are good for the client that they were given to; write its client_id and secret into the provider, or run `wayleave grant connect %s`", tokens.what, name)
	}
	tokens.Scopes = p.ReadScopes(tokens.Scopes)
	tokens.Facts = p.FactsIn(map[string]string{"access_token": tokens.Access.Reveal(), "id_token": tokens.idToken})
	if tokens.Refresh.IsZero() {
		return tokens.Token, "there is no refresh token in it, so the grant ends when its token does", nil
	}
	return tokens.Token, "from now on only the gate may use this refresh token: any other client that still refreshes with it breaks this grant and is broken by it", nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
