package extproc

import (
	"errors"
	"strconv"
	"strings"
)

const (
	httpPort  = 80
	httpsPort = 443
)

// endpoint is a host and port that can be compared with ==: the host is a DNS name in lower case without a final dot.
type endpoint struct {
	host string
	port uint16
}

func (e endpoint) String() string { return e.host + ":" + strconv.Itoa(int(e.port)) }

var errAuthority = errors.New("not a DNS name and a port")

// parseAuthority reads the host and port of a CONNECT target or a :authority (RFC 9112 section 3.2.3, RFC 9110 section
// 7.2). Upper case becomes lower case, as DNS names have none. A missing port becomes defaultPort; when that is 0, it is
// an error. Refused, because two readers may understand two things, or because hosts are matched by name: user
// information, IP addresses however written (::1, 127.1, 0x7f000001, 2130706433), a final dot, and what is not ASCII.
func parseAuthority(s string, defaultPort uint16) (endpoint, error) {
	host, portText, hasPort := strings.Cut(s, ":")
	port := defaultPort
	if hasPort {
		n, err := strconv.ParseUint(portText, 10, 16)
		if err != nil || portText[0] == '0' { // ParseUint takes no sign and no space
			return endpoint{}, errAuthority
		}
		port = uint16(n)
	}
	host, ok := dnsName(host)
	if !ok || port == 0 {
		return endpoint{}, errAuthority
	}
	return endpoint{host, port}, nil
}

// dnsName returns s in lower case and reports whether it is a DNS name that no resolver takes for an address.
// Underscores are allowed because such names exist.
func dnsName(s string) (string, bool) {
	if len(s) == 0 || len(s) > 253 {
		return "", false
	}
	s = strings.ToLower(s)
	var last string
	for rest := s; ; {
		label, more, found := strings.Cut(rest, ".")
		if !dnsLabel(label) {
			return "", false
		}
		if !found {
			last = label
			break
		}
		rest = more
	}
	// A last label that is a number makes the whole an IPv4 address to some (WHATWG URL, "ends in a number").
	if digits := strings.TrimPrefix(last, "0x"); digits == "" || strings.Trim(last, "0123456789") == "" ||
		digits != last && strings.Trim(digits, "0123456789abcdef") == "" {
		return "", false
	}
	return s, true
}

func dnsLabel(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
