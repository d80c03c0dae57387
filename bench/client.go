package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
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
func (w *world) connect(ctx context.Context, authority string, roots *x509.CertPool) (conn *tls.Conn, took time.Duration, err error) {
	c, err := w.tunnel(ctx, authority)
	if err != nil {
		return nil, 0, err
	}
	host, _, _ := strings.Cut(authority, ":")
	conn = tls.Client(c, &tls.Config{ServerName: host, RootCAs: roots, MinVersion: tls.VersionTLS12})
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

// asker sends the same request again and again over one connection. It does as little as it can, since it runs beside what is
// measured.
type asker struct {
	conn    io.ReadWriteCloser
	reader  *bufio.Reader
	request []byte
	want    []byte // the first line of every answer begins so
}

func (w *world) asker(ctx context.Context, status int) (*asker, error) {
	c, _, err := w.connect(ctx, apiHost+":443", w.roots)
	if err != nil {
		return nil, err
	}
	return &asker{
		conn: c, reader: bufio.NewReader(c),
		request: fmt.Appendf(nil, "GET /v1/models HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nUser-Agent: bench/1\r\nAccept: application/json\r\nAccept-Encoding: gzip\r\nAnthropic-Version: 2023-06-01\r\n\r\n", apiHost, w.gate.Placeholder),
		want:    fmt.Appendf(nil, "HTTP/1.1 %d ", status),
	}, nil
}

// ask sends the request and reads the answer.
func (a *asker) ask() error {
	if _, err := a.conn.Write(a.request); err != nil {
		return err
	}
	length, first := 0, true
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
		if name, value, _ := bytes.Cut(line, []byte(":")); bytes.EqualFold(name, []byte("content-length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	_, err := a.reader.Discard(length)
	return err
}
