package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// refuseUpgrades answers each request with the status that its path says, whatever it asks for.
func (w *wiretap) refuseUpgrades(c net.Conn) {
	in := bufio.NewReader(io.TeeReader(c, w))
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		w.took(req)
		status := http.StatusOK
		_, _ = fmt.Sscanf(req.URL.Path, "/refuse/%d", &status)
		fmt.Fprintf(c, "HTTP/1.1 %d said\r\nContent-Length: %d\r\n\r\n%s", status, len(req.URL.Path), req.URL.Path)
	}
}

// What a worker writes behind a request for a WebSocket goes on as it is only if the upstream agrees to one. Else it would be
// requests that nobody has decided about, on a connection that others share.
func TestRefusedUpgradesCarryNothing(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	tap := &wiretap{}
	const host = "h1.demo.test"
	g := startIn(t, made, base(fmt.Sprintf(`
  - {hosts: [%s], grant: claude, connect_to: "%s"}
`, host, newRawUpstream(t, made.CA, host, tap.refuseUpgrades)), "", ""), "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	fill := strings.NewReplacer("{ph}", w.placeholder, "{host}", host).Replace
	real, others := tap.learn(t, w, host), w.client(t, false)
	const behind = smuggle + "GET /end HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
	for _, status := range []int{200, 400, 403, 426, 502} {
		for _, wait := range []bool{false, true} {
			name := fmt.Sprintf("%d, having waited for it: %v", status, wait)
			conn, err := g.inside(t, w, host, host)
			if err != nil {
				t.Fatal(err)
			}
			text := fill(get(fmt.Sprintf("/refuse/%d", status), bearer, "Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="))
			if !wait {
				text += fill(behind)
			}
			if _, err := io.WriteString(conn, text); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReader(conn)
			resp, err := http.ReadResponse(in, nil)
			if err != nil || resp.StatusCode != status {
				t.Errorf("%s: %v, %v", name, resp, err)
				continue
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if wait {
				_, _ = io.WriteString(conn, fill(behind)) // where it is open
			}
			_, _ = io.Copy(io.Discard, in) // to its end
			arrivals, _ := tap.drain("")
			for i, a := range arrivals {
				if i == 0 && a.path != fmt.Sprintf("/refuse/%d", status) || a.credential != real && a.path != "/end" {
					t.Errorf("%s: %s arrived with another credential than the real one", name, a.path)
				}
			}
			if bytes := tap.tapped(); strings.Contains(bytes, placeholderMarker) {
				t.Errorf("%s: what was behind the request arrived as it was written", name)
			}
			if a, err := do(others, w.request(http.MethodGet, "https://"+host+"/of/others", nil)); err != nil || a.body != "/of/others" {
				t.Errorf("%s: another request was answered with %v, %v", name, a, err)
			}
			tap.drain("")
		}
	}
}
