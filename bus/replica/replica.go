package replica

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// Config is what a Replica needs beside the log. The zero value is usable: it holds no HS256 key
// and writes nothing to disk.
type Config struct {
	// Open gives an HS256 key from its entry: an agent opens the box that is sealed to it, an
	// issuer reads its own record. ErrNotHeld: this process is not meant to have it. Any other
	// error stops application, and the entry is tried again.
	Open func(*bus.KeyFact) (*keyring.Key, error)
	// Needs tells whether this process must be able to open an HS256 key, in whatever state that
	// still verifies (PROTOCOL 19). While it has none of one that it needs, what it reads is kept,
	// and neither published nor acknowledged, until an entry brings the box. nil: it needs none.
	// See Serving.
	Needs func(*bus.KeyFact) bool
	// Journal is told of entries before they count as applied; see Store.
	Journal func([]bus.Entry) error
	// Pulse is told of a tick that was the newest entry when it arrived. It may not wait, nor ask the Replica. nil: nobody is.
	Pulse func(*bus.Tick)
	// Rules is told of a Snapshot with other rules just before that is published, so that they are in force before anybody
	// is told that their entry is applied. What it does delays all that is behind them. It may not ask the Replica. nil:
	// nobody is.
	Rules func(*Snapshot)
	// Alive is called by Follow at each turn, with how long the next may take. nil: nobody wants to know.
	Alive  func(within time.Duration)
	Logger hclog.Logger
}

// ErrNotHeld says that an HS256 secret is not sealed to this process.
var ErrNotHeld = errors.New("the secret is not sealed to this process")

// Snapshot is what a Replica knew at one position. It is immutable; load it once per request,
// before asking Revoked.
type Snapshot struct {
	Position bus.Position
	Ring     *keyring.Ring
	TickTime time.Time // of the newest applied tick, signed; zero before the first
	// Sealing is the issuers' newest sealing key; nil: there is none, or it has expired by the log's time.
	Sealing    *bus.SealingFact
	SealingSeq uint64 // of the newest entry of that kind, 0: there was none
	// Rules are the sets of rules that the log hands out; nil: there were none. Others are another pointer.
	Rules    *RuleSets
	RulesSeq uint64 // of the newest entry of that kind, 0: there was none
	// Ready is false until the first full sync: before it, nobody may be vouched for.
	Ready bool
	// Due is the newest entry that an issuer waits to hear is applied: one that is no tick, or a tick of
	// an issuer's process that was not heard of before, and has not heard of anybody.
	Due uint64

	chain bus.Chain // at Position
}

// dropSealing lets go of a sealing key that has expired.
func (s *Snapshot) dropSealing(now int64) {
	if s.Sealing != nil && s.Sealing.ExpiresAt != 0 && s.Sealing.ExpiresAt <= now {
		s.Sealing = nil
	}
}

func (s *Snapshot) cursor() bus.Cursor { return bus.Cursor{Position: s.Position, Chain: s.chain} }

// Replica is what a reader of the log knows. Any goroutine may read; one at a time (Follow, or a
// test) applies.
type Replica struct {
	cfg Config
	cur atomic.Pointer[Snapshot]

	revoked     set
	cutoffs     cutoffs
	credentials credentials
	head        atomic.Uint64 // the newest sequence known to exist
	fault       atomic.Pointer[error]
	lack        atomic.Pointer[error] // why what is read is not published

	mu      sync.Mutex                   // held by the writer
	tip     *Snapshot                    // what is read: cur, or ahead of it while a key is lacking
	chains  [rememberedChains]bus.Cursor // the newest, by sequence
	keys    map[string]*bus.KeyFact      // by kid, boxes united
	judged  time.Time                    // the greatest time by which anything was dropped
	pulses  [16]string                   // the runs whose ticks came last, the newest first
	changed chan struct{}                // closed at the next snapshot
}

// rememberedChains is how far back ChainAt knows: some minutes of ticks.
const rememberedChains = 1024

// New makes an empty Replica, which is not Ready.
func New(cfg Config) *Replica {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	r := &Replica{cfg: cfg, keys: make(map[string]*bus.KeyFact), changed: make(chan struct{})}
	r.tip = &Snapshot{Ring: keyring.NewRing("", "")}
	r.cur.Store(r.tip)
	return r
}

// Snapshot is what the Replica knows now. One atomic load.
func (r *Replica) Snapshot() *Snapshot { return r.cur.Load() }

// Time is the log's: that of the newest applied tick, zero before the first.
func (r *Replica) Time() time.Time { return r.Snapshot().TickTime }

