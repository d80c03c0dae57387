package extproc

import (
	"encoding/base64"
	"net/url"
	"slices"
	"strings"

	"wayleave/worker"
)

// holdsMarker reports whether a placeholder, of whomever, is somewhere in s: as it is, in another case, percent-encoded
// up to maxDecodings times, or in base64. It is a net for what clients and attackers do by habit; a placeholder hidden
// from it is worthless wherever it goes.
func holdsMarker(s string) bool {
	if len(s) < len(worker.Marker) { // each of the forms is at least as long
		return false
	}
	return showsMarker(s) || strings.Contains(s, "%") && slices.ContainsFunc(decodings(s), showsMarker)
}

func showsMarker(s string) bool {
	return containsFold(s, worker.Marker) || slices.ContainsFunc(markerInBase64, func(core string) bool { return strings.Contains(s, core) })
}

const maxDecodings = 3

// decodings returns s and what it is after one, two, … percent-decodings, as long as there is a difference.
func decodings(s string) []string {
	forms := []string{s}
	for range maxDecodings {
		decoded := percentDecode(s)
		if decoded == s {
			break
		}
		forms = append(forms, decoded)
		s = decoded
	}
	return forms
}

// percentDecode decodes every %XX and leaves alone what only looks like one, as lenient servers do.
func percentDecode(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	if decoded, err := url.PathUnescape(s); err == nil {
		return decoded
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if decoded, err := url.PathUnescape(s[i : i+3]); err == nil {
				b.WriteString(decoded)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// containsFold is strings.Contains without regard to ASCII case; lower must be in lower case.
func containsFold(s, lower string) bool {
	for i := 0; i+len(lower) <= len(s); i++ {
		if s[i]|0x20 == lower[0] && strings.EqualFold(s[i:i+len(lower)], lower) {
			return true
		}
	}
	return false
}

// markerInBase64 is three texts of which one is in the base64 of whatever contains the marker: one for each place it can
// have in a group of three bytes, without the characters that its neighbours have a part in.
var markerInBase64 = func() (cores []string) {
	for before := range 3 {
		encoded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", before) + worker.Marker))
		cores = append(cores, encoded[(before*8+5)/6:(before+len(worker.Marker))*8/6])
	}
	return cores
}()
