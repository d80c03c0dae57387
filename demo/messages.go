package demo

import (
	"encoding/json"
	"net/http"
	"strings"
)

// message is the request of the Messages API, as far as the demo looks at it.
type message struct {
	Model     string `json:"model"`
	MaxTokens int    `json:"max_tokens"`
	Stream    bool   `json:"stream"`
	Messages  []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"` // a string, or blocks
	} `json:"messages"`
}

// longestEcho is how many characters of a prompt are repeated: agents send pages before what a person wrote.
const longestEcho = 80

// messages answers every prompt by repeating how it begins, whole or as the stream of events that clients expect.
func messages(w http.ResponseWriter, r *http.Request) {
	var in message
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 32<<20)).Decode(&in); err != nil {
		refuse(w, http.StatusBadRequest, "invalid_request_error", "The body is not JSON")
		return
	}
	if in.Model == "" || in.MaxTokens < 1 || len(in.Messages) == 0 {
		refuse(w, http.StatusBadRequest, "invalid_request_error", "model, max_tokens and messages are required")
		return
	}
	prompt := in.prompt()
	text := "The demo API received: " + prompt
	if words := []rune(prompt); len(words) > longestEcho {
		text = "The demo API received: " + string(words[:longestEcho]) + "…"
	}
	inTokens, outTokens := len(strings.Fields(prompt))+1, len(strings.Fields(text))
	answer := map[string]any{
		"id": newSecret("msg_"), "type": "message", "role": "assistant", "model": in.Model,
		"content":     []any{map[string]any{"type": "text", "text": text}},
		"stop_reason": "end_turn", "stop_sequence": nil,
		"usage": map[string]int{"input_tokens": inTokens, "output_tokens": outTokens},
	}
	if !in.Stream {
		writeJSON(w, http.StatusOK, answer)
		return
	}

	answer["content"], answer["stop_reason"] = []any{}, nil
	answer["usage"] = map[string]int{"input_tokens": inTokens, "output_tokens": 1}
	s := newStream(w)
	send := func(kind string, fields map[string]any) {
		fields["type"] = kind
		_ = s.send(kind, fields) // a client that left ends the request by itself
	}
	send("message_start", map[string]any{"message": answer})
	send("content_block_start", map[string]any{"index": 0, "content_block": map[string]any{"type": "text", "text": ""}})
	send("ping", map[string]any{})
	for word := range strings.SplitAfterSeq(text, " ") {
		send("content_block_delta", map[string]any{"index": 0, "delta": map[string]any{"type": "text_delta", "text": word}})
	}
	send("content_block_stop", map[string]any{"index": 0})
	send("message_delta", map[string]any{"delta": map[string]any{"stop_reason": "end_turn", "stop_sequence": nil}, "usage": map[string]int{"output_tokens": outTokens}})
	send("message_stop", map[string]any{})
}

// prompt is the text of the last message.
func (m message) prompt() string {
	content := m.Messages[len(m.Messages)-1].Content
	var text string
	if json.Unmarshal(content, &text) == nil {
		return text
	}
	var blocks []struct {
		Text string `json:"text"`
	}
	if json.Unmarshal(content, &blocks) != nil {
		return ""
	}
	var parts []string
	for _, b := range blocks {
		if b.Text != "" {
			parts = append(parts, b.Text)
		}
	}
	return strings.Join(parts, " ")
}
