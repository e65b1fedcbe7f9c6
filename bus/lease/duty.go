package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
)

// How the duty is held and passed on. No two clocks need to agree: the holder counts from before its write, a taker from
// when it first saw that write, which was later.
const (
	dutyRenew  = 1500 * time.Millisecond // between two writes of the holder
	dutyHold   = 4 * time.Second         // and how long it goes on after one
	dutyTake   = 5 * time.Second         // how long another sees one write stand before it takes over
	dutyLook   = time.Second             // between two looks of the others
	dutyAgain  = 250 * time.Millisecond  // after a write that failed
	dutyFit    = 25 * time.Millisecond   // between two questions whether this issuer is fit
	dutySettle = 20 * time.Millisecond   // from hearing that the record is being written until it is
	dutyTurn   = 15 * time.Minute        // how long one that lags holds it before it offers it to the others, for dutyTake, again
	dutyWithin = time.Second             // for one read or write
)

// DutyBucket is where the record stands: *bus.Bucket. A read may come from a follower and be old: only writes decide.
type DutyBucket interface {
	Get(ctx context.Context, name string) (bus.Record, error)                               // bus.ErrNotFound
	Create(ctx context.Context, name string, value []byte) (uint64, error)                  // bus.ErrExists
	Update(ctx context.Context, name string, value []byte, revision uint64) (uint64, error) // bus.ErrConflict
}

// dutyRecord says who has the duty. It is written anew every dutyRenew, so that its revision moves:
//
//	{"issuer": "issuer-1", "run": "…"}
//
// An empty run means that the last holder has given it up: anybody may take it at once.
type dutyRecord struct {
	Issuer string `json:"issuer"`
	Run    string `json:"run"`
}

// DutyConfig is what a Duty needs; all members but Written, Fit, Lags and Clock are required.
type DutyConfig struct {
	Issuer string // this issuer's name
	Run    string // this process
	Bucket DutyBucket
	Name   string // of the record
	// Written wakes whoever waits for the duty when the record is being written: bus.Bucket.Written. nil: it looks by the clock.
	Written <-chan struct{}
	// Fit tells whether this issuer could do what the duty asks: one that is not leaves it to the others. nil: it could.
	Fit func() bool
	// Lags tells whether this issuer does only part of what the duty asks: it leaves it to the others, and takes it where none of them
	// does for as long as one of them would need. nil: it does not.
	Lags   func() bool
	Clock  Clock // nil: SystemClock
	Logger hclog.Logger
}

// Duty is held by one issuer at a time, which does for all what one is enough for. The holder stops by itself, by the worst of
// its clocks, before another may begin; it gives the duty up as Run ends, and within seconds of being cut off or killed another
// has it.
//
// It spares work, and promises nothing that safety rests on: a process that is paused between asking Held and acting acts late.
// So whatever is done under it must be safe where two do it. All methods may be called by any goroutine.
type Duty struct {
	cfg DutyConfig

	mu      sync.Mutex
	record  dutyRecord // as last seen
	last    uint64     // its revision; 0: there is none
	since   time.Duration
	looked  bool          // since counts: Mono when last was first seen
	seen    time.Duration // Mono of the last look, 0: none
	begin   *Reading      // before the write by which this run holds it, nil: it does not
	expiry  *time.Timer
	lost    chan struct{} // closed when begin becomes nil, or too old
	changed chan struct{}
	taken   int
	turn    time.Duration // Mono when this run, which lags, took the duty or left it to the others, 0: it does not lag
}

// NewDuty makes one that nobody holds; Run takes it.
func NewDuty(cfg DutyConfig) *Duty {
	if cfg.Clock == nil {
		cfg.Clock = SystemClock
	}
	return &Duty{cfg: cfg, changed: make(chan struct{})}
}

// Held tells whether this process has the duty now. Ask it before each thing that is done under it.
func (d *Duty) Held() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.heldLocked()
}

func (d *Duty) heldLocked() bool {
	return d.begin != nil && longest(*d.begin, d.cfg.Clock()) < dutyHold
}

// Holder gives the name of the issuer that has the duty, as far as is known here; "": nobody, or it is not known yet.
func (d *Duty) Holder() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.record.Run == "" {
		return ""
	}
	return d.record.Issuer
}

// Taken tells how often this process has taken the duty.
func (d *Duty) Taken() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.taken
}

// Changed is closed when this process next takes the duty, or has it no more.
func (d *Duty) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

