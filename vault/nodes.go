package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// nodes are the servers of a cluster, any of which will do: a standby passes on what only the active one may answer.
type nodes struct {
	hosts   []string // host:port; the first is the one that requests are made for
	current atomic.Int64

	doubted atomic.Bool  // the next request is the last one of its connection
	renewed atomic.Int64 // when that was decided last, in nanoseconds since 1970
}

// renewEvery is how often connections are made anew while a server fails.
const renewEvery = time.Second

// doubt has connections made anew, after a request that got no answer, or one of a server that does not serve. Connections in use would live
// for ever, and their server's name, or the balancer in front of it, may lead to another one by now.
func (n *nodes) doubt(t http.RoundTripper) {
	now, last := time.Now().UnixNano(), n.renewed.Load()
	if time.Duration(now-last).Abs() < renewEvery || !n.renewed.CompareAndSwap(last, now) {
		return
	}
	closeIdle(t)
	n.doubted.Store(true) // HTTP/2 closes none that is in use, and what is in use now is idle later
}

// newNodes reads the addresses of a cluster. All are spoken to in the same way.
func newNodes(address string, further []string) (*nodes, error) {
	n := new(nodes)
	first, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("vault address %q is not a URL", address)
	}
	n.hosts = []string{first.Host}
	for _, text := range further {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != first.Scheme || u.Host == "" || first.Scheme == "unix" {
			return nil, fmt.Errorf("vault node %q is not like the address: write %s://host:port", text, first.Scheme)
		}
		n.hosts = append(n.hosts, u.Host)
	}
	return n, nil
}

// leave has the requests that begin from now on go to the node after i.
func (n *nodes) leave(i int64) { n.current.CompareAndSwap(i, (i+1)%int64(len(n.hosts))) }

// prefer has them go to a node of which another one says that it is the active one.
func (n *nodes) prefer(host string) {
	for i, h := range n.hosts {
		if h == host {
			n.current.Store(int64(i))
		}
	}
}

// anyNode sends requests to the node that answered last. One that could not be sent, or met a sealed node, goes to the next one at
// once; what may have been acted on is for whoever sent it to decide about, and goes to the next one when it is sent again.
type anyNode struct {
	http.RoundTripper
	nodes *nodes
}

func (t anyNode) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.nodes.doubted.Swap(false) {
		req = req.Clone(req.Context())
		req.Close = true
	}
	resp, err := t.ask(req)
	if err != nil && !errors.Is(req.Context().Err(), context.Canceled) || err == nil && notServing(resp.StatusCode) {
		t.nodes.doubt(t.RoundTripper)
	}
	return resp, err
}

// notServing reports whether a status is that of a node that fails, or is there to take over only.
func notServing(status int) bool { return status >= 500 || status == 472 || status == 473 }

func (t anyNode) ask(req *http.Request) (*http.Response, error) {
	if len(t.nodes.hosts) == 1 || req.URL.Host != t.nodes.hosts[0] { // a standby's redirect names another one
		return t.RoundTripper.RoundTrip(req)
	}
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(req.Body)
		_ = req.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	for left := len(t.nodes.hosts) - 1; ; left-- {
		at := t.nodes.current.Load()
		resp, sent, err := t.send(req, t.nodes.hosts[at], body)
		switch {
		case err != nil && errors.Is(req.Context().Err(), context.Canceled): // says nothing about the node
			return nil, err
		case err != nil:
			t.nodes.leave(at)
			if !sent && left > 0 && req.Context().Err() == nil {
				continue
			}
			return nil, err
		case left > 0 && req.Method == http.MethodGet && resp.StatusCode == http.StatusOK && resp.ContentLength == 0:
			// What a standby says when the active node ends while it is asked.
			t.nodes.leave(at)
			_ = resp.Body.Close()
			continue
		case notServing(resp.StatusCode):
			t.nodes.leave(at)
			if left > 0 && closed(resp) {
				_ = resp.Body.Close()
				continue
			}
		}
		return resp, nil
	}
}

// send sends a request to a node, and reports whether the node may have got it.
func (t anyNode) send(req *http.Request, host string, body []byte) (resp *http.Response, sent bool, err error) {
	var connected atomic.Bool
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	there := req.Clone(ctx)
	there.URL.Host, there.Host = host, host
	if req.Body != nil {
		there.Body = io.NopCloser(bytes.NewReader(body))
		there.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	resp, err = t.RoundTripper.RoundTrip(there)
	return resp, connected.Load(), err
}

// CloseIdleConnections makes http.Client.CloseIdleConnections reach the transport.
func (t anyNode) CloseIdleConnections() { closeIdle(t.RoundTripper) }

// closed reports whether a node refused because it is sealed, and so did nothing. It leaves the body as it was.
func closed(resp *http.Response) bool {
	return resp.StatusCode == http.StatusServiceUnavailable && says(resp, "sealed")
}

// says reports whether an answer has these words. It leaves the body as it was.
func says(resp *http.Response, words string) bool {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(text), resp.Body), resp.Body}
	return err == nil && strings.Contains(string(text), words)
}
