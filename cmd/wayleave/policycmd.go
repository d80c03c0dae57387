package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave/config"
	"wayleave/extproc"
	"wayleave/policy"
	"wayleave/record"
)

func newPolicy() *cobra.Command {
	return group(&cobra.Command{
		Use:   "policy",
		Short: "Try a configuration on requests: those that were recorded, or one",
	}, newPolicyTest(), newPolicyExplain())
}

// readPolicy reads a configuration for its policy alone: it needs no secrets, no Vault and no network.
func readPolicy(c *cobra.Command, path string) (*config.Config, *extproc.Explainer, error) {
	cfg, err := checkConfig(c, path)
	if err == nil {
		err = counted(latentFaults(cfg))
	}
	if err != nil {
		return nil, nil, usageError{err}
	}
	return cfg, extproc.NewExplainer(swapConfig(cfg, nil)), nil
}

func newPolicyTest() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:   "test FILE...",
		Short: "Say which recorded requests another configuration would decide differently",
		Long: `Test reads what a gate recorded ('record' in the configuration), decides about each request again by the configuration given
with -c, and prints those for which that makes a difference: whether it is let through, refused or held. It looks at routes, tunnel,
plain, profiles and rules, and needs nothing but the two files; - stands for standard input. Requests that are alike are counted.

Some of a request may not be recorded. Where a rule depends on that, it cannot be told what it would do, and test says so.

It ends with 0 when every request is decided as before, with 1 when one is not or cannot be told, and with 2 when a file is not what
it should be.`,
		Example: `  wayleave policy test requests.jsonl -c new.yaml
  wayleave policy test requests.jsonl.1 requests.jsonl -c new.yaml --json`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("%s wants the FILE of a record; see '%s --help'", c.CommandPath(), c.CommandPath())}
			}
			return nil
		},
	}
	addConfigFlag(c, &path)
	addJSONFlag(c)
	c.RunE = func(c *cobra.Command, files []string) error {
		_, explainer, err := readPolicy(c, path)
		if err != nil {
			return err
		}
		r := replay{Differences: []*difference{}, known: map[string]*difference{}}
		for _, name := range files {
			if err := r.read(c.InOrStdin(), name, explainer); err != nil {
				return usageError{err}
			}
		}
		if asJSON, _ := c.Flags().GetBool("json"); asJSON {
			err = printJSON(c.OutOrStdout(), r)
		} else {
			r.print(c.OutOrStdout())
		}
		if err == nil && len(r.Differences) > 0 {
			return exitCode(exitFailure)
		}
		return err
	}
	return c
}

// replay is what came of deciding again.
type replay struct {
	Requests   int    `json:"requests"`
	Different  int    `json:"different"`
	CannotTell int    `json:"cannot_tell"`
	Missing    uint64 `json:"missing,omitempty"` // that were not recorded

	Differences []*difference `json:"differences"`

	known map[string]*difference // by what they have in common
}

// difference is a request that is decided differently, and others that are alike.
type difference struct {
	Count   int       `json:"count"`
	First   time.Time `json:"first"`
	Worker  string    `json:"worker"`
	Request string    `json:"request"`
	Before  outcome   `json:"before"`
	After   outcome   `json:"after"`
}

// outcome is what becomes of a request.
type outcome struct {
	Verdict policy.Action `json:"verdict"`
	Rule    string        `json:"rule,omitempty"`
	Reason  string        `json:"reason,omitempty"`
	DryRun  bool          `json:"dry_run,omitempty"`
	Words   string        `json:"words,omitempty"`
}

func (r *replay) read(stdin io.Reader, name string, explainer *extproc.Explainer) error {
	from := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		from = f
	}
	missing, err := record.Read(from, func(j policy.Judged) { r.add(j, explainer.Replay(j)) })
	r.Missing += missing
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (r *replay) add(j policy.Judged, x extproc.Explanation) {
	r.Requests++
	before := outcome{Verdict: j.Verdict, Rule: j.Rule, Reason: j.Reason, DryRun: j.DryRun}
	after := outcomeOf(x)
	switch {
	case after.Verdict == policy.CannotTell:
		r.CannotTell++
	case after.Verdict == before.Verdict && after.DryRun == before.DryRun:
		return
	default:
		r.Different++
	}
	d := &difference{Worker: j.Facts.Worker, Request: requestLine(j.Facts, x.As), Before: before, After: after}
	common := fmt.Sprintf("%q", []any{d.Worker, d.Request, before, after})
	if same, ok := r.known[common]; ok {
		d = same
	} else {
		d.First, r.known[common] = j.Time, d
		r.Differences = append(r.Differences, d)
	}
	d.Count++
}

