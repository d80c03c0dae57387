package main

import (
	"wayleave/extproc"
	"wayleave/journal"
	"wayleave/policy"
)

// openRecord opens the file that the configuration names for recording requests; nil when it names none.
func (g gate) openRecord() (*journal.File[policy.Judged], error) {
	r := g.cfg.Record
	if r.File == "" {
		return nil, nil
	}
	return journal.Open[policy.Judged]("record.file", replicaFile(absolute(g.cfg.Path(r.File)), g.replica), int64(r.MaxMB)<<20, g.log)
}

// recording is what the recorder is told; nothing when there is none.
func (g gate) recording(to *journal.File[policy.Judged]) extproc.Recording {
	if to == nil {
		return extproc.Recording{}
	}
	return extproc.Recording{To: to.Add, Headers: g.cfg.Record.Headers, Query: g.cfg.Record.Query}
}
