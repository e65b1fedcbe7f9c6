package main

import (
	"context"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// openDuty opens the record of which issuer does what one is enough for.
func (p *issuerProcess) openDuty(ctx context.Context) error {
	bucket, err := bus.OpenBucket(ctx, p.conn, bus.BucketDuties, p.master, p.cfg.replicas())
	if err != nil {
		return err
	}
	p.duties = bucket
	written, stop, err := bucket.Written(dutyName)
	if err != nil {
		return err
	}
	p.onClose(stop)
	p.duty = lease.NewDuty(lease.DutyConfig{
		Issuer: p.cfg.Agent.Name, Run: p.runID, Bucket: bucket, Name: dutyName, Written: written,
		Fit:    func() bool { return p.issuer.Fit() },
		Lags:   func() bool { return p.books.Lag() > booksLate }, // it can write no checkpoint, and confirm nothing
		Logger: p.log.Named("duty"),
	})
	return nil
}

// booksLate is how far the account of who may be vouching may be behind the log before another issuer is to have the duty.
const booksLate = 10 * time.Second

// dutyName is the one record in bus.BucketDuties.
const dutyName = "issuer"
