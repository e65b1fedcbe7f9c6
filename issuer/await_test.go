package issuer_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
)

// ledgerFleet is a fleet whose receipts are a real ledger's, which reads the log by itself.
type ledgerFleet struct {
	*bustest.Fleet
	ledger *lease.Ledger
	log    *bustest.Log

	mu     sync.Mutex
	grants map[uint64][]lease.Request // by the tick that answers them
	stuck  bool                       // the grants cannot be read
	chains map[uint64]bus.Cursor
}

// newLedgerFleet makes one whose clocks are the test's, and lets it read the log until the test ends.
// grants are those that another process of the same issuer knew.
func newLedgerFleet(t testing.TB, b *testBus, grants map[uint64][]lease.Request) *ledgerFleet {
	t.Helper()
	began := time.Now()
	if grants == nil {
		grants = make(map[uint64][]lease.Request)
	}
	f := &ledgerFleet{Fleet: b.fleet, log: b.log, grants: grants, chains: make(map[uint64]bus.Cursor)}
	clock := func() lease.Reading { d := time.Since(began); return lease.Reading{Mono: d, Boot: d, Wall: d} }
	f.ledger = lease.NewLedger(clock)
	follow(t, replica.New(replica.Config{Journal: func(entries []bus.Entry) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, en := range entries {
			f.chains[en.Seq] = en.Cursor()
			if !f.stuck {
				f.ledger.Read(en, f.grants[en.Seq], clock(), 5*time.Second)
			}
		}
		return nil
	}}), b.log)
	return f
}

func (f *ledgerFleet) Receipt(ctx context.Context, pos bus.Position) (*lease.Receipt, error) {
	if err := f.ledger.Await(ctx, pos); err != nil {
		return nil, err
	}
	return f.ledger.Receipt(pos, "issuer-1"), nil
}

func (f *ledgerFleet) Changed() <-chan struct{} { return f.ledger.Changed() }

// grant appends a tick of another issuer, which answers a request.
func (f *ledgerFleet) grant(t testing.TB, agent, run string, length time.Duration, mode lease.Mode) {
	t.Helper()
	next := f.head() + 1
	f.mu.Lock()
	f.grants[next] = append(f.grants[next], lease.Request{Agent: agent, Run: run, Length: length.Milliseconds(), Mode: mode})
	f.mu.Unlock()
	pos, err := f.log.Append(t.Context(), &bus.Tick{Time: time.Now().UnixMilli(), Issuer: "issuer-2", Chain: make([]byte, 32)})
	if err != nil || pos.Seq != next {
		t.Fatalf("tick: got %v, %v, want it at %d", pos, err, next)
	}
	if err := f.ledger.Await(t.Context(), pos); err != nil {
		t.Fatal(err)
	}
}

// head is the newest sequence that was read.
func (f *ledgerFleet) head() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return uint64(len(f.chains))
}

// ack acknowledges all that is in the log now.
func (f *ledgerFleet) ack(agent, run string) {
	head := f.head()
	f.mu.Lock()
	at := f.chains[head]
	f.mu.Unlock()
	f.ledger.Acknowledge(lease.Ack{Agent: agent, Run: run, At: at.Position, Chain: at.Chain})
}

// as makes an issuer's fleet of it.
func (f *ledgerFleet) as(_ *issuer.Config, p *issuer.Parts) { p.Fleet = f }

// shown is a receipt as "applied | fenced | pending | serving".
func shown(r *issuer.Receipt) string {
	return fmt.Sprint(r.Applied, " | ", r.Fenced, " | ", r.Pending, " | ", r.Serving)
}

// within holds that a wait lasted so long, and no more than a few looks longer.
func within(t testing.TB, what string, got, want time.Duration) {
	t.Helper()
	if got < want || got > want+5*time.Millisecond {
		t.Errorf("%s: it took %s, want %s", what, got, want)
	}
}

