package config

import (
	"bytes"
	_ "embed"
)

//go:generate go test -run ^TestSchemaIsCurrent$ -update .

//go:embed schema.json
var schema []byte

// Schema returns the JSON Schema (draft 2020-12) of the configuration, for editors and other tools. It is made from the
// structs and their comments. Load knows more: references between sections, and everything else that spans several keys.
func Schema() []byte { return bytes.Clone(schema) }
