package xds

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
)

// Whoever watches is told of each response and of each answer to one, and of no other request.
func TestSentAndAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []string
		tell := func(words ...any) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprintln(words...))
		}
		b := newBench(t, Options{
			Sent:     func(kind string) { tell("sent", kind) },
			Answered: func(kind string, refused bool) { tell("answered", kind, refused) },
		})
		e := b.connect()
		e.ask("api.example.com") // which the fake takes
		synctest.Wait()
		e.request(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.SecretType, ResponseNonce: "made-up", ErrorDetail: &rpcstatus.Status{Message: "no"}})
		e.request(&discovery.DeltaDiscoveryRequest{TypeUrl: "made/up"})
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		sent, answered := 0, 0
		for _, words := range told {
			switch words {
			case "sent Secret\n":
				sent++
			case "answered Secret false\n":
				answered++
			default:
				if words != "sent Cluster\n" && words != "answered Cluster false\n" {
					t.Errorf("told %s", words)
				}
			}
		}
		if sent == 0 || answered != sent {
			t.Errorf("told: %v", slices.Sorted(slices.Values(told)))
		}
		b.finish()
	})
}
