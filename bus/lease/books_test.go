package lease_test

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// lists is a grants stream.
type lists struct {
	mu    sync.Mutex
	lists [][]byte
	err   error // of every read, until it is mended
	reads int
}

func (l *lists) write(list []byte) (uint64, []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lists = append(l.lists, list)
	sum := sha256.Sum256(list)
	return uint64(len(l.lists)), sum[:]
}

func (l *lists) read(_ context.Context, seq uint64, hash []byte) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	if l.err != nil {
		return nil, l.err
	}
	if sum := sha256.Sum256(l.lists[seq-1]); string(sum[:]) != string(hash) {
		return nil, bus.ErrForged
	}
	return l.lists[seq-1], nil
}

func (l *lists) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// office is a bookkeeper at work, within a synctest bubble.
type office struct {
	*lease.Bookkeeper
	*lists
	log   *tape
	clock *clock
	held  []lease.Holding
	at    bus.Cursor // of the checkpoint; zero: there is none
}

func newOffice(t *testing.T) *office {
	o := &office{lists: new(lists), log: newTape(), clock: newClock()}
	o.Bookkeeper = &lease.Bookkeeper{
		Ledger: lease.NewLedger(o.clock.read), Grants: o.lists.read, IssuerLease: 5 * time.Second, Clock: o.clock.read, Logger: hclog.NewNullLogger(),
		Held: func(context.Context) (bus.Cursor, []byte, error) {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.at.Seq == 0 {
				return bus.Cursor{}, nil, bus.ErrNotFound
			}
			body, err := json.Marshal(o.held)
			return o.at, body, err
		},
		Key: func(_ context.Context, agent string) (ed25519.PublicKey, error) {
			if agent == "removed" {
				return nil, bus.ErrNotFound
			}
			return agentKey(agent).Public().(ed25519.PublicKey), nil
		},
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { o.Run(ctx); close(done) }()
	t.Cleanup(func() { stop(); <-done })
	return o
}

// writes is a new checkpoint.
func (o *office) writes(at bus.Cursor, held ...lease.Holding) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.at, o.held = at, held
}

// asked is how often a list was asked for.
func (o *office) asked() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lists.reads
}

// tick is the log's next entry: a tick that answers these requests.
func (o *office) tick(t testing.TB, grants ...lease.Request) bus.Entry {
	t.Helper()
	at, tick := o.log.next(), &bus.Tick{Issuer: "issuer-2", Time: time.Now().UnixMilli()}
	if len(grants) > 0 {
		body, err := json.Marshal(lease.List{Issuer: "issuer-2", Grants: grants})
		if err != nil {
			t.Fatal(err)
		}
		tick.ListSeq, tick.Grants = o.write(body)
	}
	return bus.Entry{Position: at.Position, Chain: at.Chain, Fact: tick}
}

func (o *office) note(entries ...bus.Entry) {
	o.Note(entries)
	synctest.Wait()
}

func (o *office) readTo(t testing.TB, when string, seq uint64) {
	t.Helper()
	if got := o.Ledger.ReadUpTo().Seq; got != seq {
		t.Errorf("%s: the ledger is read up to %d, want %d", when, got, seq)
	}
}

// TestBooks: what is noted is in the ledger, once, with the leases that its ticks name.
func TestBooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		one, two := o.tick(t, asks("web-1", "a", time.Minute)), o.tick(t)
		o.note(one, two)
		o.note(one, two) // the replica failed behind them, and reads them again
		o.readTo(t, "noted", 2)
		if rec := o.Ledger.Receipt(two.Position, ""); len(rec.Pending) != 1 {
			t.Errorf("got the receipt %+v, want web-1 pending", rec)
		}
		if o.asked() != 1 {
			t.Errorf("the list was read %d times", o.asked())
		}
	})
}

