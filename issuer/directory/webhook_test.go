package directory_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus/trace"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/issuer/directory"
)

// service answers as the test wants, and notes what it was sent.
type service struct {
	status int
	kind   string
	body   string
	header http.Header
	asked  map[string]string
	calls  int
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.calls++
	s.header, s.asked = r.Header.Clone(), nil
	if r.Method != http.MethodPost || json.NewDecoder(r.Body).Decode(&s.asked) != nil {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	w.Header().Set("Content-Type", s.kind)
	if s.status == http.StatusFound {
		w.Header().Set("Location", "/elsewhere")
	}
	w.WriteHeader(s.status)
	fmt.Fprint(w, s.body)
}

const annaAnswer = `{"id": "7", "username": "anna", "scope": "read", "roles": ["staff"], "email": "a@b", "attributes": {"team": "red"}, "marker": "m1"}`

func serve(t *testing.T) (*service, *directory.Webhook) {
	t.Helper()
	s := &service{status: 200, kind: "application/json; charset=utf-8", body: annaAnswer}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	w, err := directory.NewWebhook(directory.WebhookConfig{URL: server.URL + "/login", Secret: "hook secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return s, w
}

var typed = issuer.Credentials{Username: "anna", Password: "hunter2", Address: "192.0.2.1"}

func TestWebhook(t *testing.T) {
	s, w := serve(t)
	a, err := w.Prove(t.Context(), typed)
	if err != nil {
		t.Fatal(err)
	}
	if a.ID != "7" || a.Username != "anna" || a.Scope != "read" || fmt.Sprint(a.Roles) != "[staff]" || a.Email != "a@b" || a.Marker != "m1" || a.Disabled || string(a.Attributes) != `{"team": "red"}` {
		t.Errorf("got %+v", a)
	}
	if fmt.Sprint(s.asked) != "map[address:192.0.2.1 password:hunter2 username:anna]" || s.header.Get("Authorization") != "Bearer hook secret" || s.header.Get("Content-Type") != "application/json" {
		t.Errorf("the service was sent %v %v", s.header, s.asked)
	}
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	if _, err = w.Prove(trace.With(t.Context(), trace.Parse(parent)), typed); err != nil || s.header.Get("Traceparent") != parent {
		t.Errorf("of a trace: got %v, and the service was sent %q", err, s.header.Get("Traceparent"))
	}
	if a, err = w.ByID(t.Context(), "7"); err != nil || a.ID != "7" || s.header["Traceparent"] != nil || fmt.Sprint(s.asked) != "map[id:7]" {
		t.Errorf("ByID: got %+v, %v; the service was sent %v", a, err, s.asked)
	}
	s.body = `{"id": "7", "username": "anna", "disabled": true}`
	if a, err = w.ByID(t.Context(), "7"); err != nil || !a.Disabled || a.Scope != "" {
		t.Errorf("disabled: got %+v, %v", a, err)
	}
}

// TestWebhookAnswers holds what each answer means at a login and at a refresh.
func TestWebhookAnswers(t *testing.T) {
	const refused, absent, broken, away = "refused", "absent", "broken", "away"
	kindOf := func(err error) string {
		var record *issuer.RecordError
		switch {
		case err == nil:
			return "ok"
		case errors.Is(err, issuer.ErrCredentials):
			return refused
		case errors.Is(err, issuer.ErrNotFound):
			return absent
		case errors.As(err, &record):
			return broken
		}
		return away
	}
	const js = "application/json"
	for _, test := range []struct {
		status      int
		kind, body  string
		login, byID string
	}{
		{200, js, annaAnswer, "ok", "ok"},
		{401, js, `{}`, refused, away}, {403, "text/plain", "no", refused, away}, {404, js, ``, refused, absent},
		{500, js, annaAnswer, away, away}, {302, js, annaAnswer, away, away}, {201, js, annaAnswer, away, away}, {204, js, "", away, away}, {429, js, "", away, away},
		{200, "text/html", annaAnswer, away, away}, {200, "", annaAnswer, away, away},
		{200, js, `{"id": "8", "username": "anna"}`, "ok", broken},
		{200, js, ``, broken, broken}, {200, js, `[]`, broken, broken}, {200, js, `null`, broken, broken}, {200, js, annaAnswer + annaAnswer, broken, broken},
		{200, js, `{"id": 7, "username": "anna"}`, broken, broken}, {200, js, `{"id": "7"}`, broken, broken}, {200, js, `{"username": "anna"}`, broken, broken},
		{200, js, `{"id": "7", "id": "1", "username": "anna"}`, broken, broken}, {200, js, `{"id": "7", "username": "anna", "Disabled": true}`, broken, broken},
		{200, js, `{"id": "7", "username": "anna", "is_active": false}`, broken, broken}, {200, js, `{"id": "7", "username": "anna", "roles": "staff"}`, broken, broken},
		{200, js, `{"id": "7", "username": "anna", "email": "` + strings.Repeat("x", 70000) + `"}`, away, away},
	} {
		s, w := serve(t)
		s.status, s.kind, s.body = test.status, test.kind, test.body
		_, err := w.Prove(t.Context(), typed)
		_, byID := w.ByID(t.Context(), "7")
		if kindOf(err) != test.login || kindOf(byID) != test.byID {
			t.Errorf("%d %s %.60s: a login is %s (%v), a refresh %s (%v), want %s and %s", test.status, test.kind, test.body, kindOf(err), err, kindOf(byID), byID, test.login, test.byID)
		}
		for _, e := range []error{err, byID} {
			if e != nil && (strings.Contains(e.Error(), "hunter2") || strings.Contains(e.Error(), "hook secret")) {
				t.Errorf("an error shows a secret: %v", e)
			}
		}
		if s.calls != 2 {
			t.Errorf("%d: the service was asked %d times, want 2: no redirect is followed, nothing is tried again", test.status, s.calls)
		}
	}
}

func TestWebhookBounds(t *testing.T) {
	block := make(chan struct{})
	asked := make(chan struct{}, 9)
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- struct{}{}; <-block }))
	defer server.Close()
	defer close(block)
	w, err := directory.NewWebhook(directory.WebhookConfig{URL: server.URL, Timeout: 300 * time.Millisecond, MaxRequests: 1})
	if err != nil {
		t.Fatal(err)
	}
	first := make(chan error, 1)
	go func() { _, err := w.Prove(t.Context(), typed); first <- err }()
	<-asked
	// Whoever waits for the one place longer than an answer may take is sent away, or gets it as the first gives up.
	if _, err := w.Prove(t.Context(), typed); err == nil {
		t.Error("a service that does not answer: no error")
	}
	if err := <-first; err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a service that does not answer: got %v", err)
	}
	if _, err := w.ByID(t.Context(), "7"); errors.Is(err, issuer.ErrNotFound) || err == nil {
		t.Errorf("a service that does not answer: got %v", err)
	}
}

