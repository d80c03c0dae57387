package grant

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/secret"
)

// Each token has the fingerprint of its own, which is worked out once, however many requests get the token.
func TestFingerprints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		var worked atomic.Int64
		fingerprint := func(token secret.Text) string {
			worked.Add(1)
			return "print of " + strings.TrimPrefix(token.Reveal(), "at"+mark)
		}
		k, _ := w.run(Options{Fingerprint: fingerprint})
		first := w.token(k)
		for range 100 {
			w.token(k)
		}
		time.Sleep(time.Minute) // the grant is read again and again
		if got := first.Fingerprint; got != "print of "+strings.TrimPrefix(first.Access.Reveal(), "at"+mark) || worked.Load() != 1 {
			t.Errorf("fingerprint %q, worked out %d times", got, worked.Load())
		}
		second := w.replace(k, first)
		if got := second.Fingerprint; got != "print of "+strings.TrimPrefix(second.Access.Reveal(), "at"+mark) || got == first.Fingerprint || worked.Load() != 2 {
			t.Errorf("fingerprint %q of the next token, worked out %d times", got, worked.Load())
		}
		x := NewExchanger(k, map[string]Exchange{"claude": {OAuth: &trader{life: time.Hour}}})
		for range 2 {
			own, err := x.Token(t.Context(), "claude", "w1", nil)
			if err != nil || own.Fingerprint != "print of "+own.Access.Reveal() || worked.Load() != 3 {
				t.Errorf("fingerprint %q of a worker's own token, worked out %d times: %v", own.Fingerprint, worked.Load(), err)
			}
		}
	})
}
