package provider

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"wayleave/oauth"
)

// Answer is a request that the gate answers in the provider's place, so that a client that first asks who it is, or whether anybody is
// there, begins its work with a placeholder. Nothing of such a request reaches the provider.
type Answer struct {
	// Host is a DNS name, at port 443.
	Host string `yaml:"host"`
	// Path is the whole path, without the query.
	Path string `yaml:"path"`
	// Method of the request. Default: GET.
	Method string `yaml:"method,omitempty"`
	// Status of the answer, 200 to 599; 204, 205 and 304 go without json. Default: 200.
	Status int `yaml:"status,omitempty"`
	// JSON is the body, a template: {placeholder}, {scopes} and {scopes_json} as elsewhere, {expires_in}, the seconds until the session ends,
	// and each of facts by its name, which is empty while it is not known. None of them is ever a secret.
	JSON string `yaml:"json,omitempty"`
	// Token answers as a token endpoint does (RFC 6749 section 5.1), with the placeholder that the client has already, in place of json.
	Token bool `yaml:"token,omitempty"`
}

// Answers are those that hold in a mode, which may be empty, with their defaults filled in.
func (p Provider) Answers(mode string) []Answer {
	list := slices.Concat(p.LocalAnswers, p.EnvModes[mode].LocalAnswers)
	for i, a := range list {
		if a.Method == "" {
			list[i].Method = http.MethodGet
		}
		if a.Status == 0 {
			list[i].Status = http.StatusOK
		}
	}
	return list
}

var (
	dnsName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$`)
	method  = regexp.MustCompile(`^[A-Z][A-Z-]*$`)
)

// answerFaults are the faults of a list of answers, under key.
func (p Provider) answerFaults(key string, list []Answer) []oauth.FieldError {
	var faults []oauth.FieldError
	for i, a := range list {
		fault := func(field, format string, args ...any) {
			faults = append(faults, oauth.FieldError{Key: fmt.Sprintf("%s[%d].%s", key, i, field), Problem: fmt.Sprintf(format, args...)})
		}
		if !dnsName.MatchString(a.Host) {
			fault("host", "is %q: write a lower-case DNS name, without a port", a.Host)
		}
		if !strings.HasPrefix(a.Path, "/") || strings.ContainsAny(a.Path, "?#") {
			fault("path", "is %q: write the whole path, from its first / on and without a query", a.Path)
		}
		if a.Method != "" && (!method.MatchString(a.Method) || a.Method == http.MethodConnect || a.Method == http.MethodTrace) {
			fault("method", "is %q: write a method in capitals", a.Method)
		}
		if a.Status != 0 && (a.Status < 200 || a.Status > 599) {
			fault("status", "is %d: write one from 200 to 599", a.Status)
		}
		switch {
		case a.Status == http.StatusNoContent || a.Status == http.StatusResetContent || a.Status == http.StatusNotModified: // RFC 9110 section 15
			if a.Token || a.JSON != "" {
				fault("status", "is %d, whose answers have no body: leave json and token out, or write another status", a.Status)
			}
		case a.Token && a.JSON != "":
			fault("json", "goes with token: true in no answer: keep one of them")
		case !a.Token:
			known := true
			sample := template.ReplaceAllStringFunc(a.JSON, func(t string) string {
				name := strings.Trim(t, "{}")
				_, fact := p.Facts[name]
				known = known && (fact || slices.Contains(answerWords, name))
				switch name {
				case "scopes_json":
					return "[]"
				case "expires_in":
					return "1"
				}
				return "x"
			})
			if !known {
				fault("json", "has a word in braces that is neither among facts nor one of {placeholder}, {scopes}, {scopes_json}, {expires_in}")
			} else if !json.Valid([]byte(sample)) {
				fault("json", "is no JSON")
			}
		}
	}
	return faults
}

var answerWords = []string{"placeholder", "scopes", "scopes_json", "expires_in"}
