package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"wayleave/vault"
)

// unsealer opens the store after each start of the process, and initialises a new one.
type unsealer struct {
	dir     dir
	address string
	log     *slog.Logger

	initialising sync.Mutex // held from the request for a new store until its keys are written

	hopelessOnce sync.Once
	hopeless     chan struct{} // closed when asking again cannot help

	mu      sync.Mutex
	lastErr error // guarded by mu
}

// errHopeless marks what asking again does not change.
var errHopeless = errors.New("the embedded vault cannot be opened")

// last returns why the last attempt failed.
func (u *unsealer) last() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.lastErr
}

// unsealed returns nil once the store is open. supervise asks it until then.
func (u *unsealer) unsealed(ctx context.Context) error {
	err := u.unseal(ctx)
	u.mu.Lock()
	u.lastErr = err
	u.mu.Unlock()
	if errors.Is(err, errHopeless) {
		u.hopelessOnce.Do(func() { close(u.hopeless) })
	}
	return err
}

func (u *unsealer) unseal(ctx context.Context) error {
	seal, err := vault.NewSeal(vault.Config{Address: u.address})
	if err != nil {
		return err
	}
	defer seal.Close()
	is, err := seal.Status(ctx)
	if err != nil && strings.Contains(err.Error(), halfInitialised) {
		return u.explainHalf(err)
	}
	if err != nil {
		return err
	}
	if !is.Initialized {
		if err := u.initialise(ctx, seal); err != nil {
			return err
		}
		is.Sealed = true
	}
	if !is.Sealed {
		return nil
	}
	k, err := u.dir.readKeys()
	if errors.Is(err, os.ErrNotExist) {
		return u.explainMissing()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errHopeless, err)
	}
	if err := u.dir.initialised(); err != nil {
		return err
	}
	sealed, err := seal.Unseal(ctx, k.unseal)
	if err != nil && !errors.Is(err, vault.ErrUnavailable) {
		return fmt.Errorf("%w: the key in %s is not that of the store in %s: restore the two together from a backup: %w",
			errHopeless, keysFile, filepath.Join(u.dir.path, "data"), err)
	}
	if err != nil {
		return err
	}
	if sealed {
		return errors.New("still sealed")
	}
	return nil
}

// halfInitialised is in what OpenBao says of a store whose initialisation was cut off half-way.
const halfInitialised = "no seal configuration found"

// initialise makes a new store and writes its keys before it returns. There is a moment between the two that no order of
// steps removes; the marker makes it recognisable. A stop waits for the moment to pass.
func (u *unsealer) initialise(ctx context.Context, seal *vault.Seal) error {
	u.initialising.Lock()
	defer u.initialising.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	ctx = context.WithoutCancel(ctx)
	if u.dir.has(keysFile) {
		return fmt.Errorf("%w: there are keys in %s, but the store in %s is empty: put the store back from a backup, or remove both to start anew",
			errHopeless, filepath.Join(u.dir.path, keysFile), filepath.Join(u.dir.path, "data"))
	}
	if err := u.dir.write(startedFile, "a new store is being initialised"); err != nil {
		return err
	}
	unseal, root, err := seal.Init(ctx)
	if err != nil {
		return err
	}
	if err := u.dir.writeKeys(keys{unseal, root}); err != nil {
		return err
	}
	u.log.Info("embedded vault: initialised a new store")
	return nil
}

// settled returns when no store is being initialised.
func (u *unsealer) settled(context.Context) {
	u.initialising.Lock()
	defer u.initialising.Unlock()
}

func (u *unsealer) explainHalf(err error) error {
	if u.dir.has(startedFile) {
		return u.explainMissing()
	}
	return fmt.Errorf("%w: the store in %s is damaged: put it and %s back from a backup: %w",
		errHopeless, filepath.Join(u.dir.path, "data"), keysFile, err)
}

func (u *unsealer) explainMissing() error {
	if u.dir.has(startedFile) {
		return fmt.Errorf("%w: the very first start was cut off between creating the store and writing its keys, so nobody can open it, and nothing was stored in it yet: remove %s and start again",
			errHopeless, u.dir.path)
	}
	return fmt.Errorf("%w: the store in %s has data, but its keys, %s, are gone: restore that file from a backup; without it nobody can read the store",
		errHopeless, filepath.Join(u.dir.path, "data"), keysFile)
}
