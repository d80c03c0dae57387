package oauth

import "testing"

func TestKind(t *testing.T) {
	for _, tt := range []struct {
		e    Error
		want Kind
	}{
		{Error{Outcome: InvalidGrant, Status: 400, Code: "invalid_grant"}, KindInvalidGrant},
		{Error{Outcome: InvalidGrant, Status: 200, Code: "invalid_grant"}, KindInvalidGrant},
		{Error{Outcome: NotSent}, KindUnreachable},
		{Error{Outcome: Unknown}, KindNoAnswer},
		{Error{Outcome: Unknown, Status: 200}, KindBadAnswer},
		{Error{Outcome: Unknown, Status: 200, Code: "server_error"}, KindProviderFailed},
		{Error{Outcome: Unknown, Status: 400, Code: "temporarily_unavailable"}, KindProviderFailed},
		{Error{Outcome: Unknown, Status: 408}, KindProviderFailed},
		{Error{Outcome: Unknown, Status: 503}, KindProviderFailed},
		{Error{Outcome: Refused, Status: 429, Code: "invalid_grant"}, KindRateLimited},
		{Error{Outcome: Refused, Status: 302}, KindProviderChanged},
		{Error{Outcome: Refused, Status: 403}, KindProviderChanged},
		{Error{Outcome: Refused, Status: 403, Code: "forbidden"}, KindProviderChanged},
		{Error{Outcome: Refused, Status: 403, Code: "unauthorized_client"}, KindInvalidClient},
		{Error{Outcome: Refused, Status: 403, Code: "access_denied"}, KindRefused},
		{Error{Outcome: Refused, Status: 400, Code: "interaction_required"}, KindInvalidGrant},
		{Error{Outcome: Refused, Status: 404}, KindProviderChanged},
		{Error{Outcome: Refused, Status: 405}, KindProviderChanged},
		{Error{Outcome: Refused, Status: 410}, KindProviderChanged},
		{Error{Outcome: Refused, Status: 401}, KindInvalidClient},
		{Error{Outcome: Refused, Status: 401, Code: "invalid_client"}, KindInvalidClient},
		{Error{Outcome: Refused, Status: 400, Code: "unauthorized_client"}, KindInvalidClient},
		{Error{Outcome: Refused, Status: 400, Code: "invalid_scope"}, KindInvalidScope},
		{Error{Outcome: Refused, Status: 400, Code: "invalid_request"}, KindInvalidRequest},
		{Error{Outcome: Refused, Status: 400, Code: "invalid_target"}, KindInvalidRequest},
		{Error{Outcome: Refused, Status: 415}, KindInvalidRequest},
		{Error{Outcome: Refused, Status: 200}, KindRefused},
		{Error{Outcome: Refused, Status: 400, Code: "access_denied"}, KindRefused},
		{Error{Outcome: Refused, Status: 451}, KindRefused},
	} {
		if got := tt.e.Kind(); got != tt.want {
			t.Errorf("%v, status %d, %q: %s, want %s", tt.e.Outcome, tt.e.Status, tt.e.Code, got, tt.want)
		}
	}
}
