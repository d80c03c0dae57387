package config

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Change is one difference between two configurations, as an operator would say it.
type Change struct {
	Of   string `json:"of"`   // host, scopes, grant, provider, route, profile, worker, issuer, file, setting or local setting
	Name string `json:"name"` // of what has changed
	What string `json:"what"` // how, in words
	// Reconnect says that a grant may have to be connected again before all of it works.
	Reconnect bool `json:"reconnect,omitempty"`
}

// String is the change in one line.
func (c Change) String() string { return c.Of + " " + c.Name + ": " + c.What }

// Compare says what is different in the second of two configurations: what a host is, what a request needs, what a grant is asked
// for, what a worker may. Configurations with the same Hash differ in local settings only.
func Compare(a, b *Config) []Change {
	d := &comparison{a: a, b: b}
	d.hosts()
	d.scopes()
	d.grants()
	named(d, "provider", a.Providers, b.Providers)
	d.routes()
	named(d, "profile", a.Profiles, b.Profiles)
	named(d, "worker", a.Workers, b.Workers)
	named(d, "issuer", a.Issuers, b.Issuers)
	d.settings()
	return d.changes
}

type comparison struct {
	a, b    *Config
	changes []Change
}

func (d *comparison) add(of, name, format string, args ...any) {
	d.changes = append(d.changes, Change{Of: of, Name: name, What: fmt.Sprintf(format, args...)})
}

// hosts says what each host was and is.
func (d *comparison) hosts() {
	was, is := d.a.hostWords(), d.b.hostWords()
	for _, host := range either(was, is) {
		switch {
		case was[host] == "":
			d.add("host", host, "is new: %s", is[host])
		case is[host] == "":
			d.add("host", host, "is gone; it was %s", was[host])
		case was[host] != is[host]:
			d.add("host", host, "is %s; it was %s", is[host], was[host])
		}
	}
}

// hostWords says of each host what happens to it.
func (c *Config) hostWords() map[string]string {
	words := map[string]string{}
	for _, list := range []struct {
		hosts []string
		word  string
	}{{c.Plain, "plain"}, {c.Tunnel, "tunnelled"}, {c.Deny, "denied"}} {
		for _, h := range list.hosts {
			words[h] = list.word
		}
	}
	for _, r := range c.Routes {
		for _, h := range r.Hosts {
			grants := strings.TrimPrefix(words[h], "routed with ")
			if strings.HasPrefix(words[h], "routed") {
				words[h] = "routed with " + grants + " or " + r.Grant
			} else {
				words[h] = "routed with " + r.Grant
			}
		}
	}
	return words
}

// scopes says for which requests the scopes that they need are others.
func (d *comparison) scopes() {
	was, is := d.a.needs(), d.b.needs()
	for _, where := range either(was, is) {
		if more := without(is[where].scopes, was[where].scopes); len(more) > 0 {
			d.add("scopes", where, "a request now needs %s of %s", strings.Join(more, ", "), is[where].grant)
		}
		if _, still := is[where]; still {
			if less := without(was[where].scopes, is[where].scopes); len(less) > 0 {
				d.add("scopes", where, "a request does not need %s any more", strings.Join(less, ", "))
			}
		}
	}
}

type need struct {
	grant  string
	scopes []string
}

// needs are the scopes that requests need, by host and path.
func (c *Config) needs() map[string]need {
	all := map[string]need{}
	for _, r := range c.Routes {
		for _, h := range r.Hosts {
			all[h] = need{r.Grant, r.RequiredScopes}
			for _, p := range r.Paths {
				where := h + p.Exact + p.Prefix
				if p.Prefix != "" {
					where += "*"
				}
				all[where] = need{r.Grant, slices.Concat(r.RequiredScopes, p.RequiredScopes)}
			}
		}
	}
	return all
}