// While gives a context that ends with parent, and as soon as the duty is not held; held is false where it is not.
func (d *Duty) While(parent context.Context) (ctx context.Context, stop context.CancelFunc, held bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ctx, cancel := context.WithCancel(parent)
	if !d.heldLocked() {
		cancel()
		return ctx, cancel, false
	}
	lost := d.lost
	go func() {
		select {
		case <-lost:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel, true
}

// Run takes the duty whenever it is free, and keeps it, until ctx ends; then it gives it up.
func (d *Duty) Run(ctx context.Context) {
	defer d.giveUp()
	for {
		wait, written := d.step(ctx), d.cfg.Written
		if d.mine() {
			written = nil // this run's own writes
		}
		next := time.NewTimer(wait)
		select {
		case <-next.C:
		case <-written:
			next.Reset(dutySettle) // what is being written cannot be read yet
			select {
			case <-next.C:
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
		next.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// mine tells whether this run wrote the record as it was last seen, in time or not.
func (d *Duty) mine() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.record.Run == d.cfg.Run
}

// step does what is due, and tells when to do the next.
func (d *Duty) step(ctx context.Context) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, dutyWithin)
	defer cancel()
	fit := d.cfg.Fit == nil || d.cfg.Fit()
	lags := fit && d.cfg.Lags != nil && d.cfg.Lags()
	if d.mine() {
		if !fit || lags && d.offers() {
			d.giveUp()
			d.turns(lags)
			return dutyFit
		}
		if !lags {
			d.turns(false)
		}
		if err := d.write(ctx, d.cfg.Run); !errors.Is(err, bus.ErrConflict) {
			if err == nil {
				return dutyRenew
			}
			d.cfg.Logger.Warn("could not renew the duty of one issuer, trying again", "error", err)
			return dutyAgain
		}
		// Another has it, or an earlier write of this run's was stored though its answer was lost.
	}
	if !fit && d.looksIn() > 0 {
		return dutyFit
	}
	wait, free := d.look(ctx, lags)
	switch {
	case !fit:
		return dutyFit
	case !free && !d.mine():
		return wait
	}
	if err := d.write(ctx, d.cfg.Run); err != nil {
		if !errors.Is(err, bus.ErrConflict) {
			d.cfg.Logger.Warn("could not take the duty of one issuer, trying again", "error", err)
		}
		return dutyAgain
	}
	d.turns(lags)
	return dutyRenew
}

// looksIn is how long one that is not fit leaves the record alone: it looks to tell who the holder is, not to take over.
func (d *Duty) looksIn() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen == 0 {
		return 0
	}
	return d.seen + dutyLook - d.cfg.Clock().Mono
}

// offers tells whether one that lags is to leave the duty to others: at once when it begins to lag, and then now and then, for it may be
// that all do.
func (d *Duty) offers() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.turn == 0 || d.cfg.Clock().Mono-d.turn >= dutyTurn
}

// turns notes that this run's turn with the duty begins or ends now, if it lags.
func (d *Duty) turns(lags bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.turn = 0; lags {
		d.turn = d.cfg.Clock().Mono
	}
}

// look reads the record, and tells whether it is free, or else when to look again. For one that lags it is free once the others have
// let it stand too.
func (d *Duty) look(ctx context.Context, lags bool) (wait time.Duration, free bool) {
	rec, err := d.cfg.Bucket.Get(ctx, d.cfg.Name)
	var is dutyRecord
	if err == nil && json.Unmarshal(rec.Value, &is) != nil {
		is = dutyRecord{} // whoever wrote it, it is compared and set like any
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return dutyLook, false
	}
	now := d.cfg.Clock().Mono
	d.seen = now
	if !d.looked || rec.Revision != d.last {
		d.looked, d.since = true, now
	}
	d.record, d.last = is, rec.Revision
	if is.Run != d.cfg.Run {
		d.loseLocked()
	}
	left := d.since - now
	if is.Run != "" {
		left += dutyTake
	}
	if lags {
		left += dutyTake
	}
	return min(max(left, 0), dutyLook), left <= 0
}

// write puts this issuer into the record, with its run or as one that gives the duty up, if the record still is as it was last seen.
func (d *Duty) write(ctx context.Context, run string) error {
	d.mu.Lock()
	last := d.last
	d.mu.Unlock()
	begin := d.cfg.Clock()
	is := dutyRecord{Issuer: d.cfg.Issuer, Run: run}
	value, err := json.Marshal(is)
	if err != nil {
		return fmt.Errorf("writing who has the duty: %w", err)
	}
	var revision uint64
	if last == 0 {
		if revision, err = d.cfg.Bucket.Create(ctx, d.cfg.Name, value); errors.Is(err, bus.ErrExists) {
			err = bus.ErrConflict
		}
	} else {
		revision, err = d.cfg.Bucket.Update(ctx, d.cfg.Name, value, last)
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.record, d.last, d.looked, d.since = is, revision, true, d.cfg.Clock().Mono
	if run != "" {
		d.holdLocked(begin)
	}
	return nil
}

// holdLocked has this run hold the duty from begin.
func (d *Duty) holdLocked(begin Reading) {
	fresh := d.begin == nil || longest(*d.begin, d.cfg.Clock()) >= dutyHold
	if fresh {
		d.loseLocked() // what ran under a hold that is over ends with it
		d.lost = make(chan struct{})
		d.taken++
		d.cfg.Logger.Info("this issuer has the duty of one: it rotates, prunes, writes checkpoints and ticks for all")
	}
	d.begin = &begin
	if d.expiry != nil {
		d.expiry.Stop()
	}
	d.expiry = time.AfterFunc(dutyHold-longest(begin, d.cfg.Clock()), d.expire)
	if fresh {
		d.tellLocked()
	}
}

// expire stops what runs under a hold that was not renewed in time.
func (d *Duty) expire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.begin == nil {
		return
	}
	if left := dutyHold - longest(*d.begin, d.cfg.Clock()); left > 0 {
		d.expiry.Reset(left) // renewed meanwhile
		return
	}
	d.cfg.Logger.Warn("this issuer could not renew the duty of one in time, and stopped what it did under it")
	d.loseLocked()
}

// loseLocked ends what this run holds, if it does.
func (d *Duty) loseLocked() {
	if d.begin == nil {
		return
	}
	d.begin = nil
	d.expiry.Stop()
	close(d.lost)
	d.tellLocked()
}

func (d *Duty) tellLocked() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// giveUp stops what runs under the duty, and then leaves it to the others, who need not wait.
func (d *Duty) giveUp() {
	mine := d.mine()
	d.mu.Lock()
	d.loseLocked()
	d.mu.Unlock()
	if !mine {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), dutyWithin)
	defer cancel()
	if err := d.write(ctx, ""); err != nil {
		d.cfg.Logger.Debug("could not give up the duty of one issuer: another takes it in a few seconds", "error", err)
		d.mu.Lock()
		d.record.Run = "" // of this run's own it is not, whatever stands there: the next look sees
		d.looked, d.last = false, 0
		d.mu.Unlock()
	}
}
