package console

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"net/http"
	"path"
	"strings"
	"sync"

	"wayleave/api"
)

//go:embed static
var static embed.FS

// routes is everything there is. What it does not guard needs no log-in.
func (s *Server) routes() (http.Handler, error) {
	mux := doors{http.NewServeMux(), map[string]Role{}}
	s.doors = mux
	for _, e := range s.endpoints() {
		mux.Handle(e.method+" "+api.Root+e.path, s.serve(e))
	}
	document := sync.OnceValues(s.openAPI) // few ask for it, and it takes longer to make than all the pages
	mux.HandleFunc("GET "+api.Root+"/openapi.json", func(w http.ResponseWriter, r *http.Request) {
		document, err := document()
		if err != nil {
			s.fail(w, r, http.StatusInternalServerError, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(document)
	})
	mux.Handle("GET "+api.Root+"/events", s.guarded(Viewer, s.events))
	mux.Handle("GET /events", s.guarded(Viewer, s.events))
	mux.HandleFunc(api.Root+"/", func(w http.ResponseWriter, r *http.Request) {
		if takes := methods(mux.ServeMux, r); len(takes) > 0 {
			w.Header().Set("Allow", strings.Join(takes, ", "))
			s.fail(w, r, http.StatusMethodNotAllowed, fmt.Errorf("%s takes %s, and not %.20q", r.URL.Path, strings.Join(takes, " and "), r.Method))
			return
		}
		s.fail(w, r, http.StatusNotFound, errNoPage)
	})
	if err := s.pages(mux); err != nil {
		return nil, err
	}
	if err := serveStatic(mux); err != nil {
		return nil, err
	}
	return s.protected(mux), nil
}

// methods are those that there is something for at the address of a request.
func methods(mux *http.ServeMux, r *http.Request) (takes []string) {
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
		if _, pattern := mux.Handler(&http.Request{Method: method, Host: r.Host, URL: r.URL}); strings.HasPrefix(pattern, method+" ") {
			takes = append(takes, method)
		}
	}
	return takes
}

// serveStatic serves what pages are made of, which has no secrets. The names in pages change with the content, so browsers keep
// it.
func serveStatic(mux doors) error {
	files, err := static.ReadDir("static")
	if err != nil {
		return err
	}
	types := map[string]string{".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
	for _, f := range files {
		kind, served := types[path.Ext(f.Name())]
		if !served {
			continue
		}
		data, err := static.ReadFile("static/" + f.Name())
		if err != nil {
			return err
		}
		var small bytes.Buffer
		z, err := gzip.NewWriterLevel(&small, gzip.BestCompression)
		if err != nil {
			return err
		}
		if _, err := z.Write(data); err != nil {
			return err
		}
		if err := z.Close(); err != nil {
			return err
		}
		mux.HandleFunc("GET /static/"+f.Name(), func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Content-Type", kind)
			h.Set("Cache-Control", "public, max-age=31536000, immutable")
			h.Set("Vary", "Accept-Encoding")
			if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
				h.Set("Content-Encoding", "gzip")
				_, _ = w.Write(small.Bytes())
				return
			}
			_, _ = w.Write(data)
		})
	}
	return nil
}

// asset is the address of a static file: with a version, so that a new release is not shown with the old one's style.
func asset(name string) string {
	data, err := static.ReadFile("static/" + name)
	if err != nil {
		panic("console: no static file " + name) // a fault of a template
	}
	return "/static/" + name + "?" + digest(string(data))[:12]
}
