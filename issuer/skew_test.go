package issuer_test

import (
	"errors"
	"testing"
	"time"

	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// TestRefreshFromAnIssuerAhead: a session goes on at an issuer whose clock is behind that of the one where it began, as far
// as two may differ; and one whose clock is found to be off refuses no token for its times.
func TestRefreshFromAnIssuerAhead(t *testing.T) {
	b := newBus()
	var ahead time.Duration
	var fault error
	first := start(t, b, func(_ *issuer.Config, p *issuer.Parts) {
		p.Now = func() time.Time { return time.Now().Add(ahead) }
	})
	second := newIssuer(t, b, func(_ *issuer.Config, p *issuer.Parts) { p.Sound = func() error { return fault } })
	second.steps(t)
	ahead = 30 * time.Second
	if _, err := second.Refresh(t.Context(), login(t, first).Refresh); err != nil {
		t.Errorf("refreshing what an issuer 30 s ahead has made: got %v, want a successor", err)
	}
	ahead = time.Hour
	token := login(t, first).Refresh
	if _, err := second.Refresh(t.Context(), token); keyring.ReasonOf(err) != keyring.NotYetValid {
		t.Errorf("refreshing what an issuer an hour ahead has made: got %v, want %s", err, keyring.NotYetValid)
	}
	fault = errors.New("this machine's clock is an hour behind the other issuers'")
	if _, err := second.Refresh(t.Context(), token); !errors.Is(err, issuer.ErrUnavailable) || !errors.Is(err, fault) {
		t.Errorf("the same where its own clock is known to be off: got %v, want %v", err, issuer.ErrUnavailable)
	}
}
