package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"
)

// clientTimeout is for a connection and all that is done with it: a gate that hangs ends a benchmark.
const clientTimeout = 5 * time.Minute

// untilDone is a connection that fails at once when a context ends.
type untilDone struct {
	net.Conn
	forget func() bool
}

func (c untilDone) Close() error {
	c.forget()
	return c.Conn.Close()
}

// tunnel opens a tunnel to host:port as a worker. It lasts until it is closed, or ctx ends.
func (w *world) tunnel(ctx context.Context, authority string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", w.proxy)
	if err != nil {
		return nil, err
	}
	c := untilDone{conn, context.AfterFunc(ctx, func() { conn.Close() })}
	if err := c.SetDeadline(time.Now().Add(clientTimeout)); err != nil {
		return nil, err
	}
	credentials := base64.StdEncoding.EncodeToString([]byte(w.gate.Session + ":" + w.gate.Token))
	if _, err := fmt.Fprintf(c, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\nProxy-Authorization: Basic %s\r\n\r\n", authority, credentials); err != nil {
		return nil, err
	}
	// Nothing is lost in the reader's buffer: the other side of TLS speaks second.
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, fmt.Errorf("CONNECT %s: %w", authority, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("CONNECT %s: %s %s", authority, resp.Status, resp.Header.Get("x-wayleave-reason"))
	}
	return c, nil
}

// connect opens a tunnel to host:port and TLS inside it. took is the time of the latter.
// protocols are those to offer there.
func (w *world) connect(ctx context.Context, authority string, roots *x509.CertPool, protocols ...string) (conn *tls.Conn, took time.Duration, err error) {
	c, err := w.tunnel(ctx, authority)
	if err != nil {
		return nil, 0, err
	}
	host, _, _ := strings.Cut(authority, ":")
	conn = tls.Client(c, &tls.Config{ServerName: host, RootCAs: roots, MinVersion: tls.VersionTLS12, NextProtos: protocols})
	begun := time.Now()
	if err := conn.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, 0, fmt.Errorf("TLS with %s: %w", authority, err)
	}
	return conn, time.Since(begun), nil
}

// intercepted makes one handshake with the gate in the place of host, and ends the connection.
func (w *world) intercepted(ctx context.Context, host string) (took time.Duration, err error) {
	return w.handshake(ctx, host+":443", w.roots)
}

// untouched makes one with the upstream itself, through a tunnel.
func (w *world) untouched(ctx context.Context) (took time.Duration, err error) {
	return w.handshake(ctx, w.upstream.tunnelled(), w.upstream.roots)
}

func (w *world) handshake(ctx context.Context, authority string, roots *x509.CertPool) (time.Duration, error) {
	c, took, err := w.connect(ctx, authority, roots)
	if err != nil {
		return 0, err
	}
	return took, c.Close()
}

// work is what a request asks for.
type work struct {
	name string
	host string // that it asks, with its port unless that is 443
	h2   bool   // over HTTP/2
	path string
	body int // bytes to send; 0: it is a GET
}

var (
	get  = work{name: "GET", host: apiHost, path: "/v1/models"}
	post = work{name: "POST of 16 KiB", host: apiHost, path: "/v1/messages", body: 16 << 10}
	sse  = work{name: "GET of an event stream", host: apiHost, path: streamPath}
	get2 = work{name: "GET over HTTP/2", host: apiHostH2, path: "/v1/models", h2: true}

	post2 = work{name: "POST of 16 KiB over HTTP/2", host: apiHostH2, path: "/v1/messages", h2: true, body: 16 << 10}
	sse2  = work{name: "GET of an event stream over HTTP/2", host: apiHostH2, path: streamPath, h2: true}
)

func (k work) method() string {
	if k.body > 0 {
		return http.MethodPost
	}
	return http.MethodGet
}

