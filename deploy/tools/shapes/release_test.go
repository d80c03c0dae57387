package shapes

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/goreleaser/goreleaser/v2/pkg/config"
)

// The file as goreleaser reads it, which refuses keys that it does not know; and what it takes from the repository is there.
func TestGoreleaser(t *testing.T) {
	project, err := config.Load(filepath.Join(root, ".goreleaser.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if project.Version != 2 || len(project.Builds) != 1 || len(project.Signs) == 0 || len(project.SBOMs) == 0 || len(project.DockersV2) != 2 {
		t.Errorf("something is missing: %+v", project)
	}
	if deprecated := len(project.Brews) + len(project.Dockers) + len(project.DockerManifests); deprecated > 0 {
		t.Errorf("%d entries that goreleaser gives up", deprecated)
	}
	sources := []string{}
	for _, archive := range project.Archives {
		for _, f := range archive.Files {
			sources = append(sources, f.Source)
		}
	}
	installed := []string{}
	for _, p := range project.NFPMs {
		sources = append(sources, p.Scripts.PostInstall, p.Scripts.PreRemove)
		for _, c := range p.Contents {
			sources = append(sources, c.Source)
			installed = append(installed, c.Destination)
		}
	}
	for _, f := range project.Release.ExtraFiles {
		sources = append(sources, f.Glob)
	}
	dockerfile := read(t, "deploy/docker/Dockerfile")
	for _, image := range project.DockersV2 {
		sources = append(sources, image.Dockerfile)
		target := strings.TrimPrefix(image.Flags[0], "--target=")
		if !strings.Contains(dockerfile, " AS "+target+"\n") || !strings.Contains(dockerfile, " AS "+image.BuildArgs["BINARY"]+"\n") {
			t.Errorf("the Dockerfile has no stage %s, or no %s", target, image.BuildArgs["BINARY"])
		}
	}
	for _, source := range sources {
		if strings.HasPrefix(source, "dist-manual/") {
			continue // made by the hook, and by TestManual of cmd/wayleave
		}
		if found, err := filepath.Glob(filepath.Join(root, source)); err != nil || len(found) == 0 {
			t.Errorf("there is no %s to release (%v)", source, err)
		}
	}
	// What units ask for is installed with them.
	for _, unit := range tracked(t, "deploy/systemd/*.service", "deploy/systemd/*.target") {
		if !slices.Contains(installed, "/usr/lib/systemd/system/"+filepath.Base(unit)) {
			t.Errorf("the packages have no %s", filepath.Base(unit))
		}
	}
	for _, archive := range project.Archives {
		if want := "{{ .ProjectName }}_{{ .Os }}_{{ .Arch }}"; archive.NameTemplate != want || !strings.Contains(read(t, "deploy/install.sh"), "archive=wayleave_${os}_${arch}.tar.gz") {
			t.Errorf("install.sh looks for another archive than %s", archive.NameTemplate)
		}
	}
}

// release lays a release down as a server would have it and returns its page.
func release(t *testing.T, change func(dir string)) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "download", "v1.2.3")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("wayleave_%s_%s.tar.gz", runtime.GOOS, runtime.GOARCH)
	file, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	zipped := gzip.NewWriter(file)
	archive := tar.NewWriter(zipped)
	program := "#!/bin/sh\necho wayleave version v1.2.3\n"
	if err := archive.WriteHeader(&tar.Header{Name: "wayleave", Mode: 0o755, Size: int64(len(program))}); err != nil {
		t.Fatal(err)
	}
	_, err = archive.Write([]byte(program))
	for _, closing := range []interface{ Close() error }{archive, zipped, file} {
		if err := closing.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	sums := fmt.Sprintf("%064x  another.tar.gz\n%x  %s\n", 1, sha256.Sum256(text), name)
	if err := os.WriteFile(filepath.Join(dir, "checksums.txt"), []byte(sums), 0o600); err != nil {
		t.Fatal(err)
	}
	change(dir)
	return "file://" + filepath.Dir(filepath.Dir(dir))
}

func TestInstall(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("no curl here")
	}
	archives := func(dir string) string {
		found, _ := filepath.Glob(filepath.Join(dir, "wayleave_*.tar.gz"))
		return found[0]
	}
	add := func(path, text string) {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(text)
			_ = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// A cosign that says what it is asked, and finds what it is told to.
	cosign := func(status int) string {
		dir := t.TempDir()
		script := fmt.Sprintf("#!/bin/sh\necho \"$@\" > %s/asked\nexit %d\n", dir, status)
		if err := os.WriteFile(filepath.Join(dir, "cosign"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	good, bad := cosign(0), cosign(1)
	for _, c := range []struct {
		name, path, signer string
		change             func(dir string)
		want               string // what is said; empty: it is installed
	}{
		{name: "a release", change: func(string) {}},
		{name: "changed on the way", change: func(dir string) { add(archives(dir), "x") }, want: "is not what checksums.txt says"},
		{name: "not in the list", change: func(dir string) { _ = os.WriteFile(filepath.Join(dir, "checksums.txt"), nil, 0o600) }, want: "does not have"},
		{name: "no archive", change: func(dir string) { _ = os.Remove(archives(dir)) }, want: "could not fetch"},
		{name: "signed", path: good, signer: "https://github.com/acme/wayleave", change: func(dir string) {
			_ = os.WriteFile(filepath.Join(dir, "checksums.txt.sigstore.json"), []byte("{}"), 0o600)
		}},
		{name: "signed by another", path: bad, signer: "https://github.com/acme/wayleave", change: func(dir string) {
			_ = os.WriteFile(filepath.Join(dir, "checksums.txt.sigstore.json"), []byte("{}"), 0o600)
		}, want: "is not signed by"},
		{name: "no signature", path: good, signer: "https://github.com/acme/wayleave", change: func(string) {}, want: "could not fetch"},
		{name: "no cosign", signer: "https://github.com/acme/wayleave", change: func(string) {}, want: "cosign is not installed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := t.TempDir()
			cmd := exec.CommandContext(t.Context(), "sh", filepath.Join(root, "deploy/install.sh"), "v1.2.3", to)
			cmd.Env = []string{"PATH=" + strings.TrimPrefix(c.path+":/usr/bin:/bin", ":"), "HOME=" + t.TempDir(), "WAYLEAVE_RELEASES=" + release(t, c.change), "WAYLEAVE_SIGNED_BY=" + c.signer}
			out, err := cmd.CombinedOutput()
			_, there := os.Stat(filepath.Join(to, "wayleave"))
			switch {
			case c.want == "" && (err != nil || there != nil || !strings.Contains(string(out), "v1.2.3 is in")):
				t.Errorf("not installed: %v\n%s", err, out)
			case c.want != "" && (err == nil || there == nil || !strings.Contains(string(out), c.want)):
				t.Errorf("installed, or another word than %q: %v\n%s", c.want, err, out)
			}
		})
	}
	asked, err := os.ReadFile(filepath.Join(good, "asked"))
	if want := `^https://github\.com/acme/wayleave/\.github/workflows/release\.yaml@refs/tags/`; err != nil || !strings.Contains(string(asked), want) {
		t.Errorf("cosign is asked %q (%v), without %s", asked, err, want)
	}
}
