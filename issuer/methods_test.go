package issuer_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestWrongMethod: a public path that is there for another method is 405 with Allow, one that is not there 404.
func TestWrongMethod(t *testing.T) {
	h := start(t, newBus()).PublicHandler()
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"POST", "/.well-known/jwks.json", 405, "GET"},
		{"DELETE", "/healthz", 405, "GET"},
		{"PATCH", "/sessions", 405, "GET, DELETE"},
		{"GET", "/nothing", 404, ""},
		{"POST", "/nothing", 404, ""},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.path, http.NoBody))
		if w.Code != c.status || w.Header().Get("Allow") != c.allow {
			t.Errorf("%s %s: got %d, Allow %q, want %d, %q", c.method, c.path, w.Code, w.Header().Get("Allow"), c.status, c.allow)
		}
	}
}
