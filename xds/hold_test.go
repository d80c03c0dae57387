package xds

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// patient is a gate that says that its answer comes late, and gives it when release is closed.
type patient struct {
	authv3.UnimplementedAuthorizationServer
	extprocv3.UnimplementedExternalProcessorServer
	release chan struct{}
	held    chan struct{}
	ended   chan error
}

func (*patient) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return (&gate{}).Check(ctx, r)
}

func (p *patient) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	if err := stream.Send(&extprocv3.ProcessingResponse{OverrideMessageTimeout: durationpb.New(time.Minute)}); err != nil {
		return err
	}
	close(p.held)
	select {
	case <-stream.Context().Done():
		p.ended <- stream.Context().Err()
		return stream.Context().Err()
	case <-p.release:
	}
	err := stream.Send(swap("held"))
	p.ended <- err
	return err
}

// A gate may answer about a request much later than message_timeout, and learns at once when the worker has gone.
func TestHeldRequests(t *testing.T) {
	const large = 5 << 20 // more than Envoy keeps while nobody reads it
	for name, r := range map[string]struct {
		alpn   []string
		body   int
		leaves bool
	}{
		"HTTP/2":                       {nil, 0, false},
		"HTTP/1.1":                     {[]string{"http/1.1"}, 0, false},
		"HTTP/2, a large body":         {nil, large, false},
		"HTTP/1.1, a large body":       {[]string{"http/1.1"}, large, false},
		"HTTP/2, gone":                 {nil, 0, true},
		"HTTP/1.1, gone":               {[]string{"http/1.1"}, 0, true},
		"HTTP/2, gone, a large body":   {nil, large, true},
		"HTTP/1.1, gone, a small body": {[]string{"http/1.1"}, 100, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &patient{release: make(chan struct{}), held: make(chan struct{}), ended: make(chan error, 1)}
			s := start(t, func(c *Config) {
				c.MessageTimeout, c.MaxHold, c.Routes[0].ALPN = 200*time.Millisecond, 2*time.Minute, r.alpn
			}, nil)
			s.gate.real = p
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+apiHost+"/", io.LimitReader(endless{}, int64(r.body)))
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				<-p.held
				if r.leaves {
					leave()
					return
				}
				<-time.After(time.Second) // message_timeout is over
				close(p.release)
			}()
			resp, err := s.worker("ann").Do(req) //nolint:bodyclose // read closes it
			switch {
			case r.leaves && !errors.Is(err, context.Canceled):
				t.Errorf("%v, %v", resp, err)
			case !r.leaves && err != nil:
				t.Fatal(err)
			case !r.leaves:
				if a := read(t, resp); a.status != http.StatusOK || a.body != "Bearer real-held" {
					t.Errorf("%d %s", a.status, a.body)
				}
			}
			if err := <-p.ended; (err != nil) != r.leaves {
				t.Errorf("the gate's stream: %v", err)
			}
		})
	}
}
