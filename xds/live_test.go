package xds

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"wayleave/envoy"
	"wayleave/envoy/envoytest"
	"wayleave/freeport"
)

// The live tests run the built resources in a real Envoy, between a worker's client and a TLS upstream, with the
// smallest gate that can answer.

const (
	apiHost    = "api.provider.test"
	testMarker = "wlplaceholder"
)

// stack is one gate, one Envoy and one upstream.
type stack struct {
	t        testing.TB
	dir      string
	gate     *gate
	upstream *upstream
	leaves   *authority // signs what workers see
	mint     Minter     // asks leaves, unless a test has put another one here
	logged   *logBuffer // by the control plane
	config   Config
	mutate   func(*Resources) // what a test breaks on purpose
	logLevel string           // Envoy's
	memory   uint64           // Envoy's; zero: it does not know how much there is
	most     map[string]int64 // connections of clusters

	spans     spans         // that Envoy has told
	log       func() string // Envoy's, so far
	killEnvoy func()

	server *Server
	stop   func() // ends the control plane
}

// start runs everything. configure may change the configuration, and mutate what was built from it.
func start(t testing.TB, configure func(*Config), mutate func(*Resources)) *stack {
	t.Helper()
	return startAt(t, "", configure, mutate)
}

func startAt(t testing.TB, logLevel string, configure func(*Config), mutate func(*Resources)) *stack {
	t.Helper()
	s := &stack{logLevel: logLevel, t: t, dir: envoytest.Dir(t), gate: &gate{}, leaves: newAuthority(t), mutate: mutate, logged: &logBuffer{}}
	s.mint = s.leaves.mint
	s.upstream = newUpstream(t)
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse { return swap(r.identity) }
	s.config = Config{
		ProxyAddress:   freeAddress(t),
		UpstreamCA:     s.upstream.ca.pem,
		APISockets:     []string{filepath.Join(s.dir, "api.sock")},
		GateSockets:    map[string]string{"": filepath.Join(s.dir, "gate.sock")},
		Marker:         testMarker,
		MessageTimeout: 5 * time.Second,
		Routes:         []Route{{Name: "provider", Hosts: []string{apiHost}, ConnectTo: s.upstream.address}},
	}
	if configure != nil {
		configure(&s.config)
	}
	s.serve()
	s.startEnvoy()
	return s
}

// startEnvoy starts Envoy, again after killEnvoy.
func (s *stack) startEnvoy() {
	s.t.Helper()
	s.log, s.killEnvoy = envoytest.StartToKill(s.t, s.bootstrap(), "--file-flush-interval-msec", "50")
}

func (s *stack) bootstrap() envoy.Bootstrap {
	return envoy.Bootstrap{
		NodeID:      "test",
		GateSockets: []string{filepath.Join(s.dir, "gate.sock")},
		AdminSocket: filepath.Join(s.dir, "admin.sock"),
		LogLevel:    s.logLevel,
		Memory:      s.memory,

		MaxForClusters: s.most,
	}
}

// newGate is a server that Envoy may ask as often as it does whether it is there: gRPC's own idea of that ends the connection after ten seconds.
func newGate() *grpc.Server {
	return grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}))
}

// serve starts the control plane, again after stop.
func (s *stack) serve() {
	s.t.Helper()
	s.server = NewServer(func(host, root string) (certPEM, keyPEM []byte, notAfter time.Time, err error) {
		return s.mint(host, root)
	},
		Options{Log: slog.New(slog.NewTextHandler(s.logged, nil))})
	s.publish()
	g := newGate()
	s.server.Register(g)
	healthpb.RegisterHealthServer(g, health.NewServer())
	authv3.RegisterAuthorizationServer(g, s.gate)
	extprocv3.RegisterExternalProcessorServer(g, s.gate)
	accesslogv3.RegisterAccessLogServiceServer(g, s.gate)
	collectorv1.RegisterTraceServiceServer(g, &s.spans)
	l, err := net.Listen("unix", filepath.Join(s.dir, "gate.sock"))
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { s.server.Run(ctx); done <- struct{}{} }()
	go func() { _ = g.Serve(l); done <- struct{}{} }()
	s.stop = func() {
		cancel()
		g.Stop()
		<-done
		<-done
	}
	s.t.Cleanup(func() { s.stop(); s.stop = func() {} })
}

