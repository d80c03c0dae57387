package vault

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/vault/api"

	"wayleave/secret"
)

// Seal talks to a server before anybody can log in: it initialises and unseals. Only the embedded Vault does that
// itself; any other is unsealed by its operator.
type Seal struct{ c *Client }

// NewSeal connects to the server at address, as in [Config].
func NewSeal(address string) (*Seal, error) {
	base, transport, err := dialer(address, "")
	if err != nil {
		return nil, err
	}
	return &Seal{&Client{cfg: Config{Address: base}, http: httpClient(transport)}}, nil
}

// Close lets go of the connections.
func (s *Seal) Close() { s.c.http.CloseIdleConnections() }

// Status reports whether the store exists, and whether it is closed. The error is [ErrUnavailable] while the server
// does not answer.
func (s *Seal) Status(ctx context.Context) (initialized, sealed bool, err error) {
	err = s.call(ctx, "sys/seal-status", func(ctx context.Context, a *api.Client) error {
		status, err := a.Sys().SealStatusWithContext(ctx)
		if err == nil {
			initialized, sealed = status.Initialized, status.Sealed
		}
		return err
	})
	return initialized, sealed, err
}

// Init makes a new store with one unseal key, and returns that and the root token. They exist nowhere else: write them
// down before anything is stored.
func (s *Seal) Init(ctx context.Context) (unseal, root secret.Text, err error) {
	err = s.call(ctx, "sys/init", func(ctx context.Context, a *api.Client) error {
		made, err := a.Sys().InitWithContext(ctx, &api.InitRequest{SecretShares: 1, SecretThreshold: 1})
		if err != nil {
			return err
		}
		if len(made.KeysB64) != 1 || made.RootToken == "" {
			return errors.New("the answer holds no keys")
		}
		unseal, root = secret.New(made.KeysB64[0]), secret.New(made.RootToken)
		return nil
	})
	return unseal, root, err
}

// Unseal opens the store and reports whether it is still closed.
func (s *Seal) Unseal(ctx context.Context, key secret.Text) (sealed bool, err error) {
	err = s.call(ctx, "sys/unseal", func(ctx context.Context, a *api.Client) error {
		status, err := a.Sys().UnsealWithContext(ctx, key.Reveal())
		if err == nil {
			sealed = status.Sealed
		}
		return err
	})
	return sealed, err
}

func (s *Seal) call(ctx context.Context, path string, f func(context.Context, *api.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	a, err := s.c.newAPI("", adminTimeout)
	if err != nil {
		return err
	}
	if err := f(ctx, a); err != nil {
		return fmt.Errorf("%s: %w", path, explain("update", path, err))
	}
	return nil
}
