package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
)

// openLog opens the log. What this issuer saw acknowledged is on its own disk too: a log that lacks some of it is
// begun anew from there.
func (p *issuerProcess) openLog(ctx context.Context) (err error) {
	absent, err := p.conn.Present(p.cfg.Agent.Name)
	if err != nil {
		return err
	}
	p.onClose(absent)
	if p.store, err = replica.OpenStore(filepath.Join(p.cfg.DataDir, "log"), p.authority.Public()); err != nil {
		return err
	}
	p.onClose(func() { p.store.Close() })
	known := replica.New(replica.Config{})
	if _, err := p.store.Restore(known); err != nil {
		p.log.Error("this issuer's own copy of the log is of no use: it cannot tell whether the bus has lost entries", "error", err)
	}
	cfg := bus.LogConfig{Authority: p.authority, Issuer: p.cfg.Agent.Name, Replicas: p.cfg.replicas(), Took: p.appendTime(), Anew: p.begunAnew}
	if p.entries, err = bus.OpenLog(ctx, p.conn, cfg); err != nil {
		return err
	}
	lacks, err := p.entries.Lacks(ctx, known)
	if lacks {
		p.entries.Close()
		if err := p.makeWhole(ctx, cfg, known); err != nil {
			return err
		}
		if p.entries, err = bus.OpenLog(ctx, p.conn, cfg); err != nil {
			return err
		}
	}
	p.onClose(func() { p.entries.Close() })
	if err != nil {
		return err
	}
	if err := bus.EndAnew(ctx, p.duties, p.cfg.Agent.Name, p.entries.Epoch()); err != nil {
		return err
	}
	// Who may be vouching is on this issuer's own disk too, should the bus's lose it.
	if p.lists, err = lease.OpenCopies(filepath.Join(p.cfg.DataDir, "log", "grants"), p.entries, p.log.Named("lease")); err == nil {
		p.onClose(func() { p.lists.Close() })
	}
	return err
}

// makeWhole has a log begun anew that lacks what this issuer knows: by this issuer, or by another that found the same and
// was first.
func (p *issuerProcess) makeWhole(ctx context.Context, cfg bus.LogConfig, known *replica.Replica) error {
	claim, err := p.claimAnew(ctx, cfg, known)
	if claim == nil && !errors.Is(err, bus.ErrBegun) {
		return err // nil: another has done it
	}
	lacks, lerr := p.lacks(ctx, cfg, known)
	if claim == nil && lacks {
		return fmt.Errorf("the log lacks entries again: %w; %s", err, p.unclaimed())
	}
	if claim == nil || lerr != nil || !lacks { // another has done it
		if claim != nil {
			lerr = errors.Join(lerr, claim.Withdraw(ctx))
		}
		return lerr
	}
	at, err := p.beginAnew(ctx, cfg, known)
	if err != nil {
		return err // the claim stays: at its next start this issuer goes on
	}
	return claim.Done(ctx, at.Epoch)
}

// begunAnew ends this process, so that it is started again and opens the log as one that starts does: before it says anything
// under the new epoch it compares that with what it knows (PROTOCOL 13).
func (p *issuerProcess) begunAnew(err error) {
	p.end(fmt.Errorf("%w: another issuer has done so while this one ran, so this one ends to be started again, and goes on with the new log then; start it, if nothing does by itself", err))
}

// oneEpoch is a log that is followed within one epoch: what this issuer knows of the one before has to stand in its own copy
// until it is started again.
type oneEpoch struct {
	*bus.Log
	anew func(error)
}

// Follow is replica.Log's; where the log was begun anew it says so, and waits for ctx.
func (l oneEpoch) Follow(ctx context.Context, after bus.Cursor, fn func([]bus.Entry, uint64) error) error {
	err := l.Log.Follow(ctx, after, fn)
	if errors.Is(err, bus.ErrEpoch) {
		l.anew(err)
		<-ctx.Done()
		return ctx.Err() // for an ErrEpoch the replica would give up what it knows
	}
	return err
}

// Pauses between two looks whether another issuer has begun the log anew: by its word, and by the log, which costs more.
const (
	claimAgain = 250 * time.Millisecond
	lacksAgain = 5 * time.Second
)

// claimAnew waits while another issuer begins the log anew, until it says so or, if it died before it could, the log shows it; both
// nil: it does. Nobody opens the log where there is none meanwhile: that would make it.
func (p *issuerProcess) claimAnew(ctx context.Context, cfg bus.LogConfig, known *replica.Replica) (*bus.AnewClaim, error) {
	look := time.Now().Add(lacksAgain)
	for said := false; ; said = true {
		claim, err := bus.ClaimAnew(ctx, p.duties, p.cfg.Agent.Name, known.Cursor().Epoch, false)
		if !errors.Is(err, bus.ErrClaimed) {
			return claim, err
		}
		if !said {
			p.log.Warn("the log lacks entries; waiting for who begins it anew", "error", err)
		}
		if time.Now().After(look) {
			look = time.Now().Add(lacksAgain)
			if p.stands(ctx, cfg, known) {
				return nil, nil
			}
		}
		select {
		case <-time.After(claimAgain):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; %s", err, p.unclaimed())
		}
	}
}

