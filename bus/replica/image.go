package replica

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// imageMagic begins every image; the number is the format's version.
const imageMagic = "sidekey-image-1\n"

// ErrDamaged means that an image is cut short or altered. Take another one, or read the log anew.
var ErrDamaged = errors.New("the image is damaged")

// imageHeader is the image's readable part. An image is
//
//	"sidekey-image-1\n" | length of header, 4 bytes | header, JSON | ids, 16 bytes each | SHA-256 of all before, 32 bytes
//
// the ids standing bucket after bucket in the order of Buckets; numbers are big-endian.
type imageHeader struct {
	Epoch   uint64        `json:"epoch"`
	Seq     uint64        `json:"seq"`
	Chain   bus.Chain     `json:"chain"`
	Tick    int64         `json:"tick"` // the newest tick's time, milliseconds
	Issuer  string        `json:"iss"`
	Aud     string        `json:"aud"`
	Keys    []imageKey    `json:"keys"`
	Dropped int64         `json:"dropped"` // ids that expired until then (NumericDate) may be missing
	Cutoffs []imageCutoff `json:"cutoffs"`
	Buckets []imageBucket `json:"buckets"`

	Credentials []imageCredential `json:"credentials,omitempty"`
	Sealing     *bus.SealingFact  `json:"sealing,omitempty"`
	SealingSeq  uint64            `json:"sealing_seq,omitempty"`
	Rules       []*bus.RulesFact  `json:"rules,omitempty"`
	RulesSeq    uint64            `json:"rules_seq,omitempty"`
}

type imageCredential struct {
	Fact *bus.Credential `json:"fact"`
	Seq  uint64          `json:"seq"`
}

type imageKey struct {
	Fact *bus.KeyFact `json:"fact"`
	Seq  uint64       `json:"seq"`
}

type imageCutoff struct {
	ID  []byte `json:"id"`
	Cut cutoff `json:"cut"`
}

type imageBucket struct {
	End int64 `json:"end"`
	N   int   `json:"n"`
}

// Image is all that still matters at the position that it returns: what a checkpoint holds. Readers never
// wait for it, writers while it is taken together.
func (r *Replica) Image() ([]byte, bus.Cursor, error) {
	r.mu.Lock()
	at := r.tip.cursor()
	h, packed := r.collectLocked(at)
	r.mu.Unlock()
	img, err := encodeImage(h, packed)
	return img, at, err
}

// ImageAt is an Image that stands at another cursor: where a log that is begun anew begins.
func (r *Replica) ImageAt(at bus.Cursor) ([]byte, error) {
	r.mu.Lock()
	h, packed := r.collectLocked(at)
	r.mu.Unlock()
	return encodeImage(h, packed)
}

// collectLocked takes together what an image holds. All that it points to is immutable: writers wait for
// the copying only, not while it is encoded.
func (r *Replica) collectLocked(at bus.Cursor) (h *imageHeader, packed []byte) {
	snap := r.tip
	h = &imageHeader{
		Epoch: at.Epoch, Seq: at.Seq, Chain: at.Chain,
		Issuer: snap.Ring.Issuer(), Aud: snap.Ring.Audience(), Dropped: r.revoked.dropped.Load(),
	}
	if !snap.TickTime.IsZero() {
		h.Tick = snap.TickTime.UnixMilli()
	}
	for _, f := range r.keysLocked() {
		rec, _ := snap.Ring.Record(f.KeyID)
		h.Keys = append(h.Keys, imageKey{Fact: f, Seq: rec.Seq})
	}
	h.Credentials = r.credentials.all()
	h.Sealing, h.SealingSeq = snap.Sealing, snap.SealingSeq
	h.Rules, h.RulesSeq = snap.Rules.All(), snap.RulesSeq
	for k, cut := range r.cutoffs.all() {
		h.Cutoffs = append(h.Cutoffs, imageCutoff{ID: bytes.Clone(k[:]), Cut: cut})
	}
	packed = make([]byte, 0, int(r.revoked.count.Load())*len(id{}))
	r.revoked.each(func(end int64, ids []id) {
		h.Buckets = append(h.Buckets, imageBucket{End: end, N: len(ids)})
		for i := range ids {
			packed = append(packed, ids[i][:]...)
		}
	})
	return h, packed
}

func encodeImage(h *imageHeader, packed []byte) ([]byte, error) {
	slices.SortFunc(h.Credentials, func(a, b imageCredential) int { return strings.Compare(a.Fact.ID, b.Fact.ID) })
	head, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("making an image at entry %d: %w", h.Seq, err)
	}
	img := make([]byte, 0, len(imageMagic)+4+len(head)+len(packed)+sha256.Size)
	img = append(img, imageMagic...)
	img = binary.BigEndian.AppendUint32(img, uint32(len(head)))
	img = append(append(img, head...), packed...)
	sum := sha256.Sum256(img)
	return append(img, sum[:]...), nil
}

