package oauth

import "strings"

// challengeParam finds a parameter of the Bearer challenges (RFC 9110 §11.6.1, RFC 6750 §3) in the values of
// WWW-Authenticate; empty when there is none. What is not well-formed ends the value it stands in.
func challengeParam(values []string, name string) string {
	for _, rest := range values {
		scheme := ""
		for rest = strings.TrimLeft(rest, " \t,"); rest != ""; rest = strings.TrimLeft(rest, " \t,") {
			word, after := token(rest)
			if word == "" {
				break
			}
			after = strings.TrimLeft(after, " \t")
			if !strings.HasPrefix(after, "=") {
				scheme, rest = word, after
				continue
			}
			value, after, ok := paramValue(strings.TrimLeft(after[1:], " \t"))
			if !ok { // token68, as Negotiate has
				_, rest, _ = strings.Cut(after, ",")
				continue
			}
			if strings.EqualFold(scheme, "Bearer") && strings.EqualFold(word, name) {
				return value
			}
			rest = after
		}
	}
	return ""
}

// token cuts the token (RFC 9110 §5.6.2) off the beginning of s.
func token(s string) (word, rest string) {
	end := strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
	if end < 0 {
		end = len(s)
	}
	return s[:end], s[end:]
}

// paramValue cuts a token or a quoted string (RFC 9110 §5.6.4) off the beginning of s.
func paramValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value, rest = token(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