func (r *replay) print(w io.Writer) {
	for _, d := range r.Differences {
		times := "once, at "
		if d.Count > 1 {
			times = fmt.Sprintf("%d times, first at ", d.Count)
		}
		fmt.Fprintf(w, "worker %s: %s\n  before  %s\n  now     %s\n  %s%s\n\n", d.Worker, printable(d.Request), printable(d.Before.String()), printable(d.After.String()), times, when(d.First))
	}
	fmt.Fprintf(w, "Requests: %d. Decided differently: %d. Cannot be told: %d.\n", r.Requests, r.Different, r.CannotTell)
	if r.Missing > 0 {
		fmt.Fprintf(w, "Not recorded, because they came too fast or the disk was full: %d.\n", r.Missing)
	}
	if r.CannotTell > 0 {
		fmt.Fprintln(w, "What rules depend on and was not recorded, record.headers and record.query add to the next record.")
	}
}

func outcomeOf(x extproc.Explanation) outcome {
	return outcome{Verdict: x.Verdict, Rule: x.Rule, Reason: x.Reason, DryRun: x.DryRun, Words: x.Words}
}

// String is an outcome in words.
func (o outcome) String() string {
	said, ok := map[policy.Action]string{
		policy.Allow: "let through", policy.Deny: "refused", policy.Hold: "held", policy.CannotTell: "cannot be told",
	}[o.Verdict]
	if !ok {
		said = string(o.Verdict)
	}
	if o.DryRun {
		said = "would be " + said + " but for dry_run"
	}
	if o.Rule != "" && o.Verdict != policy.CannotTell {
		said += " by rule " + o.Rule
	}
	if o.Reason != "" && o.Rule == "" {
		said += " (" + o.Reason + ")"
	}
	if o.Words != "" {
		said += ": " + o.Words
	}
	return said
}

// requestLine is a request as people write one; as is how its host is reached.
func requestLine(f policy.Facts, as string) string {
	host := f.Host + ":" + strconv.Itoa(f.Port)
	if f.Opaque {
		return "CONNECT " + host
	}
	scheme, usual := "https", ":443"
	if as == "plain" {
		scheme, usual = "http", ":80"
	}
	path := f.Path
	if path == "" {
		path = "/…"
	}
	return f.Method + " " + scheme + "://" + strings.TrimSuffix(host, usual) + path
}

func newPolicyExplain() *cobra.Command {
	var q question
	var path string
	c := &cobra.Command{
		Use:   "explain --worker NAME --url URL",
		Short: "Say what would become of a request, by which route and rule, and why",
		Long: `Explain decides about one request by the configuration given with -c, as a gate would: which route it takes, with which
credential, and what each rule makes of it. Where servers may read the path or the query in more than one way, it says so of each
reading. It needs nothing but that file, so it takes the session for good and the grant for connected with its scopes.

What is not given is unknown: other headers than those of --header, the worker's address, what it proved to be.`,
		Example: `  wayleave policy explain -c wayleave.yaml --worker ci --method DELETE --url https://api.github.com/repos/acme/x
  wayleave policy explain -c wayleave.yaml --worker ci --url 'https://api.example.com/v1/x/../admin?force=1' --header x-environment:test --json`,
		Args: exactArgs(),
	}
	addConfigFlag(c, &path)
	addJSONFlag(c)
	c.Flags().StringVar(&q.worker, "worker", "", "whose request it is")
	c.Flags().StringVar(&q.method, "method", "GET", "its method")
	c.Flags().StringVar(&q.url, "url", "", "where it goes: https://host/path?query, or http:// for a host of plain")
	c.Flags().StringArrayVar(&q.headers, "header", nil, "a header that it has, 'name: value'; more than once for several")
	c.Flags().StringVar(&q.subject, "subject", "", "who the worker proved to be")
	c.Flags().StringVar(&q.source, "source", "", "IP address that it comes from")
	c.Flags().StringVar(&q.at, "at", "", "when it is made, as 2026-03-01T12:00:00Z (default now)")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, explainer, err := readPolicy(c, path)
		if err != nil {
			return err
		}
		a, err := q.ask(cfg, time.Now(), c.Flags().Changed)
		if err != nil {
			return usageError{err}
		}
		x := explainer.Explain(a.facts, a.target, a.cleartext)
		if asJSON, _ := c.Flags().GetBool("json"); asJSON {
			return printJSON(c.OutOrStdout(), x)
		}
		printExplanation(c.OutOrStdout(), a, x)
		return nil
	}
	return c
}

// question is a request as flags say it.
type question struct {
	worker, method, url, subject, source, at string
	headers                                  []string
}

// asked is a request that is asked about.
type asked struct {
	facts     policy.Facts
	target    string // path and query
	cleartext bool
	line      string
}

