package bus

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"
)

// Kind names what an entry is about; it is the last part of the entry's subject, <prefix>.log.<kind>.
// There is one subject per kind of fact, never one per fact: a million subjects cost the server
// half a kilobyte of memory each, and seconds of restart.
type Kind string

// The kinds of entry that this version writes and reads. An entry of any other kind stops a
// reader (ErrUnknown): skipping it and going on would claim knowledge that the reader lacks.
const (
	KindKey    Kind = "key"    // a signing key and its state
	KindRevoke Kind = "revoke" // a token, session, subject or client that is refused from here on
	KindTick   Kind = "tick"   // the issuer's pulse: the head, and the hash chained up to it
	// KindCredential is an API key or an opaque token, by its hash.
	KindCredential Kind = "credential"
	// KindSealing is the issuers' public HPKE key, to which agents seal what issuers alone may read.
	KindSealing Kind = "sealing"
	// KindRules is a set of rules that agents enforce.
	KindRules Kind = "rules"
)

// MaxBody is the greatest length of an entry's body in bytes. It leaves room for the headers
// within the 1 MiB that a NATS server takes in one message.
const MaxBody = 768 << 10

// The errors that a reader or writer of the log may have to tell apart.
var (
	// ErrConflict means that somebody else wrote first: read again, decide again.
	ErrConflict = errors.New("somebody else wrote first")
	// ErrNotFound means that there is no such record, checkpoint or message.
	ErrNotFound = errors.New("not found")
	// ErrExists means that Create found a record of that name.
	ErrExists = errors.New("it exists already")
	// ErrEpoch means that the log was begun anew under a later epoch: read its checkpoint, then follow it.
	ErrEpoch = errors.New("the log was begun anew under a later epoch")
	// ErrBehind means that the log no longer holds the next entry: take the newest checkpoint.
	ErrBehind = errors.New("the log was purged beyond this reader")
	// ErrRollback means that the log shows less than, or other than, what it showed before.
	ErrRollback = errors.New("the log was rolled back or forked")
	// ErrForged means that an entry's signature is not the authority's.
	ErrForged = errors.New("the signature is not the authority's")
	// ErrUnknown means that an entry is of a kind, or has a member, that this version does not know.
	ErrUnknown = errors.New("unknown kind of entry; is this process older than the issuer?")
)

// Position is a place in the log. Positions compare by epoch, then by sequence.
// The zero value is before the first entry of any epoch.
type Position struct {
	Epoch uint64 `json:"epoch"` // grows each time the log is begun anew
	Seq   uint64 `json:"seq"`   // the stream's sequence, from 1
}

// Before tells whether p is earlier than q.
func (p Position) Before(q Position) bool {
	return p.Epoch < q.Epoch || p.Epoch == q.Epoch && p.Seq < q.Seq
}

// Chain is the SHA-256 hash chained over all entries up to a position. The zero value is the
// chain of the empty log.
type Chain [sha256.Size]byte

// Cursor is what a reader must keep to go on reading: where it is, and the chain up to there.
// The zero value reads from the log's beginning.
type Cursor struct {
	Position
	Chain Chain
}

// Entry is one fact in the log, proven: its signature, or that of a tick chained after it, was
// the authority's. Treat it as immutable.
type Entry struct {
	Position
	Chain Chain // up to and with this entry
	Fact  Fact
}

// Cursor is where a reader stands that has applied en.
func (en Entry) Cursor() Cursor { return Cursor{Position: en.Position, Chain: en.Chain} }

// Fact is what an entry says: a *KeyFact, a *Revocation, a *Credential, a *SealingFact, a *RulesFact or a *Tick.
type Fact interface {
	Kind() Kind
	check() error
}

// SealedSecret is an HS256 secret, sealed (RFC 9180, MLKEM768X25519) to one agent's sealing key:
//
//	{"agent": "web-1", "to": "base64", "box": "base64"}
type SealedSecret struct {
	Agent string `json:"agent"`
	To    []byte `json:"to,omitempty"` // the first 16 bytes of the sealing key's SHA-256: an agent that joins anew has another
	Box   []byte `json:"box"`
}

