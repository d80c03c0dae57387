package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"go.yaml.in/yaml/v3"
)

// Hash names the configuration's revision: the SHA-256, in hexadecimal, of everything the configuration means. Two files
// that differ in comments, formatting, the order of their keys, or in whether a default is written out, have the same
// hash; so have all replicas. Values of presets that are in use count, those of secrets do not.
func (c *Config) Hash() string {
	// yaml.Marshal writes struct fields in their order and maps sorted by key.
	data, err := yaml.Marshal(c)
	if err != nil {
		panic(fmt.Sprintf("config: a decoded configuration cannot be encoded: %v", err)) // a fault of the struct, not of the file
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