// unclaimed is what to do where another issuer has the claim to begin the log anew, and does not.
func (p *issuerProcess) unclaimed() string {
	if p.cfg.clustered() {
		return "start that issuer; if it will not come back, stop every issuer and restore a backup (docs/backup.md)"
	}
	return "start that issuer, or, if it will not come back, stop every issuer and run `sidekey bus begin-anew --yes --take-over`"
}

// stands tells whether there is a log that lacks nothing which this issuer knows.
func (p *issuerProcess) stands(ctx context.Context, cfg bus.LogConfig, known *replica.Replica) bool {
	there, err := p.conn.HasLog(ctx)
	if err != nil || !there {
		return false
	}
	lacks, err := p.lacks(ctx, cfg, known)
	return err == nil && !lacks
}

func (p *issuerProcess) lacks(ctx context.Context, cfg bus.LogConfig, known *replica.Replica) (bool, error) {
	l, err := bus.OpenLog(ctx, p.conn, cfg)
	if err != nil {
		return false, err
	}
	defer l.Close()
	return l.Lacks(ctx, known)
}

// beginAnew makes a log that has lost entries anew, from this issuer's own copy, and says so loudly.
func (p *issuerProcess) beginAnew(ctx context.Context, cfg bus.LogConfig, known *replica.Replica) (at bus.Position, err error) {
	p.log.Error("THE LOG HAS LOST ENTRIES that were acknowledged; beginning it anew from this issuer's own copy",
		"epoch", known.Cursor().Epoch, "known_seq", known.Cursor().Seq)
	longest, err := p.fleet.Longest(ctx)
	if err != nil {
		return at, err
	}
	held, err := json.Marshal(lease.Blanket(longest, known.Cursor().Position))
	if err != nil {
		return at, err
	}
	at, err = bus.BeginAnew(ctx, p.conn, cfg, known.Cursor(), known.ImageAt, held)
	if err != nil {
		return at, err
	}
	p.log.Error("the log was begun anew: every agent reads it from its checkpoint, and receipts wait for the longest lease",
		"epoch", at.Epoch, "seq", at.Seq, "revocations", known.Revocations())
	return at, nil
}

// openLeases builds the account of who may be vouching, and the pulse that grants leases.
func (p *issuerProcess) openLeases() {
	log := p.log.Named("lease")
	p.ledger = lease.NewLedger(nil)
	p.behind = &lease.Behind{
		Authority: p.authority.Public(), Holds: p.entries.Holds, Logger: log,
		Found: func(agent string, err error) {
			p.log.Error("THIS ISSUER'S DISK IS OLDER THAN WHAT IT HAS SIGNED; it makes and checks no token any more, and does not tick", "agent_that_knows", agent, "error", err)
		},
	}
	p.books = &lease.Bookkeeper{
		Ledger: p.ledger, Grants: p.lists.ReadGrants, MayHold: p.fleet.MayHold, Held: p.entries.Held, IssuerLease: freshFor, Behind: p.behind, Logger: log,
		Key: func(ctx context.Context, agent string) (ed25519.PublicKey, error) {
			return p.fleet.KnownSigningKey(ctx, agent)
		},
	}
	p.own = lease.NewOwn(p.lists, func() bus.Position { return p.replica.Snapshot().Position }, freshFor, nil)
	p.clocks = lease.NewClocks(p.runID, nil)
	p.granter = lease.NewGranter(lease.GranterConfig{
		Issuer: p.cfg.Agent.Name, Run: p.runID, Authority: p.authority, Log: p.own, Logger: log,
		Key: func(ctx context.Context, agent string) (ed25519.PublicKey, error) {
			return p.fleet.SigningKey(ctx, agent)
		},
		Known:   p.books.Key,
		Alive:   p.vitals.loop("ticks"),
		Sound:   p.maySpeak,
		Idle:    p.duty.Held,
		Note:    p.fleet.NoteLease,
		Applied: func() uint64 { return p.replica.Snapshot().Position.Seq },
	})
}

// maySpeak tells whether this issuer may tick, and so grant leases: its log is not behind what it has signed, and its clock is right.
func (p *issuerProcess) maySpeak() error { return errors.Join(p.behind.Err(), p.clocks.CheckIssuer()) }

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
