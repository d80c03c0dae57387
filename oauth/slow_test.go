package oauth

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/secret"
)

// A token endpoint is listened to for as long as LongestCall says, which those who keep grants go by: what comes late may be the only live
// refresh token.
func TestSlowProvider(t *testing.T) {
	for _, takes := range []time.Duration{LongestCall - time.Second, LongestCall + time.Second} {
		synctest.Test(t, func(t *testing.T) {
			c := NewClient(Config{TokenURL: "http://127.0.0.1:1/token", ClientID: "id", AllowInsecure: true}, nil, nil)
			c.hc.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go func() {
					defer theirs.Close()
					if _, err := http.ReadRequest(bufio.NewReader(theirs)); err != nil {
						return
					}
					time.Sleep(takes)
					const body = `{"access_token":"at-2","refresh_token":"rt-2"}`
					fmt.Fprintf(theirs, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
				}()
				return ours, nil
			}
			defer time.Sleep(2 * time.Second) // until the provider has ended, too
			began := time.Now()
			tok, err := c.Refresh(t.Context(), secret.New("rt-1"), nil, nil)
			switch e, failed := errors.AsType[*Error](err); {
			case takes < LongestCall && (err != nil || tok.Refresh.Reveal() != "rt-2"):
				t.Errorf("an answer after %v: %v", takes, err)
			case takes > LongestCall && (!failed || e.Kind() != KindNoAnswer || time.Since(began) != LongestCall):
				t.Errorf("no answer for %v: %v after %v", takes, err, time.Since(began))
			}
		})
	}
}
