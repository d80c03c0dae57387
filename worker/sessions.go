package worker

import (
	"context"
	"sync"
)

// Sessions is all that a gate knows of sessions: the keys by which it recognises them, and the ledger by which it says whether
// they are over.
type Sessions struct {
	*Keyring
	*Ledger
}

// OpenSessions reads both.
func OpenSessions(ctx context.Context, docs Documents, o LedgerOptions) (*Sessions, error) {
	keyring, err := LoadKeyring(ctx, docs)
	if err != nil {
		return nil, err
	}
	ledger, err := OpenLedger(ctx, docs, o)
	if err != nil {
		return nil, err
	}
	return &Sessions{keyring, ledger}, nil
}

// Run keeps both up to date until ctx ends.
func (s *Sessions) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { s.Ledger.Run(ctx) })
	wg.Go(func() {
		repeat(ctx, keysEvery, func() {
			rotated, err := s.Tend(ctx, s.now())
			if rotated {
				s.log.Info("session keys rotated")
			}
			s.say(ctx, 2, "session keys", err)
		})
	})
	wg.Wait()
}
