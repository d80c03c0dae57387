package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"wayleave/secret"
	"wayleave/worker"
)

func newEnv() *cobra.Command {
	var format, dir, at, name string
	var containers []string
	c := &cobra.Command{
		Use:   "env",
		Short: "Print a worker's environment, for what cannot be started with 'wayleave run'",
		Long: `Env enrols like 'wayleave run', and prints the environment that run would give its command, in the form that --format
says:

  shell             export and unset, for: eval "$(wayleave env)", which fails when this command does
  dotenv            NAME="value", for programs that read an .env file
  json              the variables, those to remove, the session and the files
  docker            NAME=value, for docker run --env-file
  github            for a GitHub Actions job: written to the file $GITHUB_ENV, passwords masked
  kubernetes        a Secret with the variables and one with the files
  kubernetes-patch  a patch of a workload that uses the two

The files that variables point to are written to --dir. Where the worker finds that directory at another path, as a
container does, --at says which. The session lasts as long as its profile says, and ends by itself: run renews it, this
command does not.`,
		Example: `  eval "$(wayleave env)"
  wayleave env --format dotenv > .env
  wayleave env --format docker --dir ./wl --at /wayleave > wl.env && docker run --env-file wl.env -v ./wl:/wayleave:ro image
  wayleave env --format github
  wayleave env --format kubernetes --name agents | kubectl apply --server-side -f -
  wayleave env --format kubernetes-patch --name agents --container main > patch.yaml`,
	}
	me := addEnrolFlags(c)
	direct := addDirectFlag(c)
	c.Flags().StringVar(&format, "format", "shell", "one of "+strings.Join(envFormats(), ", "))
	c.Flags().StringVar(&dir, "dir", "", "directory to write the files to (default one of this worker in the user's cache directory)")
	c.Flags().StringVar(&at, "at", "", "where the worker finds --dir (default there; /var/run/wayleave for kubernetes)")
	c.Flags().StringVar(&name, "name", "wayleave", "name of the Secrets, for kubernetes")
	c.Flags().StringSliceVar(&containers, "container", nil, "names of the containers to patch, for kubernetes-patch")
	// eval is content with nothing, and the script would go on in the environment that it had.
	told := func(c *cobra.Command, err error) error {
		if _, known := envWriters[format]; err != nil && (format == "shell" || !known) {
			fmt.Fprintln(c.OutOrStdout(), "false")
		}
		return err
	}
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return told(c, c.Parent().FlagErrorFunc()(c, err)) })
	c.Args = func(c *cobra.Command, args []string) error { return told(c, exactArgs()(c, args)) }
	c.RunE = func(c *cobra.Command, _ []string) (err error) {
		defer func() { _ = told(c, err) }()
		write, ok := envWriters[format]
		if !ok {
			return usageError{fmt.Errorf("--format %s is none of %s", format, strings.Join(envFormats(), ", "))}
		}
		kubernetes := strings.HasPrefix(format, "kubernetes")
		if kubernetes && at == "" {
			at = "/var/run/wayleave"
		}
		if at != "" && !filepath.IsAbs(at) {
			return usageError{fmt.Errorf("--at %s is not an absolute path, and a worker may start anywhere", at)}
		}
		if format == "kubernetes-patch" && len(containers) == 0 {
			return usageError{errors.New("kubernetes-patch wants to know which containers: --container NAME")}
		}
		enrolment, err := me.enrol(c.Context())
		if err != nil {
			return err
		}
		enrolment.Direct = *direct
		if err := enrolment.CheckDirect(); err != nil {
			return usageError{err}
		}
		if dir == "" {
			if dir, err = envDir(enrolment.Session.Worker); err != nil {
				return err
			}
			if kubernetes { // what is printed is all there is to it
				if dir, err = os.MkdirTemp("", "wayleave-env-"); err != nil {
					return err
				}
				defer func() { _ = os.RemoveAll(dir) }()
			}
		}
		roots, _, err := worker.SystemRoots(os.Getenv)
		if err != nil {
			return err
		}
		// A shell has an environment and files already; everything else starts with some that we do not know.
		var base []string
		getenv := func(string) string { return "" }
		here := format == "shell" || format == "github"
		if here {
			base, getenv = os.Environ(), startersEnv
		}
		mayRead := enrolment
		mayRead.Password = secret.Text{} // java does not start where it cannot read its options, and what starts there has some of its own
		files, err := worker.WriteFiles(dir, at, mayRead, roots, getenv)
		if err != nil {
			return err
		}
		env, report := worker.Environment(enrolment, base, files)
		for _, line := range report {
			fmt.Fprintf(c.ErrOrStderr(), "wayleave: %s\n", line)
		}
		if here {
			var preferred []worker.Preference
			env, preferred = worker.Preferences(env, enrolment.Credentials, thisMachine())
			for _, p := range preferred {
				fmt.Fprintf(c.ErrOrStderr(), "wayleave: %v\n", p)
			}
		}
		w := environment{set: changed(base, env), unset: removed(base, env), enrolment: enrolment, dir: absolute(dir), at: at, name: name, containers: containers}
		if base == nil {
			for _, credential := range enrolment.Credentials {
				w.unset = append(w.unset, credential.Unset...)
			}
			slices.Sort(w.unset)
			w.unset = slices.Compact(w.unset)
		}
		if stay := unremovable(w.unset); format == "shell" && len(stay) > 0 {
			return fmt.Errorf("a shell cannot remove %s, which programs would prefer to the placeholders: start it without, as by env -u, or start programs with 'wayleave run'", strings.Join(stay, ", "))
		}
		if err := write(c.OutOrStdout(), w); err != nil {
			return err
		}
		if format == "github" && len(w.unset) > 0 {
			fmt.Fprintf(c.ErrOrStderr(), "wayleave: %s: set to nothing for later steps, which cannot be without; some programs take that for a value: take them out of the workflow's env\n", strings.Join(w.unset, ", "))
		}
		if format == "kubernetes-patch" && len(w.unset) > 0 {
			fmt.Fprintf(c.ErrOrStderr(), "wayleave: %s: taken out of the containers' env; what an envFrom gives them stays: take it out of that ConfigMap or Secret\n", strings.Join(w.unset, ", "))
		}
		fmt.Fprintf(c.ErrOrStderr(), "wayleave: the session of worker %s ends at %s\n", enrolment.Session.Worker, enrolment.Session.Expires.Local().Format("2006-01-02 15:04:05 -0700"))
		return nil
	}
	return c
}

func envFormats() []string { return slices.Sorted(maps.Keys(envWriters)) }

// envDir is a directory that outlives this process, one for each worker.
func envDir(worker string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding a directory for the worker's files: %w; name one with --dir", err)
	}
	return filepath.Join(cache, "wayleave", worker), nil
}

// variable is one of an environment.
type variable struct{ name, value string }

// changed are the variables of env that base does not have so, by name.
func changed(base, env []string) []variable {
	var out []variable
	for _, kv := range env {
		if name, value, ok := strings.Cut(kv, "="); ok && !slices.Contains(base, kv) {
			out = append(out, variable{name, value})
		}
	}
	slices.SortFunc(out, func(a, b variable) int { return strings.Compare(a.name, b.name) })
	return out
}

// removed are the names of base that env does not have.
func removed(base, env []string) []string {
	kept := map[string]bool{}
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		kept[name] = true
	}
	var out []string
	for _, kv := range base {
		if name, _, ok := strings.Cut(kv, "="); ok && name != "" && !kept[name] {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
