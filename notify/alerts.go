package notify

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"wayleave/approval"
	"wayleave/ca"
	"wayleave/grant"
	"wayleave/rollout"
)

// Pages says where in the console something is; nil where there is none.
type Pages func(path string) string

func (p Pages) at(path string) string {
	if p == nil {
		return ""
	}
	return p(path)
}

// How long some troubles must last before they are told: until then they mostly mend themselves.
const (
	moment   = 30 * time.Second
	minute   = time.Minute
	patience = 5 * time.Minute
	// consentNotice is how long before the end of a consent that no refresh prolongs its renewal is asked for.
	consentNotice = 7 * 24 * time.Hour
)

const quoted = 300 // characters of what a worker wrote

// OfGrant is what is wrong with a grant.
func OfGrant(g grant.Summary, now time.Time, pages Pages) (Alert, bool) {
	a := Alert{
		Key: "grant/" + g.Name + "/" + string(g.State), Kind: Grant, Subject: g.Name, Severity: Warning, Next: g.Next,
		URL: pages.at("/grants/" + url.PathEscape(g.Name)),
	}
	serves := !g.Expires.IsZero() && g.Expires.After(now)
	var text []string
	say := func(format string, args ...any) { text = append(text, fmt.Sprintf(format, args...)) }
	switch g.State {
	case grant.NeverConnected:
		if g.Kind == grant.Machine {
			return Alert{}, false
		}
		a.Wait = patience
		a.Title = g.Name + " has not been connected"
		say("Requests that need it are refused.")
	case grant.ScopeMissing:
		a.Title = g.Name + " needs one reconnect"
		say("It lacks %s. What it has goes on working.", strings.Join(g.Missing, ", "))
	case grant.NeedsReconnect:
		a.Severity = Critical
		a.Title = g.Name + " needs to be connected again"
		say("It can no longer be refreshed.")
		if serves {
			say("Requests work until its token ends, %s.", clock(g.Expires))
		} else {
			say("Requests that need it are refused.")
		}
	case grant.RefreshUnavailable:
		a.Severity, a.Wait = Critical, minute
		a.Title = g.Name + " has expired and cannot be refreshed at the moment"
		say("Requests that need it are refused. It is tried again by itself.")
	case grant.Degraded:
		a.Wait = patience
		a.Title = g.Name + " cannot be refreshed at the moment"
		if serves {
			say("Requests work until its token ends, %s. It is tried again by itself.", clock(g.Expires))
		}
	case grant.Ambiguous:
		a.Wait = patience
		a.Title = g.Name + " got no answer to its last refresh"
	case grant.Healthy, grant.Refreshing:
		if g.ConsentEnds.IsZero() || g.ConsentEnds.Sub(now) > consentNotice {
			return Alert{}, false
		}
		a.Key = "grant/" + g.Name + "/consent_ends"
		a.Title = g.Name + " has to be connected again by " + clock(g.ConsentEnds)
		a.Next = "run `wayleave grant connect " + g.Name + "` before"
		say("The consent ends then, whatever the gate does.")
	default: // of the vault, which is an alert of its own
		return Alert{}, false
	}
	if g.LastError != "" && g.State != grant.ScopeMissing {
		say("The last error: %s.", strings.TrimSuffix(g.LastError, "."))
	}
	a.Text = strings.Join(text, " ")
	return a, true
}

// OfVault is a vault that does not answer, as the grants show that need it.
func OfVault(grants []grant.Summary, pages Pages) (Alert, bool) {
	for _, g := range grants {
		if g.State == grant.VaultUnavailable {
			return Alert{
				Key: "vault", Kind: Vault, Subject: "vault", Severity: Critical, Wait: minute,
				Title: "the vault does not answer", Text: "Requests whose tokens are not in memory are refused.",
				Next: "check that it is up, unsealed and lets the gate in: wayleave doctor", URL: pages.at("/"),
			}, true
		}
	}
	return Alert{}, false
}

// OfRoots is a root authority that ends before workers can have trusted another. signs is the first.
func OfRoots(roots []*x509.Certificate, now time.Time, pages Pages) (Alert, bool) {
	if len(roots) == 0 {
		return Alert{}, false
	}
	next := ca.Due(roots, now)
	if next == "" {
		return Alert{}, false
	}
	a := Alert{
		Key: "ca/root", Kind: CA, Subject: roots[0].Subject.CommonName, Severity: Warning,
		Title: "the certificate authority that workers trust ends " + clock(roots[0].NotAfter),
		Text:  "After that no worker can connect through the gate.", Next: next, URL: pages.at("/"),
	}
	if roots[0].NotAfter.Sub(now) < 14*24*time.Hour {
		a.Severity = Critical
	}
	return a, true
}

