package issuer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// Bounds of waiting for the fleet.
const (
	waitDefault = 5 * time.Second
	waitLongest = 50 * time.Second // the listeners give an answer a minute
	lookWithin  = time.Second      // for this issuer to have read its own entry and the leases before it
	lookApart   = 2 * time.Millisecond
)

// Receipt says where an entry stands in the log, and which agents are done with it (PROTOCOL 4).
// An agent's name stands in one list: where the slowest of its runs is.
//
//	{"seq": 412, "confirmed": false, "applied": ["web-1"], "fenced": [], "pending": ["web-2"], "serving": [], "next_ms": 2500}
type Receipt struct {
	Seq       uint64   `json:"seq"`
	Confirmed bool     `json:"confirmed"`         // nobody who lacks the entry can be vouching
	Applied   []string `json:"applied"`           // acknowledged
	Fenced    []string `json:"fenced"`            // the leases that could miss it have certainly ended
	Pending   []string `json:"pending"`           // neither
	Serving   []string `json:"serving"`           // of Pending: they go on without a lease, so only their acknowledgement settles them
	NextMS    int64    `json:"next_ms,omitempty"` // until the last of Pending is fenced, at the latest; 0: none, or not by itself

	Position bus.Position  `json:"-"`
	Elapsed  time.Duration `json:"-"` // since it was asked for
	known    bool          // the lists are what the log says; else it has not been read so far
}

// Await waits until nobody who lacks the entry at pos can be vouching, or for timeout, and gives
// the receipt as it then stands; 0 does not wait. It looks at each acknowledgement, and by the
// clock: a fence comes with time alone. It fails only with ctx. While this issuer itself has not
// read who held a lease at pos, nothing is confirmed and the lists are empty.
func (i *Issuer) Await(ctx context.Context, pos bus.Position, timeout time.Duration) (*Receipt, error) {
	began := time.Now()
	look, cancel := context.WithTimeout(ctx, max(timeout, 0)+lookWithin)
	defer cancel()
	for {
		changed := i.Fleet.Changed()
		r, err := i.receipt(look, pos)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("waiting for the agents: %w", ctx.Err())
		}
		if err != nil {
			i.log.Warn("an entry is in the log, but who has acknowledged it is not known", "seq", pos.Seq, "error", err)
		}
		r.Elapsed = time.Since(began)
		left := timeout - r.Elapsed
		if r.Confirmed || left <= 0 {
			i.metrics.waited(r, timeout)
			return r, nil
		}
		if next := time.Duration(r.NextMS+1) * time.Millisecond; r.NextMS > 0 {
			left = min(left, next)
		}
		if err := awaitChange(ctx, changed, left); err != nil {
			return nil, err
		}
	}
}

// awaitChange waits for a change, and then a little for others that come with it; or for d.
func awaitChange(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	due := time.NewTimer(d)
	defer due.Stop()
	for range 2 {
		select {
		case <-changed:
			due.Reset(min(d, lookApart))
			changed = nil
		case <-due.C:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("waiting for the agents: %w", ctx.Err())
		}
	}
	return nil
}

// receipt asks who is done with pos. It is of use also where that fails.
func (i *Issuer) receipt(ctx context.Context, pos bus.Position) (*Receipt, error) {
	r := &Receipt{Seq: pos.Seq, Position: pos, Applied: []string{}, Fenced: []string{}, Pending: []string{}, Serving: []string{}}
	if err := i.Replica.Wait(ctx, pos.Seq); err != nil {
		return r, unavailable("asking who has acknowledged", "the log", err)
	}
	rec, err := i.Fleet.Receipt(ctx, pos)
	if err == nil && rec == nil {
		err = errors.New("the leases granted before it are not known")
	}
	if err != nil {
		return r, unavailable("asking who has acknowledged", "the log", err)
	}
	r.known, r.Confirmed = true, rec.Settled()
	r.Applied, r.Fenced = append(r.Applied, rec.Applied...), append(r.Fenced, rec.Fenced...)
	r.Pending, r.Serving = append(r.Pending, rec.Pending...), append(r.Serving, rec.Serving...)
	if rec.Next > 0 {
		r.NextMS = max(rec.Next.Milliseconds(), 1)
	}
	return r, nil
}

// wait are the members of a request that say what its answer waits for:
// {"wait": "none" (default) or "fleet", "timeout": "5s"}.
type wait struct {
	Wait    string `json:"wait"`
	Timeout string `json:"timeout"`
}

// check refuses what cannot be meant.
func (w *wait) check() error {
	if w.Wait != "" && w.Wait != "none" && w.Wait != "fleet" {
		return &InputError{"wait", `must be "none" or "fleet"`}
	}
	if w.Timeout != "" {
		if d, err := time.ParseDuration(w.Timeout); err != nil || d < 0 || d > waitLongest {
			return &InputError{"timeout", fmt.Sprintf(`must be a duration of %s at most, such as "5s"; ask GET /admin/v1/revocations/{seq} again for longer`, waitLongest)}
		}
	}
	return nil
}

// fleet tells whether the answer waits for the agents.
func (w *wait) fleet() bool { return w.Wait == "fleet" }

// limit is how long, 0 where it does not wait. check has been called.
func (w *wait) limit() time.Duration {
	if !w.fleet() {
		return 0
	}
	if w.Timeout == "" {
		return waitDefault
	}
	d, _ := time.ParseDuration(w.Timeout)
	return d
}

// queryWait reads the same from the query of a request that has no body: ?wait=fleet&timeout=5s.
func queryWait(r *http.Request) (*wait, error) {
	q := r.URL.Query()
	w := &wait{Wait: q.Get("wait"), Timeout: q.Get("timeout")}
	return w, w.check()
}

// receiptAnswer is a Receipt with its elapsed time.
type receiptAnswer struct {
	Receipt
	ElapsedMS int64 `json:"elapsed_ms"`
}

// receiptStatus answers 200 when an entry is confirmed or nobody is waited for, else 202.
func receiptStatus(r *Receipt, w *wait, err error) (int, any, error) {
	if r == nil || err != nil {
		return 0, nil, err
	}
	answer := &receiptAnswer{*r, r.Elapsed.Milliseconds()}
	if w.fleet() && !r.Confirmed {
		return http.StatusAccepted, answer, nil
	}
	return http.StatusOK, answer, nil
}
