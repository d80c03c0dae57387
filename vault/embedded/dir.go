package embedded

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"wayleave/durable"
	"wayleave/secret"
	"wayleave/supervise"
	"wayleave/vault"
)

// dir is the folder "vault" of a state directory. All in it is ours alone (0600).
//
//	data/            the store, encrypted
//	init.json        unseal key and root token
//	init.started     there while a store is being initialised
//	address          where the running server listens
//	operator.token   the operator's token
//	openbao.json, openbao.log (and openbao.log.1, the log before), openbao.pid
type dir struct{ path string }

const (
	keysFile     = "init.json"
	startedFile  = "init.started"
	operatorFile = "operator.token"
)

func openDir(stateDir string) (dir, error) {
	path, err := filepath.Abs(filepath.Join(stateDir, "vault"))
	if err != nil {
		return dir{}, err
	}
	if err := os.MkdirAll(filepath.Join(path, "data"), 0o700); err != nil {
		return dir{}, err
	}
	return dir{path}, os.Chmod(path, 0o700)
}

// socketLimit is the longest path that fits a socket address everywhere: sun_path is 104 bytes on macOS, 108 on Linux,
// with a final zero.
const socketLimit = 103

// socket returns where to listen: in the directory, or in a new temporary one of ours when that path is too long.
func (d dir) socket() (string, error) {
	path := filepath.Join(d.path, "vault.sock")
	if len(path) <= socketLimit {
		return path, nil
	}
	tmp, err := os.MkdirTemp("", "wayleave-")
	if err != nil {
		return "", err
	}
	path = filepath.Join(tmp, "vault.sock")
	if len(path) > socketLimit {
		os.Remove(tmp)
		return "", fmt.Errorf("both %s and the temporary directory %s are too long for a unix socket: use a shorter state directory", d.path, tmp)
	}
	return path, nil
}

// removeTemporary removes the temporary directory that socket made, if it made one. A socket in the directory stays: it
// may be that of another process, which made ours give up.
func (d dir) removeTemporary(socket string) {
	if tmp := filepath.Dir(socket); tmp != d.path {
		os.Remove(socket)
		os.Remove(tmp)
	}
}

// writeConfig writes the server's configuration. JSON, which it reads as well as HCL, quotes any path right. There is no
// TCP listener, and pebbledb has no cluster port either.
func (d dir) writeConfig(socket string) (string, error) {
	text, err := json.MarshalIndent(map[string]any{
		"storage":   map[string]any{"pebbledb": map[string]any{"path": filepath.Join(d.path, "data")}},
		"listener":  []any{map[string]any{"unix": map[string]any{"address": socket, "socket_mode": "600"}}},
		"log_level": "warn",
		"ui":        false,
	}, "", "  ")
	if err != nil {
		return "", err
	}
	const name = "openbao.json"
	return filepath.Join(d.path, name), d.write(name, string(text))
}

const logName = "openbao.log"

// openLog opens the file that the server's output is added to: warnings and errors, no secrets.
func (d dir) openLog() (*supervise.LogFile, error) {
	return supervise.OpenLog(filepath.Join(d.path, logName), 8<<20)
}

// write replaces a file as a whole, by the text and the end of its line.
func (d dir) write(name, text string) error {
	path := filepath.Join(d.path, name)
	if err := durable.Replace(path, []byte(text+"\n")); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

func (d dir) read(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(d.path, name))
	return strings.TrimSpace(string(text)), err
}

func (d dir) has(name string) bool {
	_, err := os.Stat(filepath.Join(d.path, name))
	return err == nil
}

// storedKeys is the content of init.json.
type storedKeys struct {
	UnsealKey string `json:"unseal_key"` // base64
	RootToken string `json:"root_token"`
}

func (d dir) writeKeys(k keys) error {
	text, err := json.Marshal(storedKeys{k.unseal.Reveal(), k.root.Reveal()})
	if err != nil {
		return err
	}
	return d.write(keysFile, string(text))
}

// initialised removes the marker of a first start, which must not be there any longer once the keys are: should they get
// lost later, it would call a store with data empty.
func (d dir) initialised() error {
	if !d.has(startedFile) {
		return nil
	}
	if err := os.Remove(filepath.Join(d.path, startedFile)); err != nil {
		return err
	}
	return durable.Sync(d.path)
}

func (d dir) readKeys() (keys, error) {
	text, err := d.read(keysFile)
	if err != nil {
		return keys{}, err
	}
	var k storedKeys
	if err := json.Unmarshal([]byte(text), &k); err != nil || k.UnsealKey == "" || k.RootToken == "" {
		return keys{}, fmt.Errorf("%s holds no keys: restore it from a backup", filepath.Join(d.path, keysFile)) // err may quote them
	}
	return keys{secret.New(k.UnsealKey), secret.New(k.RootToken)}, nil
}

func (d dir) root(address string) (vault.Config, error) {
	keys, err := d.readKeys()
	if err != nil {
		return vault.Config{}, err
	}
	return vault.Config{Address: address, Auth: vault.Auth{Method: "token", Token: keys.root}}, nil
}

func (d dir) operator() (vault.Config, error) {
	address, err := d.read("address")
	if err != nil {
		return vault.Config{}, err
	}
	token, err := d.read(operatorFile)
	if err != nil {
		return vault.Config{}, err
	}
	return vault.Config{Address: address, Auth: vault.Auth{Method: "token", Token: secret.New(token)}}, nil
}