func (q question) ask(cfg *config.Config, now time.Time, given func(flag string) bool) (asked, error) {
	var a asked
	if q.worker == "" || q.url == "" {
		return a, errors.New("say whose request it is and where it goes: --worker NAME --url https://host/path")
	}
	w, ok := cfg.Workers[q.worker]
	if !ok {
		return a, fmt.Errorf("there is no worker %q in the configuration; it has: %s", q.worker, strings.Join(slices.Sorted(maps.Keys(cfg.Workers)), ", "))
	}
	a.facts = policy.Facts{Worker: q.worker, Method: q.method, Subject: q.subject, Source: q.source, Now: now, Headers: map[string]string{}}
	known := map[string][]string{"session": {}, "headers": {}}
	if !given("source") {
		known["source"] = []string{}
	}
	if !given("subject") && !w.Match().IsZero() { // else it proves nothing
		known["subject"] = []string{}
	}
	for _, h := range q.headers {
		name, value, ok := strings.Cut(h, ":")
		name = strings.ToLower(strings.TrimSpace(name))
		if !ok || name == "" {
			return a, fmt.Errorf("--header %q is not of the form 'name: value'", name)
		}
		if slices.Contains(credentialHeaders(cfg), name) {
			return a, fmt.Errorf("--header %s holds a credential, which no rule sees; the placeholder is taken for granted", name)
		}
		if before, twice := a.facts.Headers[name]; twice {
			value = before + ", " + strings.TrimSpace(value)
		} else {
			known["headers"] = append(known["headers"], name)
		}
		a.facts.Headers[name] = strings.TrimSpace(value)
	}
	a.facts.Known = known
	if q.at != "" {
		t, err := time.Parse(time.RFC3339, q.at)
		if err != nil {
			return a, fmt.Errorf("--at %q is no time; write one such as 2026-03-01T12:00:00Z", q.at)
		}
		a.facts.Now = t
	}
	return a, a.where(q.url)
}

// where reads a URL, whose path and query stay as they are written.
func (a *asked) where(text string) error {
	wrong := fmt.Errorf("--url %q is not a URL of a host with a name; write one such as https://api.example.com/v1/items", text)
	scheme, rest, ok := strings.Cut(text, "://")
	scheme = strings.ToLower(scheme)
	if a.cleartext = scheme == "http"; !ok || !a.cleartext && scheme != "https" {
		return wrong
	}
	rest, _, _ = strings.Cut(rest, "#")
	authority := rest
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, a.target = rest[:i], rest[i:]
	}
	if !strings.HasPrefix(a.target, "/") {
		a.target = "/" + a.target
	}
	u, err := url.Parse(scheme + "://" + authority)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return wrong
	}
	a.facts.Host, a.facts.Port = strings.ToLower(u.Hostname()), map[bool]int{true: 80, false: 443}[a.cleartext]
	if u.Port() != "" {
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil || port == 0 {
			return wrong
		}
		a.facts.Port = int(port) //nolint:gosec // 16 bits
	}
	a.line = a.facts.Method + " " + scheme + "://" + u.Host + a.target
	return nil
}

func printExplanation(w io.Writer, a asked, x extproc.Explanation) {
	fmt.Fprintf(w, "worker %s: %s\n", a.facts.Worker, printable(a.line))
	fmt.Fprintf(w, "  %s\n", printable(outcomeOf(x).String()))
	switch {
	case x.Route != "" && x.Credential != "":
		fmt.Fprintf(w, "  by route %s, with the credential %s\n", x.Route, x.Credential)
	case x.Route != "":
		fmt.Fprintf(w, "  by route %s\n", x.Route)
	case x.As == "tunnel":
		fmt.Fprintln(w, "  as a tunnel: rules are asked at CONNECT, and see nothing of what is inside")
	case x.As == "plain":
		fmt.Fprintln(w, "  without TLS and without a credential")
	}
	for _, r := range x.Readings {
		if len(r.Steps) == 0 {
			continue
		}
		fmt.Fprintln(w)
		if len(x.Readings) > 1 {
			fmt.Fprintf(w, "  read as %s%s\n", printable(r.Path), printable(queryLine(r.Query)))
		}
		for _, s := range r.Steps {
			fmt.Fprintf(w, "  rule %s %s\n", s.Rule, printable(s.Found))
		}
		fmt.Fprintf(w, "  so it is %s\n", outcome{Verdict: r.Verdict, Rule: r.Rule})
	}
}

// queryLine is a query in words: {a: [1 2]}.
func queryLine(query map[string][]string) string {
	if len(query) == 0 {
		return ""
	}
	return " with " + strings.TrimPrefix(fmt.Sprint(query), "map")
}