// OfEnvoy is an Envoy that does not take what it is told. Only the gate that it is connected to sees it.
func OfEnvoy(node, refused, gate string, pages Pages) (Alert, bool) {
	if refused == "" {
		return Alert{}, false
	}
	return Alert{
		Key: "envoy/" + gate + "/" + node, Kind: Envoy, Subject: node, Severity: Critical, Wait: moment, Local: true,
		Title: "the Envoy " + node + " refuses its configuration", Text: "It goes on with what it took before. It says: " + refused,
		Next: "mend the configuration, and see that `wayleave config check` finds no fault", URL: pages.at("/fleet"),
	}, true
}

// OfApproval is a request that waits for an operator, at one gate.
func OfApproval(a approval.Approval, pages Pages) Alert {
	return Alert{
		Key: "approval/" + a.ID, Kind: Approval, Subject: a.Worker, Severity: Warning, Local: true,
		Title: "a request of " + a.Worker + " waits for an operator until " + clock(a.Until), Text: asCode(a.Method+" "+a.Host+a.Path) + ": " + a.Words,
		Next: "run `wayleave approval allow " + a.ID + "` or `wayleave approval deny " + a.ID + "`", URL: pages.at("/approvals"),
	}
}

// asCode is what a worker wrote, for people to see as it is: chat services make links, formats and calls of a whole channel of other text.
func asCode(text string) string {
	text = strings.ReplaceAll(text, "`", "'")
	if r := []rune(text); len(r) > quoted {
		text = string(r[:quoted]) + "…"
	}
	return "`" + text + "`"
}

// haltedFor is how long a rollout that went back is a trouble when nothing is rolled out after it: the file may have been mended by
// taking the change back.
const haltedFor = 24 * time.Hour

// OfFleet is an alert about a fleet of so many Envoys, when there is none.
func OfFleet(envoys int, pages Pages) (Alert, bool) {
	return Alert{
		Key: "envoy/none", Kind: Envoy, Subject: "fleet", Severity: Critical, Wait: minute,
		Title: "no Envoy is connected to any gate", Text: "Nothing can pass.", Next: "start it, or look at its log; `wayleave doctor` says what keeps it away",
		URL: pages.at("/fleet"),
	}, envoys == 0
}

// OfRollout is the last rollout, when it went back by itself. It is over when another one is completed.
func OfRollout(s rollout.State, now time.Time, pages Pages) (Alert, bool) {
	i := slices.IndexFunc(s.History, func(r rollout.Rollout) bool { return r.Phase != rollout.Aborted }) // an operator knows of those
	if i < 0 || s.History[i].Phase != rollout.RolledBack || now.Sub(s.History[i].Ended) > haltedFor {
		return Alert{}, false
	}
	r := s.History[i]
	a := Alert{
		Key: "rollout/" + r.ID, Kind: Rollout, Subject: "revision " + rollout.Short(r.To), Severity: Warning,
		Title: fmt.Sprintf("the rollout of revision %s was halted", rollout.Short(r.To)), Text: fmt.Sprintf("Every Envoy goes on with revision %s. The reason: %s.", rollout.Short(r.From), strings.TrimSuffix(r.Reason, ".")),
		Next: "mend the configuration; `wayleave config diff " + fmt.Sprintf("%.12s %.12s", r.From, r.To) + "` says what the change was", URL: pages.at("/rollouts"),
	}
	if r.Author != "" {
		a.Text = fmt.Sprintf("It was started by %s. %s", r.Author, a.Text)
	}
	return a, true
}

// OfHost is a host that is refused because of a fault in the configuration.
func OfHost(host, fault string, pages Pages) Alert {
	return Alert{
		Key: "configuration/" + host, Kind: Configuration, Subject: host, Severity: Critical, Title: host + " is refused: the configuration has a fault",
		Text: fault, Next: "mend it, see that `wayleave config check` finds no other; it is rolled out by itself, or with `wayleave rollout start`", URL: pages.at("/routes?find=" + url.QueryEscape(host)),
	}
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
