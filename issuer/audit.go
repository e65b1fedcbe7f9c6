package issuer

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"

	"github.com/sidekey/sidekey/bus"
)

// Trail is where who did what is written for good. *bus.AuditTrail is one.
type Trail interface {
	// Write returns when content is durable. After an error it may have been written. A non-empty broken says that
	// records which this issuer wrote before are gone.
	Write(ctx context.Context, content []byte) (broken string, err error)
	// Read calls fn with the records since a time, oldest first; with follow also with those to come, until ctx ends.
	Read(ctx context.Context, since time.Time, follow bool, fn func(bus.AuditRecord) error) error
}

// AuditEvent is a line of the audit: in the stream, in issuer.audit_file and in the answers of GET /admin/v1/audit.
//
//	{"time": "2026-01-01T00:00:00.123Z", "issuer": "auth-1", "event": "session began", "outcome": "done",
//	 "address": "192.0.2.7", "user_agent": "curl/8", "details": {"sub": "0197…", "sid": "0198…"}}
type AuditEvent struct {
	Time      string         `json:"time"`    // RFC 3339, UTC, milliseconds: shippers of logs read it as it is
	Issuer    string         `json:"issuer"`  // the name of the issuer that wrote it
	Event     string         `json:"event"`   // what was done: one of docs/audit.md
	Outcome   Outcome        `json:"outcome"` // how it ended
	Actor     string         `json:"actor,omitempty"`
	Address   string         `json:"address,omitempty"`
	UserAgent string         `json:"user_agent,omitempty"`
	TraceID   string         `json:"trace_id,omitempty"` // of the request, where its traceparent says so; trace.Parent
	SpanID    string         `json:"span_id,omitempty"`
	Details   map[string]any `json:"details,omitempty"`
}

// Outcome is how what an event tells of ended.
type Outcome string

// The outcomes. An attempt is written before an administrator's call is carried out; what has none behind it was
// begun, and how it ended is not known.
const (
	Done    Outcome = "done"
	Refused Outcome = "refused"
	Failed  Outcome = "failed" // by a fault of ours, or of the bus
	Attempt Outcome = "attempt"
)

// Bounds of the audit.
const (
	auditQueue   = 8192                  // events that wait to be written; beyond it they are lost, and counted
	auditBatch   = 256                   // events in one record
	auditBytes   = 128 << 10             // and their bytes
	auditLinger  = 50 * time.Millisecond // for more to come, where nobody waits: one sync of the disk for all of them
	auditAgain   = time.Second           // after a failure
	auditDrain   = 3 * time.Second       // at the end
	maxDetail    = 1024                  // bytes of one detail
	refusalRate  = 50                    // refusals a second that are written one by one:
	refusalBurst = 1000                  // whoever is refused at will must not push the rest out of the trail
)

// auditor writes events to the trail and to the file, in order and in batches, behind the requests that they tell of.
// A goroutine runs while there is something to write, and no longer.
type auditor struct {
	trail   Trail     // nil: the log alone has the events
	file    io.Writer // nil: none
	issuer  string
	key     []byte // of names that must not be written
	log     hclog.Logger
	now     func() time.Time
	metrics *metrics
	flood   *rate.Limiter

	mu      sync.Mutex
	queue   []*auditLine
	writing bool          // the goroutine is there
	hurry   chan struct{} // holds one where somebody waits
	closed  chan struct{}
	idle    sync.WaitGroup
}

// auditLine is one event on its way.
type auditLine struct {
	text  []byte
	filed bool       // it is in the file
	done  chan error // nil: nobody waits
}

