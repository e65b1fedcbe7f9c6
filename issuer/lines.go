package issuer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// ringKey is a key, as the log's newest entry of it has it, and the sequence of its state.
type ringKey struct {
	*bus.KeyFact
	seq     uint64
	boxes   map[recipient]bool // those of Sealed; read with has
	tainted bool               // an HS256 key of our own, and sealed to one who is no member any more, not under that sealing key, or not for this audience
}

// recipient is an agent under one sealing key.
type recipient struct{ agent, to string }

// has tells whether there is a box for somebody.
func (k *ringKey) has(r recipient) bool {
	if k.boxes == nil {
		k.boxes = make(map[recipient]bool, len(k.Sealed))
		for _, b := range k.Sealed {
			k.boxes[recipient{b.Agent, string(b.To)}] = true
		}
	}
	return k.boxes[r]
}

func (k *ringKey) state() keyring.State { return keyring.State(k.State) }

func (k *ringKey) symmetric() bool { return keyring.Alg(k.Alg).Symmetric() }

// derived tells whether the key is an HS256 key of our own making, of which only agents have a copy.
func (k *ringKey) derived() bool { return k.symmetric() && !k.Shared }

// holds tells whether the key verifies, now or later: an agent that comes late needs it.
func (k *ringKey) holds() bool {
	return k.state() == keyring.Announced || k.state() == keyring.Active || k.state() == keyring.Retiring
}

// waits tells whether the key is announced and meant to sign.
func (k *ringKey) waits() bool { return k.state() == keyring.Announced && !k.VerifyOnly }

// began is when an active key began to sign.
func (k *ringKey) began() time.Time { return time.Unix(max(k.ActivatesAt, k.Created), 0) }

// ringView is the ring at one snapshot, with who may have HS256 secrets: what one decision about it
// stands on.
type ringView struct {
	snap    *replica.Snapshot
	keys    []*ringKey // by the sequence of their states
	holders *holders   // nil where nothing in the ring is symmetric
	home    string     // the issuer's own audience
	alg     keyring.Alg
	now     time.Time
}

// view takes one, for who may bring alg into the ring. ErrUnavailable: the log has not been read yet.
func (i *Issuer) view(ctx context.Context, alg keyring.Alg) (*ringView, error) {
	v := &ringView{home: i.cfg.Audience, now: i.now()}
	var facts []*bus.KeyFact
	for v.snap == nil || v.snap != i.Replica.Snapshot() {
		v.snap = i.Replica.Snapshot()
		facts = i.Replica.Keys()
	}
	if !v.snap.Ready {
		return nil, fmt.Errorf("reading the ring: %w: the log has not been read yet", ErrUnavailable)
	}
	byID := make(map[string]*bus.KeyFact, len(facts))
	for _, f := range facts {
		byID[f.KeyID] = f
	}
	symmetric := alg.Symmetric()
	for _, rec := range v.snap.Ring.Records() {
		f := byID[rec.KeyID]
		if f == nil || f.State != string(rec.State) {
			return nil, bus.ErrConflict // an entry came between the two
		}
		v.keys = append(v.keys, &ringKey{KeyFact: f, seq: rec.Seq})
		symmetric = symmetric || rec.Alg.Symmetric()
	}
	v.alg = v.ringAlg(i.cfg.Alg)
	if !symmetric {
		return v, nil
	}
	var err error
	if v.holders, err = i.holders(ctx, holdersAge); err == nil && v.taint() {
		if v.holders, err = i.holders(ctx, strangeAge); err == nil { // one who has joined since is no stranger
			v.taint()
		}
	}
	return v, err
}

// taint marks the keys that a stranger can open. Such a key must not sign for longer than it takes to
// replace it; it tells whether there is one that does or is to.
func (v *ringView) taint() (some bool) {
	for _, k := range v.keys {
		k.tainted = k.derived() && slices.ContainsFunc(k.Sealed, func(b bus.SealedSecret) bool {
			member, ok := v.holders.members[recipient{b.Agent, string(b.To)}]
			return !ok || !maySee(member, k.Audience, v.home)
		})
		some = some || k.tainted && (k.waits() || k.state() == keyring.Active)
	}
	return some
}

