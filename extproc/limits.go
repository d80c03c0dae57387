package extproc

import (
	"context"
	"fmt"
	"strings"

	procv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"wayleave/limit"
)

// Envoy 1.40 ends the stream about a request as soon as there is nothing left that it was told to ask, which is when we have
// answered. Told to ask about the answer's trailers too, it keeps the stream until the request has ended, however that comes
// about. So the end of the stream is the end of the request: no message says so that could be lost, and an Envoy or a gate
// that dies leaves nothing counted.

// count counts a request that everything else lets out, and refuses it when that is one too many. The request is under way
// until release is called, which is nil when nothing limits how many are; ends says whether we shall know.
func (s *Server) count(ctx context.Context, d *decision, ends bool) (release func()) {
	if d.refusal != nil || d.answer != nil {
		return nil
	}
	claims := d.by.claims(d, ends)
	if d.limited = len(claims) > 0; !d.limited {
		return nil
	}
	release, over, dry := s.meters.Take(ctx, s.now, claims...)
	switch { // and no rule has to do with it
	case over != nil:
		d.refusal, d.swap, d.rule = d.exceeding(over), nil, ""
	case dry != nil:
		d.wouldRefuse, d.rule = d.exceeding(dry), ""
	}
	return release
}

// claims are the limits that a request counts against: its worker's, and those of the credential that it gets.
func (p *policy) claims(d *decision, ends bool) []limit.Claim {
	var claims []limit.Claim
	claim := func(key string, l limit.Limit, dry bool) {
		if !ends {
			l.Concurrent = 0
		}
		if l.PerMinute > 0 || l.Concurrent > 0 {
			claims = append(claims, limit.Claim{Key: key, Limit: l, Dry: dry})
		}
	}
	profile := p.profiles[d.session.Profile]
	if d.wouldRefuse == nil { // else it is tried out what happens without it
		claim(workerKey+d.session.Worker, profile.Limit, profile.DryRun)
	}
	if d.swap != nil {
		claim(grantKey+d.swap.grant, p.limits[d.swap.grant], false)
	}
	return claims
}

// What limits are counted by: these, and a name.
const (
	workerKey = "worker/"
	grantKey  = "grant/"
)

// exceeding is the refusal of a request that is over a limit.
func (d *decision) exceeding(e *limit.Excess) *refusal {
	l := e.Claim.Limit
	who, has, where := "worker "+d.session.Worker, "has", "profiles."+d.session.Profile+".limits"
	f := &refusal{reason: rateLimited, host: d.host, retryAfter: e.Wait}
	if d.route != nil {
		f.grant, f.header = d.route.Credential, d.route.HeaderIn
	}
	if name, ok := strings.CutPrefix(e.Claim.Key, grantKey); ok {
		who, has, where = "all workers together, with the credential for "+name+",", "have", "grants."+name+".limits"
	}
	each := ""
	if l.Gates > 1 {
		each = fmt.Sprintf(", an equal part of them at each of %d gates", l.Gates)
	}
	if e.Concurrent {
		f.detail = fmt.Sprintf("%s may have %s under way at once%s, and %s; try again when one has ended, or ask an operator to raise %s.concurrent", who, requests(l.Concurrent), each, has, where)
	} else {
		f.detail = fmt.Sprintf("%s may send %s a minute%s, and %s; try again in %d s, or ask an operator to raise %s.requests_per_minute", who, requests(l.PerMinute), each, has, wholeSeconds(e.Wait), where)
	}
	return f
}

func requests(n int) string {
	if n == 1 {
		return "1 request"
	}
	return fmt.Sprintf("%d requests", n)
}

// end ends the count of a request.
func (p *phases) end() {
	if p.release != nil {
		p.release()
	}
}

// canKeepOpen reports whether Envoy would keep the stream until the request ends, if it is told to: all there is to say before that
// is said by then.
func (p *phases) canKeepOpen() bool {
	return p.told && p.request == procv3.ProcessingMode_NONE && p.mask == nil
}

// untilEnd is what Envoy is to ask about a request that is counted as long as it is under way.
func untilEnd() *procv3.ProcessingMode {
	return &procv3.ProcessingMode{
		RequestHeaderMode:   procv3.ProcessingMode_SEND,
		ResponseHeaderMode:  procv3.ProcessingMode_SKIP,
		RequestTrailerMode:  procv3.ProcessingMode_SKIP,
		ResponseTrailerMode: procv3.ProcessingMode_SEND,
	}
}

// keepOpen returns when the request of the stream has ended, or when the gate is to end: Envoy then lets the request go on.
func (s *Server) keepOpen(stream extprocv3.ExternalProcessor_ProcessServer, p *phases) error {
	ended := make(chan error, 1)
	go func() { ended <- follow(stream, p) }() // it ends with the stream's context, and that with our return
	select {
	case err := <-ended:
		return err
	case <-s.leaving:
		return nil
	}
}

// follow answers what else Envoy says of a request.
func follow(stream extprocv3.ExternalProcessor_ProcessServer, p *phases) error {
	for {
		in, err := stream.Recv()
		if err != nil {
			return err
		}
		out, err := p.answer(stream.Context(), in)
		if err != nil {
			return err
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

// Leave lets go of the requests that are only looked at to see when they end. The gate can then be stopped without cutting any.
func (s *Server) Leave() { s.leave() }
