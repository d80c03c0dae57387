package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"wayleave/config"
	"wayleave/durable"
	"wayleave/secret"
	"wayleave/worker"
)

func newWorker() *cobra.Command {
	return group(&cobra.Command{
		Use:   "worker",
		Short: "Make enrolment tokens for workers",
	}, newWorkerToken())
}

func newWorkerToken() *cobra.Command {
	return &cobra.Command{
		Use:   "token",
		Short: "Make an enrolment token and the hash of it that the configuration wants",
		Long: `Token prints a new enrolment token and its hash. The token goes to the worker, as WAYLEAVE_TOKEN, and is shown
nowhere again; the hash goes to the configuration, as token_sha256.`,
		Example: `  wayleave worker token`,
		Args:    exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error {
			t := newWorkerSecret()
			fmt.Fprintf(c.OutOrStdout(), "WAYLEAVE_TOKEN=%s\ntoken_sha256: %s\n", t.Reveal(), tokenDigest(t))
			return nil
		},
	}
}

// newWorkerSecret returns a token with 160 random bits in a form that needs no quoting anywhere.
func newWorkerSecret() secret.Text { return secret.New("wlworker_" + rand.Text()) }

// tokenDigest is the form in which the configuration knows a token.
func tokenDigest(t secret.Text) string {
	h := sha256.Sum256([]byte(t.Reveal()))
	return hex.EncodeToString(h[:])
}

// configuredWorkers returns the workers of the configuration. One that has neither token nor from in it gets a token in st,
// where `wayleave run` on this machine finds it; without a state directory it is an error.
func configuredWorkers(cfg *config.Config, st *state) ([]worker.Worker, error) {
	var workers []worker.Worker
	for _, name := range slices.Sorted(maps.Keys(cfg.Workers)) {
		w := cfg.Workers[name]
		profile := cfg.Profiles[w.Profile]
		one := worker.Worker{Name: name, Profile: w.Profile, Match: w.Match(), SessionTTL: profile.SessionTTL, MaxSession: profile.MaxSession}
		if one.Match.IsZero() {
			var err error
			if one.TokenSHA256, err = tokenOf(name, w, st); err != nil {
				return nil, err
			}
		}
		workers = append(workers, one)
	}
	return workers, nil
}

// tokenOf is the hash of a worker's token.
func tokenOf(name string, w config.Worker, st *state) (hash [sha256.Size]byte, err error) {
	digest := w.TokenDigest
	if digest == "" {
		if st == nil {
			return hash, fmt.Errorf("worker %s has no token; make one with 'wayleave worker token' and write its token_sha256 in the configuration, or say with 'from' by whose token it is known", name)
		}
		token, err := st.ensureWorkerToken(name)
		if err != nil {
			return hash, err
		}
		digest = tokenDigest(token)
	}
	raw, err := hex.DecodeString(digest)
	if err != nil || len(raw) != sha256.Size {
		return hash, fmt.Errorf("the token of worker %s has no usable SHA-256", name)
	}
	return [sha256.Size]byte(raw), nil
}

// ensureWorkerToken returns the worker's token, made at the first start.
func (s state) ensureWorkerToken(name string) (secret.Text, error) {
	path := s.workerTokenPath(name)
	t, err := readSecretFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return t, err
	}
	t = newWorkerSecret()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return t, err
	}
	return t, durable.Replace(path, []byte(t.Reveal()+"\n"))
}
