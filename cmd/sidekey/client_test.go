package main

import (
	"strings"
	"testing"
)

// TestClientInClear: what holds a password or a token leaves this host in clear only where that is asked for.
func TestClientInClear(t *testing.T) {
	for addr, clear := range map[string]bool{
		"http://127.0.0.1:7460":   false,
		"http://[::1]:7460":       false,
		"http://localhost:7460":   false,
		"https://id.example":      false,
		"unix:/run/sidekey/admin": false,
		"http://10.0.0.5:7460":    true,
		"http://id.example":       true,
		"http://127.0.0.1.nip.io": true,
		"HTTP://id.example":       true,
	} {
		_, err := newClient("the issuer", "", addr, false)
		if refused := err != nil && strings.Contains(err.Error(), "in clear: passwords and tokens"); refused != clear {
			t.Errorf("%s: got %v, want it refused: %v", addr, err, clear)
		}
		if _, err := newClient("the issuer", "", addr, true); err != nil {
			t.Errorf("%s with insecure = true: %v", addr, err)
		}
	}
}
