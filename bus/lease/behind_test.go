package lease_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/keyring"
)

// TestBehind: an issuer stops for good when the log lacks, at two looks, what it has signed; and for nothing that an agent can make
// up, for no log begun anew, and for no log that could not be read.
func TestBehind(t *testing.T) {
	authority, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	other, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	rolled := fmt.Errorf("%w: it ends before entry 7", bus.ErrRollback)
	always := func(err error) []error { return []error{err, err, err, err} }
	sign := func(a *keyring.Authority, context string) func([]byte) []byte {
		return func(body []byte) []byte { return a.Sign(append([]byte(context), body...)) }
	}
	const granted = "sidekey-lease-grant-1\x00"
	cases := map[string]struct {
		agent string // who shows the grant of web-1
		sign  func([]byte) []byte
		found []error
		looks int
		stops bool
	}{
		"the log ends before it":     {"web-1", sign(authority, granted), always(rolled), 2, true},
		"it is there":                {"web-1", sign(authority, granted), always(nil), 1, false},
		"the server was late":        {"web-1", sign(authority, granted), []error{rolled, nil}, 2, false},
		"begun anew":                 {"web-1", sign(authority, granted), always(bus.ErrEpoch), 1, false},
		"purged":                     {"web-1", sign(authority, granted), always(bus.ErrBehind), 1, false},
		"the bus is away":            {"web-1", sign(authority, granted), always(errors.New("disconnected")), 1, false},
		"of another authority":       {"web-1", sign(other, granted), always(rolled), 0, false},
		"signed for something else":  {"web-1", sign(authority, ""), always(rolled), 0, false},
		"not signed":                 {"web-1", func([]byte) []byte { return nil }, always(rolled), 0, false},
		"the grant of another agent": {"web-2", sign(authority, granted), always(rolled), 0, false},
	}
	for name, c := range cases {
		synctest.Test(t, func(t *testing.T) {
			looks, told := 0, 0
			b := &lease.Behind{
				Authority: authority.Public(), Logger: hclog.NewNullLogger(),
				Holds: func(_ context.Context, at bus.Cursor) error { looks++; return c.found[looks-1] },
				Found: func(agent string, err error) { told++ },
			}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { b.Run(ctx); close(done) }()
			body, err := json.Marshal(answers(request("web-1", "a"), newTape().upTo(7)))
			if err != nil {
				t.Fatal(err)
			}
			for range 100 { // one agent costs one look
				b.Hear(c.agent, body, c.sign(body))
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			stop()
			<-done
			if looks != c.looks || (b.Err() != nil) != c.stops || (told == 1) != c.stops {
				t.Errorf("%s: %d looks, told %d times, %v; want %d looks, stops: %v", name, looks, told, b.Err(), c.looks, c.stops)
			}
			if err := b.Err(); err != nil && (!errors.Is(err, bus.ErrRollback) || !strings.Contains(err.Error(), "entry 7 of epoch 1") || !strings.Contains(err.Error(), "sidekey bus begin-anew --yes")) {
				t.Errorf("%s: it says %v", name, err)
			}
		})
	}
}

// TestTestimonyHeard: a grant that is shown reaches Behind, if its agent has signed it as that, and acknowledges nothing.
func TestTestimonyHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority, err := keyring.NewAuthority()
		if err != nil {
			t.Fatal(err)
		}
		looks := 0
		behind := &lease.Behind{Authority: authority.Public(), Logger: hclog.NewNullLogger(), Holds: func(context.Context, bus.Cursor) error { looks++; return nil }}
		books := &lease.Bookkeeper{
			Ledger: lease.NewLedger(nil), Behind: behind, Logger: hclog.NewNullLogger(),
			Key: func(_ context.Context, agent string) (ed25519.PublicKey, error) {
				return agentKey(agent).Public().(ed25519.PublicKey), nil
			},
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { behind.Run(ctx); close(done) }()
		grant, err := json.Marshal(answers(request("web-1", "a"), newTape().upTo(7)))
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(map[string]any{"agent": "web-1", "run": "a", "grant": grant, "grant_signature": authority.Sign(append([]byte("sidekey-lease-grant-1\x00"), grant...))})
		if err != nil {
			t.Fatal(err)
		}
		for _, forged := range [][]byte{nil, ed25519.Sign(agentKey("web-1"), append([]byte("sidekey-ack-1\x00"), body...)), ed25519.Sign(agentKey("web-2"), append([]byte("sidekey-testimony-1\x00"), body...))} {
			books.Hear(bus.Spoken{Agent: "web-1", Body: body, Signature: forged})
		}
		synctest.Wait()
		if looks != 0 {
			t.Errorf("%d looks for what the agent did not sign", looks)
		}
		books.Hear(bus.Spoken{Agent: "web-1", Body: body, Signature: ed25519.Sign(agentKey("web-1"), append([]byte("sidekey-testimony-1\x00"), body...))})
		synctest.Wait()
		if looks != 1 {
			t.Errorf("%d looks for what the agent signed, want 1", looks)
		}
		stop()
		<-done
	})
}

