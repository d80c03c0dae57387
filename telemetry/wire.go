package telemetry

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"wayleave/secret"
)

// wire is the way to the collector. An error that is worth another try is a *retry.
type wire interface {
	send(ctx context.Context, to endpoint, in, out proto.Message) error
	close()
}

// endpoint is where a signal goes, by either protocol.
type endpoint struct{ method, path string }

var (
	tracesTo  = endpoint{"/opentelemetry.proto.collector.trace.v1.TraceService/Export", "/v1/traces"}
	metricsTo = endpoint{"/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", "/v1/metrics"}
	logsTo    = endpoint{"/opentelemetry.proto.collector.logs.v1.LogsService/Export", "/v1/logs"}
)

// retry is an error after which the same may be sent again, not before after.
type retry struct {
	err   error
	after time.Duration
}

func (r *retry) Error() string { return r.err.Error() }
func (r *retry) Unwrap() error { return r.err }

const maxAnswer = 1 << 20

func dial(c Config) (wire, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil {
		return nil, errors.New("telemetry: the endpoint is no address")
	}
	secure := &tls.Config{RootCAs: c.Roots, MinVersion: tls.VersionTLS12}
	agent := "wayleave/" + c.Version
	if c.HTTP {
		return dialHTTP(u, secure, agent, c.Headers), nil
	}
	target, creds := "dns:///"+u.Host, insecure.NewCredentials()
	switch u.Scheme {
	case "unix":
		target = "unix://" + u.Path
	case "https":
		creds = credentials.NewTLS(secure)
		if u.Port() == "" {
			target += ":443"
		}
	}
	// No proxy: on a worker's machine its variables point at the gate itself.
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds), grpc.WithNoProxy(), grpc.WithUserAgent(agent), grpc.WithDisableServiceConfig())
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	return &overGRPC{conn, c.Headers}, nil
}

type overGRPC struct {
	conn    *grpc.ClientConn
	headers map[string]secret.Text
}

func (w *overGRPC) close() { _ = w.conn.Close() }

func (w *overGRPC) send(ctx context.Context, to endpoint, in, out proto.Message) error {
	for name, value := range w.headers {
		ctx = metadata.AppendToOutgoingContext(ctx, name, value.Reveal())
	}
	err := w.conn.Invoke(ctx, to.method, in, out)
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	said := fmt.Errorf("%s: %s", s.Code(), scrub(s.Message(), w.headers))
	var after time.Duration
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			after = min(info.GetRetryDelay().AsDuration(), longest)
		}
	}
	switch s.Code() { // OTLP's list
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange, codes.Unavailable, codes.DataLoss:
		return &retry{said, after}
	case codes.ResourceExhausted:
		if after > 0 {
			return &retry{said, after}
		}
	case codes.InvalidArgument:
		return fmt.Errorf("%w: %w", ErrUnwanted, said)
	default:
	}
	return said
}

type overHTTP struct {
	base    string
	client  *http.Client
	agent   string
	headers map[string]secret.Text
}

func dialHTTP(u *url.URL, secure *tls.Config, agent string, headers map[string]secret.Text) *overHTTP {
	base := strings.TrimSuffix(u.String(), "/")
	dialer := &net.Dialer{Timeout: sendTimeout}
	transport := &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: secure, TLSHandshakeTimeout: sendTimeout, ForceAttemptHTTP2: true, MaxIdleConns: 4, IdleConnTimeout: 2 * time.Minute}
	if u.Scheme == "unix" {
		base = "http://collector"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", u.Path)
		}
	}
	return &overHTTP{base, &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, agent, headers}
}

func (w *overHTTP) close() { w.client.CloseIdleConnections() }

func (w *overHTTP) send(ctx context.Context, to endpoint, in, out proto.Message) error {
	body, err := proto.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.base+to.path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	for name, value := range w.headers {
		req.Header.Set(name, value.Reveal())
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("User-Agent", w.agent)
	resp, err := w.client.Do(req)
	if err != nil {
		return &retry{err: errors.New(scrub(err.Error(), w.headers))}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case resp.StatusCode/100 != 2:
		said := fmt.Errorf("the collector answers with status %d", resp.StatusCode)
		switch resp.StatusCode { // OTLP's list
		case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
			return &retry{said, min(time.Duration(max(seconds, 0))*time.Second, longest)}
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
			return fmt.Errorf("%w: %w", ErrUnwanted, said)
		}
		return said
	case err != nil:
		return &retry{err: err}
	}
	if err := proto.Unmarshal(answer, out); err != nil {
		proto.Reset(out) // it took it, and speaks in its own way
	}
	return nil
}

// scrub makes what a collector says fit for a log: it may repeat what it was sent.
func scrub(said string, headers map[string]secret.Text) string {
	for _, value := range headers {
		for _, part := range append([]string{value.Reveal()}, strings.Fields(value.Reveal())...) {
			if len(part) >= 6 { // but not the word before a token
				said = strings.ReplaceAll(said, part, "[secret]")
			}
		}
	}
	return shorten(said)
}

const maxSaid = 300

func shorten(said string) string {
	said = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, said)
	if len(said) > maxSaid {
		said = said[:maxSaid] + "…"
	}
	return said
}
