package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"wayleave/oauth"
)

// deviceLogin is one run of the device flow (RFC 8628) from a terminal: the browser may be on any machine.
type deviceLogin struct {
	client deviceClient
	scopes []string
	now    func() time.Time
	out    io.Writer              // where the code is shown
	open   func(url string) error // opens a browser; nil: don't
}

// deviceClient is an [oauth.Client].
type deviceClient interface {
	StartDevice(ctx context.Context, scopes []string) (oauth.Device, error)
	AwaitDevice(ctx context.Context, d oauth.Device) (oauth.Token, error)
}

// run shows the code and waits for the consent.
func (l deviceLogin) run(ctx context.Context) (oauth.Token, error) {
	d, err := l.client.StartDevice(ctx, l.scopes)
	if err != nil {
		return oauth.Token{}, err
	}
	fmt.Fprintf(l.out, "Open this page in a browser, on any machine:\n\n    %s\n\nand enter this code:\n\n    %s\n\n", d.VerificationURL, d.UserCode)
	page := d.VerificationURL
	if d.VerificationURLComplete != "" && d.VerificationURLComplete != page {
		page = d.VerificationURLComplete
		fmt.Fprintf(l.out, "This address has the code in it:\n\n    %s\n\n", page)
	}
	if l.open != nil {
		if err := l.open(page); err != nil {
			fmt.Fprintf(l.out, "(no browser could be opened here: %v)\n", err)
		}
	}
	fmt.Fprintf(l.out, "Waiting for the consent; the code is good for %s…\n", span(d.Expires.Sub(l.now())))
	token, err := l.client.AwaitDevice(ctx, d)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, oauth.ErrDenied) {
		return oauth.Token{}, fmt.Errorf("%w; nothing was changed, run the command again", cause)
	}
	return token, err
}
