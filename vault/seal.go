package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"wayleave/secret"
)

// Seal talks to a server before anybody can log in: it initialises and unseals. Only the embedded Vault does that
// itself; any other is unsealed by its operator.
type Seal struct{ c *Client }

// NewSeal connects to the server of cfg, of which only the address and the CA file count.
func NewSeal(cfg Config) (*Seal, error) {
	base, transport, err := dialer(cfg.Address, cfg.CAFile, 1)
	if err != nil {
		return nil, err
	}
	c, err := newClient(Config{Address: base}, nil, transport)
	if err != nil {
		return nil, err
	}
	return &Seal{c}, nil
}

// Close lets go of the connections.
func (s *Seal) Close() { s.c.http.CloseIdleConnections() }

// SealStatus is what a server tells anybody about itself.
type SealStatus struct {
	Initialized bool          `json:"initialized"` // the store exists
	Sealed      bool          `json:"sealed"`      // it is closed
	Version     string        `json:"version"`
	Storage     string        `json:"storage_type"` // such as raft; empty when the server does not tell
	Skew        time.Duration `json:"-"`            // how far its clock is ahead of ours, to a second
}

// StaleReads reports whether standbys may answer from a copy that is behind without a way to forbid it: OpenBao 2.5 and
// 2.6 do, unless told otherwise.
func (s SealStatus) StaleReads() bool {
	replicated := s.Storage == "raft" || s.Storage == "postgresql"
	return replicated && (strings.HasPrefix(s.Version, "2.5.") || strings.HasPrefix(s.Version, "2.6."))
}

// Status asks the server about itself. The error is [ErrUnavailable] while it does not answer.
func (s *Seal) Status(ctx context.Context) (status SealStatus, err error) {
	const path = "sys/seal-status"
	err = s.call(ctx, path, func(ctx context.Context, a *api.Client) error {
		asked := time.Now()
		resp, err := a.Logical().ReadRawWithContext(ctx, path)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		status.Skew = Skew(resp.Header.Get("Date"), asked, time.Now())
		return json.NewDecoder(resp.Body).Decode(&status)
	})
	return status, err
}

// Skew is how far the server's clock was ahead of ours when it wrote the date, between asked and answered; 0 without a
// date. A date is cut to the second, so on average it is half a second early.
func Skew(date string, asked, answered time.Time) time.Duration {
	there, err := http.ParseTime(date)
	if err != nil {
		return 0
	}
	here := asked.Add(answered.Sub(asked) / 2)
	return there.Add(500 * time.Millisecond).Sub(here).Round(time.Second)
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
	a, err := s.c.newAPI(s.c.http, "", adminTimeout)
	if err != nil {
		return err
	}
	if err := f(ctx, a); err != nil {
		return fmt.Errorf("%s: %w", path, explain("update", path, err))
	}
	return nil
}