func (s *stack) publish() {
	s.t.Helper()
	r, err := Build(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.mutate != nil {
		s.mutate(r)
	}
	if err := s.server.Serve(map[string]*Resources{s.config.Revision: r}, func(Node) Assignment { return Assignment{Revision: s.config.Revision} }); err != nil {
		s.t.Fatal(err)
	}
}

// alone serves one revision to every node.
func alone(r *Resources) (map[string]*Resources, func(Node) Assignment) {
	return map[string]*Resources{"": r}, func(Node) Assignment { return Assignment{} }
}

// await waits until Envoy has said what it thinks of everything sent to it.
func (s *stack) await(what string, ok func(Node) bool) {
	s.t.Helper()
	envoytest.Await(s.t, what, func() error {
		nodes := s.server.Nodes()
		if len(nodes) != 1 || !ok(nodes[0]) {
			return fmt.Errorf("nodes: %+v", nodes)
		}
		return nil
	})
}

// worker is a client with its own connections through the proxy.
func (s *stack) worker(user string) *http.Client { return s.workerAs(user, "pw") }

func (s *stack) workerAs(user, password string) *http.Client {
	tr := &http.Transport{
		Proxy:             http.ProxyURL(&url.URL{Scheme: "http", User: url.UserPassword(user, password), Host: s.config.ProxyAddress}),
		TLSClientConfig:   &tls.Config{RootCAs: s.leaves.pool()},
		ForceAttemptHTTP2: true,
		// What a worker says of its request must not become what sets its tunnel apart.
		ProxyConnectHeader: http.Header{"X-Request-Id": {"of-everybody"}},
	}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// dialerTo dials one address, whatever is asked for.
func dialerTo(address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
}

// dialTunnel opens a tunnel to authority, as the oldest clients do.
func (s *stack) dialTunnel(authority string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(s.t.Context(), "tcp", s.config.ProxyAddress)
	if err != nil {
		return nil, err
	}
	s.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	fmt.Fprintf(c, "CONNECT %s HTTP/1.0\r\nProxy-Authorization: Basic %s\r\n\r\n", authority, base64.StdEncoding.EncodeToString([]byte("ann:pw")))
	reply := make([]byte, 0, 256)
	for !strings.HasSuffix(string(reply), "\r\n\r\n") {
		b := make([]byte, 1)
		if _, err := c.Read(b); err != nil {
			return nil, fmt.Errorf("reading the answer to CONNECT after %q: %w", reply, err)
		}
		reply = append(reply, b[0])
	}
	if !strings.Contains(string(reply), " 200 ") {
		return nil, fmt.Errorf("CONNECT: %q", reply)
	}
	return c, nil
}

// connect opens a tunnel to authority and a TLS connection for serverName in it.
func (s *stack) connect(authority, serverName string, roots *x509.CertPool) (*tls.Conn, error) {
	c, err := s.dialTunnel(authority)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(c, &tls.Config{ServerName: serverName, RootCAs: roots})
	return conn, conn.HandshakeContext(s.t.Context())
}

// testAnswer is a response, read.
type testAnswer struct {
	status int
	header http.Header
	body   string
}

func do(t testing.TB, c *http.Client, req *http.Request) testAnswer {
	t.Helper()
	resp, err := c.Do(req) //nolint:bodyclose // read closes it
	if err != nil {
		t.Fatal(err)
	}
	return read(t, resp)
}

func read(t testing.TB, resp *http.Response) testAnswer {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	return testAnswer{resp.StatusCode, resp.Header, string(body)}
}

// ask sends a request of HTTP/1.1 over a connection that is there, and reads the answer.
func ask(t testing.TB, conn *tls.Conn, r *bufio.Reader, host string) testAnswer {
	t.Helper()
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
		t.Fatalf("the connection was lost: %v", err)
	}
	resp, err := http.ReadResponse(r, nil) //nolint:bodyclose // read closes it
	if err != nil {
		t.Fatalf("the connection was lost: %v", err)
	}
	return read(t, resp)
}

func get(t testing.TB, c *http.Client, target string, headers ...string) testAnswer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	return do(t, c, req)
}