// TestListMissing: while it is not known who was granted a lease, nothing behind that is settled, and
// the bookkeeper asks twice a second, no faster.
func TestListMissing(t *testing.T) {
	for name, why := range map[string]error{
		"gone": bus.ErrNotFound, "altered": bus.ErrForged, "unreadable": errors.New("timeout"),
	} {
		synctest.Test(t, func(t *testing.T) {
			o := newOffice(t)
			o.set(why)
			entries := []bus.Entry{o.tick(t), o.tick(t, asks("web-1", "a", time.Minute)), o.tick(t)}
			o.note(entries...)
			o.readTo(t, name, 1)
			if rec := o.Ledger.Receipt(entries[2].Position, ""); rec != nil {
				t.Errorf("%s: got the receipt %+v, want none", name, rec)
			}
			time.Sleep(10 * time.Second)
			if o.asked() > 22 {
				t.Errorf("%s: asked %d times in 10 s", name, o.asked())
			}
			o.readTo(t, name+", 10 s on", 1)
			o.set(nil)
			time.Sleep(time.Second)
			o.readTo(t, "there again", 3)
			if rec := o.Ledger.Receipt(entries[2].Position, ""); len(rec.Pending) != 1 {
				t.Errorf("there again: got the receipt %+v, want web-1 pending", rec)
			}
		})
	}
}

// TestListOfLongAgo: a list that is gone is waited for as long as a lease of it could last, and no longer.
func TestListOfLongAgo(t *testing.T) {
	held := func(longest time.Duration, serving string, err error) func(context.Context) (time.Duration, string, error) {
		return func(context.Context) (time.Duration, string, error) { return longest, serving, err }
	}
	const day, minute = lease.MaxLength + lease.MaxLength/100, time.Minute + time.Minute/100
	for name, c := range map[string]struct {
		why     error
		mayHold func(context.Context) (time.Duration, string, error)
		wait    time.Duration // 0: for ever
	}{
		"gone, nothing is known":          {bus.ErrNotFound, nil, day},
		"another in its place":            {bus.ErrForged, nil, day},
		"gone, none asked for more":       {bus.ErrNotFound, held(time.Minute, "", nil), minute},
		"gone, of one it is not known":    {bus.ErrNotFound, held(0, "", nil), day},
		"gone, leases shorter than notes": {bus.ErrNotFound, held(time.Second, "", nil), 10*time.Second - 1},
		"gone, one serves":                {bus.ErrNotFound, held(0, "web-9", nil), 0},
		"gone, who asked is not read":     {bus.ErrNotFound, held(time.Second, "", errors.New("timeout")), 0},
		"the bus does not answer":         {errors.New("timeout"), held(time.Second, "", nil), 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			o := newOffice(t)
			o.set(c.why)
			o.MayHold = c.mayHold
			o.note(o.tick(t, asks("web-1", "a", time.Minute)), o.tick(t))
			o.clock.pass(cmp.Or(c.wait, 2*day))
			time.Sleep(time.Second)
			o.readTo(t, name+", a moment before it is over", 0)
			o.clock.pass(1)
			time.Sleep(time.Second)
			o.readTo(t, name+", after it", map[bool]uint64{true: 2}[c.wait > 0])
		})
	}
}