// Head is the newest sequence that is known to exist; it may be ahead of what is applied.
func (r *Replica) Head() uint64 { return max(r.head.Load(), r.Snapshot().Position.Seq) }

// Revocations is the number of live ones, cutoffs included.
func (r *Replica) Revocations() int { return int(r.revoked.count.Load() + r.cutoffs.count.Load()) }

// Cursor is where the Replica stands: its Snapshot's position, and the chain there.
func (r *Replica) Cursor() bus.Cursor { return r.cur.Load().cursor() }

// read is where reading goes on: Cursor, or ahead of it while a key is lacking.
func (r *Replica) read() bus.Cursor {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tip.cursor()
}

// ChainAt gives the chain at an earlier sequence of this epoch, while it is remembered.
func (r *Replica) ChainAt(seq uint64) (bus.Chain, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.chains[seq%rememberedChains]
	return at.Chain, at.Seq == seq && at.Epoch == r.tip.Position.Epoch
}

// Fault is why application has stopped (a forged or unknown entry, a rollback, an HS256 key that is
// not sealed to this process and should be), nil while it goes on.
func (r *Replica) Fault() error {
	for _, p := range []*error{r.fault.Load(), r.lack.Load()} {
		if p != nil {
			return *p
		}
	}
	return nil
}

// Changed is closed when a Snapshot newer than those seen before the call is published.
func (r *Replica) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Wait returns when everything up to seq is applied, or with ctx's error.
func (r *Replica) Wait(ctx context.Context, seq uint64) error {
	for {
		changed := r.Changed()
		if r.Snapshot().Position.Seq >= seq {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for log entry %d, at %d: %w", seq, r.Snapshot().Position.Seq, ctx.Err())
		}
	}
}

// IDs are the fingerprints of what a token can be revoked by, made once and kept with the token.
type IDs struct {
	jti, sid, sub, client id
	origin                id // of an exchanged token: the client of the token that was exchanged
	hasSID, hasSub        bool
	hasClient, hasSeq     bool
	hasOrigin             bool
	seq, clientSeq        uint64
	iat                   int64
}

// Fingerprint makes the IDs of proven claims.
func Fingerprint(c *keyring.Claims) IDs {
	ids := IDs{
		jti:    fingerprint('j', c.ID),
		hasSID: c.SessionID != "", hasSub: c.Subject != "", hasClient: c.ClientID != "",
		hasSeq: c.HasSessionSeq, seq: c.SessionSeq, clientSeq: c.SessionSeq,
		iat: int64(c.IssuedAt),
	}
	if c.SubjectClientID != "" {
		ids.origin, ids.hasOrigin, ids.clientSeq = fingerprint('c', c.SubjectClientID), true, c.ClientSeq
	}
	if ids.hasSID {
		ids.sid = fingerprint('s', c.SessionID)
	}
	if ids.hasSub {
		ids.sub = fingerprint('u', c.Subject)
	}
	if ids.hasClient {
		ids.client = fingerprint('c', c.ClientID)
	}
	return ids
}

// Revoked tells whether the token, its session, its subject or its client is revoked. It does not
// allocate. Ask Forgotten after it.
func (r *Replica) Revoked(ids *IDs) bool {
	return r.revoked.has(ids.jti) ||
		ids.hasSID && r.revoked.has(ids.sid) ||
		ids.hasSub && r.cutoffs.refuses(ids.sub, ids.seq, ids.hasSeq, ids.iat) ||
		ids.hasClient && r.cutoffs.refuses(ids.client, ids.clientSeq, ids.hasSeq, ids.iat) ||
		ids.hasOrigin && r.cutoffs.refuses(ids.origin, ids.seq, ids.hasSeq, ids.iat)
}

// Forgotten tells whether the revocation of a token that ends at exp (NumericDate, leeway
// included) may have been dropped already: such a token is expired, whatever the local clock says
// (PROTOCOL 15). Ask it after Revoked: dropping is announced before it is done.
func (r *Replica) Forgotten(exp int64) bool { return exp <= r.revoked.dropped.Load() }

// Apply folds entries in, in log order, and publishes one new Snapshot. Entries already applied
// are skipped, so redelivery is harmless. On an error nothing of the failing entry is published;
// those before it are.
func (r *Replica) Apply(entries ...bus.Entry) error { return r.apply(entries, 0, false) }