// gate answers ext_authz and ext_proc. decide may be replaced while nothing is asked.
type gate struct {
	accesslogv3.UnimplementedAccessLogServiceServer
	authv3.UnimplementedAuthorizationServer
	extprocv3.UnimplementedExternalProcessorServer
	decide      func(request) *extprocv3.ProcessingResponse
	behave      atomic.Pointer[func(extprocv3.ExternalProcessor_ProcessServer) error] // answers a stream in place of decide; nil: it does not
	check       atomic.Pointer[func() (*authv3.CheckResponse, error)]                 // answers about a tunnel; nil: it does not
	asked       func(question, revision string)                                       // is told of each question and the revision it names; may be nil
	tunnel      func(*authv3.AttributeContext) bool                                   // whether one that was redirected goes on; nil: it does
	traceparent func(string)                                                          // is told that of each question; may be nil
	checks      atomic.Int64
	asker       atomic.Value // the Envoy that asked last, as it says
	real        realGate     // answers in place of all this, where there is one
}

// realGate is an *extproc.Server.
type realGate interface {
	authv3.AuthorizationServer
	extprocv3.ExternalProcessorServer
}

// request is what ext_proc is asked about.
type request struct {
	identity, authority, serverName, source string
	header                                  http.Header
	answered                                string                       // by the upstream, to the attempt before
	part                                    *extprocv3.ProcessingRequest // of an answer; nil: the request itself is asked about
}

// Check lets everyone in who has a user name, and calls the worker by it.
func (g *gate) Check(ctx context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	g.checks.Add(1)
	if check := g.check.Load(); check != nil {
		return (*check)()
	}
	g.asker.Store(strings.Join(metadata.ValueFromIncomingContext(ctx, metadataNode), " "))
	if g.real != nil {
		return g.real.Check(ctx, req)
	}
	if a := req.GetAttributes(); a.GetRequest().GetHttp() == nil {
		g.note("tunnel", told(ctx))
		if g.tunnel != nil && !g.tunnel(a) {
			return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)}}, nil
		}
		return &authv3.CheckResponse{Status: &rpcstatus.Status{}}, nil
	}
	g.note("connect", req.GetAttributes().GetContextExtensions()[ContextRevision])
	credentials := req.GetAttributes().GetRequest().GetHttp().GetHeaders()["proxy-authorization"]
	r := http.Request{Header: http.Header{"Authorization": {credentials}}}
	user, _, ok := r.BasicAuth()
	if !ok {
		return &authv3.CheckResponse{
			Status: &rpcstatus.Status{Code: int32(codes.Unauthenticated)},
			HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
				Status:  &typev3.HttpStatus{Code: typev3.StatusCode_ProxyAuthenticationRequired},
				Headers: []*corev3.HeaderValueOption{overwrite("proxy-authenticate", `Basic realm="wayleave"`)},
				Body:    "who are you",
			}},
		}, nil
	}
	identity, err := structpb.NewStruct(map[string]any{"identity": user})
	return &authv3.CheckResponse{Status: &rpcstatus.Status{}, DynamicMetadata: identity}, err
}

// told is the revision in the metadata of a question.
func told(ctx context.Context) string {
	all, _ := metadata.FromIncomingContext(ctx)
	return strings.Join(all.Get(RevisionMetadata), ",")
}

func (g *gate) note(question, revision string) {
	if g.asked != nil {
		g.asked(question, revision)
	}
}