// headers are about those of a language model's client.
func (w *world) headers() http.Header {
	return http.Header{
		"Authorization": {"Bearer " + w.gate.Placeholder}, "User-Agent": {"bench/1"}, "Accept": {"application/json"},
		"Accept-Encoding": {"gzip"}, "Anthropic-Version": {"2023-06-01"},
	}
}

// requester opens a connection over which to ask for k, and does so once. The answers have that status.
func (w *world) requester(ctx context.Context, k work, status int) (requester, error) {
	if !k.h2 {
		return w.asker(ctx, k, status)
	}
	transport := &http.Transport{
		DialTLSContext: func(ctx context.Context, _, authority string) (net.Conn, error) {
			c, _, err := w.connect(ctx, authority, w.roots, "h2")
			return c, err
		},
		ForceAttemptHTTP2: true, DisableCompression: true,
	}
	c, err := transport.NewClientConn(ctx, "https", k.host+":443")
	if err != nil {
		return nil, err
	}
	a := &askerH2{ctx: ctx, conn: c, headers: w.headers(), url: "https://" + k.host + k.path, method: k.method(), body: make([]byte, k.body), status: status}
	if err := a.ask(); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// askerH2 is a requester over HTTP/2, by Go's own client.
type askerH2 struct {
	ctx         context.Context //nolint:containedctx // of the connection
	conn        *http.ClientConn
	headers     http.Header
	method, url string
	body        []byte
	status      int
}

func (a *askerH2) Close() error { return a.conn.Close() }

func (a *askerH2) ask() error {
	r, err := http.NewRequestWithContext(a.ctx, a.method, a.url, bytes.NewReader(a.body))
	if err != nil {
		return err
	}
	r.Header = a.headers.Clone()
	resp, err := a.conn.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != a.status {
		return fmt.Errorf("an answer of %s is %d, not %d", resp.Proto, resp.StatusCode, a.status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// asker is a requester over HTTP/1.1. It does as little as it can, since it runs beside what is measured.
type asker struct {
	conn    io.ReadWriteCloser
	reader  *bufio.Reader
	request []byte
	want    []byte // the first line of every answer begins so
}

func (w *world) asker(ctx context.Context, k work, status int) (*asker, error) {
	authority := k.host
	if !strings.Contains(authority, ":") {
		authority += ":443"
	}
	return w.askerAt(ctx, authority, w.roots, k, status)
}

func (w *world) askerAt(ctx context.Context, authority string, roots *x509.CertPool, k work, status int) (*asker, error) {
	c, _, err := w.connect(ctx, authority, roots)
	if err != nil {
		return nil, err
	}
	var request bytes.Buffer
	fmt.Fprintf(&request, "%s %s HTTP/1.1\r\nHost: %s\r\n", k.method(), k.path, k.host)
	if k.body > 0 {
		fmt.Fprintf(&request, "Content-Type: application/json\r\nContent-Length: %d\r\n", k.body)
	}
	if err := w.headers().Write(&request); err != nil {
		return nil, err
	}
	request.WriteString("\r\n")
	request.Write(bytes.Repeat([]byte("x"), k.body))
	a := &asker{conn: c, reader: bufio.NewReader(c), request: request.Bytes(), want: fmt.Appendf(nil, "HTTP/1.1 %d ", status)}
	if err := a.ask(); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *asker) Close() error { return a.conn.Close() }

// ask sends the request and reads the answer.
func (a *asker) ask() error {
	if _, err := a.conn.Write(a.request); err != nil {
		return err
	}
	length, chunked, first := 0, false, true
	for {
		line, err := a.reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		if first && !bytes.HasPrefix(line, a.want) {
			return fmt.Errorf("an answer begins with %q, not %q", line, a.want)
		}
		first = false
		if len(line) == len("\r\n") {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			chunked = true
		}
	}
	if chunked {
		if _, err := io.Copy(io.Discard, httputil.NewChunkedReader(a.reader)); err != nil {
			return err
		}
		length = len("\r\n") // after the last chunk
	}
	_, err := a.reader.Discard(length)
	return err
}