// TestListCovered: a list that is gone stops nobody where a checkpoint covers its tick: that one's holdings stand in for it, counted as
// granted now. An older one, and one of another epoch, do not.
func TestListCovered(t *testing.T) {
	for name, why := range map[string]error{"gone": bus.ErrNotFound, "altered": bus.ErrForged} {
		synctest.Test(t, func(t *testing.T) {
			o := newOffice(t)
			o.set(why)
			first, granted, third, fourth := o.tick(t), o.tick(t, asks("web-1", "a", time.Minute)), o.tick(t), o.tick(t)
			held := lease.Holding{Agent: "web-1", Run: "a", Grants: []lease.GrantedAt{{Position: granted.Position, Length: time.Minute, Mode: lease.Refuse}}}
			o.note(first, granted, third, fourth)
			for at, what := range map[bus.Cursor]string{first.Cursor(): "an older", {Position: bus.Position{Epoch: 2, Seq: 3}}: "another epoch's"} {
				o.writes(at, held)
				time.Sleep(11 * time.Second)
				o.readTo(t, name+", "+what+" checkpoint", 1)
			}
			o.clock.pass(30 * time.Second)
			if lag := o.Lag(); lag != 30*time.Second {
				t.Errorf("%s, half a minute on: the books lag by %s", name, lag)
			}
			o.writes(third.Cursor(), held)
			time.Sleep(11 * time.Second)
			o.readTo(t, name+", with a checkpoint that covers it", 4)
			if lag := o.Lag(); lag != 0 {
				t.Errorf("%s, all read: the books lag by %s", name, lag)
			}
			o.clock.pass(31 * time.Second)
			rec := o.Ledger.Receipt(fourth.Position, "")
			if rec == nil || len(rec.Pending) != 1 || rec.Next < 29*time.Second || rec.Next > 30*time.Second {
				t.Errorf("%s, 31 s after the checkpoint was read: got the receipt %+v, want web-1 pending for 29.6 s", name, rec)
			}
		})
	}
}

// TestGap: a reader that took a checkpoint has not seen the ticks behind it; the ledger takes that
// checkpoint's leases, or stands still.
func TestGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.note(o.tick(t))
		for range 5 {
			o.log.next()
		}
		after := o.tick(t) // 7
		o.note(after)
		o.readTo(t, "without a checkpoint", 1)
		held := lease.Holding{Agent: "web-1", Run: "a", Grants: []lease.GrantedAt{{Position: o.log.at(3).Position, Length: time.Minute, Mode: lease.Refuse}}}
		o.writes(o.log.at(5), held)
		time.Sleep(time.Second)
		o.readTo(t, "with a checkpoint that does not reach", 1)
		o.writes(o.log.at(6), held)
		time.Sleep(time.Second)
		o.readTo(t, "with one that does", 7)
		if rec := o.Ledger.Receipt(after.Position, ""); len(rec.Pending) != 1 {
			t.Errorf("got the receipt %+v, want web-1 pending", rec)
		}
	})
}

// TestGapBehindANewerCheckpoint: the checkpoint may be ahead of the entry.
func TestGapBehindANewerCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.log.upTo(4)
		five, six, seven := o.tick(t), o.tick(t), o.tick(t)
		o.writes(six.Cursor())
		o.note(five)
		o.readTo(t, "an entry behind the checkpoint", 6)
		o.note(six, seven)
		o.readTo(t, "and on", 7)
	})
}

// TestGapToANewEpoch: an entry of a later epoch is never the next, whatever its number.
func TestGapToANewEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.note(o.tick(t), o.tick(t))
		o.log.epoch = 2
		three := o.tick(t)
		o.note(three)
		o.readTo(t, "a later epoch, without its checkpoint", 2)
		o.writes(bus.Cursor{Position: bus.Position{Epoch: 1, Seq: 2}})
		time.Sleep(time.Second)
		o.readTo(t, "with the checkpoint of the earlier", 2)
		anew := bus.Cursor{Position: bus.Position{Epoch: 2, Seq: 2}}
		o.writes(anew, lease.Blanket(map[string]time.Duration{"web-1": 0}, anew.Position)...)
		time.Sleep(time.Second)
		o.readTo(t, "with its own", 3)
		if rec := o.Ledger.Receipt(three.Position, ""); len(rec.Pending) != 1 {
			t.Errorf("got the receipt %+v, want web-1 pending", rec)
		}
	})
}

// acknowledgement is an agent's, as it is sent.
func acknowledgement(t testing.TB, agent, run string, at bus.Cursor, change func(*bus.Spoken), signer ...string) bus.Spoken {
	t.Helper()
	body, err := json.Marshal(map[string]any{"agent": agent, "run": run, "epoch": at.Epoch, "seq": at.Seq, "chain": at.Chain})
	if err != nil {
		t.Fatal(err)
	}
	key := agentKey(append(signer, agent)[0])
	s := bus.Spoken{Agent: agent, Body: body, Signature: ed25519.Sign(key, append([]byte("sidekey-ack-1\x00"), body...))}
	if change != nil {
		change(&s)
	}
	return s
}