func newAuditor(cfg *Config, parts *Parts, now func() time.Time, m *metrics) *auditor {
	a := &auditor{
		trail: parts.Trail, file: parts.AuditFile, issuer: cfg.Name, key: parts.AuditKey, log: parts.Logger.Named("audit"), now: now, metrics: m,
		flood: rate.NewLimiter(refusalRate, refusalBurst), hurry: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	if len(a.key) == 0 {
		a.key = []byte(newID())
	}
	return a
}

// pseudonym stands for a name that must not be written, such as what was typed as a user name: the same for the same
// name, on every issuer, and of no use to who lacks the key.
func (a *auditor) pseudonym(name string) string {
	mac := hmac.New(sha256.New, a.key)
	mac.Write([]byte(name))
	return hex.EncodeToString(mac.Sum(nil)[:8])
}

// line makes an event of the pairs of a line of the log.
func (a *auditor) line(ctx context.Context, what string, outcome Outcome, pairs []any) []byte {
	o := originOf(ctx)
	e := AuditEvent{
		Time: a.now().UTC().Format("2006-01-02T15:04:05.000Z"), Issuer: a.issuer, Event: what, Outcome: outcome,
		Actor: o.Actor, Address: o.Address, UserAgent: o.UserAgent, TraceID: o.Trace.TraceID, SpanID: o.Trace.SpanID,
	}
	for n := 0; n+1 < len(pairs); n += 2 {
		if e.Details == nil {
			e.Details = make(map[string]any, len(pairs)/2)
		}
		e.Details[fmt.Sprint(pairs[n])] = detailOf(pairs[n+1])
	}
	text, err := json.Marshal(e)
	if err != nil { // a value without a JSON: the event counts, not the detail
		e.Details = map[string]any{"unreadable": err.Error()}
		text = encode(e)
	}
	return text
}

// detailOf bounds what one detail takes.
func detailOf(v any) any {
	switch t := v.(type) {
	case error:
		v = t.Error()
	case time.Duration:
		v = t.String()
	}
	if s, ok := v.(string); ok && len(s) > maxDetail {
		return s[:maxDetail] + "…"
	}
	return v
}

// note has an event written soon. The caller does not wait, and what cannot be written is counted.
func (a *auditor) note(ctx context.Context, what string, outcome Outcome, pairs []any) {
	if a.trail == nil && a.file == nil {
		return
	}
	if outcome == Refused && !a.flood.AllowN(a.now(), 1) {
		a.metrics.auditLost.WithLabelValues("flood").Inc()
		return
	}
	a.add(&auditLine{text: a.line(ctx, what, outcome, pairs)})
}

// record writes an event and returns when it is durable. An error wraps ErrUnavailable.
func (a *auditor) record(ctx context.Context, what string, outcome Outcome, pairs []any) error {
	if a.trail == nil && a.file == nil {
		return nil
	}
	return a.await(ctx, a.line(ctx, what, outcome, pairs))
}

// settle returns when what was noted before is written.
func (a *auditor) settle(ctx context.Context) error { return a.await(ctx, nil) }

// await has a line written, none if it is empty, behind what waits already, and waits for that.
func (a *auditor) await(ctx context.Context, text []byte) error {
	l := &auditLine{text: text, done: make(chan error, 1)}
	if !a.add(l) {
		return fmt.Errorf("writing the audit: %w: too much waits to be written", ErrUnavailable)
	}
	select {
	case err := <-l.done:
		if err != nil {
			return fmt.Errorf("writing the audit: %w: %w", ErrUnavailable, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("writing the audit: %w: %w", ErrUnavailable, context.Cause(ctx))
	}
}

func (a *auditor) add(l *auditLine) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) >= auditQueue {
		a.metrics.auditLost.WithLabelValues("queue").Inc()
		return false
	}
	a.queue = append(a.queue, l)
	if l.done != nil {
		select {
		case a.hurry <- struct{}{}:
		default:
		}
	}
	if !a.writing {
		a.writing = true
		a.idle.Go(a.write)
	}
	return true
}

// write writes until nothing waits.
func (a *auditor) write() {
	for {
		a.wait(auditLinger)
		batch := a.take()
		if batch == nil {
			return
		}
		if err := a.writeBatch(batch); err != nil {
			a.log.Error("could not write the audit, trying again", "events", len(batch), "error", err)
			if !a.giveBack(batch, err) {
				return
			}
		}
	}
}

// wait waits for more to write, unless somebody waits for what is there.
func (a *auditor) wait(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-a.hurry:
	case <-a.closed:
	}
}

