package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// oauthToken is what a client gets at the token endpoint for a form of names and values.
func oauthToken(t *testing.T, h http.Handler, id, secret string, pairs ...string) string {
	t.Helper()
	form := make(url.Values)
	for at := 0; at < len(pairs); at += 2 {
		form.Set(pairs[at], pairs[at+1])
	}
	r := httptest.NewRequest(http.MethodPost, "/oauth2/token", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(id, secret)
	got := httptest.NewRecorder()
	h.ServeHTTP(got, r)
	var answer struct {
		Access string `json:"access_token"`
	}
	if err := json.Unmarshal(got.Body.Bytes(), &answer); err != nil || answer.Access == "" {
		t.Fatalf("POST /oauth2/token as %s: got %d %s", id, got.Code, got.Body)
	}
	return answer.Access
}
