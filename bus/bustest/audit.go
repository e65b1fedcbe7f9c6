package bustest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// AuditTrail is bus.AuditTrail in memory. The zero value is an empty one.
type AuditTrail struct {
	mu      sync.Mutex
	records []auditRecord
	fail    error
	changed chan struct{} // closed when there is another record; nil: nobody waits
}

type auditRecord struct {
	at time.Time
	bus.AuditRecord
}

// Fail has every Write fail with err, until Fail(nil).
func (a *AuditTrail) Fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = err
}

// Write appends a record.
func (a *AuditTrail) Write(_ context.Context, content []byte) (broken string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		return "", a.fail
	}
	a.records = append(a.records, auditRecord{time.Now(), bus.AuditRecord{Seq: uint64(len(a.records) + 1), Issuer: "test", Content: content}})
	if a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
	return "", nil
}

// Read gives the records, as bus.AuditTrail does.
func (a *AuditTrail) Read(ctx context.Context, since time.Time, follow bool, fn func(bus.AuditRecord) error) error {
	for next := 0; ; {
		a.mu.Lock()
		records := a.records[next:]
		next = len(a.records)
		if a.changed == nil {
			a.changed = make(chan struct{})
		}
		changed := a.changed
		a.mu.Unlock()
		for _, rec := range records {
			if rec.at.Before(since) {
				continue
			}
			if err := fn(rec.AuditRecord); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Audit opens the audit trail, as the issuer of a name.
func (b *Bus) Audit(t testing.TB, issuer string) *bus.AuditTrail {
	t.Helper()
	a, err := bus.OpenAudit(t.Context(), b.Connect(t), bus.AuditConfig{Issuer: issuer, Master: b.Master, MaxBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return a
}
