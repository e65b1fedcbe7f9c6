package main

import (
	"context"
	"fmt"
	"io"

	"github.com/sidekey/sidekey/bus"
)

// openAudit opens the trail, and the file beside it where there is one.
func (p *issuerProcess) openAudit(ctx context.Context) (err error) {
	c := p.cfg.Issuer
	p.trail, err = bus.OpenAudit(ctx, p.conn, bus.AuditConfig{
		Issuer: p.cfg.Agent.Name, Master: p.master, MaxAge: c.AuditMaxAge, MaxBytes: int64(c.AuditMaxMiB) << 20, Replicas: p.cfg.replicas(),
	})
	if err == nil {
		err = p.trail.Watch(ctx, p.guard)
	}
	if err != nil || c.AuditFile == "" {
		return err
	}
	if p.auditFile, err = openAppend(c.AuditFile); err != nil {
		return fmt.Errorf("issuer.audit_file: %w", err)
	}
	p.onClose(func() { p.auditFile.Close() })
	return nil
}

// auditWriter is the file for the issuer, nil where there is none.
func (p *issuerProcess) auditWriter() io.Writer {
	if p.auditFile == nil {
		return nil
	}
	return p.auditFile
}
