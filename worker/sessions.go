package worker

import "context"

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
