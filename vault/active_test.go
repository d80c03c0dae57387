package vault

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

func encodeIndex(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

func TestBeyond(t *testing.T) {
	for _, tt := range []struct {
		name, index, far string
		ours             bool
	}{
		{"OpenBao's", encodeIndex(`{"cluster":"c","value":"37"}`), encodeIndex(`{"cluster":"c","value":"4611686018427387904"}`), true},
		{"with more in it", encodeIndex(`{"cluster":"c","term":1,"value":"37"}`), encodeIndex(`{"cluster":"c","term":1,"value":"4611686018427387904"}`), true},
		{"of another store", encodeIndex(`{"cluster":"c","value":"0/16B3748"}`), encodeIndex(`{"cluster":"c","value":"0/16B3748"}`), true},
		{"Vault Enterprise's", encodeIndex("v1:cluster:12:0:mac"), "", false},
		{"no cluster", encodeIndex(`{"value":"37"}`), "", false},
		{"no value", encodeIndex(`{"cluster":"c","value":37}`), "", false},
		{"not base64", "37", "", false},
		{"empty", "", "", false},
	} {
		if far, ours := beyond(tt.index); far != tt.far || ours != tt.ours {
			t.Errorf("%s: %q %v, want %q %v", tt.name, far, ours, tt.far, tt.ours)
		}
	}
}

// Whatever a server answers, what goes back fits a header and is of the same cluster.
func FuzzBeyond(f *testing.F) {
	f.Add([]byte(`{"cluster":"c","value":"37"}`))
	f.Add([]byte(`{"cluster":"c\r\n","value":"0/16B3748"}`))
	f.Add([]byte("v1:cluster:12:0:mac"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		far, ours := beyond(base64.StdEncoding.EncodeToString(raw))
		if !ours {
			return
		}
		var before, after map[string]any
		text, err := base64.StdEncoding.DecodeString(far)
		if err != nil || json.Unmarshal(raw, &before) != nil || json.Unmarshal(text, &after) != nil || before["cluster"] != after["cluster"] {
			t.Errorf("%q became %q (%v)", raw, text, err)
		}
	})
}

// What a server makes of the index decides what it is asked with next.
func TestIndexHeaders(t *testing.T) {
	const theirs = `{"cluster":"c","value":"37"}`
	ahead := encodeIndex(`{"cluster":"c","value":"4611686018427387904"}`)
	for _, tt := range []struct {
		name   string
		index  string // that the server answers with; empty: none
		accept func(index string) int
		want   []string // index and wish of each request for the document
	}{
		{"a server without the header", "", nil, []string{" ", " "}},
		{"OpenBao", encodeIndex(theirs), nil, []string{ahead + " forward-active-node", ahead + " forward-active-node"}},
		{"Vault Enterprise", encodeIndex("v1:x"), nil, []string{encodeIndex("v1:x") + " ", encodeIndex("v1:x") + " "}},
		{"one that has signed its index", encodeIndex(theirs), func(index string) int {
			if index == ahead {
				return http.StatusBadRequest
			}
			return 0
		}, []string{ahead + " forward-active-node", " ", encodeIndex(theirs) + " forward-active-node"}},
		{"a standby that is behind, and may not pass on", encodeIndex("v1:x"), func() func(string) int {
			first := true
			return func(string) int {
				if first {
					first = false
					return http.StatusPreconditionFailed
				}
				return 0
			}
		}(), []string{encodeIndex("v1:x") + " ", encodeIndex("v1:x") + " ", encodeIndex("v1:x") + " "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			var got []string
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if tt.index != "" {
					w.Header().Set(indexHeader, tt.index)
				}
				if r.URL.Path == "/v1/auth/token/lookup-self" {
					fmt.Fprint(w, `{"data":{"ttl":0,"renewable":false,"expire_time":null}}`)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				got = append(got, r.Header.Get(indexHeader)+" "+r.Header.Get(inconsistentHeader))
				if tt.accept != nil {
					if code := tt.accept(r.Header.Get(indexHeader)); code != 0 {
						w.Header().Del(indexHeader)
						w.WriteHeader(code)
						_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{`failed to decode "X-Vault-Index"`}})
						return
					}
				}
				fmt.Fprint(w, aDocument)
			}))
			defer s.Close()
			c := openAt(t, Config{Address: s.URL})
			for range 2 {
				if v, err := c.Get(t.Context(), "grants/a", &struct{}{}); err != nil || v != 3 {
					t.Errorf("version %d, %v", v, err)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("asked with\n%q, want\n%q", got, tt.want)
			}
		})
	}
}
