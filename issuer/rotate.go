package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// KeyStatus is a key as it stands, and how far the fleet is with it.
type KeyStatus struct {
	KeyID       string
	Alg         keyring.Alg
	Bits        int
	State       keyring.State // one that another has superseded counts as retiring
	Created     time.Time
	RetiredAt   time.Time          // zero: not yet
	Audience    string             // HS256: the one audience of its tokens
	ActivatesAt time.Time          // announced: the earliest; zero: nobody has asked that it sign
	Shared      bool               // an imported HS256 secret: whoever else has it can mint with it
	Agents      []string           // Shared: those that it is sealed to
	Accept      keyring.AcceptKind // whose tokens it verifies, made elsewhere; "": ours
	Expires     time.Time          // Accept: when it is dropped

	// Receipt is of the entry that brought it into its state; after an emergency, of the last revocation.
	Receipt
	Done    bool     // what was asked for is so; else it waits for Pending or ActivatesAt
	Revoked []string // kids that were revoked with it
	Risk    string   // what was overridden by force, and what that may cost; "": nothing
}

// Waiting is how long a change of the ring waits, and for what. The zero value waits up to
// Config.RotateWait until the change can be made.
type Waiting struct {
	For   *time.Duration // instead of Config.RotateWait
	Fleet bool           // and until it is confirmed itself
	Force bool           // makes the change at once, whoever is pending
}

// limit is how long to wait until the change can be made.
func (w *Waiting) limit(configured time.Duration) time.Duration {
	switch {
	case w.Force:
		return 0
	case w.For != nil:
		return *w.For
	}
	return configured
}

// rest is how long to wait for the receipt of a change that was begun then.
func (w *Waiting) rest(configured time.Duration, began time.Time) time.Duration {
	if !w.Fleet {
		return 0
	}
	set(&configured, w.For)
	return configured - time.Since(began)
}

// Rotation is what Rotate may be asked for. The zero value is as configured.
type Rotation struct {
	Alg          keyring.Alg    // "": the active key's
	Bits         int            // RSA only; 0: as configured
	PublishAhead *time.Duration // nil: as configured
	Emergency    bool           // at once, and revokes the keys that have signed until then
	Waiting
}

// check refuses what cannot be meant.
func (r *Rotation) check() error {
	if r.Alg != "" {
		if _, err := keyring.ParseAlg(string(r.Alg)); err != nil {
			return &InputError{"alg", err.Error()}
		}
	}
	if r.PublishAhead != nil && (*r.PublishAhead < 0 || *r.PublishAhead > 30*24*time.Hour) {
		return &InputError{"publish_ahead", "must be between 0 and 30 days"}
	}
	if r.Emergency && (r.Alg != "" || r.Bits != 0 || r.PublishAhead != nil) {
		return &InputError{"emergency", `takes the key that stands by: leave out "alg", "bits" and "publish_ahead"`}
	}
	return nil
}

// Rotate activates the key that stands by, or, where that is of another kind than is asked for,
// announces one first. It signs once this issuer sees its announcement settled and it has been
// published long enough. Not Done means that it stays announced: Run, of whichever issuer, activates
// it as soon as Pending is empty and ActivatesAt has come, and never before. Force does not wait for
// either.
func (i *Issuer) Rotate(ctx context.Context, r Rotation) (*KeyStatus, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	i.event(ctx, "rotation asked for", "alg", string(r.Alg), "emergency", r.Emergency, "force", r.Force)
	if r.Emergency {
		return i.emergency(ctx, r.Waiting)
	}
	kids, err := i.askFor(ctx, &r)
	if err != nil {
		return nil, err
	}
	return i.awaitActive(ctx, kids, r.Waiting)
}