// KeyFact is a signing key and its state (DESIGN §6). Every state has an entry of its own, which
// repeats the whole record; only the sealed boxes add up, so that an agent that registers late
// gets its box in an entry that holds just this one.
//
//	{"kid": "…", "alg": "RS256", "bits": 2048, "state": "active", "jwk": {…public…}, "iss": "https://…",
//	 "aud": "https://…", "max_lifetime": 604800, "created": 1767225600, "activates_at": 1767226200, "retired_at": 0, "exp": 0, "sealed": []}
type KeyFact struct {
	KeyID       string          `json:"kid"`                    // RFC 7515 §4.1.4
	Alg         string          `json:"alg"`                    // RFC 7518 §3.1
	Bits        int             `json:"bits,omitempty"`         // of the modulus or secret
	State       string          `json:"state"`                  // keyring.State
	JWK         json.RawMessage `json:"jwk,omitempty"`          // RFC 7517, public, asymmetric keys only
	Issuer      string          `json:"iss"`                    // whose tokens it signs: RFC 8725 §3.8
	Audience    string          `json:"aud"`                    // the ring's default; HS256: the one audience of its tokens
	Default     string          `json:"default_aud,omitempty"`  // HS256: the ring's default audience, where that is another
	MaxLifetime int64           `json:"max_lifetime"`           // seconds; the longest that a token of it lives
	Created     int64           `json:"created"`                // NumericDate
	ActivatesAt int64           `json:"activates_at,omitempty"` // NumericDate; announced: it is to sign then, 0: nobody has asked for that yet; later: it began to
	RetiredAt   int64           `json:"retired_at,omitempty"`   // NumericDate; it signed nothing after that
	ExpiresAt   int64           `json:"exp,omitempty"`          // NumericDate; the record matters until then, 0: for good
	Accept      string          `json:"accept,omitempty"`       // which foreign tokens it verifies (keyring.AcceptKind), "": ours
	AcceptUser  string          `json:"accept_user,omitempty"`  // accept: the claim with the user's id, "": user_id
	AcceptIss   string          `json:"accept_iss,omitempty"`   // accept: what iss must be, "": there may be none
	AcceptAud   string          `json:"accept_aud,omitempty"`   // accept: what aud must have, "": there may be none
	VerifyOnly  bool            `json:"verify_only,omitempty"`  // imported: it never signs here
	Shared      bool            `json:"shared,omitempty"`       // HS256: imported as it is, so that others hold it too
	Agents      []string        `json:"agents,omitempty"`       // shared: the only agents that it is sealed to
	Sealed      []SealedSecret  `json:"sealed,omitempty"`       // HS256 only
}

// DefaultAudience is that of the ring which the key belongs to.
func (k *KeyFact) DefaultAudience() string {
	if k.Default != "" {
		return k.Default
	}
	return k.Audience
}

// Kind is KindKey.
func (*KeyFact) Kind() Kind { return KindKey }

func (k *KeyFact) check() error {
	switch {
	case k.KeyID == "" || len(k.KeyID) > 128:
		return errors.New(`a key needs a "kid" of 1 to 128 bytes`)
	case !utf8.ValidString(k.KeyID):
		return errors.New(`a key's "kid" is not UTF-8`)
	case k.Alg == "":
		return fmt.Errorf(`key %q needs an "alg"`, k.KeyID)
	case k.State == "":
		return fmt.Errorf(`key %q needs a "state"`, k.KeyID)
	case k.JWK == nil && k.Alg != "HS256":
		return fmt.Errorf(`key %q needs a "jwk"`, k.KeyID)
	case k.JWK != nil && k.Alg == "HS256":
		return fmt.Errorf(`key %q is symmetric and may not be in the log in clear`, k.KeyID)
	}
	return nil
}

// Revocation withdraws a token before it expires, or everything that began before this entry:
// {"jti":"9f2c","exp":1767225600}. Exactly one of jti, sid, sub and client_id is set. A sub or a
// client_id is a cutoff: it refuses every token whose session_seq is smaller than this entry's
// sequence, and, of tokens without that claim, every one with iat not after Time.
// It is dropped once exp plus leeway has passed, when no token that it can concern is left
// (NumericDate, RFC 7519 §2). The zero value is refused.
//
// A cutoff concerns the API keys and opaque tokens of the subject or client too, unless Sessions says
// that it is for sessions only: a changed password ends no API key.
type Revocation struct {
	ID        string `json:"jti,omitempty"`
	SessionID string `json:"sid,omitempty"`
	Subject   string `json:"sub,omitempty"`
	ClientID  string `json:"client_id,omitempty"`
	ExpiresAt int64  `json:"exp"`
	Time      int64  `json:"time,omitempty"`
	Sessions  bool   `json:"sessions_only,omitempty"`
	Reason    string `json:"reason,omitempty"`
}

// Kind is KindRevoke.
func (*Revocation) Kind() Kind { return KindRevoke }

