package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"

	"wayleave/api"
	"wayleave/operate"
)

// endpoint is one operation of the API: how it is routed, guarded, documented and done.
type endpoint struct {
	method, path string // below /api/v1; {name} is a parameter
	role         Role
	summary      string
	action       string // for the audit; empty: it changes nothing
	in, out      any    // zero values of what is sent and answered; nil: nothing
	query        []parameter
	do           func(*call) (any, error)
}

// parameter is one in the query.
type parameter struct{ name, means string }

// call is one request to an endpoint.
type call struct {
	*http.Request
	who actor
	in  any // a pointer to what was sent, of the endpoint's type
}

func (c *call) from() string { return from(c.Request) }

var errBadRequest = errors.New("the request cannot be read")

// serve is the handler of an endpoint.
func (s *Server) serve(e endpoint) http.Handler {
	return s.guarded(e.role, func(w http.ResponseWriter, r *http.Request, who actor) {
		c := &call{Request: r, who: who}
		out, err := func() (any, error) {
			if e.in != nil {
				c.in = reflect.New(reflect.TypeOf(e.in)).Interface()
				if err := readJSON(r, c.in); err != nil {
					return nil, err
				}
			}
			return e.do(c)
		}()
		if e.action != "" {
			s.did(who, from(r), e.action, c.target(), err)
		}
		if err != nil {
			s.fail(w, r, statusOf(err), err)
			return
		}
		writeJSON(w, http.StatusOK, out)
	})
}

// target is what a call is about.
func (c *call) target() string {
	if in, ok := c.in.(interface{ Target() string }); ok {
		return in.Target()
	}
	return target(c.Request)
}

// target is what the path of a request is about.
func target(r *http.Request) string {
	for _, name := range []string{"grant", "worker", "id", "token", "envoy"} {
		if v := r.PathValue(name); v != "" {
			return v
		}
	}
	return ""
}

// readJSON reads a body strictly; none is the zero value.
func readJSON(r *http.Request, into any) error {
	if t := r.Header.Get("Content-Type"); !strings.HasPrefix(t, "application/json") {
		if r.ContentLength == 0 {
			return nil
		}
		return fmt.Errorf("%w: send it as application/json", errBadRequest)
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		var tooLarge *http.MaxBytesError
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &tooLarge):
			return err
		}
		// The decoder's own words may quote what was sent.
		return fmt.Errorf("%w: it is not the JSON object that %s/openapi.json describes", errBadRequest, api.Root)
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if v != nil {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(true)
		_ = e.Encode(v) // who asked may have left
	}
}

// fail says that something could not be done, in the way of whoever asked.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, status int, err error) {
	if status >= http.StatusInternalServerError {
		s.Log.Warn("the console could not do something", "method", r.Method, "path", r.URL.Path, "status", status, "err", err)
	}
	if isAPI(r) {
		writeJSON(w, status, problem(status, err))
		return
	}
	s.failPage(w, r, status, err)
}

// problem is a failure as programs get it.
func problem(status int, err error) api.Problem {
	p := api.Problem{Status: status, Error: err.Error()}
	if o, are := errors.AsType[*operate.Objections](err); are {
		p.Objections = o.All
	}
	return p
}
