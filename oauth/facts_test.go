package oauth

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFacts(t *testing.T) {
	jwt := "x." + base64.RawURLEncoding.EncodeToString([]byte(`{"https://api.example.com/auth":{"account":"acc-1","plan~kind":"pro"},"sub":"s"}`)) + ".y"
	c := Config{Facts: map[string][]string{
		"account": {"/none/account", "/id_token/https:~1~1api.example.com~1auth/account", "/sub"},
		"plan":    {"/id_token/https:~1~1api.example.com~1auth/plan~0kind"},
		"sub":     {"/id_token/sub"},
		"org":     {"/organization/uuid"},
		"number":  {"/expires_in"},
		"long":    {"/long"},
		"lines":   {"/lines"},
		"through": {"/access_token/sub"},
	}}
	f := object([]byte(`{"access_token":"opaque","expires_in":3600,"id_token":"` + jwt + `","organization":{"uuid":"o-1"},"lines":"a\r\nb: c","long":"` + strings.Repeat("x", 201) + `"}`))
	want := map[string]string{"account": "acc-1", "plan": "pro", "sub": "s", "org": "o-1"}
	if diff := cmp.Diff(want, c.facts(f)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"account": "acc-1", "plan": "pro", "sub": "s"}, c.FactsIn(map[string]string{"id_token": jwt})); diff != "" {
		t.Error(diff)
	}
}