// TestAwait holds when a wait ends and what it says then: by an acknowledgement, by the fence to the
// millisecond, or by its own timeout.
func TestAwait(t *testing.T) {
	type story struct {
		grants  func(*ledgerFleet, testing.TB)
		during  func(*ledgerFleet, testing.TB) // in the background, from the revocation on
		timeout time.Duration
		took    time.Duration
		want    string
		done    bool
		next    time.Duration
	}
	ten := 10 * time.Second
	for name, s := range map[string]story{
		"nobody holds a lease": {
			timeout: ten, want: "[] | [] | [] | []", done: true,
		},
		"acknowledged": {
			grants:  func(f *ledgerFleet, t testing.TB) { f.grant(t, "web-1", "a", ten, lease.Refuse) },
			during:  func(f *ledgerFleet, t testing.TB) { time.Sleep(time.Second); f.ack("web-1", "a") },
			timeout: ten, took: time.Second, want: "[web-1] | [] | [] | []", done: true,
		},
		"fenced at the lease's end and the drift of clocks": {
			grants:  func(f *ledgerFleet, t testing.TB) { f.grant(t, "web-1", "a", ten, lease.Refuse) },
			timeout: 40 * time.Second, took: 10100 * time.Millisecond, want: "[] | [web-1] | [] | []", done: true,
		},
		"the timeout comes a moment before the fence": {
			grants:  func(f *ledgerFleet, t testing.TB) { f.grant(t, "web-1", "a", ten, lease.Refuse) },
			timeout: 10090 * time.Millisecond, took: 10090 * time.Millisecond, want: "[] | [] | [web-1] | []", next: 10 * time.Millisecond,
		},
		"a lease granted behind the entry matters to nobody": {
			grants:  func(f *ledgerFleet, t testing.TB) { f.grant(t, "web-2", "b", ten, lease.Refuse) },
			during:  func(f *ledgerFleet, t testing.TB) { f.grant(t, "web-1", "a", time.Hour, lease.Refuse) },
			timeout: 40 * time.Second, took: 10100 * time.Millisecond, want: "[] | [web-2] | [] | []", done: true,
		},
		"one that serves is never fenced": {
			grants:  func(f *ledgerFleet, t testing.TB) { f.grant(t, "web-1", "a", time.Second, lease.Serve) },
			timeout: 40 * time.Second, took: 40 * time.Second, want: "[] | [] | [web-1] | [web-1]",
		},
		"one that serves acknowledges": {
			grants:  func(f *ledgerFleet, t testing.TB) { f.grant(t, "web-1", "a", time.Second, lease.Serve) },
			during:  func(f *ledgerFleet, t testing.TB) { time.Sleep(30 * time.Second); f.ack("web-1", "a") },
			timeout: 40 * time.Second, took: 30 * time.Second, want: "[web-1] | [] | [] | []", done: true,
		},
		"two runs under one name, one of them cut off": {
			grants: func(f *ledgerFleet, t testing.TB) {
				f.grant(t, "web-1", "a", ten, lease.Refuse)
				f.grant(t, "web-1", "b", ten, lease.Refuse)
			},
			during:  func(f *ledgerFleet, t testing.TB) { f.ack("web-1", "a") },
			timeout: 5 * time.Second, took: 5 * time.Second, want: "[] | [] | [web-1] | []", next: 5100 * time.Millisecond,
		},
		"each in its own time": {
			grants: func(f *ledgerFleet, t testing.TB) {
				f.grant(t, "web-1", "a", time.Hour, lease.Refuse)
				f.grant(t, "web-2", "b", ten, lease.Refuse)
				f.grant(t, "web-3", "c", time.Hour, lease.Serve)
			},
			during: func(f *ledgerFleet, t testing.TB) {
				f.ack("web-1", "a")
				time.Sleep(20 * time.Second)
				f.ack("web-3", "c")
			},
			timeout: 50 * time.Second, took: 20 * time.Second, want: "[web-1 web-3] | [web-2] | [] | []", done: true,
		},
		"not waited for": {
			grants: func(f *ledgerFleet, t testing.TB) { f.grant(t, "web-1", "a", ten, lease.Refuse) },
			want:   "[] | [] | [web-1] | []", next: 10100 * time.Millisecond,
		},
		"the leases cannot be read": {
			grants: func(f *ledgerFleet, t testing.TB) {
				f.grant(t, "web-1", "a", ten, lease.Refuse)
				f.mu.Lock()
				f.stuck = true
				f.mu.Unlock()
			},
			timeout: ten, took: 11 * time.Second, want: "[] | [] | [] | []",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBus()
				f := newLedgerFleet(t, b, nil)
				ti := newIssuer(t, b, f.as)
				if s.grants != nil {
					s.grants(f, t)
				}
				var wg sync.WaitGroup
				defer wg.Wait()
				if before := f.head(); s.during != nil {
					wg.Go(func() {
						for f.head() == before {
							time.Sleep(time.Microsecond)
						}
						s.during(f, t)
					})
				}
				r, err := ti.RevokeAndAwait(t.Context(), issuer.Target{ID: "x"}, s.timeout)
				if err != nil {
					t.Fatal(err)
				}
				within(t, "RevokeAndAwait", r.Elapsed, s.took)
				if got := shown(r); got != s.want || r.Confirmed != s.done {
					t.Errorf("receipt: got %s, confirmed %v, want %s, %v", got, r.Confirmed, s.want, s.done)
				}
				if next := time.Duration(r.NextMS) * time.Millisecond; next > s.next || next < s.next-5*time.Millisecond {
					t.Errorf("next_ms: got %s, want %s", next, s.next)
				}
			})
		})
	}
}

