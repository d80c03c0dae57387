package e2e

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// secrets are all that was handed out to the product, and find them in whatever they are shown: as they are, and in the encodings
// in which programs print what they hold.
//
// They are found by windows of eight bytes: of what is searched those that begin at multiples of eight are looked up, and any run of
// 15 bytes holds one of these.
type secrets struct {
	mu      sync.RWMutex
	known   map[string]bool
	windows map[uint64][]window
	maybe   [1 << (22 - 3)]byte // a bit for each hash of a window: most are looked up no further
}

// window is where in a pattern eight bytes stand.
type window struct {
	*pattern
	at int
}

// pattern is one form of a secret.
type pattern struct {
	text  string
	kind  string // what it is a form of, and which form
	least int    // how many bytes of it, in a row, give it away
}

// leak is what was found.
type leak struct {
	kind     string
	at, size int
	head     string // as much of it as can be shown
}

func (l leak) String() string {
	return fmt.Sprintf("%s at byte %d (%s…)", l.kind, l.at, l.head)
}

const (
	// What is shorter than this is not looked for, and not found in part. It is also more than what is shown of a token on purpose.
	shortest = 16
	windowed = 8
)

// publicPart is what all secrets of a kind begin with.
var publicPart = regexp.MustCompile(`^(demo-[a-z]{2}-|[a-z]{2,6}_[a-z]{2}_|s\.|hvs\.|.*\.[^.]*\.)`)

// never are secrets by what they look like, whoever made them. A private key that is none of these is in a PEM block of another name.
var never = map[string]string{
	"a private key (PEM)":     "PRIVATE KEY-----",
	"a private key (P-256)":   "\x30\x81\x87\x02\x01\x00\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x04\x6d\x30\x6b\x02\x01\x01\x04\x20",
	"a private key (RSA)":     "\x02\x01\x00\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x04\x82",
	"a private key (Ed25519)": "\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20",
}

// vaultToken is the beginning of a token of OpenBao's or Vault's, and what its rest consists of.
var vaultToken = regexp.MustCompile(`^(?:s\.[A-Za-z0-9]{24}|hvs\.[A-Za-z0-9_-]{24,})\b`)

func newSecrets() *secrets {
	s := &secrets{known: map[string]bool{}, windows: map[uint64][]window{}}
	for kind, text := range never {
		s.addAs(kind, text, len(text))
	}
	return s
}

// add has a secret be looked for from now on. Of a token that is made of parts, such as a JWT, the last one is secret.
func (s *secrets) add(kind, secret string) {
	if p := publicPart.FindString(secret); len(secret)-len(p) >= shortest {
		secret = secret[len(p):]
	}
	if len(secret) >= shortest {
		s.addAs(kind, secret, shortest)
	}
}

// addAs is add for what gives itself away with so many bytes.
func (s *secrets) addAs(kind, secret string, least int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[secret] {
		return
	}
	s.known[secret] = true
	seen := map[string]bool{}
	form := func(how, text string, least, windows int) {
		if seen[text] || len(text) < 2*windowed-1 {
			return
		}
		seen[text] = true
		p := &pattern{text: text, kind: strings.TrimSpace(kind + " " + how), least: min(least, len(text))}
		for at := range min(windows, len(text)-windowed+1) {
			w := binary.LittleEndian.Uint64([]byte(text[at : at+windowed]))
			s.windows[w] = append(s.windows[w], window{p, at})
			h := hashed(w)
			s.maybe[h/8] |= 1 << (h % 8)
		}
	}
	form("", secret, least, len(secret)) // also in part
	for how, text := range encodings(secret) {
		form(how, text, len(text)*least/len(secret), windowed) // from its beginning
	}
}

// hashed is a window's bit.
func hashed(w uint64) uint64 { return w * 0x9e3779b97f4a7c15 >> (64 - 22) }

// encodings are the forms of a secret in which it is printed, by how it is then.
func encodings(secret string) map[string]string {
	raw := []byte(secret)
	quoted, _ := json.Marshal(secret)
	escaped := url.QueryEscape(secret)
	all := map[string]string{
		"in hexadecimal":               hex.EncodeToString(raw),
		"in capital hexadecimal":       strings.ToUpper(hex.EncodeToString(raw)),
		"in JSON":                      string(bytes.Trim(quoted, `"`)),
		"quoted":                       strings.Trim(fmt.Sprintf("%q", secret), `"`),
		"in a URL":                     escaped,
		"in a URL with small letters":  lowerEscapes(escaped),
		"in a path":                    url.PathEscape(secret),
		"as numbers":                   strings.Trim(fmt.Sprintf("%d", raw), "[]"),
		"as numbers with commas":       strings.ReplaceAll(strings.Trim(fmt.Sprintf("%d", raw), "[]"), " ", ","),
		"as hexadecimal numbers":       strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", raw), "[]byte{"), "}"),
		"as a hexadecimal dump":        fmt.Sprintf("% x", raw),
		"as capital hexadecimal bytes": fmt.Sprintf("% X", raw),
	}
	for before := range 3 { // bytes before it in what was encoded, modulo three
		enc := base64.RawStdEncoding.EncodeToString(append(make([]byte, before), raw...))
		// Without the digits that also depend on what is before and after it.
		enc = enc[(before*8+5)/6 : (before+len(raw))*8/6]
		all[fmt.Sprintf("in base64 after %d", before)] = enc
		all[fmt.Sprintf("in base64 for URLs after %d", before)] = strings.NewReplacer("+", "-", "/", "_").Replace(enc)
	}
	return all
}

