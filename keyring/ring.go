package keyring

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// State is a key's place in its life (DESIGN.md §6): announced, active, retiring, retired; and revoked from any.
// The zero value is that of a key not yet known.
type State string

// The states. The last is Revoked, which is a Reason as well and stands there.
const (
	Announced State = "announced" // known to verifiers, signs nothing yet
	Active    State = "active"    // signs and verifies
	Retiring  State = "retiring"  // verifies what it can have signed
	Retired   State = "retired"   // verifies nothing
)

// Next reports whether a key may go from s to to. An imported key may begin as active.
func (s State) Next(to State) bool {
	switch to {
	case Announced:
		return s == ""
	case Active:
		return s == "" || s == Announced
	case Retiring:
		return s == Active
	case Retired:
		return s == Retiring || s == Announced // a key that is not wanted any more before it has signed anything
	case Revoked:
		return s == Announced || s == Active || s == Retiring || s == Retired
	}
	return false
}

// KeyRecord is a ring's key and its place in the lifecycle. The zero value verifies nothing.
type KeyRecord struct {
	KeyID       string
	Alg         Alg
	Bits        int
	State       State
	Key         *Key          // what verifies; nil: this process cannot (sealed to others, or revoked), the key is not held
	Audience    string        // HS256: the one aud of its tokens; with Accept: what its tokens count as being for; else ""
	RetiredAt   time.Time     // once retiring: its tokens have iat <= RetiredAt + leeway
	MaxLifetime time.Duration // and live no longer than this, exp - iat
	Accept      Accept        // which foreign tokens it verifies; the zero value: only ours
	Seq         uint64        // the log's sequence of the entry that brought it into its state
	Created     time.Time
}

// refuses returns why the key verifies nothing at all now, "" if it may.
func (rec *KeyRecord) refuses() Reason {
	switch rec.State {
	case Announced, Active, Retiring:
		if rec.Key != nil {
			return ""
		}
	case Revoked:
		return KeyRevoked
	}
	return UnknownKey
}

// signed reports whether a retiring key can have signed these claims while it was active, so that
// a stolen old key is of no use.
func (rec *KeyRecord) signed(c *Claims, leeway time.Duration) bool {
	return !c.IssuedAt.local().After(rec.RetiredAt.Add(leeway)) &&
		float64(c.ExpiresAt)-float64(c.IssuedAt) <= rec.MaxLifetime.Seconds()
}

// Ring is the keys that a process knows, by kid, with the issuer whose keys they are and its default audience. It is
// immutable: share it freely. The zero value is empty and refuses everything.
type Ring struct {
	issuer    string
	audience  string
	audiences [1]string // the default audience, as Expect has it
	records   []*KeyRecord
	byID      map[string]*KeyRecord
	heads     map[head]*KeyRecord
	foreign   map[Alg][]*KeyRecord // those that accept tokens made elsewhere, the newest first
	active    *KeyRecord
	jwks      []byte
}

// head is an encoded header and the kind of token that it is for.
type head struct {
	typ     TokenType
	encoded string
}

// NewRing returns a ring of these records, which it copies; of two with one kid the later counts. A record whose Key has
// another kid or algorithm than the record says is kept without its Key.
func NewRing(issuer, audience string, records ...KeyRecord) *Ring {
	r := &Ring{issuer: issuer, audience: audience, audiences: [1]string{audience}, byID: make(map[string]*KeyRecord, len(records))}
	for _, rec := range records {
		if rec.Key != nil && (rec.Key.ID() != rec.KeyID || rec.Key.Alg() != rec.Alg) {
			rec.Key = nil // fails closed
		}
		if !rec.Accept.known() {
			rec.Key = nil // a rule that this version does not know admits nothing
		}
		r.byID[rec.KeyID] = &rec
	}
	for _, rec := range r.byID {
		r.records = append(r.records, rec)
	}
	slices.SortFunc(r.records, func(a, b *KeyRecord) int {
		return cmp.Or(cmp.Compare(a.Seq, b.Seq), a.Created.Compare(b.Created), strings.Compare(a.KeyID, b.KeyID))
	})
	r.heads = make(map[head]*KeyRecord, len(tokenTypes)*len(r.records))
	for _, rec := range r.records {
		if rec.Accept.Kind != "" {
			continue
		}
		if rec.State == Active && rec.Key != nil {
			r.active = rec
		}
		if rec.Key != nil {
			for typ, encoded := range rec.Key.heads {
				r.heads[head{typ, encoded}] = rec
			}
		}
	}
	r.foreign = foreignKeys(r.records)
	r.jwks = publicSet(r.records)
	return r
}

// Issuer returns iss of the ring's tokens.
func (r *Ring) Issuer() string { return r.issuer }

// Audience returns the default audience.
func (r *Ring) Audience() string { return r.audience }

// Record returns the record of kid. It points into the ring and is not to be changed.
func (r *Ring) Record(kid string) (*KeyRecord, bool) {
	rec, ok := r.byID[kid]
	return rec, ok
}

// Records returns copies of all records, by sequence, then age, then kid.
func (r *Ring) Records() []KeyRecord {
	all := make([]KeyRecord, len(r.records))
	for i, rec := range r.records {
		all[i] = *rec
	}
	return all
}

// Active returns the active record whose Key is held, the newest if there are several (HS256: one for each
// audience, see [Ring.ActiveFor]). It points into the ring and is not to be changed.
func (r *Ring) Active() (*KeyRecord, bool) { return r.active, r.active != nil }

// ActiveFor returns the newest active record whose Key is held and may sign for audience:
// an asymmetric one, or a symmetric one of that audience.
func (r *Ring) ActiveFor(audience string) (*KeyRecord, bool) {
	for _, rec := range slices.Backward(r.records) {
		if rec.State == Active && rec.Key != nil && rec.Accept.Kind == "" && (!rec.Alg.Symmetric() || rec.Audience == audience) {
			return rec, true
		}
	}
	return nil, false
}

// With returns a ring that also has rec, in place of a record of the same kid.
func (r *Ring) With(rec KeyRecord) *Ring {
	return NewRing(r.issuer, r.audience, append(r.Records(), rec)...)
}

// Without returns a ring that has no record of kid.
func (r *Ring) Without(kid string) *Ring {
	rest := slices.DeleteFunc(r.Records(), func(rec KeyRecord) bool { return rec.KeyID == kid })
	return NewRing(r.issuer, r.audience, rest...)
}
