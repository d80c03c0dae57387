package demo

import (
	"context"
	"fmt"
	"net/http"
)

// Approve plays the operator's browser: it opens an authorization URL and returns the address that the provider sends
// the browser to, without going there.
func Approve(ctx context.Context, authorizationURL string) (string, error) {
	resp, err := open(ctx, authorizationURL)
	if err != nil {
		return "", fmt.Errorf("opening the authorization URL: %w", err)
	}
	if resp.StatusCode != http.StatusFound {
		return "", fmt.Errorf("the provider answered the authorization URL with status %d", resp.StatusCode)
	}
	return resp.Header.Get("Location"), nil
}

// ApproveDevice plays the operator with a device's code: it opens the page with the code filled in.
func ApproveDevice(ctx context.Context, verificationURL string) error {
	resp, err := open(ctx, verificationURL)
	if err != nil {
		return fmt.Errorf("opening the page for the device's code: %w", err)
	}
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("the provider answered the device's code with status %d", resp.StatusCode)
	}
	return nil
}

// open opens an address, and goes no further.
func open(ctx context.Context, address string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	return resp, nil
}
