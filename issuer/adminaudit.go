package issuer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// adminCall is the event of an administrator's call.
const adminCall = "admin call"

// audited carries out an administrator's call only if the audit can hold it. What may change something is written as
// an attempt first: should the issuer die in the middle, it is known that somebody asked. Its end is written before the
// answer leaves, so nothing is shown, or said to be done, that the audit lacks. Where writing fails, so does the call.
func (i *Issuer) audited(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		pairs := []any{"method", r.Method, "path", auditPath(r)}
		if r.Method != http.MethodGet {
			pairs = append(pairs, "call", newID())
			if err := i.audits.record(r.Context(), adminCall, Attempt, pairs); err != nil {
				i.failAudit(w, r, err, "nothing was done: the audit cannot be written; try again")
				return
			}
		}
		held := &heldAnswer{header: w.Header()}
		outcome := Failed
		defer func() {
			// It is written though the client is gone, or the handler has panicked.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 2*applyTimeout)
			defer cancel()
			err := i.audits.record(ctx, adminCall, outcome, append(pairs, "status", held.status))
			if outcome == Failed && held.status == 0 {
				return // a panic, which is answered further out
			}
			if err != nil {
				clear(held.header)
				i.failAudit(w, r, err, "the audit cannot be written, so the answer is withheld; look at what is there before you try again")
				return
			}
			w.WriteHeader(held.status)
			_, _ = w.Write(held.body.Bytes()) // the client may be gone
		}()
		next(held, r)
		outcome = outcomeOf(held.status)
	}
}

func (i *Issuer) failAudit(w http.ResponseWriter, r *http.Request, err error, detail string) {
	i.log.Error("an administrator's call failed", traced(r, "route", r.Pattern, "error", err)...)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Retry-After", "1")
	problem(w, http.StatusServiceUnavailable, detail)
}

func outcomeOf(status int) Outcome {
	switch {
	case status >= 500:
		return Failed
	case status >= 400:
		return Refused
	}
	return Done
}

// auditPath is the path and query asked for, bounded. No call has a secret in them.
func auditPath(r *http.Request) string {
	path := r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	return path[:min(len(path), 512)]
}

// heldAnswer keeps an answer until the audit has it.
type heldAnswer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (h *heldAnswer) Header() http.Header { return h.header }

func (h *heldAnswer) WriteHeader(status int) {
	if h.status == 0 {
		h.status = status
	}
}

func (h *heldAnswer) Write(b []byte) (int, error) {
	h.WriteHeader(http.StatusOK)
	return h.body.Write(b)
}

// Bounds of reading the audit.
const (
	maxAuditLines   = 1000
	auditLines      = 100 // where no limit is asked for
	auditReadWithin = 30 * time.Second
	maxFollowers    = 16 // each holds a reader of the stream
	followBeat      = 15 * time.Second
)

// auditQuery is what GET /admin/v1/audit asks for.
type auditQuery struct {
	since  time.Time
	follow bool
	limit  int
	events map[string]bool // empty: all
	sub    string          // "": anyone
}

func (i *Issuer) parseAuditQuery(q url.Values) (*auditQuery, error) {
	a := &auditQuery{limit: auditLines, events: make(map[string]bool), sub: q.Get("sub"), since: i.now().Add(-24 * time.Hour)}
	for name := range q {
		if !slices.Contains([]string{"since", "follow", "limit", "event", "sub"}, name) {
			return nil, &InputError{name, "is no parameter of the audit: since, event, sub, limit and follow are"}
		}
	}
	for _, e := range q["event"] {
		a.events[e] = true
	}
	switch q.Get("follow") {
	case "", "0":
	case "1":
		a.follow, a.since = true, i.now()
	default:
		return nil, &InputError{"follow", "must be 1 or 0"}
	}
	if text := q.Get("since"); text != "" {
		var err error
		if a.since, err = parseSince(text, i.now()); err != nil {
			return nil, err
		}
	}
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxAuditLines {
			return nil, &InputError{"limit", fmt.Sprintf("must be 1 to %d", maxAuditLines)}
		}
		a.limit = n
	}
	return a, nil
}

// parseSince reads NumericDate seconds, RFC 3339, or how long ago.
func parseSince(text string, now time.Time) (time.Time, error) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
		return time.Unix(n, 0), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	return time.Time{}, &InputError{"since", "must be a time (2026-01-31T08:00:00Z), a NumericDate or a duration such as 1h"}
}