// take gives the oldest events, nil where there are none: then the goroutine ends.
func (a *auditor) take() []*auditLine {
	a.mu.Lock()
	defer a.mu.Unlock()
	n, size := 0, 0
	for n < min(len(a.queue), auditBatch) && (n == 0 || size+len(a.queue[n].text) < auditBytes) {
		size += len(a.queue[n].text) + 1
		n++
	}
	if n == 0 {
		a.writing, a.queue = false, nil
		return nil
	}
	batch := a.queue[:n:n]
	a.queue = a.queue[n:]
	if len(a.queue) > 0 {
		select { // no lingering while there is more
		case a.hurry <- struct{}{}:
		default:
		}
	}
	return batch
}

// giveBack tells those who wait that their events failed, and keeps the others for the next attempt, after a while.
// false: this is the end, and they are lost.
func (a *auditor) giveBack(batch []*auditLine, err error) bool {
	var again []*auditLine
	for _, l := range batch {
		if l.done != nil {
			l.done <- err
			continue
		}
		again = append(again, l)
	}
	a.mu.Lock()
	a.queue = append(again, a.queue...)
	over := a.endedLocked(err)
	a.mu.Unlock()
	if !over {
		a.wait(auditAgain)
	}
	return !over
}

// endedLocked tells whether Close has given up, and drops what waits then.
func (a *auditor) endedLocked(err error) bool {
	select {
	case <-a.closed:
	default:
		return false
	}
	a.metrics.auditLost.WithLabelValues("stream").Add(float64(len(a.queue)))
	for _, l := range a.queue {
		if l.done != nil {
			l.done <- err
		}
	}
	a.writing, a.queue = false, nil
	return true
}

// writeBatch writes events to the file and, as one record, to the trail. The trail is what counts: that the file cannot
// be written is said and counted, and stops nobody.
func (a *auditor) writeBatch(batch []*auditLine) error {
	var all, unfiled bytes.Buffer
	for _, l := range batch {
		if len(l.text) == 0 {
			continue
		}
		all.Write(l.text)
		all.WriteByte('\n')
		if !l.filed {
			unfiled.Write(l.text)
			unfiled.WriteByte('\n')
			l.filed = true
		}
	}
	if a.file != nil && unfiled.Len() > 0 {
		if _, err := a.file.Write(unfiled.Bytes()); err != nil {
			a.log.Error("could not write issuer.audit_file", "error", err)
			a.metrics.auditLost.WithLabelValues("file").Add(float64(len(batch)))
		}
	}
	if a.trail != nil && all.Len() > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), 2*applyTimeout)
		defer cancel()
		broken, err := a.trail.Write(ctx, all.Bytes())
		if err != nil {
			return err
		}
		if broken != "" {
			a.broken(broken)
		}
	}
	for _, l := range batch {
		if l.done != nil {
			l.done <- nil
		}
	}
	return nil
}

// broken says that the bus has lost records of ours, in the log and in the audit itself.
func (a *auditor) broken(why string) {
	a.log.Error("RECORDS OF THE AUDIT ARE GONE FROM THE BUS", "reason", why)
	a.metrics.auditBroken.Inc()
	a.add(&auditLine{text: a.line(context.Background(), auditGone, Failed, []any{"reason", why})})
}

// auditGone is the event that tells of it.
const auditGone = "audit records are gone"

// Close writes what waits, for a few seconds at most. Events after it are lost.
func (i *Issuer) Close() error {
	a := i.audits
	written := make(chan struct{})
	go func() { a.idle.Wait(); close(written) }()
	select {
	case a.hurry <- struct{}{}:
	default:
	}
	select {
	case <-written:
	case <-time.After(auditDrain):
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-a.closed:
	default:
		close(a.closed)
	}
	if n := len(a.queue); n > 0 {
		return fmt.Errorf("%d events were not written to the audit", n)
	}
	return nil
}
