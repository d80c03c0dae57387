package worker

import (
	"strings"
	"testing"
)

func TestPlaceholder(t *testing.T) {
	k := newKeyring(t)
	s, _ := issue(t, k, "ci", "default")
	other, _ := issue(t, k, "ci", "default")
	laptop, _ := issue(t, k, "laptop", "default")
	foreign := newKeyring(t) // whose current key has the id of ours
	const prefix = "sk-ant-oat01-"
	p := k.Placeholder(s, "claude", prefix)
	if !strings.HasPrefix(p, prefix+Marker) {
		t.Errorf("shape of the placeholder: %.30s…", p)
	}
	if again := k.Placeholder(s, "claude", prefix); again != p {
		t.Error("the placeholder is not the same the second time")
	}
	for _, c := range []struct {
		name, value        string
		session            Session
		credential, prefix string
		want               Mismatch
	}{
		{"right", p, s, "claude", prefix, ""},
		{"another session's", p, other, "claude", prefix, OtherSession},
		{"another worker's", p, laptop, "claude", prefix, OtherWorker},
		{"another worker's, of that name", p, Session{ID: s.ID, Worker: "laptop"}, "claude", prefix, OtherWorker},
		{"another credential's", p, s, "github", prefix, OtherCredential},
		{"another credential's, of another shape", p, s, "github", "ghp_", OtherCredential},
		{"another session's for another credential", p, other, "github", "ghp_", OtherSession},
		{"of another shape", p, s, "claude", "ghp_", Altered},
		{"of no shape", strings.TrimPrefix(p, prefix), s, "claude", prefix, Altered},
		{"of a shape it should not have", p, s, "claude", "", Altered},
		{"one more", p + "a", s, "claude", prefix, Altered},
		{"one more in front", "x" + p, s, "claude", prefix, Altered},
		{"one less", p[:len(p)-1], s, "claude", prefix, Altered},
		{"one less in front", p[1:], s, "claude", prefix, Altered},
		{"space behind", p + " ", s, "claude", prefix, Altered},
		{"new line behind", p + "\n", s, "claude", prefix, Altered},
		{"new line inside", p[:30] + "\n" + p[30:], s, "claude", prefix, Altered},
		{"upper case", strings.ToUpper(p), s, "claude", prefix, Altered},
		{"marker only", prefix + Marker, s, "claude", prefix, Altered},
		{"nothing", "", s, "claude", prefix, Altered},
		{"another gate's", foreign.Placeholder(s, "claude", prefix), s, "claude", prefix, Altered},
		{"of a key that is none of ours", prefix + Marker + "74" + foreign.Placeholder(other, "claude", prefix)[len(prefix+Marker)+2:], s, "claude", prefix, UnknownKey},
		{"no session's", k.Placeholder(Session{}, "claude", ""), s, "claude", "", OtherWorker},
	} {
		owner, why := k.Recognize(c.value, c.session, c.credential, c.prefix)
		if why != c.want {
			t.Errorf("%s: %q, want %q", c.name, why, c.want)
		}
		if why == "" && owner != (Session{ID: s.ID, Worker: "ci", Expires: s.Expires}) {
			t.Errorf("%s: of %+v", c.name, owner)
		}
		if (why == OtherSession || why == OtherWorker) && c.name != "no session's" && owner.ID != s.ID {
			t.Errorf("%s: of session %s, want %s", c.name, owner.ID, s.ID)
		}
	}
}

// One character altered, at every place and to every character that could be in a header.
func TestPlaceholderAltered(t *testing.T) {
	k := newKeyring(t)
	s, _ := issue(t, k, "ci", "default")
	const prefix = "sk-ant-oat01-"
	p := k.Placeholder(s, "claude", prefix)
	for i := range p {
		for c := byte('!'); c <= '~'; c++ {
			if c == p[i] {
				continue
			}
			altered := p[:i] + string(c) + p[i+1:]
			if _, why := k.Recognize(altered, s, "claude", prefix); why != Altered {
				t.Fatalf("character %d as %c: %q", i, c, why)
			}
			// Whatever is left of the marker, it is known for a placeholder.
			if inMarker := i < len(prefix+Marker); inMarker != k.Damaged(altered) {
				t.Fatalf("character %d as %c: damaged %v", i, c, !inMarker)
			}
		}
	}
	if k.Damaged("sk-ant-oat01-" + strings.Repeat("a", 80)) {
		t.Error("any bearer of that length counts as a placeholder")
	}
}

// Where only a worker is known, its placeholder says which of its sessions it is of, and until when that lasts.
func TestPlaceholderOfAWorker(t *testing.T) {
	k := newKeyring(t)
	s, _ := issue(t, k, "ci", "default")
	p := k.Placeholder(s, "claude", "sk-")
	for _, c := range []struct {
		name, value, worker, credential string
		want                            Mismatch
	}{
		{"its own", p, "ci", "claude", ""},
		{"another worker's", p, "laptop", "claude", OtherWorker},
		{"another credential's", p, "ci", "github", OtherCredential},
		{"with another end", "sk-" + Marker + p[len("sk-"+Marker):][:9] + "aaaa" + p[len("sk-"+Marker)+13:], "ci", "claude", Altered},
	} {
		owner, why := k.Recognize(c.value, Session{Worker: c.worker}, c.credential, "sk-")
		if why != c.want || why == "" && owner != (Session{ID: s.ID, Worker: "ci", Expires: s.Expires}) {
			t.Errorf("%s: %+v, %q", c.name, owner, why)
		}
	}
}

// A session's id says when it was issued and when it ends.
func TestSessionID(t *testing.T) {
	s, _ := issue(t, newKeyring(t), "ci", "default")
	if got := s.Issued(); !got.Equal(now) {
		t.Errorf("issued %v, want %v", got, now)
	}
	if got := endOf(s.ID); !got.Equal(s.Expires) {
		t.Errorf("ends %v, want %v", got, s.Expires)
	}
	if end := endOf("0189xxxxxxxxxxxxxxxxxxxx"); !end.IsZero() { // no base32
		t.Errorf("an id that is none ends at %v", end)
	}
}

func FuzzRecognize(f *testing.F) {
	k := newKeyring(f)
	s, _ := issue(f, k, "ci", "default")
	p := k.Placeholder(s, "claude", "sk-")
	f.Add(p)
	f.Add("sk-" + Marker + "ae")
	f.Fuzz(func(t *testing.T, in string) {
		if _, why := k.Recognize(in, s, "claude", "sk-"); why == "" && in != p {
			t.Errorf("%q is accepted", in)
		}
	})
}
