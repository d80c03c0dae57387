package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"wayleave/oauth"
	"wayleave/operate"
)

// authorization is one run of the authorization code flow (RFC 6749 §4.1 with PKCE, RFC 7636) from a terminal.
type authorization struct {
	begin func(ctx context.Context, redirect string) (pageConsent, error) // redirect is a callback on loopback (RFC 8252 §7.3)
	in    io.Reader                                                       // where a code may be pasted
	out   io.Writer                                                       // where the URL is printed
	open  func(url string) error                                          // opens a browser; nil: don't
}

// pageConsent is a connect that has begun, by the provider's consent page.
type pageConsent struct {
	url    string
	pasted bool // the page shows its answer, and does not come back to the callback
	answer parser
	end    finisher // gives it up when time is over, unless it is being finished; nil: there is nothing to give up
}

// parser takes an answer of the page. An error says why it is not one of this connect, unless it is oauth.ErrDenied.
type parser func(answer string) (finisher, error)

// finisher exchanges the answer for tokens, and stores them.
type finisher func(context.Context) (operate.Stored, error)

// run prints the URL, waits for the callback or for a pasted answer, and exchanges the code.
func (a authorization) run(ctx context.Context) (operate.Stored, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, 2) // one from the page, one from the terminal

	callback, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return operate.Stored{}, fmt.Errorf("listening for the provider's answer: %w", err)
	}
	consent, err := a.begin(ctx, "http://"+callback.Addr().String()+"/callback")
	if err != nil || consent.pasted {
		_ = callback.Close()
	}
	if err != nil {
		return operate.Stored{}, err
	}
	if !consent.pasted {
		serveCallback(ctx, callback, consent.answer, answers)
	}
	url := consent.url
	fmt.Fprintf(a.out, "Open this page, sign in and agree:\n\n  %s\n\n", url)
	if a.open != nil {
		if err := a.open(url); err != nil {
			fmt.Fprintf(a.out, "(no browser could be opened here: %v)\n", err)
		}
	}
	if !consent.pasted {
		fmt.Fprint(a.out, "Waiting for the answer. On another machine? Paste the address the browser ends up at:\n")
	} else {
		fmt.Fprint(a.out, "Then paste the code it shows (or the address it ends up at):\n")
	}

	in := lines(a.in)
	if tty := terminalOf(a.in); tty != nil {
		if undo, err := keyByKey(tty); err == nil {
			defer undo()
			in = func() (string, error) { line, err := readLine(tty, tty); return string(line), err }
		}
	}
	// Reading a terminal cannot be interrupted: this goroutine ends with its line or with the process.
	pasted := make(chan error, 1)
	go func() { pasted <- readPasted(in, a.out, consent.answer, answers) }()

	for {
		select {
		case got := <-answers:
			if got.err != nil {
				return operate.Stored{}, got.err
			}
			fmt.Fprint(a.out, "Exchanging the code…\n")
			return got.finish(ctx)
		case err := <-pasted:
			// Nil: the answer is in answers, and which of the two is seen first is chance. With a callback to wait for, the
			// end of standard input means only that nobody types here.
			if err != nil && consent.pasted {
				return operate.Stored{}, err
			}
			pasted = nil
		case <-ctx.Done():
			if consent.end != nil {
				if got, err := consent.end(ctx); err == nil {
					return got, nil
				}
			}
			return operate.Stored{}, fmt.Errorf("%w; nothing was changed, run the command again", context.Cause(ctx))
		}
	}
}

// answer is what came of the consent page: a code, or that there will be none.
type answer struct {
	finish finisher
	err    error
}

// readPasted reads lines until one is an answer; the error is that the input ended before.
func readPasted(next func() (string, error), out io.Writer, parse parser, answers chan<- answer) error {
	for {
		line, err := next()
		if err != nil {
			return errors.New("the input ended before a code was pasted; run the command again on a terminal, or pipe the code in")
		}
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		finish, err := parse(line)
		if err != nil && !errors.Is(err, oauth.ErrDenied) {
			fmt.Fprintf(out, "%v; paste it again:\n", err)
			continue
		}
		answers <- answer{finish, err}
		return nil
	}
}

// lines are those of what is no terminal.
func lines(in io.Reader) func() (string, error) {
	scanner := bufio.NewScanner(in)
	return func() (string, error) {
		if !scanner.Scan() {
			return "", cmp.Or(scanner.Err(), io.EOF)
		}
		return scanner.Text(), nil
	}
}

// serveCallback serves the redirect on l until ctx ends.
func serveCallback(ctx context.Context, l net.Listener, parse parser, answers chan<- answer) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /callback", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Referrer-Policy", "no-referrer")
		finish, err := parse(r.URL.String())
		if err == nil || errors.Is(err, oauth.ErrDenied) {
			select {
			case answers <- answer{finish, err}:
			default: // answered already
			}
		}
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, "Wayleave could not use this answer: %v.\nGo back to the terminal.\n", err)
			return
		}
		fmt.Fprint(w, "Wayleave has the answer. Close this page and go back to the terminal.\n")
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(l) }()
	context.AfterFunc(ctx, func() {
		shut, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = srv.Shutdown(shut) // lets the page of the answer that ended us arrive
	})
}

// browser returns what opens a URL here: $BROWSER, the system's opener, or nil when there is no display.
func browser() func(url string) error {
	start := func(name string, args ...string) func(string) error {
		return func(url string) error {
			cmd := exec.Command(name, append(args, url)...) //nolint:noctx // the browser outlives the command
			cmd.Stdout, cmd.Stderr = nil, nil
			if err := cmd.Start(); err != nil {
				return err
			}
			go func() { _ = cmd.Wait() }()
			return nil
		}
	}
	if b := strings.Fields(os.Getenv("BROWSER")); len(b) > 0 {
		return start(b[0], b[1:]...)
	}
	switch {
	case runtime.GOOS == "darwin":
		return start("open")
	case os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != "":
		return start("xdg-open")
	}
	return nil
}
