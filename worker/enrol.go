package worker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	enrolTimeout  = 20 * time.Second
	enrolAttempts = 3
	maxEnrolment  = 1 << 20
	maxErrorWords = 300
)

// Enrol exchanges what a worker presents for a session at the gate. The gate's URL is that of the proxy: http or https, host,
// port, and nothing else; roots are whom to believe who it is over https, nil those of the system. Each error is one line
// that says what to do; none holds the token.
//
// Proxy variables are ignored (the gate is the proxy) and redirects are not followed (the token is for the gate alone).
func Enrol(ctx context.Context, gate *url.URL, roots *x509.CertPool, me Presented) (Enrolment, error) {
	if (gate.Scheme != "http" && gate.Scheme != "https") || gate.Host == "" || gate.User != nil || strings.Trim(gate.Path, "/") != "" || gate.RawQuery != "" {
		return Enrolment{}, fmt.Errorf("%q is not the address of a gate: write it as http://host:port", gate.Redacted())
	}
	gate = &url.URL{Scheme: gate.Scheme, Host: gate.Host}
	switch {
	case me.IsZero():
		return Enrolment{}, errors.New("no worker token: set WAYLEAVE_TOKEN to the token the gate's operator gave to this worker")
	case me.Certificate != nil && gate.Scheme != "https":
		return Enrolment{}, fmt.Errorf("a worker's certificate can be shown over TLS only, and the gate %s is not: give the address of its proxy over TLS", gate)
	}
	resp, body, err := present(ctx, gate, roots, me)
	if err != nil {
		return Enrolment{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return Enrolment{}, refused(gate, resp, body)
	}
	e, err := parseEnrolment(body)
	if errors.Is(err, errNotAGate) {
		return Enrolment{}, notAGate(gate, resp)
	}
	if err != nil {
		return Enrolment{}, fmt.Errorf("the gate %s cannot be used: %w: are this program and the gate of the same version?", gate, err)
	}
	e.Gate, e.Proofs = gate, me.Variables
	return e, nil
}

// restarts are the pauses before a gate that is away is asked again: a job must not fail because it began while the gate was replaced.
var restarts = []time.Duration{time.Second, 2 * time.Second}

// away reports whether what should be the gate is not there now: nobody listens, or what is before it says so, or there is no way to it yet, as where a
// container starts before its network.
func away(resp *http.Response, err error) bool {
	if name, ok := errors.AsType[*net.DNSError](err); ok {
		return name.IsTemporary || name.IsTimeout // and not that there is no such name
	}
	if err != nil {
		return slices.ContainsFunc([]error{syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EHOSTUNREACH, syscall.ENETUNREACH, io.EOF}, func(e error) bool { return errors.Is(err, e) })
	}
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return resp.Header.Get(reasonHeader) == ""
	}
	return false
}

// present asks for a session, and again when the gate is away, or says that it cannot now and when it can.
func present(ctx context.Context, gate *url.URL, roots *x509.CertPool, me Presented) (resp *http.Response, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	for attempt := 1; ; attempt++ {
		req, err := http.NewRequest(http.MethodPost, gate.JoinPath(sessionsPath).String(), nil)
		if err != nil {
			return nil, nil, fmt.Errorf("asking the gate %s for a session: %w", gate, err)
		}
		config, asked := &tls.Config{RootCAs: roots}, false
		if !me.Token.IsZero() {
			req.Header.Set("authorization", "Bearer "+me.Token.Reveal())
		} else {
			// Shown whatever authorities the gate names, so that one that does not take it says so.
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				asked = true
				return me.Certificate, nil
			}
		}
		resp, body, err := exchange(ctx, config, req)
		if why := notTaken(err); why != "" && me.Certificate != nil {
			return nil, nil, fmt.Errorf("the gate %s does not take this worker's certificate (%s): is it still valid, and of the authority that the gate's listen.client_ca_file names?", gate, why)
		}
		if away(resp, err) && attempt <= len(restarts) {
			pause(ctx, nil, restarts[attempt-1])
			continue
		}
		if err != nil {
			return nil, nil, unreachable(gate, err)
		}
		if resp.Header.Get(reasonHeader) != "" && me.Token.IsZero() && !asked {
			return nil, nil, fmt.Errorf("the gate %s asks for no certificates: its operator sets listen.client_ca_file, or this worker presents a token", gate)
		}
		seconds, err := strconv.Atoi(resp.Header.Get("retry-after"))
		wait := time.Duration(seconds) * time.Second
		end, _ := ctx.Deadline()
		if resp.StatusCode != http.StatusServiceUnavailable || err != nil || attempt == enrolAttempts || time.Now().Add(wait).After(end) {
			return resp, body, nil
		}
		pause(ctx, nil, wait)
	}
}