// apply also notes the head that the log is known to have, and whether that is reached: the end
// of the first full sync.
func (r *Replica) apply(entries []bus.Entry, head uint64, synced bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	fresh, err := r.unapplied(entries)
	if err != nil {
		return err
	}
	next := *r.tip
	keys := maps.Clone(r.keys)
	n := 0
	for ; n < len(fresh); n++ {
		if err = r.fold(&next, &fresh[n]); err != nil {
			err = fmt.Errorf("applying log entry %d: %w", fresh[n].Seq, err)
			break
		}
	}
	if folded := fresh[:n]; n > 0 {
		if r.cfg.Journal != nil {
			if err := r.cfg.Journal(folded); err != nil {
				r.keys = keys // what was revoked stays revoked, but nothing counts as applied
				return err
			}
		}
		for i := range folded {
			r.chains[folded[i].Seq%rememberedChains] = folded[i].Cursor()
		}
		next.Position, next.chain, next.Due = folded[n-1].Position, folded[n-1].Chain, r.due(next.Due, folded)
	}
	if head > r.head.Load() {
		r.head.Store(head)
	}
	next.Ready = next.Ready || synced && err == nil
	if synced && err == nil && n > 0 {
		r.pulse(fresh[n-1].Fact)
	}
	r.publish(&next)
	return err
}

func (r *Replica) pulse(newest bus.Fact) {
	if t, ok := newest.(*bus.Tick); ok && r.cfg.Pulse != nil {
		r.cfg.Pulse(t)
	}
}

// due gives the newest entry that is to be acknowledged: see Snapshot.Due. r.mu is held.
func (r *Replica) due(at uint64, entries []bus.Entry) uint64 {
	for i := range entries {
		t, tick := entries[i].Fact.(*bus.Tick)
		if !tick {
			at = entries[i].Seq
			continue
		}
		n := slices.Index(r.pulses[:], t.Run)
		if n < 0 {
			n, at = len(r.pulses)-1, entries[i].Seq
		}
		copy(r.pulses[1:n+1], r.pulses[:n])
		r.pulses[0] = t.Run
	}
	return at
}

// Due is Snapshot.Due as it stands.
func (r *Replica) Due() uint64 { return r.cur.Load().Due }

var errHole = errors.New("it does not follow what is applied")

// unapplied gives the entries behind those applied; a hole before them is an error.
func (r *Replica) unapplied(entries []bus.Entry) ([]bus.Entry, error) {
	at := r.tip.Position
	for len(entries) > 0 && !at.Before(entries[0].Position) {
		entries = entries[1:]
	}
	for i := range entries {
		if got := entries[i].Position; got.Seq != at.Seq+1 || got.Epoch != at.Epoch && at.Epoch != 0 {
			return nil, fmt.Errorf("applying log entry %d of epoch %d: %w: the next one is %d of epoch %d", got.Seq, got.Epoch, errHole, at.Seq+1, at.Epoch)
		}
		at = entries[i].Position
	}
	return entries, nil
}

// publish stores the Snapshot and wakes those who wait for one; while a key is lacking, it keeps it.
// r.mu is held.
func (r *Replica) publish(next *Snapshot) {
	r.tip = next
	if r.lacking(next.Ring) {
		return
	}
	if r.cfg.Rules != nil && next.Rules != r.cur.Load().Rules {
		r.cfg.Rules(next)
	}
	r.cur.Store(next)
	close(r.changed)
	r.changed = make(chan struct{})
}

// fold takes one entry in. Revocations are visible at once, so before the Snapshot that covers them.
func (r *Replica) fold(next *Snapshot, en *bus.Entry) error {
	switch f := en.Fact.(type) {
	case *bus.Revocation:
		r.revoke(f, en.Seq)
	case *bus.KeyFact:
		return r.foldKey(next, f, en.Seq)
	case *bus.Credential:
		r.setCredential(f, en.Seq)
	case *bus.SealingFact:
		next.Sealing, next.SealingSeq = f, en.Seq
	case *bus.RulesFact:
		r.foldRules(next, f, en.Seq)
	case *bus.Tick:
		// Not the greatest: the time goes back with the issuers' clocks when those are set right. What was dropped by the wrong
		// one is not believed to be there still (Forgotten).
		if next.TickTime = f.At(); next.TickTime.After(r.judged) {
			r.judged = next.TickTime
			r.expire(next)
		}
	default:
		return fmt.Errorf("%w: %T", bus.ErrUnknown, f)
	}
	return nil
}

func (r *Replica) revoke(f *bus.Revocation, seq uint64) {
	switch {
	case f.ID != "":
		r.revoked.add(fingerprint('j', f.ID), f.ExpiresAt)
		r.credentials.revoke(f.ID)
	case f.SessionID != "":
		r.revoked.add(fingerprint('s', f.SessionID), f.ExpiresAt)
	case f.Subject != "":
		r.cutoffs.add(fingerprint('u', f.Subject), cutoffAt(f, seq))
	case f.ClientID != "":
		r.cutoffs.add(fingerprint('c', f.ClientID), cutoffAt(f, seq))
	}
}

