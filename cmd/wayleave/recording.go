package main

import (
	"path/filepath"

	"wayleave/extproc"
	"wayleave/record"
)

// openRecord opens the file that the configuration names for recording requests; nil when it names none.
func (g gate) openRecord() (*record.Recorder, error) {
	r := g.cfg.Record
	if r.File == "" {
		return nil, nil
	}
	file := absolute(g.cfg.Path(r.File))
	return record.Open(filepath.Join(filepath.Dir(file), ofReplica(g.replica, filepath.Base(file))), int64(r.MaxMB)<<20, g.log)
}

// recording is what the recorder is told; nothing when there is none.
func (g gate) recording(to *record.Recorder) extproc.Recording {
	if to == nil {
		return extproc.Recording{}
	}
	return extproc.Recording{To: to.Add, Headers: g.cfg.Record.Headers, Query: g.cfg.Record.Query}
}
