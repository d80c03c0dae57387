package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Hash names the configuration's revision: the SHA-256, in hexadecimal, of everything its shared part means, and of the contents of
// Files. A file that cannot be read counts as none; Files says which. Configurations that differ in their local parts, in comments,
// formatting, the order of their keys, or in whether a default is written out, have the same hash; so have all replicas. Values of presets that are in use count, those of secrets do not.
func (c *Config) Hash() string {
	shared := *c
	fields := reflect.ValueOf(&shared).Elem()
	for i := range fields.NumField() {
		if isLocal(fields.Type().Field(i).Tag.Get("yaml")) {
			fields.Field(i).SetZero()
		}
	}
	// yaml.Marshal writes struct fields in their order and maps sorted by key.
	data, err := yaml.Marshal(&shared)
	if err != nil {
		panic(fmt.Sprintf("config: a decoded configuration cannot be encoded: %v", err)) // a fault of the struct, not of the file
	}
	sum := sha256.New()
	sum.Write(data)
	files, _ := c.Files()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(sum, "%q %x\n", name, sha256.Sum256(files[name]))
	}
	return hex.EncodeToString(sum.Sum(nil))
}
