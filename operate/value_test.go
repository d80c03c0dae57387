package operate

import (
	"strings"
	"testing"

	"wayleave/worker"
)

func TestValueProblem(t *testing.T) {
	exists := func(path string) bool { return path == "/secrets/key" }
	for _, tt := range []struct {
		value string
		says  string // "" accepts it
	}{
		// Real ones, by their shapes.
		{"sk-ant-api03-Zq3x_9uV0kWbXxXx7-AbCdEfGhIjKlMnOpQrStUvWxYz0123456789AA", ""},
		{"sk-proj-4f9aX_xxK2", ""},
		{"ghp_16C7e42F292c6912E7710c838347Ae178B4a", ""},
		{"github_pat_11ABCDEFG0_testQ9x8w7", ""},
		{"AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY", ""},
		{"hunter2", ""},
		{"/9j/4AAQSkZJRgABAQ==", ""},
		{"user:pass", ""},
		{"$2b$12$abcdefghijklmnopqrstuv", ""},
		{"key-3ax6xnjp29jd6fds4gc373sgvjxteol0", ""},
		{"xoxb-2444333222-xyz", ""},
		{"a,b;c=d", ""},

		{"", "nothing in it"},
		{"  \t", "nothing in it"},
		{" sk-1234567890", "white space around"},
		{"sk-1234567890 ", "white space around"},
		{"sk-1234567890\t", "white space around"},
		{"sk-12345\nsk-67890", "several lines"},
		{"sk-12345\r", "several lines"},
		{"correct horse battery staple", "a space in it"},
		{`"sk-1234567890"`, "quotes around"},
		{`'sk-1234567890'`, "quotes around"},
		{"`sk-1234567890`", "quotes around"},
		{"“sk-1234567890”", "characters that no header takes"},
		{"sk-12345…67890", "characters that no header takes"},
		{"clé-1234567890", "characters that no header takes"},
		{"sk-12\x00345", "characters that no header takes"},
		{strings.Repeat("a", 9000), "8 KiB"},
		{"sk-ant-" + worker.Marker + "abcdefgh", "placeholder of ours"},
		{"-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----", "PEM file"},
		{"Bearer sk-1234567890", "the word that goes before"},
		{"basic dXNlcjpwYXNz", "the word that goes before"},
		{"token ghp_16C7e42F292c69", "the word that goes before"},
		{"Authorization: Bearer sk-1234567890", "whole header line"},
		{"x-api-key: sk-1234567890", "whole header line"},
		{"ANTHROPIC_API_KEY=sk-1234567890", "setting of a variable"},
		{"export GH_TOKEN=ghp_1234567890", "setting of a variable"},
		{"${ANTHROPIC_API_KEY}", "name of a variable"},
		{"$ANTHROPIC_API_KEY", "name of a variable"},
		{"$(cat key)", "name of a variable"},
		{"%API_KEY%", "name of a variable"},
		{"{{ api_key }}", "name of a variable"},
		{"<token>", "blank to be filled in"},
		{"<your key here>", "blank to be filled in"},
		{"[API_KEY]", "blank to be filled in"},
		{`{"api_key":"sk-1234567890"}`, "JSON"},
		{"https://example.com/key", "an address"},
		{"~/.secrets/key", "name of a file"},
		{"./key.txt", "name of a file"},
		{"../key", "name of a file"},
		{"/etc/wayleave/key", "name of a file"},
		{"/secrets/key", "name of a file"},
		{`C:\keys\a`, "name of a file"},
		{"sk-...", "left out"},
		{"sk-ant-api03-...AbCd", "left out"},
		{"sk-ant-****AbCd", "left out"},
		{"your-api-key", "an example"},
		{"YOUR_API_KEY_HERE", "an example"},
		{"my-secret-token", "an example"},
		{"insert-key-here", "an example"},
		{"changeme", "an example"},
		{"CHANGE_ME", "an example"},
		{"xxx", "an example"},
		{"sk-xxxxxxxx", "an example"},
		{"ghp_xxxxxxxxxxxxxxxxxxxx", "an example"},
		{"00000000", "an example"},
		{"sk-test", "an example"},
		{"sk-your-key", "an example"},
		{"sk-", "an example"},
		{"todo", "an example"},
		{"null", "an example"},
		{"undefined", "an example"},
		{"password", "an example"},
		{"api_key", "an example"},
		{"12345678", "an example"},
	} {
		got := valueProblem(tt.value, exists)
		switch {
		case tt.says == "" && got != "":
			t.Errorf("%q is refused: %s", tt.value, got)
		case tt.says != "" && !strings.Contains(got, tt.says):
			t.Errorf("%q: %q does not say %q", tt.value, got, tt.says)
		case len(tt.value) >= 12 && strings.Contains(got, tt.value):
			t.Errorf("%q is repeated in %q", tt.value, got)
		}
	}
}

// Whatever is pasted, it is judged, and what is accepted fits a header as it stands.
func FuzzValueProblem(f *testing.F) {
	f.Add("sk-ant-api03-Zq3x")
	f.Add("\"quoted\"")
	f.Add("/etc/x")
	f.Fuzz(func(t *testing.T, value string) {
		if valueProblem(value, func(string) bool { return false }) != "" {
			return
		}
		if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("%q was accepted", value)
		}
	})
}
