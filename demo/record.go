package demo

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// keptRequests is how many requests a recorder can list. What they carried is kept for all of them, in memory: the demo
// is for tests and short shows.
const keptRequests = 10_000

// Request is one request as it arrived.
type Request struct {
	Time    time.Time
	Method  string
	Host    string // the Host header or :authority
	Path    string
	Proto   string   // HTTP/1.1 or HTTP/2.0
	Headers []string // names, sorted, canonical
	// Authorization is masked, for example "Bearer demo-at-3f…(40 chars)"; empty when there was none.
	Authorization string
	// AuthorizationSHA256 is the hexadecimal hash of the whole header value.
	AuthorizationSHA256 string
}

// recorder remembers requests. The zero value is ready.
type recorder struct {
	mu     sync.Mutex
	list   []Request
	values map[string]struct{} // every distinct header value and address received
}

func (rec *recorder) add(r *http.Request, now time.Time) {
	entry := Request{
		Time: now, Method: r.Method, Host: r.Host, Path: r.URL.Path, Proto: r.Proto,
		Headers: slices.Sorted(maps.Keys(r.Header)),
	}
	if a := r.Header.Get("Authorization"); a != "" {
		entry.Authorization, entry.AuthorizationSHA256 = mask(a), fingerprint(a)
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.values == nil {
		rec.values = map[string]struct{}{}
	}
	if len(rec.list) == keptRequests {
		rec.list = slices.Delete(rec.list, 0, keptRequests/10)
	}
	rec.list = append(rec.list, entry)
	rec.values[r.RequestURI] = struct{}{}
	rec.values[r.Host] = struct{}{}
	for _, values := range r.Header {
		for _, v := range values {
			rec.values[v] = struct{}{}
			if plain, ok := basicCredentials(v); ok {
				rec.values[plain] = struct{}{}
			}
		}
	}
}

func (rec *recorder) requests() []Request {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return slices.Clone(rec.list)
}

func (rec *recorder) saw(s string) bool {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	for v := range rec.values {
		if strings.Contains(v, s) {
			return true
		}
	}
	return false
}

// mask shows enough of a credential to recognise its kind.
func mask(v string) string {
	scheme, token, ok := strings.Cut(v, " ")
	if !ok {
		scheme, token = "", v
	} else {
		scheme += " "
	}
	shown := ""
	if len(token) >= 20 && !strings.EqualFold(scheme, "Basic ") {
		shown = token[:10]
	}
	return fmt.Sprintf("%s%s…(%d chars)", scheme, shown, len(token))
}

// basicCredentials decodes a Basic value to user:password.
func basicCredentials(v string) (string, bool) {
	scheme, encoded, _ := strings.Cut(v, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", false
	}
	plain, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	return string(plain), err == nil
}
