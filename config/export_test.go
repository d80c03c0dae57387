package config

import "path/filepath"

// Join is the configuration of a shared part from elsewhere on the machine whose file is name and has the text local, which may have
// faults where it does not count.
func Join(name string, shared, local []byte) (*Config, error) {
	machine := newDocument(name, local)
	return (&Config{Dir: filepath.Dir(name), doc: machine}).With("the shared part", shared, nil)
}
