package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"wayleave/oauth"
	"wayleave/operate"
)

func TestDeviceLogin(t *testing.T) {
	plain := oauth.Device{UserCode: "WDJB-MJHT", VerificationURL: "https://login.example/device", Expires: noon.Add(15 * time.Minute)}
	complete := plain
	complete.VerificationURLComplete = "https://login.example/device?user_code=WDJB-MJHT"
	agreed := func(context.Context) error { return nil }
	expired := errors.New("expired_token; nobody agreed in time: start again")
	for _, tt := range []struct {
		name   string
		device oauth.Device
		start  error
		await  func(context.Context) error
		opens  string
		fails  error
		says   []string
	}{
		{"agreed", plain, nil, agreed, plain.VerificationURL, nil, []string{"\n    https://login.example/device\n", "\n    WDJB-MJHT\n", "good for 15m00s"}},
		{"with the code in the address", complete, nil, agreed, complete.VerificationURLComplete, nil, []string{"\n    https://login.example/device?user_code=WDJB-MJHT\n"}},
		{"not begun", plain, expired, agreed, "", expired, nil},
		{"not agreed", plain, nil, func(context.Context) error { return expired }, plain.VerificationURL, expired, nil},
		{"no time left", plain, nil, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, plain.VerificationURL, operate.ErrNotInTime, []string{"WDJB-MJHT"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			if tt.fails == operate.ErrNotInTime { //nolint:errorlint // the table's own
				cancel(operate.ErrNotInTime)
			}
			defer cancel(nil)
			var out strings.Builder
			opened := ""
			begin := func(context.Context) (deviceConsent, error) {
				return deviceConsent{tt.device, func(ctx context.Context) (operate.Stored, error) {
					return operate.Stored{Refreshes: true}, tt.await(ctx)
				}}, tt.start
			}
			got, err := deviceLogin{
				begin: begin, now: func() time.Time { return noon }, out: &out,
				open: func(url string) error { opened = url; return nil },
			}.run(ctx)
			if !errors.Is(err, tt.fails) || err == nil && !got.Refreshes {
				t.Errorf("got %v; want %v", err, tt.fails)
			}
			if opened != tt.opens {
				t.Errorf("opened %q, want %q", opened, tt.opens)
			}
			for _, s := range tt.says {
				if !strings.Contains(out.String(), s) {
					t.Errorf("%q is not in:\n%s", s, &out)
				}
			}
		})
	}
}
