package e2e

import (
	"encoding/json"
	"testing"
)

// TestPyJWT: PyJWT's PyJWKClient, unmodified, verifies our tokens from our JWK Set.
func TestPyJWT(t *testing.T) {
	needPython(t, "jwt")
	c := dev(t, "", "")
	access, _ := c.login()
	var claims struct {
		Scope    string
		ClientID string `json:"client_id"`
	}
	if err := json.Unmarshal([]byte(runPython(t, "pyjwt.py", c.Issuer, access)), &claims); err != nil {
		t.Fatal(err)
	}
	if claims.Scope != "read write" || claims.ClientID != "sidekey" {
		t.Errorf("PyJWT read %+v", claims)
	}
}