var percent = regexp.MustCompile(`%[0-9A-F]{2}`)

func lowerEscapes(s string) string { return percent.ReplaceAllStringFunc(s, strings.ToLower) }

// in looks for secrets in a text.
func (s *secrets) in(text []byte) []leak {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []leak
	past := 0 // what was found ends here
	for _, at := range s.candidates(text) {
		w := binary.LittleEndian.Uint64(text[at:])
		for _, c := range s.windows[w] {
			if from, n := c.extent(text, at); n >= c.least && from >= past {
				found = append(found, leak{c.kind, from, n, shown(text[from : from+n])})
				past = from + n
			}
		}
	}
	return append(found, vaultTokens(text)...)
}

// vaultTokens are what looks like tokens of OpenBao's or Vault's.
func vaultTokens(text []byte) (found []leak) {
	for at := 0; ; {
		n := bytes.Index(text[at:], []byte("s."))
		if n < 0 {
			return found
		}
		at += n
		from := at
		if at >= 2 && string(text[at-2:at]) == "hv" {
			from -= 2
		}
		if from == 0 || !isWord(text[from-1]) {
			if hit := vaultToken.Find(text[from:]); hit != nil {
				found = append(found, leak{"a Vault token", from, len(hit), shown(hit)})
			}
		}
		at += len("s.")
	}
}

func isWord(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

// candidates are where the beginnings of windows may be. The race detector would look at each byte here, to no use.
//
//go:norace
func (s *secrets) candidates(text []byte) []int {
	var all []int
	for at := 0; at+windowed <= len(text); at += windowed {
		h := hashed(binary.LittleEndian.Uint64(text[at:]))
		if s.maybe[h/8]&(1<<(h%8)) != 0 {
			all = append(all, at)
		}
	}
	return all
}

// extent is how much of a pattern stands around one of its windows.
func (w window) extent(text []byte, at int) (from, n int) {
	from, in := at, w.at
	for from > 0 && in > 0 && text[from-1] == w.text[in-1] {
		from, in = from-1, in-1
	}
	for from+n < len(text) && in+n < len(w.text) && text[from+n] == w.text[in+n] {
		n++
	}
	return from, n
}

// shown is as much of a secret as can be printed.
func shown(secret []byte) string { return fmt.Sprintf("%.6q", secret) }

// inReader is in for what may be too long to be held at once.
func (s *secrets) inReader(r io.Reader) (found []leak, size int, err error) {
	const (
		atOnce  = 4 << 20
		overlap = 8 << 10 // longer than any form
	)
	buf := make([]byte, 0, atOnce+overlap)
	begin, past := 0, 0 // of buf, in what is read, and the end of what was found
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf, size = buf[:len(buf)+n], size+n
		last := err != nil
		for _, l := range s.in(buf) {
			if l.at += begin; l.at >= past && (last || l.at < begin+len(buf)-overlap) { // else it is found, whole, with what follows
				found, past = append(found, l), l.at+l.size
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return found, size, nil
		case err != nil:
			return found, size, err
		}
		begin += len(buf) - overlap
		buf = buf[:copy(buf, buf[len(buf)-overlap:])]
	}
}

// inFile is in for a file.
func (s *secrets) inFile(path string) ([]leak, int, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	return s.inReader(f)
}

func (s *secrets) count() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.known) - len(never)
}

