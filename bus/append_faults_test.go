package bus_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// TestServerRestartsUnderWriters: what was acknowledged is there once, what was not at most once.
func TestServerRestartsUnderWriters(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l, other := b.Log(t), b.Log(t)
	w := newWriter()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					w.append(ctx, []theLog{l, other}[n%2], fmt.Sprintf("%d-%d", n, i))
				}
			}
		})
	}
	written := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.stored)
	}
	for range 2 {
		was := written()
		eventually(t, "twenty more entries", func() bool { return written() >= was+20 })
		b.Restart(t)
	}
	was := written()
	eventually(t, "entries after the last restart", func() bool { return written() >= was+20 })
	close(stop)
	wg.Wait()
	if len(w.failed) > 0 {
		t.Errorf("appends failed though there was time: %v", w.failed)
	}
	w.check(t, all(t, b, uint64(len(w.stored))))
}

// TestLostAcknowledgement: an entry whose acknowledgement never came is stored once, and Append
// tells where; a tick too.
func TestLostAcknowledgement(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	p := bustest.NewProxy(t, b.Server.URL())
	l, direct := b.Via(p).Log(t), b.Reader(t)
	mustAppend(t, l, revocation("before"))
	heads := make(chan uint64, 100)
	go direct.Follow(t.Context(), bus.Cursor{}, func(_ []bus.Entry, head uint64) error { heads <- head; return nil }) //nolint:errcheck // ends with the test
	reached := func(head uint64) {
		t.Helper()
		eventually(t, fmt.Sprintf("entry %d in the stream", head), func() bool {
			select {
			case at := <-heads:
				return at >= head
			default:
				return false
			}
		})
	}
	reached(1)

	w := newWriter()
	lose := map[string]func(){
		"cut":  p.Cut,     // the acknowledgement is lost with the connection
		"late": func() {}, // it comes after the connection's patience, or a little late
	}
	head := uint64(1)
	for _, how := range []string{"cut", "late"} {
		p.Pause(bustest.ToClient)
		done := make(chan struct{})
		go func() { w.append(t.Context(), l, how); close(done) }()
		head++
		reached(head) // stored, and nobody knows
		lose[how]()
		p.Resume()
		<-done
	}
	p.Pause(bustest.ToClient)
	ticked := make(chan bus.Position, 1)
	go func() {
		pos, err := l.Tick(t.Context())
		if err != nil {
			t.Errorf("Tick: %v", err)
		}
		ticked <- pos
	}()
	reached(head + 1)
	p.Cut()
	p.Resume()
	if pos := <-ticked; pos.Seq != head+1 {
		t.Errorf("Tick whose acknowledgement was lost: got %d, want %d", pos.Seq, head+1)
	}
	after := mustAppend(t, l, revocation("after"))
	if len(w.failed) > 0 {
		t.Errorf("appends failed: %v", w.failed)
	}
	entries := all(t, b, after.Seq)
	w.check(t, entries)
	if len(entries) != 5 {
		t.Errorf("the log has %d entries, want 5: before, cut, late, the tick, after", len(entries))
	}
}

// TestRequestsLost: what never reached the server is sent again, and stands there once.
func TestRequestsLost(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	p := bustest.NewProxy(t, b.Server.URL())
	l := b.Via(p).Log(t)
	p.DropSubject(bustest.ToServer, "sidekey.log.revoke")
	w := newWriter()
	var wg sync.WaitGroup
	for n := range 5 {
		wg.Go(func() { w.append(t.Context(), l, fmt.Sprint(n)) })
	}
	eventually(t, "a dropped entry", func() bool { return p.Dropped() > 0 })
	p.Resume()
	wg.Wait()
	if len(w.failed) > 0 {
		t.Errorf("appends failed: %v", w.failed)
	}
	entries := all(t, b, 5)
	w.check(t, entries)
	if len(entries) != 5 {
		t.Errorf("the log has %d entries, want 5", len(entries))
	}
}

// TestAppendDeadline: while the bus is away an Append ends with its context, and says that the
// entry's fate is unknown.
func TestAppendDeadline(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l := b.Log(t)
	b.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := l.Append(ctx, revocation("x"))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "unknown") {
		t.Errorf("Append while the bus is away: got %v, want the deadline and that the fate is unknown", err)
	}
	b.Restart(t)
	pos := mustAppend(t, l, revocation("y"))
	w := newWriter()
	w.failed["x"], w.stored["y"] = err, pos
	w.check(t, all(t, b, pos.Seq))
}

// TestCloseWithWaiters: Close ends those who wait and leaves no goroutine behind.
func TestCloseWithWaiters(t *testing.T) {
	b := bustest.Start(t)
	conn := b.Connect(t)
	before := runtime.NumGoroutine()
	l, err := bus.OpenLog(t.Context(), conn, bus.LogConfig{Authority: b.Authority, Issuer: "issuer-1"})
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, revocation("first"))
	b.Stop()
	errs := make(chan error, 8)
	for n := range cap(errs) {
		go func() {
			_, err := l.Append(t.Context(), revocation(fmt.Sprint(n)))
			errs <- err
		}()
	}
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Errorf("Close twice: %v", err)
	}
	for range cap(errs) {
		if err := <-errs; err == nil || !strings.Contains(err.Error(), "closed") {
			t.Errorf("Append over Close: got %v, want that it is closed", err)
		}
	}
	if _, err := l.Append(t.Context(), revocation("late")); err == nil {
		t.Error("Append after Close: no error")
	}
	conn.Close()
	eventually(t, "the log's goroutines to be gone", func() bool { return runtime.NumGoroutine() <= before })
}

// TestLogOfAnotherStream: a stream that was begun anew, or rolled back, under a running issuer is
// told from its own: appends fail at once, and nothing is written.
func TestLogOfAnotherStream(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l := b.Log(t)
	mustAppend(t, l, revocation("a"), revocation("b"), revocation("c"))
	owner := owner(t, b)
	request(t, owner, "$JS.API.STREAM.DELETE.sidekey_log", "")
	other := b.Log(t) // makes it anew
	if _, err := other.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	_, err := l.Append(t.Context(), revocation("d"))
	if !errors.Is(err, bus.ErrEpoch) {
		t.Errorf("Append to a log that was begun anew: got %v, want ErrEpoch", err)
	}
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("it took %v to say so", took)
	}
	if got := all(t, b, 1); len(got) != 1 {
		t.Errorf("the new log has %d entries, want its tick alone", len(got))
	}
}

// TestLogGone: a log whose stream is gone is missed by an issuer that knows what stood in it.
func TestLogGone(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l := b.Log(t)
	mustAppend(t, l, revocation("a"), revocation("b"))
	known := all(t, b, 2)[1].Cursor()
	writeCheckpoint(t, l, known, []byte("image"))
	if lacks, err := l.Lacks(t.Context(), knows{at: known}); lacks || err != nil {
		t.Errorf("Lacks of what is there: got %v, %v", lacks, err)
	}
	l.Close()
	request(t, owner(t, b), "$JS.API.STREAM.DELETE.sidekey_log", "")
	if lacks, err := b.Log(t).Lacks(t.Context(), knows{at: known}); !lacks || err != nil {
		t.Errorf("Lacks of what is gone: got %v, %v", lacks, err)
	}
}

// request makes a JetStream API call as the bus's owner.
func request(t testing.TB, owner *nats.Conn, subject, body string) {
	t.Helper()
	m, err := owner.Request(subject, []byte(body), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(m.Data), `"error"`) {
		t.Fatalf("%s: %s", subject, m.Data)
	}
}
