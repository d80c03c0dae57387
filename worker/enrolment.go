package worker

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"wayleave/secret"
)

// apiVersion names the API in each answer, so that a client can tell a gate from whatever else answers with JSON.
const apiVersion = "wayleave/v1"

// Enrolment is what a worker gets for its token: everything it needs to go out through the gate, and no credential.
type Enrolment struct {
	// Gate is where the worker enrolled, and the proxy it is to use. Not part of the answer.
	Gate *url.URL
	// Transparent says that the network leads the worker to the gate, which is no proxy to it then. Not part of the answer.
	Transparent bool
	// Direct are hosts that programs are to reach without the gate, as NO_PROXY has them. Not part of the answer.
	Direct []string
	// Proofs are the variables that prove who the worker is, which its programs do not get. Not part of the answer.
	Proofs []string
	// Session says who the worker is now, and until when.
	Session Session
	// Lasts is how long the session lasts from when the answer came, unless it is renewed.
	Lasts time.Duration
	// Password is the session token; with Session.ID as user it opens the proxy.
	Password secret.Text
	// CA is the certificate authority of the gate, in PEM.
	CA []byte
	// Relay is a proxy on this machine that knows the session, for the worker to use in place of Gate. Not part of the answer.
	Relay netip.AddrPort
	// Ports are those of the hosts that the gate has anything to say about.
	Ports Ports
	// Credentials are those of the worker's profile, in the order of the profile.
	Credentials []Credential
}

// Ports are those of hosts, by what is spoken there: HTTP without TLS, or TLS and anything else that is tunnelled.
type Ports struct {
	TLS   []uint16 `json:"tls,omitempty"`
	Plain []uint16 `json:"plain,omitempty"`
}

// Credential is how one credential is presented to the worker's programs. Rendering it is package provider's business.
type Credential struct {
	// Grant and Provider are names as in the configuration.
	Grant    string `json:"grant"`
	Provider string `json:"provider"`
	// Hosts are those of the credential's routes, as in the configuration: names and patterns, with a port unless that is 443.
	Hosts []string `json:"hosts,omitempty"`
	// Placeholder is what the programs send and the gate swaps.
	Placeholder string `json:"placeholder"`
	// Env are variables to set. In a value, and in the content of a file, "{files}" stands for the directory that holds Files.
	Env map[string]string `json:"env,omitempty"`
	// Unset are variables to remove, because programs would prefer them to the placeholder.
	Unset []string `json:"unset,omitempty"`
	// Files are contents by slash-separated path, relative to a directory of this credential's own.
	Files map[string]string `json:"files,omitempty"`
	// Note is one line for the person who starts the worker, or empty.
	Note string `json:"note,omitempty"`
}

// wireEnrolment is the JSON form. It alone holds the session token as a string.
type wireEnrolment struct {
	API     string `json:"api"`
	Session struct {
		ID      string    `json:"id"`
		Worker  string    `json:"worker"`
		Profile string    `json:"profile"`
		Expires time.Time `json:"expires"`

		ExpiresIn int `json:"expires_in"` // seconds: the clock of a worker may be wrong
	} `json:"session"`
	Proxy struct {
		Username string `json:"username"`
		Password string `json:"password"`
	} `json:"proxy"`
	CAPEM       string       `json:"ca_pem"`
	Ports       Ports        `json:"ports"`
	Credentials []Credential `json:"credentials"`
}

func (e Enrolment) marshal() ([]byte, error) {
	w := wireEnrolment{API: apiVersion, CAPEM: string(e.CA), Ports: e.Ports, Credentials: e.Credentials}
	w.Session.ID, w.Session.Worker, w.Session.Profile, w.Session.Expires = e.Session.ID, e.Session.Worker, e.Session.Profile, e.Session.Expires
	w.Session.ExpiresIn = int(e.Lasts.Seconds())
	w.Proxy.Username, w.Proxy.Password = e.Session.ID, e.Password.Reveal()
	return json.Marshal(w)
}

// errNotAGate says that an answer is not one of our API.
var errNotAGate = errors.New("not a Wayleave gate")

// parseEnrolment accepts only what can be used as it is: names become variables and files of the worker's machine.
func parseEnrolment(body []byte) (Enrolment, error) {
	var w wireEnrolment
	if err := json.Unmarshal(body, &w); err != nil || w.API != apiVersion {
		return Enrolment{}, errNotAGate
	}
	e := Enrolment{
		Session:     Session{ID: w.Session.ID, Worker: w.Session.Worker, Profile: w.Session.Profile, Expires: w.Session.Expires},
		Lasts:       time.Duration(w.Session.ExpiresIn) * time.Second,
		Password:    secret.New(w.Proxy.Password),
		CA:          []byte(w.CAPEM),
		Ports:       w.Ports,
		Credentials: w.Credentials,
	}
	if !validSessionID(w.Session.ID) || w.Proxy.Username != w.Session.ID || !plain(w.Proxy.Password) {
		return Enrolment{}, errors.New("its answer holds no usable proxy user and password")
	}
	if len(certificates(e.CA)) == 0 {
		return Enrolment{}, errors.New("its answer holds no CA certificate")
	}
	for _, c := range w.Credentials {
		if !ValidName(c.Grant) {
			return Enrolment{}, fmt.Errorf("its answer names a grant %q", c.Grant)
		}
		for name := range c.Env {
			if !validVariable(name) {
				return Enrolment{}, fmt.Errorf("its answer sets a variable %q", name)
			}
		}
		for name := range c.Files {
			if !filepath.IsLocal(filepath.FromSlash(name)) {
				return Enrolment{}, fmt.Errorf("its answer names a file %q outside the credential's directory", name)
			}
		}
	}
	return e, nil
}

// plain reports whether s is not empty and can stand anywhere unescaped, see the alphabet in token.go.
func plain(s string) bool {
	return s != "" && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-") == ""
}

func validVariable(s string) bool {
	for i := range len(s) {
		letter := 'a' <= s[i]|0x20 && s[i]|0x20 <= 'z' || s[i] == '_'
		digit := '0' <= s[i] && s[i] <= '9'
		if !letter && (!digit || i == 0) {
			return false
		}
	}
	return s != ""
}

// certificates returns those of the PEM blocks that are certificates this machine can read; system stores hold a few
// that it cannot.
func certificates(data []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return out
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			out = append(out, c)
		}
	}
}
