package worker

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"software.sslmate.com/src/go-pkcs12"
)

// trustStorePassword is the one Java assumes. A store of public certificates keeps no secret; the format wants one.
const trustStorePassword = pkcs12.DefaultPassword

// Files are the paths of what WriteFiles wrote, all absolute.
type Files struct {
	// CA is our certificate authority, Bundle the system's roots and ours, both PEM and with those that whoever starts the worker had for the
	// variables that name them.
	CA, Bundle string
	// Alone says that there is our CA in Bundle and nothing else, since the machine has no roots.
	Alone bool
	// WgetRC is a configuration file for wget, which reads no variable for certificates.
	WgetRC string
	// TrustStore holds the bundle as PKCS #12, for Java.
	TrustStore string
	// JavaArguments holds the user and the password of the proxy for java, as options; empty: it has none.
	JavaArguments string
	// GitConfig is a file of git's with rules for addresses; empty: no credential has any.
	GitConfig string
	// Credentials is the directory of a credential's own files, by the grant's name.
	Credentials map[string]string
}

// WriteFiles writes the files that Environment points to into dir, each at once or not at all, readable by this user
// only. It makes dir (0700) when it is absent, and refuses one that others may enter, or where a file of a credential
// would take the place of one that holds no placeholder: that is somebody's real login.
// Roots are the system's, in PEM, see SystemRoots. The paths are those under at, where the worker finds dir; empty: dir. Getenv is the environment
// that the worker's is made of.
func WriteFiles(dir, at string, e Enrolment, roots []byte, getenv func(string) string) (Files, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Files{}, err
	}
	at = cmp.Or(at, dir)
	if err := privateDir(dir); err != nil {
		return Files{}, err
	}
	bundle := withInherited(Bundle(roots, e.CA), getenv, slices.Concat(replacingStores, addingStores, furtherStores)...)
	store, err := trustStore(bundle)
	if err != nil {
		return Files{}, fmt.Errorf("writing a Java trust store: %w", err)
	}
	f := Files{
		CA:          filepath.Join(at, "ca.pem"),
		Bundle:      filepath.Join(at, "bundle.pem"),
		Alone:       len(roots) == 0 && len(certificates(bundle)) == len(certificates(e.CA)),
		WgetRC:      filepath.Join(at, "wgetrc"),
		TrustStore:  filepath.Join(at, "truststore.p12"),
		Credentials: map[string]string{},
	}
	common := map[string][]byte{
		f.CA:         withInherited(e.CA, getenv, addingStores...),
		f.Bundle:     bundle,
		f.WgetRC:     []byte("ca_certificate = " + f.Bundle + "\n"),
		f.TrustStore: store,
	}
	if !e.Transparent && !e.Password.IsZero() {
		f.JavaArguments = filepath.Join(at, javaArguments)
		common[f.JavaArguments] = fmt.Appendf(nil, "-Dhttps.proxyUser=%[1]s\n-Dhttps.proxyPassword=%[2]s\n-Dhttp.proxyUser=%[1]s\n-Dhttp.proxyPassword=%[2]s\n", e.Session.ID, e.Password.Reveal())
	}
	if gitSystemFile(e.Credentials, "") != "" {
		f.GitConfig = filepath.Join(at, "gitconfig")
		machines := gitMachines(f.GitConfig, getenv, func(path string) ([]byte, error) {
			if path == f.GitConfig {
				path = filepath.Join(dir, "gitconfig")
			}
			return os.ReadFile(path)
		})
		common[f.GitConfig] = []byte(gitSystemFile(e.Credentials, machines))
	}
	for path, content := range common {
		if err := replaceFile(filepath.Join(dir, filepath.Base(path)), content); err != nil {
			return Files{}, err
		}
	}
	for _, c := range e.Credentials {
		own := filepath.Join("credentials", c.Grant)
		for _, name := range slices.Sorted(maps.Keys(c.Files)) {
			if err := writeCredentialFile(filepath.Join(dir, own), name, fileIn(c.Files[name], filepath.Join(at, own))); err != nil {
				return Files{}, err
			}
			f.Credentials[c.Grant] = filepath.Join(at, own)
		}
	}
	return f, nil
}

// freshly is how often the files are made to look new. What cleans directories of temporary files goes by their times: systemd takes what was not used for
// ten days, macOS for three.
const freshly = time.Hour

// KeepFiles keeps what WriteFiles wrote into dir from being cleaned away as something that nobody uses, until ctx ends.
func KeepFiles(ctx context.Context, dir string) {
	tick := time.NewTicker(freshly)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error { // what cannot be kept is tried again
				if err == nil {
					_ = os.Chtimes(path, now, now)
				}
				return nil
			})
		}
	}
}

// inFiles fills in where the files of a credential are.
func inFiles(template, dir string) string { return strings.ReplaceAll(template, "{files}", dir) }

// fileIn is inFiles for a file's content: in one of JSON the directory is a part of a string.
func fileIn(template, dir string) string {
	if json.Valid([]byte(template)) {
		quoted, _ := json.Marshal(dir) // of a string
		dir = string(quoted[1 : len(quoted)-1])
	}
	return inFiles(template, dir)
}

func writeCredentialFile(dir, name, content string) error {
	name = filepath.FromSlash(name)
	if !filepath.IsLocal(name) {
		return fmt.Errorf("a credential's file %q would lie outside its directory %s", name, dir)
	}
	path := filepath.Join(dir, name)
	switch old, err := os.ReadFile(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("a credential's file %s is in the way: %w", path, err)
	case strings.Contains(content, Marker) && !bytes.Contains(old, []byte(Marker)): // what has none is settings, which their program may have written anew
		return fmt.Errorf("%s holds a real login, which a placeholder must not replace: use another directory", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := replaceFile(path, []byte(content)); err != nil || !strings.HasPrefix(content, "#!") {
		return err
	}
	return os.Chmod(path, 0o700) // a program
}

func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s is open to other users (mode %04o): use a directory of its own, or chmod 0700 it", dir, mode)
	}
	return nil
}

// replaceFile writes content to a new file beside path (0600 from its first byte on) and renames it over path.
func replaceFile(path string, content []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if _, err = tmp.Write(content); err != nil {
		return err
	}
	if err = tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// trustStore is the bundle for Java, without the certificates that have no issuer name: one such makes Java refuse the
// whole store, saying that the password is wrong.
func trustStore(bundle []byte) ([]byte, error) {
	certs := slices.DeleteFunc(certificates(bundle), func(c *x509.Certificate) bool { return len(c.Issuer.Names) == 0 })
	// The 2023 algorithms are the strongest that Java 8u301 and every later release reads.
	return pkcs12.Modern2023.WithRand(rand.Reader).EncodeTrustStore(certs, trustStorePassword)
}