func (g *gate) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	if g.real != nil {
		return g.real.Process(stream)
	}
	if behave := g.behave.Load(); behave != nil {
		return (*behave)(stream)
	}
	if g.traceparent != nil {
		g.traceparent(strings.Join(metadata.ValueFromIncomingContext(stream.Context(), "traceparent"), " "))
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		attributes := m.GetAttributes()["envoy.filters.http.ext_proc"].GetFields()
		r := request{
			identity:   attributes["filter_state['wayleave.identity']"].GetStringValue(),
			authority:  attributes["filter_state['wayleave.connect_authority']"].GetStringValue(),
			serverName: attributes["connection.requested_server_name"].GetStringValue(),
			source:     attributes["source.address"].GetStringValue(),
			header:     http.Header{},
			answered:   m.GetMetadataContext().GetFilterMetadata()[metadataNamespace].GetFields()[metadataAnswered].GetStringValue(),
		}
		for _, h := range m.GetRequestHeaders().GetHeaders().GetHeaders() {
			r.header.Add(h.GetKey(), string(h.GetRawValue()))
		}
		switch {
		case m.GetRequestHeaders() == nil:
			r.part = m
			g.note("answer", told(stream.Context()))
		case r.answered != "":
			g.note("again", told(stream.Context()))
		default:
			g.note("request", told(stream.Context()))
		}
		if err := stream.Send(g.decide(r)); err != nil {
			return err
		}
	}
}

// swap forwards with a credential that names the worker.
func swap(identity string) *extprocv3.ProcessingResponse {
	r := forward("authorization", "Bearer real-"+identity)
	r.DynamicMetadata = verdict("swap")
	return r
}

// verdict is what a gate notes of a request: that, and in which header a credential went out.
func verdict(v string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		metadataNamespace: structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			metadataVerdict: structpb.NewStringValue(v),
			"header":        structpb.NewStringValue("authorization"),
		}}),
	}}
}

// forward sets headers and gives no verdict.
func forward(headers ...string) *extprocv3.ProcessingResponse {
	m := &extprocv3.HeaderMutation{}
	for i := 0; i < len(headers); i += 2 {
		m.SetHeaders = append(m.SetHeaders, rawHeader(headers[i], headers[i+1]))
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
		RequestHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{HeaderMutation: m}},
	}}
}

func rawHeader(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, RawValue: []byte(value)},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// upstream is a TLS server that tells what it received.
type upstream struct {
	ca       *authority
	address  string
	requests atomic.Int64
	last     atomic.Pointer[http.Request]
}

func newUpstream(t testing.TB) *upstream {
	t.Helper()
	u := &upstream{ca: newAuthority(t)}
	cert := u.ca.certificate(t, "*.provider.test", "localhost", "*.wild.localhost")
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.requests.Add(1)
		u.last.Store(r)
		w.Header().Set("x-wayleave-reason", "forged")
		w.Header().Set("proxy-authenticate", "Basic")
		w.Header().Set("x-upstream-protocol", r.Proto)
		fmt.Fprint(w, r.Header.Get("Authorization"))
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.StartTLS()
	t.Cleanup(s.Close)
	u.address = s.Listener.Addr().String()
	return u
}

// authority is a certificate authority.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// mint is a Minter.
func (a *authority) mint(host, _ string) (certPEM, keyPEM []byte, notAfter time.Time, err error) {
	return a.issue(time.Hour, host)
}

func (a *authority) issue(life time.Duration, names ...string) (certPEM, keyPEM []byte, notAfter time.Time, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), template.NotAfter, nil
}

func (a *authority) certificate(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	certPEM, keyPEM, _, err := a.issue(time.Hour, names...)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// freeAddress returns a loopback address nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	address, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// serveAPI runs the worker API double on the API socket.
func (s *stack) serveAPI(h http.Handler) {
	s.t.Helper()
	l, err := net.Listen("unix", s.config.APISockets[0])
	if err != nil {
		s.t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	go func() { _ = server.Serve(l) }()
	s.t.Cleanup(func() { _ = server.Close() })
}
