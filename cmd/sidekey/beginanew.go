package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// errReadUp ends a reading of the log at its head.
var errReadUp = errors.New("read up to the head")

func (a *app) busBeginAnewCommand() *cobra.Command {
	var yes, takeOver bool
	cmd := &cobra.Command{
		Use:   "begin-anew",
		Short: "Begin the log anew from this issuer's own copy of it, by an operator's word",
		Long: "For a log that cannot be gone on with: the owner of the bus has written an entry into it that no issuer signed, so nobody\n" +
			"applies what comes behind; or an agent that serves without a lease is gone for good, and every receipt waits for it. Stop every\n" +
			"issuer first. Agents follow by themselves and forget no revocation; until the longest lease that any asked for has passed\n" +
			"nothing is confirmed. An agent that goes on serving without a lease, cut off, is waited for no more: make sure that it is gone.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config(defaultConfig())
			if err != nil {
				return err
			}
			return a.beginAnew(cmd.Context(), cfg, yes, takeOver)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it; without, it says what would be done")
	cmd.Flags().BoolVar(&takeOver, "take-over", false, "also where another issuer has begun to do that, and will not come back")
	return cmd
}

// beginAnew does it while no issuer runs here.
func (a *app) beginAnew(ctx context.Context, cfg Config, yes, takeOver bool) error {
	if cfg.clustered() {
		return errors.New("beginning the log anew: this issuer is in a cluster (bus.cluster.listen), whose log is there only while more than half of the issuers are up, and this wants all stopped; stop them, and restore a backup into a fresh data_dir, with --revocations-from a copy of the newest data_dir/log: docs/backup.md")
	}
	if !exists(filepath.Join(cfg.DataDir, "log")) {
		return fmt.Errorf("beginning the log anew: %s holds no issuer's copy of the log; name its folder with --data-dir, or restore a backup", cfg.DataDir)
	}
	p, err := openStopped(ctx, cfg, newLogger(cfg, a.stderr))
	if err != nil {
		return err
	}
	defer p.close()
	if up, err := p.conn.Up(ctx); err != nil {
		return err
	} else if len(up) > 0 {
		return fmt.Errorf("beginning the log anew: stop every issuer first; up: %s", strings.Join(up, ", "))
	}
	known, stopped, err := p.readKnown(ctx)
	if err != nil {
		return err
	}
	at := known.Cursor()
	a.note("this issuer knows the log up to entry %d of epoch %d, with %d revocations", at.Seq, at.Epoch, known.Revocations())
	if stopped != nil {
		a.note("behind that it cannot be read: %v", stopped)
	}
	longest, err := p.fleet.Longest(ctx)
	if err != nil {
		return err
	}
	wait := time.Duration(0)
	for length := range maps.Values(longest) {
		wait = max(wait, length)
	}
	if wait == 0 {
		wait = lease.MaxLength
	}
	if !yes {
		return fmt.Errorf("nothing was done; with --yes the log begins anew from there, what lies behind is lost, and nothing is confirmed for %s", wait)
	}
	held, err := json.Marshal(lease.Blanket(longest, at.Position))
	if err != nil {
		return err
	}
	bucket, err := bus.OpenBucket(ctx, p.conn, bus.BucketDuties, p.master, cfg.replicas())
	if err != nil {
		return err
	}
	claim, err := bus.ClaimAnew(ctx, bucket, cfg.Agent.Name, at.Epoch, takeOver)
	if errors.Is(err, bus.ErrClaimed) || errors.Is(err, bus.ErrBegun) {
		return fmt.Errorf("%w; run this there, or start this issuer; with --take-over, if that one is gone for good", err)
	}
	if err != nil {
		return err
	}
	begun, err := bus.BeginAnew(ctx, p.conn, bus.LogConfig{Authority: p.authority, Issuer: cfg.Agent.Name, Replicas: cfg.replicas()}, at, known.ImageAt, held)
	if err == nil {
		err = claim.Done(ctx, begun.Epoch)
	}
	if err != nil {
		return err
	}
	a.note("the log was begun anew at entry %d of epoch %d; start the issuer. Nothing is confirmed for %s", begun.Seq, begun.Epoch, wait)
	return nil
}

// openStopped opens of an issuer that does not run what a command needs: the bus, the key that signs the log, the agents.
func openStopped(ctx context.Context, cfg Config, log hclog.Logger) (p *issuerProcess, err error) {
	id, err := bus.ReadIdentity(filepath.Join(cfg.DataDir, identityDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	p = &issuerProcess{cfg: cfg, log: log, identity: id, buckets: map[string]*bus.Bucket{}}
	p.cfg.Bus.Listen = "127.0.0.1:0" // nobody is let in
	opened := p
	defer func() {
		if err != nil {
			opened.close()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	for _, open := range []func(context.Context) error{p.lock, p.unfinished, p.openTrust, p.openBus} {
		if err := open(ctx); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{bus.BucketKeys, bus.BucketAgents} {
		if p.buckets[name], err = bus.OpenBucket(ctx, p.conn, name, p.master, cfg.replicas()); err != nil {
			return nil, err
		}
	}
	rec, err := p.buckets[bus.BucketKeys].Get(ctx, authorityName)
	if err != nil {
		return nil, fmt.Errorf("reading the key that signs the log: %w; restore a backup", err)
	}
	if p.authority, err = keyring.ParseAuthority(rec.Value); err != nil {
		return nil, fmt.Errorf("reading the key that signs the log: %w", err)
	}
	return p, p.openFleet(ctx)
}

// readKnown gives what this issuer's own copy of the log holds, and what can be read of the log behind it; stopped says why it
// is no more.
func (p *issuerProcess) readKnown(ctx context.Context) (known *replica.Replica, stopped, err error) {
	known = replica.New(replica.Config{})
	there, err := replica.ReadStore(filepath.Join(p.cfg.DataDir, "log"), p.authority.Public(), known)
	if err == nil && !there {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading this issuer's copy of the log: %w; restore a backup", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	stopped = bus.NewReader(p.conn, p.authority.Public()).Follow(ctx, known.Cursor(), func(entries []bus.Entry, head uint64) error {
		if err := known.Apply(entries...); err != nil {
			return err
		}
		if known.Cursor().Seq >= head {
			return errReadUp
		}
		return nil
	})
	if errors.Is(stopped, errReadUp) {
		stopped = nil
	}
	return known, stopped, nil
}
