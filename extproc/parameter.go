package extproc

import "strings"

// queryParameter is what a request has of one query parameter.
type queryParameter struct {
	times int
	value string // of the last, decoded once
	rest  string // the path and query without it, otherwise byte for byte
}

// takeParameter takes the query parameter called name out of a path.
func takeParameter(path, name string) queryParameter {
	p := queryParameter{rest: path}
	base, query, ok := strings.Cut(path, "?")
	if !ok || name == "" {
		return p
	}
	var kept []string
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if percentDecode(key) != name {
			kept = append(kept, pair)
			continue
		}
		p.times++
		p.value = percentDecode(value)
	}
	if p.times > 0 {
		p.rest = base
		if len(kept) > 0 {
			p.rest += "?" + strings.Join(kept, "&")
		}
	}
	return p
}
