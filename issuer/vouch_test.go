package issuer_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// leased gives an issuer a lease and a clock that a test moves.
type leased struct {
	mu   sync.Mutex
	held *lease.Lease
	now  lease.Reading
}

func (l *leased) setup(_ *issuer.Config, p *issuer.Parts) {
	p.Lease = func() *lease.Lease { l.mu.Lock(); defer l.mu.Unlock(); return l.held }
	p.Clock = func() lease.Reading { l.mu.Lock(); defer l.mu.Unlock(); return l.now }
}

func (l *leased) set(held *lease.Lease, now lease.Reading) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held, l.now = held, now
}

// slowSessions calls during at each Get, before it answers.
type slowSessions struct {
	issuer.Bucket
	during func()
}

func (s *slowSessions) Get(ctx context.Context, name string) (bus.Record, error) {
	s.during()
	return s.Bucket.Get(ctx, name)
}

// TestCheckUnderALease holds PROTOCOL 2 and 12 for an issuer: what it says of a token, good or bad,
// it says under a lease taken first and alive at the end, by whichever clock is worst.
func TestCheckUnderALease(t *testing.T) {
	five := &lease.Lease{Length: 5 * time.Second, Mode: lease.Refuse}
	l := &leased{held: five}
	slow := &slowSessions{during: func() {}}
	ti := start(t, newBus(), l.setup, func(_ *issuer.Config, p *issuer.Parts) { slow.Bucket = p.Sessions; p.Sessions = slow })
	tokens := login(t, ti)
	at := func(d time.Duration) lease.Reading { return lease.Reading{Mono: d, Boot: d, Wall: d} }
	for name, tc := range map[string]struct {
		held   *lease.Lease
		now    lease.Reading
		during func()
		ok     bool
	}{
		"in time":                       {five, at(5*time.Second - 1), nil, true},
		"at its end":                    {five, at(5 * time.Second), nil, false},
		"none":                          {nil, at(0), nil, false},
		"suspended":                     {five, lease.Reading{Boot: time.Minute}, nil, false},
		"wall clock forward":            {five, lease.Reading{Wall: time.Hour}, nil, false},
		"ended while it looked":         {five, at(0), func() { l.set(five, at(5*time.Second)) }, false},
		"renewed while it looked":       {five, at(0), func() { l.set(&lease.Lease{Begin: at(5 * time.Second), Length: 5 * time.Second}, at(6*time.Second)) }, false},
		"had none, and got one halfway": {nil, at(0), func() { l.set(five, at(0)) }, false},
	} {
		slow.during = func() {}
		if tc.during != nil {
			slow.during = tc.during
		}
		for what, token := range map[string]string{"refresh token": tokens.Refresh, "access token": tokens.Access, "nonsense": "nonsense"} {
			if tc.during != nil && what != "refresh token" {
				continue // the others read no session
			}
			l.set(tc.held, tc.now)
			err := ti.Check(t.Context(), token)
			switch {
			case !tc.ok && !errors.Is(err, issuer.ErrUnavailable):
				t.Errorf("Check(%s), %s: got %v, want ErrUnavailable", what, name, err)
			case tc.ok && what == "nonsense":
				refused(t, "Check(nonsense)", err, keyring.Malformed)
			case tc.ok && err != nil:
				t.Errorf("Check(%s), %s: got %v, want nil", what, name, err)
			}
		}
	}
}

// TestCheckOvertaken: a revocation that this issuer applied while it looked at a token counts, for the
// receipt counts this issuer among those who know.
func TestCheckOvertaken(t *testing.T) {
	slow := &slowSessions{during: func() {}}
	ti := start(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { slow.Bucket = p.Sessions; p.Sessions = slow })
	tokens := login(t, ti)
	looks := 0
	slow.during = func() {
		if looks++; looks > 1 {
			return
		}
		// The look has begun: the client's cutoff comes after it, and closes no record.
		if _, err := ti.Revoke(t.Context(), issuer.Target{ClientID: "sidekey"}); err != nil {
			t.Error(err)
		}
	}
	refused(t, "Check", ti.Check(t.Context(), tokens.Refresh), keyring.Revoked)
}