// afterLast is what follows the last sep in s.
func afterLast(s, sep string) string { return s[strings.LastIndex(s, sep)+len(sep):] }

// call asks the gate something and reads its answer, whose Body is closed.
func call(ctx context.Context, roots *x509.CertPool, req *http.Request) (resp *http.Response, body []byte, err error) {
	return exchange(ctx, &tls.Config{RootCAs: roots}, req)
}

func exchange(ctx context.Context, config *tls.Config, req *http.Request) (resp *http.Response, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: config},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if resp, err = client.Do(req.WithContext(ctx)); err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxEnrolment))
	return resp, body, err
}

// notTaken is why a gate does not take a client certificate, if that is what the error may come of. In TLS 1.3 a client learns
// it after the handshake: by an alert, or by a write that comes too late to read it.
func notTaken(err error) string {
	switch {
	case err == nil:
		return ""
	case strings.Contains(err.Error(), "remote error: tls: "):
		return oneLine(afterLast(err.Error(), "tls: "))
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return "it ended the connection"
	}
	return ""
}

// unreachable words the errors of a connection. What net/http wraps around them (method, whole URL) is left out.
func unreachable(gate *url.URL, err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	_, notTLS := errors.AsType[tls.RecordHeaderError](err)
	notTLS = notTLS || errors.Is(err, http.ErrSchemeMismatch)
	_, notTrusted := errors.AsType[*tls.CertificateVerificationError](err)
	_, unknownCA := errors.AsType[x509.UnknownAuthorityError](err)
	switch {
	case notTLS:
		return fmt.Errorf("the gate %s does not speak TLS on this port: write http:// instead of https://", gate)
	case notTrusted || unknownCA:
		return fmt.Errorf("the gate %s has a certificate this machine does not trust: %w; name the file of its authority: --gate-ca ca.pem", gate, err)
	case errors.Is(err, context.Canceled): // by Ctrl-C, which says nothing of the gate
		return fmt.Errorf("waiting for the gate %s was interrupted", gate)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the gate %s did not answer in %v: is it running, and does the network let this machine reach it?", gate, enrolTimeout)
	}
	return fmt.Errorf("the gate %s cannot be reached: %w: is it running, and is the address right?", gate, err)
}

// refused words an answer other than 200. Only an answer of our API carries the reason header.
func refused(gate *url.URL, resp *http.Response, body []byte) error {
	if resp.Header.Get(reasonHeader) == "" {
		if resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusGatewayTimeout || resp.StatusCode == http.StatusBadGateway {
			return fmt.Errorf("the gate %s is not ready: it answers %d: try again, and see its log if this lasts", gate, resp.StatusCode)
		}
		return notAGate(gate, resp)
	}
	var said struct {
		Message string `json:"message"`
	}
	if err := json.Unmarshal(body, &said); err != nil || said.Message == "" {
		said.Message = resp.Header.Get(reasonHeader)
	}
	words := oneLine(said.Message)
	if after := resp.Header.Get("retry-after"); after != "" && resp.StatusCode == http.StatusTooManyRequests {
		words += " (" + oneLine(after) + " s)"
	}
	return fmt.Errorf("the gate %s refused this worker: %s", gate, words)
}

func notAGate(gate *url.URL, resp *http.Response) error {
	return fmt.Errorf("%s is %w: it answers %d %s: is the address right?", gate, errNotAGate, resp.StatusCode,
		oneLine(strings.Join(resp.Header.Values("content-type"), " ")))
}

// oneLine makes words from elsewhere fit for a terminal.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }), " ")
	if len(s) > maxErrorWords {
		s = strings.ToValidUTF8(s[:maxErrorWords], "") + "…"
	}
	return s
}
