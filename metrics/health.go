package metrics

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Health is why a gate is not ready. The zero value has no reason.
type Health struct {
	mu      sync.Mutex
	reasons map[string]string // guarded by mu; by part
}

// Reason is why a part of the gate is not ready.
type Reason struct {
	Part string `json:"part"`
	Why  string `json:"why"`
}

// Set says why a part is not ready; empty: it is.
func (h *Health) Set(part, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if why == "" {
		delete(h.reasons, part)
		return
	}
	if h.reasons == nil {
		h.reasons = map[string]string{}
	}
	h.reasons[part] = why
}

// Reasons are those of all parts, by name. None: it is ready.
func (h *Health) Reasons() []Reason {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := []Reason{}
	for _, part := range slices.Sorted(maps.Keys(h.reasons)) {
		all = append(all, Reason{part, h.reasons[part]})
	}
	return all
}

// Health makes whether the gate is ready part of every scrape.
func (m *Metrics) Health(h *Health) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "wayleave_ready",
		Help: "1 while the gate is ready, 0 while it is not; /readyz says why. wayleave doctor looks at the same from where it runs.",
	}, func() float64 { return binary(len(h.Reasons()) == 0) }))
}

// Limits on scrapes, so that no scraper keeps the gate from its work.
const (
	scrapesAtOnce = 4
	scrapeTime    = 10 * time.Second
)

// Handler serves /metrics, /livez and /readyz. To who asks for OpenMetrics it shows which traces are examples too.
func Handler(m *Metrics, h *Health) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeTime, EnableOpenMetrics: true}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) { answer(w, r, "alive", nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { answer(w, r, "ready", h.Reasons()) })
	return mux
}

// answer says that the gate is what the word is, or each reason why not; as JSON to who asks for it.
func answer(w http.ResponseWriter, r *http.Request, word string, not []Reason) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	status := http.StatusOK
	if len(not) > 0 {
		status = http.StatusServiceUnavailable
	}
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{word: len(not) == 0, "reasons": append([]Reason{}, not...)})
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	if len(not) == 0 {
		fmt.Fprintln(w, word)
	}
	for _, n := range not {
		fmt.Fprintf(w, "not %s: %s: %s\n", word, n.Part, n.Why)
	}
}
