package audit

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"wayleave/journal"
)

// What a request costs: its decision, and its end.
func BenchmarkRequest(b *testing.B) {
	for name, refuse := range map[string]string{"serve": "", "refuse": "audit_unavailable"} {
		b.Run(name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "audit.jsonl")
			lines, err := journal.OpenLines("audit.file", path, 1<<30, 1)
			if err != nil {
				b.Fatal(err)
			}
			run, err := StartRun(path, time.Now())
			if err != nil {
				b.Fatal(err)
			}
			log := NewLog(LogOptions{File: lines, Run: run, Chain: true, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
			ledger := NewLedger(log, refuse, time.Now)
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan struct{})
			go func() { log.Run(ctx); close(done) }()
			ids := make([]string, 4096)
			for i := range ids {
				ids[i] = uuid()
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				id := ids[i%len(ids)]
				if err := ledger.Decided(decided(id, Swapped)); err != nil {
					b.Fatal(err)
				}
				ledger.Ended(ended(id, 200))
			}
			cancel()
			<-done
		})
	}
}