// TestAwaitARemovedAgent: striking an agent off ends no lease.
func TestAwaitARemovedAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		f := newLedgerFleet(t, b, nil)
		ti := newIssuer(t, b, f.as)
		b.fleet.Join("web-1", nil)
		f.grant(t, "web-1", "a", 10*time.Second, lease.Refuse)
		if err := ti.RemoveAgent(t.Context(), "web-1"); err != nil {
			t.Fatal(err)
		}
		r, err := ti.RevokeAndAwait(t.Context(), issuer.Target{ID: "x"}, 5*time.Second)
		if err != nil || r.Confirmed || !slices.Equal(r.Pending, []string{"web-1"}) {
			t.Fatalf("receipt: got %+v, %v, want web-1 pending", r, err)
		}
		r, err = ti.Await(t.Context(), r.Position, 40*time.Second)
		if err != nil || !r.Confirmed || !slices.Equal(r.Fenced, []string{"web-1"}) {
			t.Fatalf("receipt: got %+v, %v, want web-1 fenced", r, err)
		}
		within(t, "Await", r.Elapsed, 5100*time.Millisecond)
	})
}

// TestReceiptOverAnIssuersRestart: the next process knows the leases by the log, and counts their
// fences from when it has read them itself (PROTOCOL 5).
func TestReceiptOverAnIssuersRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		f := newLedgerFleet(t, b, nil)
		ti := newIssuer(t, b, f.as)
		f.grant(t, "web-1", "a", 10*time.Second, lease.Refuse)
		f.grant(t, "web-2", "b", 10*time.Second, lease.Refuse)
		r, err := ti.Revoke(t.Context(), issuer.Target{ID: "x"})
		if err != nil || r.Confirmed {
			t.Fatalf("receipt: got %+v, %v, want both pending", r, err)
		}
		time.Sleep(9 * time.Second)
		again := newLedgerFleet(t, b, f.grants)
		next := newIssuer(t, b, again.as)
		h := next.LocalAdminHandler()
		path := fmt.Sprintf("/admin/v1/revocations/%d", r.Seq)
		holds := func(when, want string) {
			t.Helper()
			w := ask(h, "GET", path, "")
			var got issuer.Receipt
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
				t.Fatalf("GET %s: got %d %s (%v)", path, w.Code, w.Body, err)
			}
			if shown(&got) != want {
				t.Errorf("GET %s, %s: got %s, want %s", path, when, shown(&got), want)
			}
		}
		holds("after the restart", "[] | [] | [web-1 web-2] | []")
		again.ack("web-1", "a")
		holds("once web-1 has acknowledged anew", "[web-1] | [] | [web-2] | []")
		time.Sleep(10 * time.Second) // the old process would have fenced web-2 long since
		holds("10 s after the restart", "[web-1] | [] | [web-2] | []")
		time.Sleep(100 * time.Millisecond)
		holds("at the fence", "[web-1] | [web-2] | [] | []")
	})
}

// TestAwaitEndsWithItsContext: a caller who has gone is not waited for.
func TestAwaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		f := newLedgerFleet(t, b, nil)
		ti := newIssuer(t, b, f.as)
		f.grant(t, "web-1", "a", 10*time.Second, lease.Refuse)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if r, err := ti.RevokeAndAwait(ctx, issuer.Target{ID: "x"}, 5*time.Second); err == nil {
			t.Errorf("got %+v, want its context's error", r)
		}
		within(t, "RevokeAndAwait", time.Since(began), time.Second)
	})
}
