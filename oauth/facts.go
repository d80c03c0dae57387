package oauth

import (
	"encoding/json"
	"strings"
)

// longestFact is how many bytes a fact may have: it is sent in headers.
const longestFact = 200

// FactsIn returns what Config.Facts finds in an answer of the token endpoint, given as its text members. What is not there, or could not
// stand in a header, is left out.
func (c Config) FactsIn(answer map[string]string) map[string]string {
	f := fields{}
	for name, value := range answer {
		f[name], _ = json.Marshal(value) // a string
	}
	return c.facts(f)
}

func (c Config) facts(f fields) map[string]string {
	var out map[string]string
	for name, pointers := range c.Facts {
		for _, p := range pointers {
			s := f.at(p)
			if s == "" || len(s) > longestFact || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
				continue
			}
			if out == nil {
				out = map[string]string{}
			}
			out[name] = s
			break
		}
	}
	return out
}

// at returns the text that a JSON pointer (RFC 6901) leads to. Through a JWT it leads into its claims, which came straight from the token
// endpoint, as account has it.
func (f fields) at(pointer string) string {
	segments := strings.Split(strings.TrimPrefix(pointer, "/"), "/")
	for i, s := range segments {
		key := strings.NewReplacer("~1", "/", "~0", "~").Replace(s)
		if i == len(segments)-1 {
			return f.text(key)
		}
		in := f.object(key)
		if in == nil {
			in = idClaims(f.text(key))
		}
		f = in
	}
	return ""
}