// testimonies is a line that keeps what is shown on it.
type testimonies struct {
	*line
	shown []lease.Grant
}

// seen is what was shown so far.
func (l *testimonies) seen() (all []lease.Grant) {
	l.set(func() { all = slices.Clone(l.shown) })
	return all
}

func (l *testimonies) Acknowledge(agent string, body, signature []byte) error {
	var a struct {
		Seq            uint64
		Grant          []byte
		GrantSignature []byte `json:"grant_signature"`
	}
	if err := json.Unmarshal(body, &a); err != nil {
		l.t.Error(err)
	}
	if a.Grant == nil {
		return l.line.Acknowledge(agent, body, signature)
	}
	if !ed25519.Verify(agentKey(agent).Public().(ed25519.PublicKey), append([]byte("sidekey-testimony-1\x00"), body...), signature) || a.Seq != 0 {
		l.t.Error("the testimony is not signed as one, or could be an acknowledgement")
	}
	var g lease.Grant
	if err := json.Unmarshal(a.Grant, &g); err != nil || !l.authority.Public().Verify(append([]byte("sidekey-lease-grant-1\x00"), a.Grant...), a.GrantSignature) {
		l.t.Error("what is shown is no grant")
	}
	l.set(func() { l.shown = append(l.shown, g) })
	return nil
}

// TestTestify: an agent that sees a rollback shows the newest grant that was in force there, soon and then every few
// seconds, since an issuer that was started again knows nothing of it; not one of the log that contradicts it, and nothing while all is well or something else is wrong.
func TestTestify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &testimonies{line: newLine(t)}
		var stuck error
		r := lease.NewRenewer(lease.Renewer{
			Holder: l.holder(time.Minute), Agent: "web-1", Key: agentKey("web-1"), Authority: l.authority.Public(), Line: l, Applied: l, Clock: l.now,
			Logger: hclog.NewNullLogger(), Stuck: func() (err error) { l.set(func() { err = stuck }); return err },
		})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{}, 3)
		for _, loop := range []func(context.Context){r.Renew, r.Acknowledge, r.Testify} {
			go func() { loop(ctx); done <- struct{}{} }()
		}
		time.Sleep(time.Minute)
		l.apply()
		l.set(func() { stuck = bus.ErrForged })
		time.Sleep(time.Minute)
		if n := len(l.seen()); n > 0 {
			t.Errorf("%d grants shown while no rollback was seen", n)
		}
		// A grant of the log that was put back is taken, and never comes into force.
		l.set(func() { stuck, l.answer = nil, func(g *lease.Grant) { g.Seq, g.Chain[0] = g.Seq+1, 1 } })
		time.Sleep(time.Minute)
		l.set(func() { stuck = fmt.Errorf("after 2: %w", bus.ErrRollback) })
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		if len(l.seen()) != 1 || l.seen()[0].Seq != 1 || l.seen()[0].Chain != l.log.at(1).Chain {
			t.Errorf("1.5 s after a rollback: shown %+v, want the grant at entry 1", l.seen())
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		before := len(l.seen())
		if before < 120 || before > 165 {
			t.Errorf("shown %d times in 10 minutes, want it every 5 s", before)
		}
		for range 20 {
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if n := len(l.seen()); n == before {
				t.Error("not shown for 5 s: an issuer that was started again ticks on")
			} else {
				before = n
			}
		}
		stop()
		for range 3 {
			<-done
		}
	})
}
