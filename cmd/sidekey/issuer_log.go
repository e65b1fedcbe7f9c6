package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"path/filepath"
	"slices"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
)

// openLog opens the log. What this issuer saw acknowledged is on its own disk too: a log that lacks some of it is
// begun anew from there.
func (p *issuerProcess) openLog(ctx context.Context) (err error) {
	if p.store, err = replica.OpenStore(filepath.Join(p.cfg.DataDir, "log"), p.authority.Public()); err != nil {
		return err
	}
	p.onClose(func() { p.store.Close() })
	known := replica.New(replica.Config{})
	if _, err := p.store.Restore(known); err != nil {
		p.log.Error("this issuer's own copy of the log is of no use: it cannot tell whether the bus has lost entries", "error", err)
	}
	cfg := bus.LogConfig{Authority: p.authority, Issuer: p.cfg.Agent.Name}
	if p.entries, err = bus.OpenLog(ctx, p.conn, cfg); err != nil {
		return err
	}
	lacks, err := p.entries.Lacks(ctx, known.Cursor())
	if lacks {
		p.entries.Close()
		if err := p.beginAnew(ctx, cfg, known); err != nil {
			return err
		}
		if p.entries, err = bus.OpenLog(ctx, p.conn, cfg); err != nil {
			return err
		}
	}
	p.onClose(func() { p.entries.Close() })
	return err
}

// beginAnew makes a log that has lost entries anew, from this issuer's own copy, and says so loudly.
func (p *issuerProcess) beginAnew(ctx context.Context, cfg bus.LogConfig, known *replica.Replica) error {
	p.log.Error("THE LOG HAS LOST ENTRIES that were acknowledged; beginning it anew from this issuer's own copy",
		"epoch", known.Cursor().Epoch, "known_seq", known.Cursor().Seq)
	longest, err := p.fleet.Longest(ctx)
	if err != nil {
		return err
	}
	held, err := json.Marshal(lease.Blanket(longest, known.Cursor().Position))
	if err != nil {
		return err
	}
	at, err := bus.BeginAnew(ctx, p.conn, cfg, known.Cursor(), known.ImageAt, held)
	if err != nil {
		return err
	}
	p.log.Error("the log was begun anew: every agent reads it from its checkpoint, and receipts wait for the longest lease",
		"epoch", at.Epoch, "seq", at.Seq, "revocations", known.Revocations())
	return nil
}

// openLeases builds the account of who may be vouching, and the pulse that grants leases.
func (p *issuerProcess) openLeases() {
	log := p.log.Named("lease")
	p.ledger = lease.NewLedger(nil)
	p.books = &lease.Bookkeeper{
		Ledger: p.ledger, Grants: p.entries.ReadGrants, Held: p.entries.Held, IssuerLease: freshFor, Logger: log,
		Key: func(ctx context.Context, agent string) (ed25519.PublicKey, error) {
			return p.fleet.KnownSigningKey(ctx, agent)
		},
	}
	p.own = lease.NewOwn(p.entries, func() bus.Position { return p.replica.Snapshot().Position }, freshFor, nil)
	p.clocks = lease.NewClocks(p.runID, nil)
	p.granter = lease.NewGranter(lease.GranterConfig{
		Issuer: p.cfg.Agent.Name, Run: p.runID, Authority: p.authority, Log: p.own, Logger: log,
		Key: func(ctx context.Context, agent string) (ed25519.PublicKey, error) {
			return p.fleet.SigningKey(ctx, agent)
		},
		Known:   p.books.Key,
		Sound:   p.clocks.CheckIssuer,
		Note:    p.fleet.NoteLease,
		Applied: func() uint64 { return p.replica.Snapshot().Position.Seq },
	})
}

// acknowledge has this issuer tick as soon as it has applied what another may be waiting for: it vouches too, and a
// receipt needs its word. Ticks stay as far apart as they are for agents that ask.
func (p *issuerProcess) acknowledge(ctx context.Context) {
	for told := uint64(0); ; {
		changed := p.replica.Changed()
		if due := p.due.Load(); due > told && p.replica.Snapshot().Position.Seq >= due {
			told = due
			if p.ledger.Accompanied(p.runID) {
				p.granter.Hurry()
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// noteDue remembers the newest entry that a receipt may be about.
func (p *issuerProcess) noteDue(entries []bus.Entry) {
	for _, en := range slices.Backward(entries) {
		if _, tick := en.Fact.(*bus.Tick); !tick {
			p.due.Store(en.Seq)
			return
		}
	}
}

// asker asks the agents what they say of a token, and knows whose answer is due.
func (p *issuerProcess) asker() issuer.Asker {
	return struct {
		*bus.Asker
		*lease.Ledger
	}{&bus.Asker{Conn: p.conn, Authority: p.authority, Key: p.books.Key, Logger: p.log.Named("ask")}, p.ledger}
}

// issuerFleet is what the issuer knows of the agents: the fleet's names and the ledger's receipts.
type issuerFleet struct {
	*bus.Fleet
	ledger *lease.Ledger
	enrol  *bus.Enrolment
	self   string // the run of this issuer
}

// Remove is issuer.Fleet's.
func (f issuerFleet) Remove(ctx context.Context, name string) error {
	return f.enrol.Remove(ctx, bus.RoleAgent, name)
}

// Receipt is issuer.Fleet's.
func (f issuerFleet) Receipt(ctx context.Context, pos bus.Position) (*lease.Receipt, error) {
	if err := f.ledger.Await(ctx, pos); err != nil {
		return nil, err
	}
	return f.ledger.Receipt(pos, f.self), nil
}

// Changed is issuer.Fleet's.
func (f issuerFleet) Changed() <-chan struct{} { return f.ledger.Changed() }
