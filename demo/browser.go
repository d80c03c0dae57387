package demo

import (
	"context"
	"fmt"
	"net/http"
)

// Approve plays the operator's browser: it opens an authorization URL and returns the address that the provider sends
// the browser to, without going there.
func Approve(ctx context.Context, authorizationURL string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, authorizationURL, nil)
	if err != nil {
		return "", fmt.Errorf("opening the authorization URL: %w", err)
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("opening the authorization URL: %w", err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusFound {
		return "", fmt.Errorf("the provider answered the authorization URL with status %d", resp.StatusCode)
	}
	return resp.Header.Get("Location"), nil
}
