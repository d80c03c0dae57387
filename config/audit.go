package config

import "fmt"

// Audit says where the gate keeps account of what is done through it: a line of JSON for each request, for each connection that was
// refused, and for each thing that an operator changed in the console. It has paths, and no query, header or body; of tokens only
// names that tell them apart.
type Audit struct {
	// File to add to, readable by the gate's user only. What was before is kept in a second one, called so and .1 behind. With
	// listen.replicas each gate has its own: audit.a.jsonl for audit.jsonl. Default: audit.jsonl in the state directory of
	// `wayleave up`; for `wayleave serve` none.
	File string `yaml:"file"`

	// Megabytes that both files take together at most, from 1 to 100000.
	MaxMB int `yaml:"max_mb" jsonschema:"minimum=1,maximum=100000,default=500"`
}

func (k *checker) audit() {
	a := k.Audit
	k.megabytes("audit.max_mb", a.MaxMB)
	if a.File != "" && a.File == k.Record.File {
		k.fault("audit.file", "is record.file too", "give each a file of its own")
	}
}

// megabytes checks how much a gate's file may take.
func (k *checker) megabytes(path string, n int) {
	if n < 1 || n > 100_000 {
		k.fault(path, fmt.Sprint(n)+" is out of range", "write a number from 1 to 100000")
	}
}
