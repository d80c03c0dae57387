package grant

import "testing"

// The reason is told without what it is the reason of, also of an event that an earlier version wrote.
func TestWhyOfAnEvent(t *testing.T) {
	for _, c := range []struct {
		e    Event
		want string
	}{
		{Event{What: RevokeFails, Error: notRevoked + "it is away", Cause: "it is away"}, "it is away"},
		{Event{What: RevokeFails, Error: notRevoked + "it is away"}, "it is away"},
		{Event{What: Failed, Error: "it is away"}, "it is away"},
		{Event{What: Revoked}, ""},
	} {
		if got := c.e.Why(); got != c.want {
			t.Errorf("%+v: %q", c.e, got)
		}
	}
}