// ringAlg is the algorithm of the key that signs for the issuer's own audience; while none does, of
// the one that is to.
func (v *ringView) ringAlg(configured keyring.Alg) keyring.Alg {
	if active := v.active(v.home); active != nil {
		return keyring.Alg(active.Alg)
	}
	for _, k := range v.keys {
		if k.waits() {
			return keyring.Alg(k.Alg)
		}
	}
	return configured
}

func (v *ringView) key(kid string) *ringKey {
	for _, k := range v.keys {
		if k.KeyID == kid {
			return k
		}
	}
	return nil
}

// active gives the key that signs for an audience, nil if there is none.
func (v *ringView) active(audience string) *ringKey {
	rec, ok := v.snap.Ring.ActiveFor(audience)
	if !ok {
		return nil
	}
	return v.key(rec.KeyID)
}

// virgin tells whether no key has ever signed here: then there is nobody to wait for.
func (v *ringView) virgin() bool {
	return !slices.ContainsFunc(v.keys, func(k *ringKey) bool { return k.state() != keyring.Announced && !k.VerifyOnly })
}

// line is what signs, and will sign, for one audience. An asymmetric ring has one line, which is for
// every audience.
type line struct {
	audience string
	active   *ringKey // nil: nothing signs
	next     *ringKey // announced, and somebody has asked that it sign
	standby  *ringKey // announced ahead (PROTOCOL 18)
}

// waiting is the key that would sign next, nil if none is announced.
func (l *line) waiting() *ringKey {
	if l.next != nil {
		return l.next
	}
	return l.standby
}

// lines gives the ring's, the issuer's own audience first.
func (v *ringView) lines(alg keyring.Alg, bits int) []line {
	audiences := []string{v.home}
	if alg.Symmetric() {
		audiences = v.audiences()
	}
	all := make([]line, 0, len(audiences))
	for _, aud := range audiences {
		l := line{audience: aud, active: v.active(aud)}
		for _, k := range v.keys {
			switch {
			case !k.waits() || k.symmetric() && k.Audience != aud || k.tainted:
			case k.ActivatesAt != 0 && l.next == nil:
				l.next = k
			case k.ActivatesAt == 0 && l.standby == nil && keyring.Alg(k.Alg) == alg && (bits == 0 || k.Bits == bits):
				l.standby = k
			}
		}
		all = append(all, l)
	}
	return all
}

// audiences gives those that have, or are to have, HS256 keys, the issuer's own first.
func (v *ringView) audiences() []string {
	var more []string
	for _, k := range v.keys {
		if k.derived() && k.holds() && k.state() != keyring.Retiring {
			more = append(more, k.Audience)
		}
	}
	if v.holders != nil {
		more = append(more, v.holders.audiences...)
	}
	slices.Sort(more)
	more = slices.DeleteFunc(slices.Compact(more), func(aud string) bool { return aud == v.home })
	return append([]string{v.home}, more[:min(len(more), maxAudiences)]...)
}

// due tells whether a line's key is to be replaced without anybody asking.
func (i *Issuer) due(v *ringView, l *line) bool {
	switch a := l.active; {
	case a == nil, keyring.Alg(a.Alg) != v.alg, a.tainted:
		return true
	default:
		return i.cfg.RotateEvery > 0 && !v.now.Before(a.began().Add(i.cfg.RotateEvery))
	}
}

// bitsOf is the size for a key that follows one of that algorithm: the configured one, unless the
// ring's algorithm was changed by a rotation asked for.
func (i *Issuer) bitsOf(alg keyring.Alg) int {
	if alg == i.cfg.Alg && alg == keyring.RS256 {
		return i.cfg.Bits
	}
	return 0
}
