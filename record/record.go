// Package record owns what is noted of decisions for whoever wants to know what other rules would have done: one line for each
// request, in a file of package journal's.
package record

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"wayleave/policy"
)

const maxLine = 1 << 20

// Read calls each with every decision of a record, in order. Missing is how many were not recorded. The error names the line.
func Read(from io.Reader, each func(policy.Judged)) (missing uint64, err error) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxLine)
	n := 0
	for lines.Scan() {
		n++
		var line struct {
			policy.Judged
			Dropped uint64 `json:"dropped"` // of journal.Missing
		}
		decode := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		decode.DisallowUnknownFields()
		err := decode.Decode(&line)
		switch {
		case err == nil && decode.More():
			err = errors.New("something follows the object")
		case err == nil && line.Dropped == 0 && (line.Facts.Worker == "" || line.Facts.Host == "" || line.Verdict == "" || line.Time.IsZero()):
			err = errors.New("it has no time, verdict, worker or host")
		}
		if err != nil {
			return missing, fmt.Errorf("line %d is not one of a record: %w", n, err)
		}
		if line.Dropped > 0 {
			missing += line.Dropped
			continue
		}
		each(line.Judged)
	}
	if err := lines.Err(); err != nil {
		return missing, fmt.Errorf("line %d: %w", n+1, err)
	}
	return missing, nil
}
