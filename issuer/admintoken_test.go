package issuer_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/issuer"
)

// operator is where a host's operator reads the admin token.
type operator struct {
	token string
	err   error // the disk's
}

func (o *operator) publish(token string) error {
	if o.err == nil {
		o.token = token
	}
	return o.err
}

func openToken(t *testing.T, b *testBus, o *operator) *issuer.AdminToken {
	t.Helper()
	token, err := issuer.OpenAdminToken(t.Context(), &b.key, o.publish, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestAdminTokenRotates: the one before is refused at once here, and within two seconds by another issuer, which then has the
// new one where its operator reads it; no answer shows it.
func TestAdminTokenRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		var here, there operator
		one, two := openToken(t, b, &here), openToken(t, b, &there)
		before := here.token
		if len(before) != 43 || there.token != before || !one.Is(before) || !two.Is(before) || one.Is("") || one.Is(before+"x") {
			t.Fatalf("two issuers begin with %q and %q, want one token that lets in", before, there.token)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { two.Follow(ctx); close(done) }()
		ti := start(t, b, func(_ *issuer.Config, p *issuer.Parts) { p.AdminToken = one })
		h := ti.AdminHandler(one.Is)
		w := ask(h, "POST", "/admin/v1/admin-token/rotate", "", "Authorization", "Bearer "+before)
		if w.Code != 204 || w.Body.Len() != 0 {
			t.Fatalf("rotating: got %d %s, want 204 and nothing else", w.Code, w.Body)
		}
		for token, want := range map[string]int{before: 401, here.token: 200} {
			if w := ask(h, "GET", "/admin/v1/keys", "", "Authorization", "Bearer "+token); w.Code != want {
				t.Errorf("with %q afterwards: got %d, want %d", token, w.Code, want)
			}
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if two.Is(before) || !two.Is(here.token) || there.token != here.token {
			t.Errorf("two seconds later the other issuer still takes %q, or has %q and not %q", before, there.token, here.token)
		}
		stop()
		<-done
	})
}

// TestAdminTokenIsWrittenLater: the token that a full disk kept out of its file is written when there is room.
func TestAdminTokenIsWrittenLater(t *testing.T) {
	b, full := newBus(), errors.New("no space left on device")
	var o operator
	token := openToken(t, b, &o)
	before := o.token
	o.err = full
	if err := token.Rotate(t.Context()); !errors.Is(err, full) {
		t.Errorf("rotating on a full disk: got %v, want %v", err, full)
	}
	if token.Is(before) {
		t.Error("the one before still lets in")
	}
	o.err = nil
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
		defer stop()
		token.Follow(ctx)
	})
	if o.token == before || !token.Is(o.token) {
		t.Errorf("after there was room: %q is in the file, which lets nobody in", o.token)
	}
}

// TestAdminTokenCannotBeRotated where nobody gave one, and not where the bus is away.
func TestAdminTokenCannotBeRotated(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	if w := ask(ti.LocalAdminHandler(), "POST", "/admin/v1/admin-token/rotate", ""); w.Code != 409 {
		t.Errorf("an issuer without one: got %d %s, want 409", w.Code, w.Body)
	}
	var o operator
	token := openToken(t, b, &o)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.key.Fail(bustest.Failure{Err: errors.New("nats: timeout")})
	if err := token.Rotate(ctx); !errors.Is(err, issuer.ErrUnavailable) || !token.Is(o.token) {
		t.Errorf("with the bus away: got %v, want %v and the token that stood", err, issuer.ErrUnavailable)
	}
}