// expire drops what no longer matters, judged by the log's own time and not by the local clock.
func (r *Replica) expire(next *Snapshot) {
	now := next.TickTime.Unix()
	r.revoked.drop(now)
	r.credentials.bury(r.idRevoked)
	if r.cutoffs.endsForCredentials(now) {
		r.credentials.removeIf(r.cutOff) // before the cutoffs are dropped: they expire, a credential need not
	}
	r.cutoffs.drop(now, r.revoked.forgetUntil)
	r.credentials.expire(now)
	next.dropSealing(now)
	for kid, k := range r.keys {
		if k.ExpiresAt != 0 && k.ExpiresAt <= now {
			delete(r.keys, kid)
			next.Ring = next.Ring.Without(kid)
		}
	}
}

// foldKey takes in a key's new state. An illegal transition is ignored by every reader alike
// (PROTOCOL 11): it is the loser of a race between issuers.
func (r *Replica) foldKey(next *Snapshot, f *bus.KeyFact, seq uint64) error {
	fact := *f
	old, known := r.keys[f.KeyID]
	if known {
		fact.Sealed = unite(old.Sealed, f.Sealed)
		if old, ok := next.Ring.Record(f.KeyID); ok && string(old.State) == f.State {
			seq = old.Seq // more boxes, or a date: its place among the keys stays
		}
	}
	rec, err := r.record(&fact, seq)
	if err != nil {
		return err
	}
	to := keyring.State(f.State)
	if known && old.State != f.State && !keyring.State(old.State).Next(to) {
		r.cfg.Logger.Warn("ignoring an illegal key transition", "kid", f.KeyID, "from", old.State, "to", f.State, "seq", seq)
		return nil
	}
	r.keys[f.KeyID] = &fact
	ring := next.Ring
	if to == keyring.Active || ring.Issuer() == "" {
		ring = keyring.NewRing(f.Issuer, f.DefaultAudience(), ring.Records()...)
	}
	next.Ring = ring.With(rec)
	return nil
}

// record makes the ring's record of a key entry. A revoked key is kept by name only.
func (r *Replica) record(f *bus.KeyFact, seq uint64) (keyring.KeyRecord, error) {
	alg, err := keyring.ParseAlg(f.Alg)
	if err != nil {
		return keyring.KeyRecord{}, fmt.Errorf("%w: key %q: %w", bus.ErrUnknown, f.KeyID, err)
	}
	switch keyring.State(f.State) {
	case keyring.Announced, keyring.Active, keyring.Retiring, keyring.Retired, keyring.Revoked:
	default:
		return keyring.KeyRecord{}, fmt.Errorf("%w: key %q is in state %q", bus.ErrUnknown, f.KeyID, f.State)
	}
	rec := keyring.KeyRecord{
		KeyID: f.KeyID, Alg: alg, Bits: f.Bits, State: keyring.State(f.State),
		Accept:      keyring.Accept{Kind: keyring.AcceptKind(f.Accept), UserIDClaim: f.AcceptUser, Issuer: f.AcceptIss, Audience: f.AcceptAud},
		MaxLifetime: time.Duration(f.MaxLifetime) * time.Second, Seq: seq, Created: time.Unix(f.Created, 0),
	}
	if alg.Symmetric() || f.Accept != "" {
		rec.Audience = f.Audience
	}
	if f.RetiredAt != 0 {
		rec.RetiredAt = time.Unix(f.RetiredAt, 0)
	}
	if rec.State == keyring.Revoked {
		return rec, nil
	}
	rec.Key, err = r.key(f, alg)
	return rec, err
}

func (r *Replica) key(f *bus.KeyFact, alg keyring.Alg) (*keyring.Key, error) {
	if !alg.Symmetric() {
		k, err := keyring.ParseJWK(f.JWK)
		if err != nil {
			return nil, fmt.Errorf("%w: key %q: %w", bus.ErrUnknown, f.KeyID, err)
		}
		return k.WithID(f.KeyID), nil
	}
	if r.cfg.Open == nil {
		return nil, nil
	}
	k, err := r.cfg.Open(f)
	if errors.Is(err, ErrNotHeld) {
		return nil, nil
	}
	return k, err
}

// Keys gives the key entries as the log has them, boxes united: for images and the issuers' admin
// API. The facts are shared; do not change them.
func (r *Replica) Keys() []*bus.KeyFact {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keysLocked()
}
