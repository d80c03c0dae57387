package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"wayleave/oauth"
	"wayleave/operate"
)

// deviceLogin is one run of the device flow (RFC 8628) from a terminal: the browser may be on any machine.
type deviceLogin struct {
	begin func(context.Context) (deviceConsent, error)
	now   func() time.Time
	out   io.Writer              // where the code is shown
	open  func(url string) error // opens a browser; nil: don't
}

// deviceConsent is a connect that has begun, by a code.
type deviceConsent struct {
	oauth.Device
	finish finisher // waits until the operator has agreed
}

// run shows the code and waits for the consent.
func (l deviceLogin) run(ctx context.Context) (operate.Stored, error) {
	d, err := l.begin(ctx)
	if err != nil {
		return operate.Stored{}, err
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
	got, err := d.finish(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, oauth.ErrDenied) {
		return operate.Stored{}, fmt.Errorf("%w; nothing was changed, run the command again", cause)
	}
	return got, err
}
