package extproc

import (
	"bytes"
	"strings"
	"testing"
)

func maskAll(texts []string, chunks ...string) string {
	m := &masker{}
	for _, t := range texts {
		m.texts = append(m.texts, []byte(t))
	}
	var out bytes.Buffer
	for i, c := range chunks {
		out.Write(m.next([]byte(c), i == len(chunks)-1))
	}
	return out.String()
}

func TestMasker(t *testing.T) {
	for _, c := range []struct {
		chunks []string
		want   string
	}{
		{[]string{"say secret!"}, "say ******!"},
		{[]string{"say sec", "ret!"}, "say ******!"},
		{[]string{"s", "e", "c", "r", "e", "t"}, "******"},
		{[]string{"sec", "", "ret", ""}, "******"},
		{[]string{"secsecret"}, "sec******"},
		{[]string{"secsec", "ret"}, "sec******"},
		{[]string{"secretsecret", "secre"}, "************secre"},
		{[]string{"secre", "x"}, "secrex"},
		{[]string{"", ""}, ""},
		{[]string{"data: 1\n\n", "data: 2\n\n"}, "data: 1\n\ndata: 2\n\n"},
	} {
		if got := maskAll([]string{"secret"}, c.chunks...); got != c.want {
			t.Errorf("%q: got %q, want %q", c.chunks, got, c.want)
		}
	}
	if got := maskAll([]string{"secret", "other"}, "an oth", "er sec", "ret"); got != "an ***** ******" {
		t.Errorf("got %q", got)
	}
	chunk := []byte("a secret")
	(&masker{texts: [][]byte{[]byte("secret")}}).next(chunk, true)
	if string(chunk) != "a secret" {
		t.Error("the caller's bytes were changed")
	}
}

// What cannot become a text is passed on at once; a hurried masker holds nothing.
func TestMaskerHoldsLittle(t *testing.T) {
	m := &masker{texts: [][]byte{[]byte("secret")}}
	if got := m.next([]byte("event\n\n"), false); string(got) != "event\n\n" {
		t.Errorf("held something of %q", got)
	}
	if got := m.next([]byte("a sec"), false); string(got) != "a " {
		t.Errorf("got %q", got)
	}
	if got := m.next([]byte(`, {"a":"longer than it"}`), false); string(got) != `sec, {"a":"longer than it"}` {
		t.Errorf("got %q", got)
	}
	m = &masker{texts: [][]byte{[]byte("secret")}, hurried: true}
	if got := m.next([]byte("secret sec"), false); string(got) != "****** sec" {
		t.Errorf("got %q", got)
	}
}

// Who has an upstream repeat guesses of the start of a text sees as much of a right one as of a wrong one: else it would be found out byte by byte.
func TestMaskerHoldsAlike(t *testing.T) {
	const text = "sk-abc:DEF.123"
	for n := range len(text) {
		guess := []byte(text[:n+1])
		for _, wrong := range []byte("xZ9-:") { // of the same kind
			seen := func(guess []byte) int {
				return len((&masker{texts: [][]byte{[]byte(text)}}).next(append([]byte("you said "), guess...), false))
			}
			other := append(bytes.Clone(guess[:n]), wrong)
			if right, wrong := seen(guess), seen(other); n+1 < len(text) && right != wrong {
				t.Errorf("%d bytes of %q are passed on, and %d of %q", right, guess, wrong, other)
			}
		}
	}
}

// However a stream is cut into chunks, the result is that of the whole.
func FuzzMasker(f *testing.F) {
	f.Add("secret", "a secret and a secsecret", uint8(3))
	f.Add("aab", "aaaabaab", uint8(1))
	f.Add("aa", "aaaaa", uint8(2))
	f.Fuzz(func(t *testing.T, text, body string, size uint8) {
		if text == "" || strings.Contains(text, "*") {
			return
		}
		var chunks []string
		for rest := body; rest != ""; {
			n := min(len(rest), int(size)+1)
			chunks = append(chunks, rest[:n])
			rest = rest[n:]
		}
		got := maskAll([]string{text}, append(chunks, "")...)
		want := strings.ReplaceAll(body, text, strings.Repeat("*", len(text)))
		if got != want {
			t.Errorf("%q in chunks of %d: got %q, want %q", body, size+1, got, want)
		}
	})
}