func (r *Revocation) check() error {
	n, longest, valid := 0, 0, true
	for _, id := range []string{r.ID, r.SessionID, r.Subject, r.ClientID} {
		if id != "" {
			n++
		}
		longest, valid = max(longest, len(id)), valid && utf8.ValidString(id)
	}
	switch {
	case n != 1:
		return errors.New(`a revocation names exactly one of "jti", "sid", "sub" and "client_id"`)
	case !valid: // as JSON it would be another id, and revoke nothing
		return errors.New("a revocation names an id that is not UTF-8")
	case longest > MaxID:
		return fmt.Errorf("a revocation names an id of at most %d bytes, not %d", MaxID, longest)
	case len(r.Reason) > 1024:
		return errors.New("a revocation has a reason of at most 1024 bytes")
	case r.ExpiresAt <= 0:
		return errors.New(`a revocation needs an "exp": it may not stay for ever`)
	}
	return nil
}

// MaxID is the greatest length in bytes of a jti, sid, sub or client_id in the log.
const MaxID = 1024

// Tick is an issuer's pulse, at least one a second: it shows every reader where the head is and
// proves the entries before it.
//
//	{"time": 1767225600123, "issuer": "issuer-1", "run": "…", "applied": 411, "head": 411, "chain": "base64 of 32 bytes", "grants": "…"}
type Tick struct {
	Time    int64  `json:"time"`                 // the issuer's wall clock, milliseconds since 1970
	Issuer  string `json:"issuer"`               // its name
	Run     string `json:"run,omitempty"`        // its process
	Applied uint64 `json:"applied,omitempty"`    // what its own verify path had applied: its acknowledgement
	Head    uint64 `json:"head"`                 // the sequence just before this tick
	Chain   []byte `json:"chain"`                // the chain at head
	Grants  []byte `json:"grants,omitempty"`     // SHA-256 of the list of leases that this tick answers; see lease.List
	ListSeq uint64 `json:"grants_seq,omitempty"` // where that list stands in the grants stream
}

// Kind is KindTick.
func (*Tick) Kind() Kind { return KindTick }

// At is the tick's time.
func (t *Tick) At() time.Time { return time.UnixMilli(t.Time) }

func (t *Tick) check() error {
	if len(t.Chain) != sha256.Size || t.Time <= 0 {
		return errors.New("a tick needs a time and a chain of 32 bytes")
	}
	if t.Grants != nil && len(t.Grants) != sha256.Size {
		return errors.New("a tick names its grants by a hash of 32 bytes")
	}
	return nil
}

// Check tells what a fact lacks; the error names it.
func Check(f Fact) error { return f.check() }

// Encode gives a fact's body as it stands in the log. The error names what the fact lacks.
func Encode(f Fact) ([]byte, error) {
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("encoding a %s entry: %w", f.Kind(), err)
	}
	body, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("encoding a %s entry: %w", f.Kind(), err)
	}
	if len(body) > MaxBody {
		return nil, fmt.Errorf("encoding a %s entry: %d bytes are more than the %d of one entry", f.Kind(), len(body), MaxBody)
	}
	return body, nil
}

// Decode reads a fact's body. A kind or a member that this version does not know is ErrUnknown.
func Decode(kind Kind, body []byte) (Fact, error) {
	var f Fact
	switch kind {
	case KindKey:
		f = new(KeyFact)
	case KindRevoke:
		f = new(Revocation)
	case KindTick:
		f = new(Tick)
	case KindCredential:
		f = new(Credential)
	case KindSealing:
		f = new(SealingFact)
	case KindRules:
		f = new(RulesFact)
	default:
		return nil, fmt.Errorf("%w: %q", ErrUnknown, kind)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(f); err != nil {
		return nil, fmt.Errorf("%w: decoding a %s entry: %w", ErrUnknown, kind, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: a %s entry has data after its end", ErrUnknown, kind)
	}
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return f, nil
}

// signedBytes is what the authority signs for an entry: everything that must not change, each
// part of variable length preceded by its length, so that no two entries give the same bytes.
//
//	"sidekey-entry-1" 0x00 | epoch 8 | seq 8 | len(subject) 4 | subject | body
func signedBytes(subject string, at Position, body []byte) []byte {
	b := make([]byte, 0, 64+len(subject)+len(body))
	b = append(b, "sidekey-entry-1\x00"...)
	b = binary.BigEndian.AppendUint64(b, at.Epoch)
	b = binary.BigEndian.AppendUint64(b, at.Seq)
	b = binary.BigEndian.AppendUint32(b, uint32(len(subject)))
	b = append(b, subject...)
	return append(b, body...)
}

// next is the chain after an entry with these signed bytes.
func (c Chain) next(signed []byte) Chain {
	sum := sha256.Sum256(signed)
	var both [2 * sha256.Size]byte
	copy(both[:], c[:])
	copy(both[sha256.Size:], sum[:])
	return sha256.Sum256(both[:])
}
