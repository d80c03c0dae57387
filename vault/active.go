package vault

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"sync/atomic"
)

// Every request is answered by the active node, the one that writes. From OpenBao 2.5 on a standby answers by itself, from
// a copy that is about 0.1 s old: a read there does not show what a sibling just wrote, and a check-and-set with the right
// version is refused as a conflict, for which a token that was just refreshed would be taken as lost.
//
// OpenBao 2.7 tells with each answer which state of the store it comes from (X-Vault-Index), and takes the same header
// with a request: a node that has not reached that state passes the request on to the active node. So the state we ask
// for is one that nobody has reached. An index that we cannot read that far (Vault Enterprise, other stores) goes back as
// it came, so that we see at least what we saw and wrote before. A server without the header has standbys that pass on
// everything, or is too old; see docs/vault.md.

const (
	indexHeader        = "X-Vault-Index"
	inconsistentHeader = "X-Vault-Inconsistent"
	forwardToActive    = "forward-active-node"
)

// clusterState is what the answers told about the state of the store.
type clusterState struct {
	index  atomic.Pointer[string] // of the latest answer; nil: none
	signed atomic.Bool            // the server refused an index that it had not made
}

// activeNode sends requests to the active node, as far as the server lets it.
type activeNode struct {
	http.RoundTripper
	state *clusterState
}

func (t activeNode) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := false
	if index := t.state.index.Load(); index != nil {
		sent = true
		req = req.Clone(req.Context())
		far, ours := beyond(*index)
		if !ours || t.state.signed.Load() {
			far = *index
		}
		req.Header.Set(indexHeader, far)
		if ours {
			req.Header.Set(inconsistentHeader, forwardToActive)
		}
	}
	resp, err := t.RoundTripper.RoundTrip(req)
	if err != nil {
		return resp, err
	}
	if sent && resp.StatusCode == http.StatusBadRequest && indexRefused(resp) {
		t.state.signed.Store(true)
		t.state.index.Store(nil)
		resp.StatusCode, resp.Status = http.StatusPreconditionFailed, "412 Precondition Failed" // it is sent again
		return resp, nil
	}
	if index := resp.Header.Get(indexHeader); index != "" {
		t.state.index.Store(&index)
	}
	return resp, nil
}

// learnIndex asks for something that costs nothing and needs no token, and reports whether the answer told an index and
// none was known before.
func (c *Client) learnIndex(ctx context.Context) bool {
	if c.state.index.Load() != nil {
		return false
	}
	a, err := c.newAPI(c.http, "", callTimeout)
	if err != nil {
		return false
	}
	resp, err := a.Logical().ReadRawWithContext(ctx, "sys/internal/ui/mounts")
	if resp != nil {
		resp.Body.Close()
	}
	return err == nil && c.state.index.Load() != nil
}

// CloseIdleConnections makes http.Client.CloseIdleConnections reach the transport.
func (t activeNode) CloseIdleConnections() { closeIdle(t.RoundTripper) }

// beyond returns an index of the same cluster that no node reaches, if index is OpenBao's: base64 of a JSON object with
// the cluster and the number of the last log entry. It reports whether it is.
func beyond(index string) (far string, ours bool) {
	raw, err := base64.StdEncoding.DecodeString(index)
	if err != nil {
		return "", false
	}
	var state map[string]any
	if json.Unmarshal(raw, &state) != nil {
		return "", false
	}
	value, _ := state["value"].(string)
	if _, ok := state["cluster"].(string); !ok || value == "" {
		return "", false
	}
	if _, err := strconv.ParseUint(value, 10, 64); err != nil {
		return index, true // not a number: another store's
	}
	state["value"] = "4611686018427387904" // 2^62
	if raw, err = json.Marshal(state); err != nil {
		return "", false
	}
	return base64.StdEncoding.EncodeToString(raw), true
}

// indexRefused reports whether the answer complains of the index. It leaves the body as it was.
func indexRefused(resp *http.Response) bool { return says(resp, indexHeader) }
