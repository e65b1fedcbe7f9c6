package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// Bounds of what agents may ask for: each audience costs the ring two keys.
const (
	maxAudiences     = 64 // beside the issuer's own
	maxAudienceBytes = 512
)

// How old a list of the agents may be by which secrets are sealed, and by which one is taken to be
// known to somebody who is no member any more.
const (
	holdersAge = time.Second
	strangeAge = holdersAge / 20
)

// holder is an agent that has joined, as one that HS256 secrets are sealed to.
type holder struct {
	recipient
	key       []byte // its public sealing key
	told      bool   // it has told its audiences since this issuer listens
	audiences []string
}

// holders are all of them, as they were when that was looked up. They never change.
type holders struct {
	looked    time.Time
	all       []holder
	members   map[recipient]bus.AgentInfo
	audiences []string // that they have told, in order, each once
}

// holders lists the agents, from memory while that is at most so old.
func (i *Issuer) holders(ctx context.Context, age time.Duration) (*holders, error) {
	now := i.now()
	i.private.mu.Lock()
	known := i.private.holders
	i.private.mu.Unlock()
	if known != nil && now.Sub(known.looked) < age && !known.looked.After(now) {
		return known, nil
	}
	agents, err := i.Fleet.Agents(ctx)
	if err != nil {
		return nil, unavailable("listing", "agents", err)
	}
	hs := &holders{looked: now, members: make(map[recipient]bus.AgentInfo, len(agents))}
	for _, a := range agents {
		if len(a.SealingKey) == 0 {
			continue
		}
		h := holder{recipient: recipient{a.Name, string(replica.Recipient(a.SealingKey))}, key: a.SealingKey}
		h.audiences, h.told = toldAudiences(a.Status, i.cfg.Audience)
		h.audiences = slices.DeleteFunc(h.audiences, func(aud string) bool { return !maySee(a, aud, i.cfg.Audience) })
		hs.all, hs.members[h.recipient] = append(hs.all, h), a
		hs.audiences = append(hs.audiences, h.audiences...)
	}
	slices.Sort(hs.audiences)
	hs.audiences = slices.Compact(hs.audiences)
	i.private.mu.Lock()
	defer i.private.mu.Unlock()
	i.private.holders = hs
	return hs, nil
}

// maySee tells whether an agent may have the secrets of an audience. What it says of itself is not
// enough: a broken host would say that it serves them all.
func maySee(a bus.AgentInfo, audience, home string) bool {
	if len(a.Audiences) == 0 {
		return audience == home
	}
	return slices.Contains(a.Audiences, audience)
}

// lookAgain makes the next look at the ring list the agents anew.
func (i *Issuer) lookAgain() {
	i.private.mu.Lock()
	defer i.private.mu.Unlock()
	i.private.holders = nil
}

// toldAudiences reads the member "audiences" of an agent's status; an empty list means the ring's
// default. false: it has not told any.
func toldAudiences(status json.RawMessage, fallback string) ([]string, bool) {
	var s struct {
		Audiences []string `json:"audiences"`
	}
	if len(status) == 0 || json.Unmarshal(status, &s) != nil || s.Audiences == nil {
		return nil, false
	}
	if len(s.Audiences) == 0 {
		return []string{fallback}, true
	}
	return slices.DeleteFunc(s.Audiences, func(aud string) bool {
		return aud == "" || len(aud) > maxAudienceBytes || !printable(aud)
	}), true
}

// missing gives the agents that are to have an HS256 key and have no box of it: those that serve its
// audience, by their own word or, before they have told it to this issuer, by the boxes that they
// have; and of an imported secret those that were named.
func (v *ringView) missing(k *ringKey) []holder {
	if v.holders == nil {
		return nil
	}
	var lack []holder
	for n := range v.holders.all {
		h := &v.holders.all[n]
		if !k.has(h.recipient) && (k.Shared && slices.Contains(k.Agents, h.agent) || !k.Shared && v.serves(h, k.Audience)) {
			lack = append(lack, *h)
		}
	}
	return lack
}

func (v *ringView) serves(h *holder, audience string) bool {
	if !maySee(v.holders.members[h.recipient], audience, v.home) {
		return false
	}
	if h.told {
		return slices.Contains(h.audiences, audience)
	}
	return slices.ContainsFunc(v.keys, func(k *ringKey) bool {
		return k.derived() && k.holds() && k.Audience == audience && k.has(h.recipient)
	})
}

// sealMissing writes the boxes that agents lack of one key, if any do.
func (i *Issuer) sealMissing(ctx context.Context, v *ringView) (bool, error) {
	for _, k := range v.keys {
		if !k.symmetric() || !k.holds() {
			continue
		}
		lack := v.missing(k)
		if len(lack) == 0 {
			continue
		}
		p, err := i.privateKey(ctx, k.KeyID)
		if errors.Is(err, ErrNotFound) || err == nil && p.key == nil {
			i.log.Error("an agent gets no HS256 secret: it is not held here", "agent", lack[0].agent, "kid", k.KeyID)
			continue
		}
		if err != nil {
			return false, err
		}
		boxes := i.sealTo(p.key, lack)
		if len(boxes) == 0 {
			continue
		}
		f := *k.KeyFact
		if err := i.appendKey(ctx, v, &f, boxes); err != nil {
			return true, err
		}
		for _, b := range boxes {
			i.event(ctx, "secret sealed", "agent", b.Agent, "kid", k.KeyID, "aud", k.Audience)
		}
		return true, nil
	}
	return false, nil
}

// sealTo makes the boxes. An agent whose sealing key is no key is left out, and named in the log: it
// must not keep the others from theirs.
func (i *Issuer) sealTo(key *keyring.Key, to []holder) []bus.SealedSecret {
	boxes := make([]bus.SealedSecret, 0, len(to))
	for _, h := range to {
		sealed, err := replica.Seal(key, h.agent, h.key)
		if err != nil {
			i.log.Error("an agent gets no HS256 secret: its sealing key is of no use", "agent", h.agent, "kid", key.ID(), "error", err)
			continue
		}
		boxes = append(boxes, sealed)
	}
	return boxes
}

// Register is what the bus calls when an agent has joined. HS256 secrets are sealed to it once it has
// told which audiences it serves.
func (i *Issuer) Register(ctx context.Context, _ bus.Member) error {
	i.lookAgain()
	return i.Step(ctx)
}

// RemoveAgent strikes an agent off: it gets no further lease and no further secret, and HS256 keys
// that it has a box of are replaced by the next steps of Run, in a rotation that refuses nobody.
// Receipts name it until its last lease has ended.
func (i *Issuer) RemoveAgent(ctx context.Context, name string) error {
	switch err := i.Fleet.Remove(ctx, name); {
	case errors.Is(err, bus.ErrNotFound):
		return fmt.Errorf("removing agent %q: %w", name, ErrNotFound)
	case err != nil:
		return unavailable("removing agent", name, err)
	}
	i.event(ctx, "agent removed", "agent", name)
	i.lookAgain()
	for _, f := range i.Replica.Keys() {
		if f.Shared && slices.ContainsFunc(f.Sealed, func(b bus.SealedSecret) bool { return b.Agent == name }) {
			i.event(ctx, "an agent was removed that holds an imported secret: it can mint with it until the key is revoked", "agent", name, "kid", f.KeyID)
		}
	}
	return nil
}