// keysLocked gives the key facts ordered by creation and id, so that images are reproducible.
func (r *Replica) keysLocked() []*bus.KeyFact {
	keys := make([]*bus.KeyFact, 0, len(r.keys))
	for _, f := range r.keys {
		keys = append(keys, f)
	}
	sort.Slice(keys, func(i, j int) bool {
		a, b := keys[i], keys[j]
		return a.Created < b.Created || a.Created == b.Created && a.KeyID < b.KeyID
	})
	return keys
}

// Load takes the state of an image that is ahead of what is applied; one that is not is ignored
// (never back). Revocations unite: none that is held already is lost. ErrDamaged: nothing was
// changed.
func (r *Replica) Load(img []byte) error {
	h, packed, err := readImage(img)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.tip
	at := bus.Position{Epoch: h.Epoch, Seq: h.Seq}
	if !old.Position.Before(at) {
		return nil
	}
	next := &Snapshot{Position: at, Due: at.Seq, Ring: keyring.NewRing(h.Issuer, h.Aud), Ready: old.Ready && at.Epoch == old.Position.Epoch, TickTime: old.TickTime,
		Sealing: h.Sealing, SealingSeq: h.SealingSeq, Rules: newRuleSets(h.Rules), RulesSeq: h.RulesSeq, chain: h.Chain}
	if h.Tick != 0 {
		next.TickTime = time.UnixMilli(h.Tick)
	}
	keys := make(map[string]*bus.KeyFact, len(h.Keys))
	records := make([]keyring.KeyRecord, 0, len(h.Keys))
	for _, k := range h.Keys {
		rec, err := r.record(k.Fact, k.Seq)
		if err != nil {
			return fmt.Errorf("loading the image of entry %d: %w", h.Seq, err)
		}
		keys[k.Fact.KeyID] = k.Fact
		records = append(records, rec)
	}
	r.loadRevocations(h, packed)
	r.credentials.replace(h.Credentials, r.idRevoked)
	next.Ring = keyring.NewRing(h.Issuer, h.Aud, records...)
	r.keys = keys
	r.chains[at.Seq%rememberedChains] = bus.Cursor{Position: at, Chain: h.Chain}
	r.publish(next)
	return nil
}

func (r *Replica) loadRevocations(h *imageHeader, packed []byte) {
	r.revoked.grow(len(packed) / len(id{}))
	for _, b := range h.Buckets {
		n := b.N * len(id{})
		r.revoked.addAll(packed[:n], b.End)
		packed = packed[n:]
	}
	for _, c := range h.Cutoffs {
		r.cutoffs.add(id(c.ID), c.Cut)
	}
	r.revoked.forgetUntil(h.Dropped)
}

// readImage checks an image whole before a word of it is used.
func readImage(img []byte) (*imageHeader, []byte, error) {
	if len(img) < len(imageMagic)+4+sha256.Size || !bytes.HasPrefix(img, []byte(imageMagic)) {
		return nil, nil, fmt.Errorf("%w: it does not begin as one", ErrDamaged)
	}
	body, sum := img[:len(img)-sha256.Size], img[len(img)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, nil, fmt.Errorf("%w: its hash does not match; it was cut short or altered", ErrDamaged)
	}
	rest := body[len(imageMagic):]
	n := int(binary.BigEndian.Uint32(rest))
	if rest = rest[4:]; n > len(rest) {
		return nil, nil, fmt.Errorf("%w: its header is cut short", ErrDamaged)
	}
	h := new(imageHeader)
	if err := json.Unmarshal(rest[:n], h); err != nil {
		return nil, nil, fmt.Errorf("%w: its header: %w", ErrDamaged, err)
	}
	packed, want := rest[n:], 0
	for _, b := range h.Buckets {
		if b.N < 0 || b.N > len(packed) {
			return nil, nil, fmt.Errorf("%w: a bucket of %d ids", ErrDamaged, b.N)
		}
		want += b.N * len(id{})
	}
	for _, c := range h.Cutoffs {
		if len(c.ID) != len(id{}) {
			return nil, nil, fmt.Errorf("%w: a cutoff's id", ErrDamaged)
		}
	}
	for _, k := range h.Keys {
		if k.Fact == nil {
			return nil, nil, fmt.Errorf("%w: a key without its fact", ErrDamaged)
		}
	}
	for n := range h.Credentials {
		if err := h.Credentials[n].check(); err != nil {
			return nil, nil, err
		}
	}
	if h.Sealing != nil {
		if err := bus.Check(h.Sealing); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	if err := checkRules(h.Rules); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if want != len(packed) {
		return nil, nil, fmt.Errorf("%w: %d bytes of ids where %d are announced", ErrDamaged, len(packed), want)
	}
	return h, packed, nil
}
