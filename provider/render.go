package provider

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"wayleave/oauth"
)

// Mode is one way to give a worker its placeholder, added to what the provider sets in every mode.
type Mode struct {
	// Env are variables to set: name to template.
	Env map[string]string `yaml:"env,omitempty"`
	// Unset are variables to remove.
	Unset []string `yaml:"unset,omitempty"`
	// Files are templates by slash-separated path, relative to a directory that the worker's side makes for them.
	Files map[string]string `yaml:"files,omitempty"`
	// LocalAnswers are requests that the gate answers by itself, for workers in this mode.
	LocalAnswers []Answer `yaml:"answers,omitempty"`
	// NeedsScopes are scopes without which the client does not work fully in this mode.
	NeedsScopes []string `yaml:"needs_scopes,omitempty"`
	// Note is one line for whoever starts the worker.
	Note string `yaml:"note,omitempty"`
}

// Rendered is what one worker's environment gets.
type Rendered struct {
	Env   map[string]string // variable to value
	Unset []string          // sorted; never a variable that Env sets
	Files map[string]string // relative path to content; {files}, here and in Env, is for the worker's side to replace
	Note  string            // one line, or empty
}

// Render fills the templates of one mode; an empty mode is DefaultMode. placeholder must be of the characters
// A-Z a-z 0-9 . _ ~ -, host that of the grant's first route, and scopes those the grant really holds: a client that is told of more fails later and worse.
//
// Templates know {placeholder}, {placeholder_end} (its last 20 characters), {scopes} (space-separated), {scopes_json} (a JSON array) and {host}; {files} is left alone.
func (p Provider) Render(mode, placeholder string, scopes []string, host string) (Rendered, error) {
	if mode == "" {
		mode = p.DefaultMode
	}
	m, ok := p.EnvModes[mode]
	if !ok && mode != "" {
		return Rendered{}, fmt.Errorf("provider %s has no mode %q: choose one of %s", p.Name, mode, strings.Join(slices.Sorted(maps.Keys(p.EnvModes)), ", "))
	}
	if !isPlain(placeholder) {
		return Rendered{}, fmt.Errorf("the placeholder for provider %s has characters that need quoting: check placeholder_prefix", p.Name)
	}
	list, err := json.Marshal(append([]string{}, scopes...))
	if err != nil {
		return Rendered{}, fmt.Errorf("writing scopes for provider %s: %w", p.Name, err)
	}
	fill := strings.NewReplacer("{placeholder}", placeholder, "{placeholder_end}", placeholder[max(len(placeholder)-20, 0):], "{scopes}", strings.Join(scopes, " "), "{scopes_json}", string(list), "{host}", host)

	r := Rendered{Env: map[string]string{}, Files: map[string]string{}, Note: m.Note}
	for _, env := range []map[string]string{p.Env, m.Env} {
		for name, template := range env {
			r.Env[name] = fill.Replace(template)
		}
	}
	for path, template := range m.Files {
		r.Files[path] = fill.Replace(template)
	}
	for _, name := range slices.Concat(p.Unset, m.Unset) {
		if _, set := r.Env[name]; !set {
			r.Unset = append(r.Unset, name)
		}
	}
	slices.Sort(r.Unset)
	r.Unset = slices.Compact(r.Unset)
	if missing := oauth.MissingScopes(scopes, m.NeedsScopes); len(missing) > 0 {
		note := fmt.Sprintf("mode %s works fully only with scopes the grant does not hold (%s): ask an operator to reconnect it with them", mode, strings.Join(missing, " "))
		r.Note = strings.TrimPrefix(r.Note+"; "+note, "; ")
	}
	return r, nil
}

// isPlain reports whether s can be written into a shell, a URL and a header as it is.
func isPlain(s string) bool {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-"
	return !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(alphabet, r) })
}
