package config

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"wayleave/loopback"
	"wayleave/secret"
)

// Telemetry says where a gate sends traces and figures, in OpenTelemetry's protocol OTLP. docs/tracing.md says what is in them.
type Telemetry struct {
	// The collector. Default: none, and nothing is sent.
	OTLP OTLP `yaml:"otlp"`

	// How requests are traced.
	Traces Traces `yaml:"traces"`

	// How the figures are sent that metrics.listen shows too.
	Metrics OTLPMetrics `yaml:"metrics"`
}

// OTLP is a collector.
type OTLP struct {
	// https:// address with the port, such as https://collector.example.com:4317; http:// on this machine; or
	// unix:///path/to.sock. With protocol http, /v1/traces and the like are put after it.
	Endpoint string `yaml:"endpoint"`

	// grpc: usually at port 4317. http: protobuf over HTTP, usually at port 4318.
	Protocol string `yaml:"protocol" jsonschema:"enum=grpc,enum=http,default=grpc"`

	// http:// beyond this machine: whoever is in between can read who used which grant where.
	AllowPlain bool `yaml:"allow_plain"`

	// PEM file of authorities that may sign the collector's certificate, in addition to the system's. Default: none.
	CAFile string `yaml:"ca_file"`

	// Headers to send, by their lower-case name, such as authorization. Default: none.
	Headers map[string]OTLPHeader `yaml:"headers"`
}

// An OTLPHeader is the value of a header, from one of two places.
type OTLPHeader struct {
	// File that holds it, on one line.
	File string `yaml:"file"`

	// Environment variable that holds it.
	Env string `yaml:"env"`

	// Value is filled by LoadSecrets.
	Value secret.Text `yaml:"-"`
}

// Traces say how requests are traced.
type Traces struct {
	// Which part of the requests is traced, from 0% to 100%. Refreshes of grants are traced whenever it is not 0%.
	Sample string `yaml:"sample" jsonschema:"default=1%,pattern=^[0-9]{1\\,3}([.][0-9]{1\\,4})?%$"`
}

// OTLPMetrics say how figures are sent.
type OTLPMetrics struct {
	// How often, from 10s to 10m. 0s: they are not.
	Every time.Duration `yaml:"every" jsonschema:"default=60s"`
}

// Values of OTLP.Protocol.
const (
	OTLPGRPC = "grpc"
	OTLPHTTP = "http"
)

func (t *Telemetry) applyDefaults(given func(string) bool) {
	fill(&t.OTLP.Protocol, OTLPGRPC)
	fill(&t.Traces.Sample, "1%")
	if !given("telemetry.metrics.every") {
		t.Metrics.Every = time.Minute
	}
}

// Percent is which part of the requests is traced, 0 where there is no collector.
func (t Telemetry) Percent() float64 {
	percent, err := strconv.ParseFloat(strings.TrimSuffix(t.Traces.Sample, "%"), 64)
	if t.OTLP.Endpoint == "" || err != nil { // the latter was checked before
		return 0
	}
	return percent
}

var (
	samplePattern = regexp.MustCompile(`^[0-9]{1,3}(\.[0-9]{1,4})?%$`)
	otlpHeader    = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]*$`)
	notOTLPHeader = []string{"content-type", "content-length", "content-encoding", "host", "te", "connection", "transfer-encoding"}
)

func (k *checker) telemetry() {
	t := k.Telemetry
	if p, err := strconv.ParseFloat(strings.TrimSuffix(t.Traces.Sample, "%"), 64); !samplePattern.MatchString(t.Traces.Sample) || err != nil || p > 100 {
		k.fault("telemetry.traces.sample", quote(t.Traces.Sample)+" is no part of all requests", "write 1%, or any percentage from 0% to 100%")
	}
	if t.Metrics.Every != 0 {
		k.within("telemetry.metrics.every", t.Metrics.Every, 10*time.Second, 10*time.Minute)
	}
	const path = "telemetry.otlp"
	if t.OTLP.Endpoint == "" {
		for _, key := range []string{"otlp.protocol", "otlp.allow_plain", "otlp.ca_file", "otlp.headers", "traces.sample", "metrics.every"} {
			if k.doc.given("telemetry." + key) {
				k.fault("telemetry."+key, "has no effect without telemetry.otlp.endpoint", "write endpoint: https://collector.example.com:4317, or remove it")
			}
		}
		return
	}
	if what, fix := t.OTLP.endpointFault(); what != "" {
		k.fault(path+".endpoint", what, fix)
	}
	for _, name := range keys(t.OTLP.Headers) {
		h, at := t.OTLP.Headers[name], join(path+".headers", name)
		switch {
		case !otlpHeader.MatchString(name) || slices.Contains(notOTLPHeader, name) || strings.HasPrefix(name, "grpc-") || strings.HasSuffix(name, "-bin"):
			k.fault(at, "is no header to be sent", "write its name in lower case, such as authorization; those that frame a message are not to be changed")
		case h.File == "" && h.Env == "":
			k.fault(at, "has no value", "name a file, or env, that holds it")
		case h.File != "" && h.Env != "":
			k.fault(at+".env", "written beside file", "keep one of the two")
		}
	}
}

// endpointFault is what is wrong with the address, and the fix.
func (o OTLP) endpointFault() (what, fix string) {
	fix = "write https://collector.example.com:4317, or unix:///run/otel/collector.sock"
	u, err := url.Parse(o.Endpoint)
	switch {
	case err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "":
		return "is no address of a collector", fix // and may hold a secret
	case u.Scheme == "unix":
		if u.Host != "" || u.Path == "" {
			return quote(o.Endpoint) + " names no socket", fix
		}
		return "", ""
	case u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "":
		return quote(o.Endpoint) + " is no address of a collector", fix
	case o.Protocol == OTLPGRPC && strings.Trim(u.Path, "/") != "":
		return "has a path, which gRPC has no use for", "write it without, or protocol: http"
	case u.Scheme == "http" && !loopback.Host(u.Hostname()) && !o.AllowPlain:
		return "is an http address beyond this machine", "use https; or write allow_plain: true, and whoever is in between can read who used which grant where"
	}
	return "", ""
}

// loadHeaders reads the values of the headers.
func (o *OTLP) loadHeaders(file func(key, name string) secret.Text, getenv func(string) string) error {
	var errs []error
	for _, name := range keys(o.Headers) {
		h, path := o.Headers[name], join("telemetry.otlp.headers", name)
		switch {
		case h.File != "":
			h.Value = file(path+".file", h.File)
		case h.Env != "":
			if h.Value = secret.New(getenv(h.Env)); h.Value.IsZero() {
				errs = append(errs, fmt.Errorf("%s.env: $%s is not set; export it, or use file", path, h.Env))
			}
		}
		if strings.ContainsFunc(h.Value.Reveal(), func(r rune) bool { return r < ' ' || r > '~' }) {
			errs = append(errs, fmt.Errorf("%s: the value cannot be sent in a header; it may hold printable ASCII only", path))
			h.Value = secret.Text{}
		}
		o.Headers[name] = h
	}
	return errors.Join(errs...)
}