// Whatever is planted in whatever form is found, wherever it stands, and nothing else is.
func TestSecretsAreFound(t *testing.T) {
	t.Parallel()
	s := newSecrets()
	secret := map[string]string{
		"an access token":  "demo-at-0123456789abcdef0123456789abcdef",
		"a client secret":  `+/%:&=<"` + "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
		"an ID token":      "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJlIG9mIHNvbWUgbGVuZ3Ro",
		"a session key":    "\x00\x01\xfe\xff\x80\x7f\x10\x20\x30\x40\x50\x60\x70\x81\x92\xa3\xb4\xc5\xd6\xe7\xf8\x09\x1a\x2b\x3c\x4d\x5e\x6f\x77\x88\x99\xaa",
		"an unseal key":    "dGhpcyBpcyB0aGUgdW5zZWFsIGtleSBvZiBhIHZhdWx0",
		"a refresh token":  "ory_rt_qFh2Yk3mZs0TtLJx-8bRnVwYdE7uQkP1aXcV5sG9hIo.2f8u",
		"a token of Vault": "s.AbCdEfGhIjKlMnOpQrStUvWx",
	}
	for kind, text := range secret {
		s.add(kind, text)
	}
	if s.count() != len(secret) {
		t.Fatalf("%d of %d secrets are looked for", s.count(), len(secret))
	}
	for kind, text := range secret {
		core := text[len(publicPart.FindString(text)):]
		forms := map[string]string{"as it is": text, "without its beginning": core, "cut short": core[:shortest], "its end": core[len(core)-shortest:]}
		for how, form := range encodings(core) {
			forms[how] = form
		}
		for before := range 3 {
			forms[fmt.Sprint("all of it in base64 after ", before)] = base64.StdEncoding.EncodeToString([]byte("xyz"[:before] + text + " and more"))
		}
		q, _ := json.Marshal(map[string]any{"error": text})
		forms["in a document"] = string(q)
		forms["in a form"] = url.Values{"token": {text}}.Encode()
		for how, form := range forms {
			for before := range 17 {
				for _, after := range []string{"", "\n", " after it"} {
					if found := s.in([]byte(strings.Repeat("=", before) + form + after)); len(found) == 0 {
						t.Errorf("%s %s, with %d bytes before it and %q after it, is not found", kind, how, before, after)
					}
				}
			}
		}
		for _, harmless := range []string{text[:min(10, len(text))] + "…(40 chars)", core[:shortest-1], strings.ToUpper(core[:15])} {
			if found := s.in([]byte("harmless: " + harmless)); len(found) > 0 {
				t.Errorf("%s: %q is taken for it: %v", kind, harmless, found)
			}
		}
	}
	if found := s.in([]byte("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.another signature, which is not known")); len(found) > 0 {
		t.Errorf("the public part of a JWT is taken for a secret: %v", found)
	}
}

// Private keys and Vault's tokens are found by what they look like; certificates and public keys look like neither.
func TestSecretsByTheirLook(t *testing.T) {
	t.Parallel()
	s := newSecrets()
	_, edwards, err1 := ed25519.GenerateKey(rand.Reader)
	curve, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	primes, err3 := rsa.GenerateKey(rand.Reader, 2048)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	secret := map[string]string{
		"a token of Vault's": `token="s.AbCdEfGhIjKlMnOpQrStUvWx"`, "an older one": "hvs.CAESIAbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
	}
	harmless := map[string]string{
		"a sentence": "the figures.AbCdEfGhIjKlMnOpQrStUvWx and ends.", "a name": "classes.AbCdEfGhIjKlMnOpQrStUvWx", "an accessor": "hmac-sha256:2c0a1b",
	}
	for _, key := range []crypto.Signer{edwards, curve, primes} {
		der, err1 := x509.MarshalPKCS8PrivateKey(key)
		public, err2 := x509.MarshalPKIXPublicKey(key.Public())
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "harmless"}}
		cert, err3 := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		quoted, _ := json.Marshal(string(block))
		for how, form := range map[string]string{
			"": "x" + string(der), "in PEM": string(block), "in JSON": string(quoted), "in PEM in base64": base64.StdEncoding.EncodeToString(block),
			"in base64": base64.StdEncoding.EncodeToString(der), "in hexadecimal": hex.EncodeToString(der), "in numbers": fmt.Sprintf("%d", der),
		} {
			secret[fmt.Sprintf("%T %s", key, how)] = form
		}
		for how, b := range map[string][]byte{"certificate": cert, "public key": public} {
			harmless[fmt.Sprintf("%s of %T", how, key)] = string(b)
			harmless[fmt.Sprintf("%s of %T in PEM", how, key)] = string(pem.EncodeToMemory(&pem.Block{Type: strings.ToUpper(how), Bytes: b}))
		}
	}
	for what, text := range secret {
		if len(s.in([]byte(text))) == 0 {
			t.Errorf("%s is not found", what)
		}
	}
	for what, text := range harmless {
		if found := s.in([]byte(text)); len(found) > 0 {
			t.Errorf("%s is taken for a secret: %v", what, found)
		}
	}
}

// What is read piece by piece is searched across the seams, and once.
func TestSecretsInLongFiles(t *testing.T) {
	t.Parallel()
	s := newSecrets()
	const token = "demo-at-0123456789abcdef0123456789abcdef"
	s.add("an access token", token)
	filler := strings.Repeat("nothing to see here\n", 1<<20)
	const seam = 4<<20 + 8<<10
	for _, at := range []int{0, seam - 20, seam - 8<<10 - 20, seam - 8<<10, 2*seam - 8<<10 - 16, len(filler) - 40} {
		text := filler[:at] + token + filler[at+len(token):]
		found, size, err := s.inReader(strings.NewReader(text))
		if err != nil || size != len(text) || len(found) != 1 || found[0].at != at+len("demo-at-") {
			t.Errorf("a token at %d: found %v in %d bytes, %v", at, found, size, err)
		}
	}
}

func BenchmarkSecrets(b *testing.B) {
	s := newSecrets()
	for i := range 5000 {
		s.add("an access token", fmt.Sprintf("demo-at-%032x", i*0x9e3779b97f4a7c1))
	}
	text := bytes.Repeat([]byte("time=2026-03-01T12:00:00.000Z level=DEBUG msg=\"let out\" worker=w grant=claude host=api.demo.test request=0123456789abcdef\n"), 1<<14)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		s.in(text)
	}
}