// grants says what a grant is asked for, and whether it has to be connected again.
func (d *comparison) grants() {
	for _, name := range either(d.a.Grants, d.b.Grants) {
		was, had := d.a.Grants[name]
		is, has := d.b.Grants[name]
		switch {
		case !had:
			d.add("grant", name, "is new, at %s", is.Provider)
			d.changes[len(d.changes)-1].Reconnect = d.b.Providers[is.Provider].NeedsOperator()
			continue
		case !has:
			d.add("grant", name, "is gone; its tokens stay in Vault until `wayleave grant disconnect %s`", name)
			continue
		case was.Provider != is.Provider:
			d.add("grant", name, "is at %s; it was at %s, and what it holds is of no use there", is.Provider, was.Provider)
			d.changes[len(d.changes)-1].Reconnect = true
		}
		if more := without(d.b.RequestedScopes(name), d.a.RequestedScopes(name)); len(more) > 0 {
			d.add("grant", name, "is now asked for %s; without it, it needs one reconnect", strings.Join(more, ", "))
			d.changes[len(d.changes)-1].Reconnect = true
		}
		if less := without(d.a.RequestedScopes(name), d.b.RequestedScopes(name)); len(less) > 0 {
			d.add("grant", name, "is not asked for %s any more", strings.Join(less, ", "))
		}
		was.Provider, is.Provider, was.Scopes, is.Scopes = "", "", nil, nil
		d.fields("grant", name, was, is)
	}
}

// routes says what is different in routes of the same name beside their hosts and scopes.
func (d *comparison) routes() {
	byName := func(c *Config) map[string]Route {
		all := map[string]Route{}
		for _, r := range c.Routes {
			all[r.Name] = r
		}
		return all
	}
	was, is := byName(d.a), byName(d.b)
	for _, name := range either(was, is) {
		a, had := was[name]
		b, has := is[name]
		if had && has {
			a.Hosts, b.Hosts = nil, nil
			d.fields("route", name, a, b)
		}
	}
}

// settings says which of the other sections differ, and in which keys.
func (d *comparison) settings() {
	named := map[string]bool{"providers": true, "grants": true, "routes": true, "tunnel": true, "plain": true, "deny": true, "profiles": true, "workers": true, "issuers": true}
	a, b := reflect.ValueOf(*d.a), reflect.ValueOf(*d.b)
	for i := range a.NumField() {
		if key := a.Type().Field(i).Tag.Get("yaml"); key != "" && key != "-" && !named[key] {
			of := "setting"
			if isLocal(key) {
				of = "local setting" // no part of the revision
			}
			d.fields(of, key, a.Field(i).Interface(), b.Field(i).Interface())
		}
	}
	was, _ := d.a.Files()
	is, _ := d.b.Files()
	for _, name := range slices.Sorted(maps.Keys(was)) {
		if text, still := is[name]; still && !bytes.Equal(was[name], text) {
			d.add("file", name, "has another content")
		}
	}
}

// fields says which keys of two values of one struct differ.
func (d *comparison) fields(of, name string, a, b any) {
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	if va.Kind() != reflect.Struct {
		if !same(a, b) {
			d.add(of, name, "is different")
		}
		return
	}
	if keys := differing(va, vb); len(keys) > 0 {
		d.add(of, name, "has another %s", strings.Join(keys, ", "))
	}
}

// differing are the keys of two values of one struct that differ, inlined structs included.
func differing(a, b reflect.Value) (keys []string) {
	for i := range a.NumField() {
		f := a.Type().Field(i)
		switch key, options, _ := strings.Cut(f.Tag.Get("yaml"), ","); {
		case options == "inline":
			keys = append(keys, differing(a.Field(i), b.Field(i))...)
		case key != "" && key != "-" && !same(a.Field(i).Interface(), b.Field(i).Interface()):
			keys = append(keys, key)
		}
	}
	return keys
}

// named compares entries by their names.
func named[V any](d *comparison, of string, was, is map[string]V) {
	for _, name := range either(was, is) {
		a, had := was[name]
		b, has := is[name]
		switch {
		case !had:
			d.add(of, name, "is new")
		case !has:
			d.add(of, name, "is gone")
		default:
			d.fields(of, name, a, b)
		}
	}
}

// same reports whether two values mean the same, as Hash does.
func same(a, b any) bool {
	x, errA := yaml.Marshal(a)
	y, errB := yaml.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(x, y)
}

// either is the keys of both, sorted.
func either[V any](a, b map[string]V) []string {
	all := maps.Clone(a)
	if all == nil {
		all = map[string]V{}
	}
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}

// without is what is in list and not in other.
func without(list, other []string) (rest []string) {
	for _, s := range list {
		if !slices.Contains(other, s) {
			rest = append(rest, s)
		}
	}
	return rest
}
