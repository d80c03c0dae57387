package extproc

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	procv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	"wayleave/grant"
	"wayleave/secret"
)

// FuzzQuestion holds what is read by hand against what protocol buffers read.
func FuzzQuestion(f *testing.F) {
	fixture := newFixture(f)
	first := message(fixture.anthropic("POST", "/v1/messages", "Authorization", "Bearer x", "x-odd", "\xff", "x-twice", "1", "x-twice", "2"))
	first.ProtocolConfig = &extprocv3.ProtocolConfiguration{ResponseBodyMode: procv3.ProcessingMode_STREAMED}
	retry := message(fixture.anthropic("GET", "/"))
	retry.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		metadataNamespace: fields{{metadataVerdict, verdictSwap}, {fieldAnswered, "401"}}.message(), "another": {},
	}}
	for _, in := range []*extprocv3.ProcessingRequest{
		first, retry, {},
		{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{}}},
	} {
		raw, err := proto.Marshal(in)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := readQuestion(raw); err != nil {
			f.Errorf("%v: %v", in, err)
		}
		f.Add(raw)
		f.Add(append(raw, raw...))
		f.Add(raw[:len(raw)/2])
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := readQuestion(raw)
		in := new(extprocv3.ProcessingRequest)
		if err != nil || proto.Unmarshal(raw, in) != nil { // what is read by hand may be broken where we do not look
			return
		}
		h := in.GetRequestHeaders()
		if (h == nil) != (q.other != nil) {
			t.Fatalf("read as %+v", q)
		}
		if h == nil {
			return
		}
		want := newRequest(h)
		of := in.GetAttributes()[attributeNamespace].GetFields()
		want.identity, want.connectAuthority = of[attributeIdentity].GetStringValue(), of[attributeAuthority].GetStringValue()
		want.node, want.serverName = of[attributeNode].GetStringValue(), of[attributeSNI].GetStringValue()
		want.source = addressOf(of[attributeSource].GetStringValue())
		if len(want.headers) == 0 && len(q.headers) == 0 {
			want.headers = q.headers
		}
		if !reflect.DeepEqual(q.request, want) {
			t.Errorf("read as %+v\nwant %+v", q.request, want)
		}
		kept := map[string]string{}
		for name, value := range in.GetMetadataContext().GetFilterMetadata()[metadataNamespace].GetFields() {
			if value.GetStringValue() != "" {
				kept[name] = value.GetStringValue()
			}
		}
		got := map[string]string{}
		for _, x := range q.kept {
			got[x[0]] = x[1]
		}
		if diff := cmp.Diff(kept, got); diff != "" {
			t.Error(diff)
		}
		c := in.GetProtocolConfig()
		if q.told != (c != nil) || q.ofAsked != c.GetRequestBodyMode() || q.ofAnswer != c.GetResponseBodyMode() || q.whole != h.GetEndOfStream() {
			t.Errorf("read as %+v of %v", q, in)
		}
	})
}

// A question that says something twice, or is broken, is refused.
func TestQuestionsThatAreRefused(t *testing.T) {
	raw, err := proto.Marshal(message(newFixture(t).anthropic("GET", "/")))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := proto.Marshal(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, message := range map[string][]byte{
		"headers twice":          append(raw[:len(raw):len(raw)], raw...),
		"headers and an answer":  append(raw[:len(raw):len(raw)], answer...),
		"an answer, and headers": append(answer[:len(answer):len(answer)], raw...),
		"broken off":             raw[:len(raw)-1],
	} {
		if q, err := readQuestion(message); err == nil {
			t.Errorf("%s: read as %+v", name, q)
		}
	}
}

// What is written by hand is what protocol buffers write.
func TestReply(t *testing.T) {
	long := strings.Repeat("x", 300)
	for name, c := range map[string]struct {
		reply reply
		want  *extprocv3.ProcessingResponse
	}{
		"nothing": {reply{}, replyOf(nil, nil, nil, nil)},
		"all": {
			reply{set: [][2]string{{"authorization", "Bearer \xff" + long}, {"b", ""}}, remove: []string{"c", long}, kept: fields{{"verdict", "swap"}, {"note", long}, {"answered", ""}}, toEnd: true},
			replyOf([]*corev3.HeaderValueOption{overwrite("authorization", "Bearer \xff"+long), overwrite("b", "")}, []string{"c", long},
				map[string]any{"wayleave": map[string]any{"verdict": "swap", "note": long, "answered": ""}}, untilEnd()),
		},
		"no fields": {reply{kept: fields{}}, replyOf(nil, nil, map[string]any{"wayleave": map[string]any{}}, nil)},
	} {
		raw, err := proto.Marshal(c.reply.message())
		if err != nil {
			t.Fatal(err)
		}
		got := new(extprocv3.ProcessingResponse)
		if err := proto.Unmarshal(raw, got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func replyOf(set []*corev3.HeaderValueOption, remove []string, kept map[string]any, mode *procv3.ProcessingMode) *extprocv3.ProcessingResponse {
	out := &extprocv3.ProcessingResponse{ModeOverride: mode, Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{
		Response: &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: set, RemoveHeaders: remove}},
	}}}
	if kept != nil {
		m, err := structpb.NewStruct(kept)
		if err != nil {
			panic(err)
		}
		out.DynamicMetadata = m
	}
	return out
}

// A note says again what it was made of, and is a text that Envoy takes, whatever that was.
func FuzzNote(f *testing.F) {
	f.Add("request-1", "claude", "user:inference user:profile", "needs_reconnect")
	f.Add("", "two\nlines", "", "")
	f.Add("\xff", "", "a", "\n")
	f.Fuzz(func(t *testing.T, id, grant, scopes, reason string) {
		x := Decided{RequestID: id, Grant: grant, Reason: reason, Method: "PROPFIND"}
		note := noteOf(x, strings.Fields(scopes))
		got, gotScopes := readNote(note)
		if !utf8.ValidString(note) || noteOf(got, gotScopes) != note {
			t.Errorf("%q is read as %+v", note, got)
		}
		plain := true
		for _, s := range []string{id, grant, scopes, reason} {
			plain = plain && utf8.ValidString(s) && !strings.Contains(s, "\n")
		}
		if plain && (!reflect.DeepEqual(got, x) || strings.Join(gotScopes, " ") != strings.Join(strings.Fields(scopes), " ")) {
			t.Errorf("%+v is read as %+v", x, got)
		}
		_, _ = readNote(id)
	})
}

// A request takes this much memory at the most: what is for the gate alone costs nobody else any.
func TestRequestsTakeLittleMemory(t *testing.T) {
	const most = 70
	f := newServer(t)
	raw, err := proto.Marshal(message(f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+f.claude(), "user-agent", "claude-cli/2.1.331", "accept", "*/*", "x-request-id", untracedID)))
	if err != nil {
		t.Fatal(err)
	}
	f.server.tokens = ready{}
	if got := testing.AllocsPerRun(100, func() {
		q, err := readQuestion(raw)
		if err != nil {
			t.Fatal(err)
		}
		out, err := f.server.process(t.Context(), &q, &phases{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := proto.Marshal(out); err != nil {
			t.Fatal(err)
		}
	}); got > most {
		t.Errorf("%v allocations for a request, more than %d", got, most)
	}
}

// ready has the token of every grant at once.
type ready struct{ Tokens }

func (ready) Token(context.Context, string, string, []string) (grant.Token, error) {
	return grant.Token{Access: secret.New(realToken("claude")), Version: "1", Replaceable: true}, nil
}