// each calls fn with the lines of a record that are asked for. A break in the trail is a line of its own, and is
// never left out.
func (a *auditQuery) each(rec bus.AuditRecord, fn func(json.RawMessage) error) error {
	if rec.Broken != "" {
		broken := struct {
			Issuer string `json:"issuer"`
			Broken string `json:"broken"`
		}{rec.Issuer, rec.Broken}
		if err := fn(encode(broken)); err != nil {
			return err
		}
	}
	for line := range bytes.Lines(rec.Content) {
		line = bytes.TrimSpace(line)
		var e AuditEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("reading the audit: record %d of issuer %q: %w", rec.Seq, rec.Issuer, err)
		}
		if len(a.events) > 0 && !a.events[e.Event] || a.sub != "" && e.Details["sub"] != a.sub {
			continue
		}
		if at, err := time.Parse(time.RFC3339, e.Time); err == nil && at.Before(a.since.Truncate(time.Millisecond)) {
			continue // written a moment before the rest of its record
		}
		if err := fn(slices.Clone(json.RawMessage(line))); err != nil {
			return err
		}
	}
	return nil
}

// serveAudit answers with the newest events that are asked for, oldest first; with follow=1 with a stream of lines.
func (i *Issuer) serveAudit(w http.ResponseWriter, r *http.Request) {
	q, err := i.parseAuditQuery(r.URL.Query())
	if err == nil && q.follow && i.Trail != nil {
		i.followAudit(w, r, q)
		return
	}
	i.audited(func(w http.ResponseWriter, r *http.Request) {
		if err == nil && i.Trail == nil {
			err = fmt.Errorf("reading the audit: this issuer keeps none: %w", ErrNotFound)
		}
		if err != nil {
			i.fail(w, r, err)
			return
		}
		i.listAudit(w, r, q)
	})(w, r)
}

func (i *Issuer) listAudit(w http.ResponseWriter, r *http.Request, q *auditQuery) {
	ctx, cancel := context.WithTimeout(r.Context(), auditReadWithin)
	defer cancel()
	if err := i.audits.settle(ctx); err != nil {
		i.log.Debug("the newest events are not in the audit yet", "error", err)
	}
	lines, truncated := make([]json.RawMessage, 0, q.limit), false
	err := i.Trail.Read(ctx, q.since, false, func(rec bus.AuditRecord) error {
		return q.each(rec, func(line json.RawMessage) error {
			if len(lines) == q.limit {
				lines, truncated = slices.Delete(lines, 0, 1), true
			}
			lines = append(lines, line)
			return nil
		})
	})
	if err != nil {
		i.fail(w, r, fmt.Errorf("%w: %w", ErrUnavailable, err))
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"events": lines, "truncated": truncated})
}

// followAudit streams events as JSON lines (application/jsonl) until the client goes. An empty line says, now and then, that it
// is still there.
func (i *Issuer) followAudit(w http.ResponseWriter, r *http.Request, q *auditQuery) {
	if i.followers.Add(1) > maxFollowers {
		i.followers.Add(-1)
		i.audited(func(w http.ResponseWriter, r *http.Request) {
			i.fail(w, r, &BusyError{RetryAfter: time.Minute})
		})(w, r)
		return
	}
	defer i.followers.Add(-1)
	if err := i.audits.record(r.Context(), adminCall, Done, []any{"method", r.Method, "path", auditPath(r), "status", http.StatusOK}); err != nil {
		i.failAudit(w, r, err, "the audit cannot be written, so it is not shown; try again")
		return
	}
	ctl := http.NewResponseController(w)
	_ = ctl.SetReadDeadline(time.Time{}) // the server's bounds are for calls that end; a test's recorder has none
	out := &lineWriter{to: w, ctl: ctl}
	w.Header().Set("Content-Type", "application/jsonl")
	w.WriteHeader(http.StatusOK)
	if out.line(nil) != nil {
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	lines := make(chan json.RawMessage)
	done := make(chan error, 1)
	go func() {
		done <- i.Trail.Read(ctx, q.since, true, func(rec bus.AuditRecord) error {
			return q.each(rec, func(line json.RawMessage) error {
				select {
				case lines <- line:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		})
	}()
	beat := time.NewTicker(followBeat)
	defer beat.Stop()
	for {
		var line json.RawMessage
		select {
		case line = <-lines:
		case <-beat.C:
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				i.log.Warn("a reader of the audit was cut off", "error", err)
			}
			return
		}
		if out.line(line) != nil {
			cancel()
			<-done
			return
		}
	}
}

// lineWriter writes lines to a client that may be slow for a while.
type lineWriter struct {
	to  http.ResponseWriter
	ctl *http.ResponseController
}

func (l *lineWriter) line(text []byte) error {
	_ = l.ctl.SetWriteDeadline(time.Now().Add(2 * followBeat)) // a test's recorder has none
	_, err := l.to.Write(append(text[:len(text):len(text)], '\n'))
	return errors.Join(err, l.ctl.Flush())
}
