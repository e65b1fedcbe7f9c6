package issuer_test

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/issuer"
)

// TestAuthTokenEndpoint: POST /api-token-auth/ is obtain_auth_token, within the limits of a login and in the audit; the comparison
// with the real one is in cmd/sidekey/e2e.
func TestAuthTokenEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) {
			c.APITokenAuth, c.APITokenLifetime, c.LoginLimit = true, time.Hour, 4
		})
		h := ti.PublicHandler()
		right := `{"username":"alice","password":"wonderland"}`
		w := ask(h, "POST", "/api-token-auth/", right)
		var got struct{ Token string }
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 || w.Header().Get("Cache-Control") != "no-store" {
			t.Fatalf("right: got %d %s %v, want 200 and a token", w.Code, w.Body, w.Header())
		}
		synctest.Wait()
		accepts(t, ti, "the token", got.Token, true)
		const refusal = `{"non_field_errors":["Unable to log in with provided credentials."]}`
		for _, tc := range []struct {
			name, body string
			status     int
			want       string
		}{
			{"wrong", `{"username":"alice","password":"x"}`, 400, refusal},
			{"blanks around the password", `{"username":"alice","password":" wonderland "}`, 400, refusal},
			{"unknown", `{"username":"nobody","password":"x"}`, 400, refusal},
			{"nothing", `{}`, 400, `{"username":["This field is required."],"password":["This field is required."]}`},
			{"blanks around the name", `{"username":" alice ","password":"x"}`, 400, refusal},
			{"too often", right, 429, `{"detail":"Request was throttled. Expected available in 16 seconds."}`},
		} {
			w := ask(h, "POST", "/api-token-auth", tc.body)
			if w.Code != tc.status || w.Body.String() != tc.want || w.Header().Get("WWW-Authenticate") != "" {
				t.Errorf("%s: got %d %s %v, want %d %s and no challenge", tc.name, w.Code, w.Body, w.Header(), tc.status, tc.want)
			}
		}
		time.Sleep(time.Hour)
		accepts(t, ti, "the token after its life", got.Token, false)
	})
}

func TestAuthTokenIsOff(t *testing.T) {
	ti := start(t, newBus())
	if w := ask(ti.PublicHandler(), "POST", "/api-token-auth/", `{"username":"alice","password":"wonderland"}`); w.Code != 404 || strings.Contains(w.Body.String(), "token\"") {
		t.Errorf("got %d %s, want 404", w.Code, w.Body)
	}
}