// askFor has it in the log for each line which key is to sign next, and gives their kids, the one of
// the issuer's own audience first.
func (i *Issuer) askFor(ctx context.Context, r *Rotation) ([]string, error) {
	asked := make(map[string]string) // by audience
	for attempt := 0; attempt < maxAttempts; {
		v, err := i.view(ctx, r.Alg)
		if err == nil {
			alg, bits := v.alg, i.bitsOf(v.alg)
			if r.Alg != "" {
				alg, bits = r.Alg, 0
			}
			if r.Bits != 0 && alg == keyring.RS256 {
				bits = r.Bits
			}
			lines := v.lines(alg, bits)
			at := slices.IndexFunc(lines, func(l line) bool { return !v.asked(asked[l.audience]) })
			if at < 0 {
				kids := make([]string, len(lines))
				for n, l := range lines {
					kids[n] = asked[l.audience]
				}
				return kids, nil
			}
			asked[lines[at].audience], err = i.choose(ctx, v, &lines[at], r, alg, bits)
		}
		switch {
		case err == nil:
			continue
		case !errors.Is(err, bus.ErrConflict):
			return nil, err
		case !pause(ctx, attempt):
			return nil, ctx.Err()
		}
		attempt++
	}
	return nil, unavailable("rotating", string(r.Alg), bus.ErrConflict)
}

// asked tells whether a key signs, or somebody has asked that it does.
func (v *ringView) asked(kid string) bool {
	k := v.key(kid)
	return k != nil && (k.ActivatesAt != 0 || k.state() != keyring.Announced)
}

// choose asks that a line's next key sign, and gives its kid, also on a conflict.
func (i *Issuer) choose(ctx context.Context, v *ringView, l *line, r *Rotation, alg keyring.Alg, bits int) (string, error) {
	ahead := i.cfg.PublishAhead
	set(&ahead, r.PublishAhead)
	k := l.waiting()
	switch {
	case l.next != nil && (r.Alg != "" && keyring.Alg(k.Alg) != r.Alg || r.Bits != 0 && k.Bits != r.Bits):
		return "", fmt.Errorf("rotating to %s: key %q (%s, %d bits) is announced already: %w", alg, k.KeyID, k.Alg, k.Bits, ErrExists)
	case k == nil:
		key, err := i.announce(ctx, v, l.audience, alg, bits, v.now.Add(ahead))
		if err != nil {
			return "", err
		}
		return key.ID(), nil
	}
	at := max(time.Unix(k.Created, 0).Add(ahead).Unix(), v.now.Unix())
	if l.next != nil && (r.PublishAhead == nil || at >= k.ActivatesAt) {
		return k.KeyID, nil
	}
	if at <= v.now.Unix() {
		if receipt, err := i.announced(ctx, v, k); err == nil && receipt.Confirmed {
			return k.KeyID, i.activate(ctx, v, k)
		}
	}
	return k.KeyID, i.become(ctx, v, k, keyring.Announced, func(f *bus.KeyFact) { f.ActivatesAt = at })
}

// awaitActive waits until keys are active, or for the time given; and not at all if they may not
// sign before that has passed anyway. The status is the first one's, or of one that still waits.
func (i *Issuer) awaitActive(ctx context.Context, kids []string, w Waiting) (*KeyStatus, error) {
	began, limit := time.Now(), w.limit(i.cfg.RotateWait)
	waiting := kids
	_, err := i.until(ctx, limit, func() (over bool, err error) {
		if err := i.Step(ctx); err != nil {
			return false, err
		}
		now, late, err := i.notYet(ctx, kids, limit-time.Since(began))
		if errors.Is(err, bus.ErrConflict) {
			return false, nil
		}
		waiting = now
		return len(waiting) == 0 || late, err
	})
	if err != nil {
		return nil, err
	}
	risk := ""
	if w.Force {
		for _, kid := range waiting {
			if risk, err = i.force(ctx, kid); err != nil {
				return nil, err
			}
		}
		waiting = nil
	}
	if len(waiting) > 0 {
		return i.Key(ctx, waiting[0])
	}
	st, err := i.Key(ctx, kids[0])
	if err == nil && w.Fleet {
		err = i.confirm(ctx, st, w.rest(i.cfg.RotateWait, began))
	}
	if err != nil {
		return nil, err
	}
	st.Done, st.Risk = true, risk
	return st, nil
}

