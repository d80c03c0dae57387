package notify

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Message is what operators are told at once.
type Message struct {
	ID string    `json:"id"`
	At time.Time `json:"at"`
	// Firing are troubles that are new, or last.
	Firing []Alert `json:"firing,omitempty"`
	// Over are troubles that are no more.
	Over []Alert `json:"over,omitempty"`
	// Others is how many more there are, of which operators know.
	Others int `json:"others,omitempty"`
	// Test says that somebody tries out whether messages arrive.
	Test bool `json:"test,omitempty"`
}

func (m Message) empty() bool { return len(m.Firing)+len(m.Over) == 0 && !m.Test }

// Test is a message that tries out whether messages arrive.
func Test(now time.Time) Message { return Message{ID: newID(), At: now, Test: true} }

// newID is an id that no other message has, of any gate.
func newID() string { return "msg_" + strings.ToLower(rand.Text()) }

func (m Message) keys() (keys []string) {
	for _, a := range m.Firing {
		keys = append(keys, a.Key)
	}
	return keys
}

// about is the part of m that is of these kinds; none: of all.
func (m Message) about(kinds []Kind) Message {
	if len(kinds) == 0 || m.Test {
		return m
	}
	others := func(a Alert) bool { return !slices.Contains(kinds, a.Kind) }
	m.Firing = slices.DeleteFunc(slices.Clone(m.Firing), others)
	m.Over = slices.DeleteFunc(slices.Clone(m.Over), others)
	return m
}

// What a message for people has at most. Chat services refuse or cut one that is longer than some 10,000 to 40,000 characters.
const (
	listed = 20  // alerts of each sort
	worded = 500 // characters of what an alert says
)

// short is m as people read it, and what is left out; empty: nothing.
func (m Message) short() (Message, string) {
	firing, over := len(m.Firing)-listed, len(m.Over)-listed
	m.Firing, m.Over = slices.Clone(m.Firing[:min(len(m.Firing), listed)]), m.Over[:min(len(m.Over), listed)]
	for i, a := range m.Firing {
		if words := []rune(a.Text); len(words) > worded {
			m.Firing[i].Text = string(words[:worded]) + "…"
		}
	}
	var more []string
	if firing > 0 {
		more = append(more, fmt.Sprintf("%d more in trouble", firing))
	}
	if over > 0 {
		more = append(more, fmt.Sprintf("%d more over", over))
	}
	return m, strings.Join(more, ", and ")
}

// Subject is m in one line.
func (m Message) Subject() string {
	more := func(first string, n int) string {
		if n > 1 {
			return fmt.Sprintf("%s, and %d more", first, n-1)
		}
		return first
	}
	switch {
	case m.Test:
		return "Wayleave: a test, nothing is wrong"
	case len(m.Firing) > 0:
		return "Wayleave: " + more(m.Firing[0].Title, len(m.Firing))
	case len(m.Over) > 0:
		return "Wayleave: over: " + more(m.Over[0].Title, len(m.Over))
	}
	return "Wayleave"
}

// Text is m in plain words.
func (m Message) Text() string {
	m, more := m.short()
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if m.Test {
		line("Somebody ran `wayleave notify test`. Messages arrive here.")
	}
	for i, a := range m.Firing {
		if i > 0 {
			line("")
		}
		line("%s: %s", strings.ToUpper(string(a.Severity)), a.Title)
		if a.Text != "" {
			line("  %s", a.Text)
		}
		if a.Next != "" {
			line("  Next: %s", a.Next)
		}
		if a.URL != "" {
			line("  %s", a.URL)
		}
	}
	for i, a := range m.Over {
		if i == 0 && len(m.Firing) > 0 {
			line("")
		}
		line("OVER: %s", a.Title)
	}
	if more != "" {
		line("\nBeside these: %s.", more)
	}
	if m.Others > 0 {
		line("\nStill so: %d more that you know of.", m.Others)
	}
	return b.String()
}