// TestForgedAcknowledgements: of what can be said on the bus in an agent's name only its own words,
// about the log as it is, count.
func TestForgedAcknowledgements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.note(o.tick(t, asks("web-1", "a", time.Hour), asks("web-2", "b", time.Hour), asks("removed", "c", time.Hour)))
		first := o.log.at(1)
		last := o.tick(t)
		o.note(last)
		at := last.Cursor()
		resign := func(context string) func(*bus.Spoken) {
			return func(s *bus.Spoken) {
				s.Signature = ed25519.Sign(agentKey("web-1"), append([]byte(context), s.Body...))
			}
		}
		other := at
		other.Chain[5] ^= 4
		forged := map[string]bus.Spoken{
			"no signature":                     acknowledgement(t, "web-1", "a", at, func(s *bus.Spoken) { s.Signature = nil }),
			"a signature with a bit flipped":   acknowledgement(t, "web-1", "a", at, func(s *bus.Spoken) { s.Signature[9] ^= 1 }),
			"a body with a bit flipped":        acknowledgement(t, "web-1", "a", first, func(s *bus.Spoken) { flipDigit(s.Body) }),
			"signed by another agent":          acknowledgement(t, "web-1", "a", at, nil, "web-2"),
			"on another agent's subject":       acknowledgement(t, "web-1", "a", at, func(s *bus.Spoken) { s.Agent = "web-2" }),
			"for another agent, on the own":    acknowledgement(t, "web-1", "a", at, func(s *bus.Spoken) { s.Agent = "web-2" }, "web-2"),
			"for another agent's run":          acknowledgement(t, "web-2", "a", at, nil),
			"for a run that holds nothing":     acknowledgement(t, "web-1", "z", at, nil),
			"of a removed agent":               acknowledgement(t, "removed", "c", at, nil),
			"of another chain":                 acknowledgement(t, "web-1", "a", other, nil),
			"of less, replayed":                acknowledgement(t, "web-1", "a", first, nil),
			"signed as a lease request":        acknowledgement(t, "web-1", "a", at, resign("sidekey-lease-request-1\x00")),
			"signed as a grant":                acknowledgement(t, "web-1", "a", at, resign("sidekey-lease-grant-1\x00")),
			"signed as nothing":                acknowledgement(t, "web-1", "a", at, resign("")),
			"no JSON":                          {Agent: "web-1", Body: []byte("{"), Signature: []byte("x")},
			"nothing":                          {},
			"the same twice in one body":       acknowledgement(t, "web-1", "a", first, func(s *bus.Spoken) { s.Body = append(s.Body, s.Body...) }),
			"signed by nobody's key of length": acknowledgement(t, "web-1", "a", at, func(s *bus.Spoken) { s.Signature = make([]byte, 64) }),
		}
		for name, s := range forged {
			o.Hear(s)
			o.Hear(s)
			synctest.Wait()
			if rec := o.Ledger.Receipt(at.Position, ""); len(rec.Pending) != 3 {
				t.Errorf("%s: it counted; pending are %v", name, rec.Pending)
			}
		}
		t.Logf("%d kinds of forged, replayed and other agents' acknowledgements, each sent twice: 0 counted", len(forged))
		o.Hear(acknowledgement(t, "web-1", "a", at, nil))
		if rec := o.Ledger.Receipt(at.Position, ""); fmt.Sprint(rec.Applied) != "[web-1]" {
			t.Errorf("its own: applied are %v, want web-1", rec.Applied)
		}
	})
}

// flipDigit makes the number of the sequence another one.
func flipDigit(body []byte) {
	for i := len(body) - 1; i >= 0; i-- {
		if body[i] == '1' {
			body[i] = '2'
			return
		}
	}
}