func TestWebhookSocketAndTLS(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hook.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &service{status: 200, kind: "application/json", body: annaAnswer}
	server := &httptest.Server{Listener: ln, Config: &http.Server{Handler: s}}
	server.Start()
	defer server.Close()
	w, err := directory.NewWebhook(directory.WebhookConfig{URL: "unix:" + path})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Prove(t.Context(), typed); err != nil || s.header.Get("Authorization") != "" {
		t.Errorf("over a socket: %v, %v", err, s.header)
	}
	secure := httptest.NewTLSServer(s) // of a CA that nobody knows
	defer secure.Close()
	if w, err = directory.NewWebhook(directory.WebhookConfig{URL: secure.URL}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Prove(t.Context(), typed); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown CA: got %v", err)
	}
}

func TestWebhookURL(t *testing.T) {
	for text, ok := range map[string]bool{
		"https://users.example/login": true, "http://127.0.0.1:1/x": true, "http://[::1]:1": true, "http://localhost": true, "unix:/run/x": true,
		"": false, "users.example": false, "http://users.example": false, "http://10.0.0.5": false, "ftp://h": false, "unix:x": false,
		"https://u:hunter2@h": false, "https://h/?key=hunter2": false, "https://h/#x": false, "http://127.0.0.1.example": false,
	} {
		err := directory.CheckWebhookURL(text, false)
		if (err == nil) != ok || err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("CheckWebhookURL(%q): got %v, want ok: %v", text, err, ok)
		}
	}
	if err := directory.CheckWebhookURL("http://users.example", true); err != nil {
		t.Errorf("insecure: %v", err)
	}
}