// notYet gives those of the keys that are still announced; late: one may not sign within left.
func (i *Issuer) notYet(ctx context.Context, kids []string, left time.Duration) (waiting []string, late bool, err error) {
	v, err := i.view(ctx, i.cfg.Alg)
	if err != nil {
		return nil, false, err
	}
	for _, kid := range kids {
		switch k := v.key(kid); {
		case k == nil || k.state() == keyring.Retired || k.state() == keyring.Revoked:
			return nil, false, fmt.Errorf("rotating: %w: key %q was withdrawn before it signed", ErrUnavailable, kid)
		case k.state() == keyring.Announced:
			waiting = append(waiting, kid)
			late = late || time.Unix(k.ActivatesAt, 0).Sub(v.now) > left
		}
	}
	return waiting, late, nil
}

// until tries until that is over, each time something has changed and by the clock, or for limit: a
// fence, and the time of a key, come with time alone. It tries at least once.
func (i *Issuer) until(ctx context.Context, limit time.Duration, try func() (over bool, err error)) (bool, error) {
	for began := time.Now(); ; {
		replicaChanged, fleetChanged := i.Replica.Changed(), i.Fleet.Changed()
		if over, err := try(); over || err != nil {
			return over, err
		}
		left := limit - time.Since(began)
		if left <= 0 {
			return false, nil
		}
		if err := awaitAny(ctx, min(left, 50*time.Millisecond), replicaChanged, fleetChanged); err != nil {
			return false, fmt.Errorf("waiting for the agents: %w", err)
		}
	}
}

// force activates an announced key without waiting for anybody, against PROTOCOL 16, and says what
// that may cost.
func (i *Issuer) force(ctx context.Context, kid string) (risk string, err error) {
	for attempt := range maxAttempts {
		v, err := i.view(ctx, i.cfg.Alg)
		var k *ringKey
		if err == nil {
			if k = v.key(kid); k == nil || k.state() != keyring.Announced {
				return risk, nil
			}
			risk = i.risk(ctx, v, k)
			err = i.activate(ctx, v, k)
		}
		if err == nil {
			i.event(ctx, "a key was activated by force", "kid", kid, "risk", risk)
			return risk, nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return risk, err
		}
		if !pause(ctx, attempt) {
			return risk, ctx.Err()
		}
	}
	return risk, unavailable("activating key", kid, bus.ErrConflict)
}

// risk says what an activation costs that comes too early.
func (i *Issuer) risk(ctx context.Context, v *ringView, k *ringKey) string {
	var risks []string
	switch r, err := i.announced(ctx, v, k); {
	case err != nil:
		risks = append(risks, "who holds the key is not known: any agent may answer new tokens 401 unknown_key, or 503, until it has caught up")
	case !r.Confirmed:
		risks = append(risks, fmt.Sprintf("%s may answer new tokens 401 unknown_key, or 503, until entry %d is applied there", strings.Join(r.Pending, ", "), k.seq))
	}
	if at := max(k.ActivatesAt, k.Created+int64(i.cfg.PublishAhead/time.Second)); at > v.now.Unix() && !k.symmetric() {
		risks = append(risks, "who reads the JWKS by itself may not know the key before "+time.Unix(at, 0).UTC().Format(time.RFC3339))
	}
	return strings.Join(risks, "; ")
}

// confirm waits until a key's entry is confirmed, or for limit.
func (i *Issuer) confirm(ctx context.Context, st *KeyStatus, limit time.Duration) error {
	r, err := i.Await(ctx, st.Position, max(limit, 0))
	if err == nil {
		st.Receipt = *r
	}
	return err
}
