package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// emergency replaces the keys that sign now, and revokes them. First the successors sign, then the
// others are revoked, so that no token is made that is refused. Nothing happens before the
// successors' announcements are settled; with force it does.
func (i *Issuer) emergency(ctx context.Context, w Waiting) (*KeyStatus, error) {
	began := time.Now()
	old, err := i.signing(ctx)
	if err != nil {
		return nil, err
	}
	waits, risk, err := i.supersede(ctx, old, w)
	if err != nil {
		return nil, err
	}
	if waits != "" {
		return i.Key(ctx, waits)
	}
	for _, kid := range old {
		if err := i.withdraw(ctx, kid); err != nil {
			return nil, fmt.Errorf("key %q is replaced, and not revoked yet (run: sidekey keys revoke %s): %w", kid, kid, err)
		}
	}
	last, err := i.Key(ctx, old[len(old)-1])
	if err != nil {
		return nil, err
	}
	active, ok := i.activeKey(i.Replica.Snapshot().Ring)
	if !ok {
		return nil, fmt.Errorf("rotating: %w: no key is active", ErrUnavailable)
	}
	st, err := i.Key(ctx, active.KeyID)
	if err != nil {
		return nil, err
	}
	st.Receipt, st.Revoked, st.Risk = last.Receipt, old, risk
	if err := i.finish(ctx, st, w, began); err != nil {
		return nil, err
	}
	return st, i.dropPrivate(ctx)
}

// signing gives the kids of the keys that sign now.
func (i *Issuer) signing(ctx context.Context) ([]string, error) {
	v, err := i.view(ctx, i.cfg.Alg)
	if err != nil {
		return nil, fmt.Errorf("rotating: %w: %w", ErrUnavailable, err)
	}
	var kids []string
	for _, l := range v.lines(v.alg, 0) {
		if l.active != nil && !slices.Contains(kids, l.active.KeyID) {
			kids = append(kids, l.active.KeyID)
		}
	}
	if len(kids) == 0 {
		return nil, fmt.Errorf("rotating: %w: no key signs yet", ErrUnavailable)
	}
	return kids, nil
}

// RevokeKey withdraws a key, and with it every token that it signed. A key that signs is replaced
// first, by the one that stands by; while an agent may not know that one, nothing is revoked, and
// Pending names who is waited for. Force does not wait.
func (i *Issuer) RevokeKey(ctx context.Context, kid string, w Waiting) (*KeyStatus, error) {
	if _, ok := i.Replica.Snapshot().Ring.Record(kid); !ok {
		return nil, fmt.Errorf("revoking key %q: %w", kid, ErrNotFound)
	}
	began := time.Now()
	waits, risk, err := i.supersede(ctx, []string{kid}, w)
	if err != nil {
		return nil, err
	}
	if waits == "" {
		if err := i.withdraw(ctx, kid); err != nil {
			return nil, err
		}
	}
	st, err := i.Key(ctx, kid)
	if err != nil {
		return nil, err
	}
	if waits != "" {
		next, err := i.Key(ctx, waits)
		if err == nil {
			st.Receipt = next.Receipt
		}
		return st, err
	}
	st.Risk = risk
	if err := i.finish(ctx, st, w, began); err != nil {
		return nil, err
	}
	return st, i.dropPrivate(ctx)
}

// finish waits for the receipt of a revocation where that is asked for.
func (i *Issuer) finish(ctx context.Context, st *KeyStatus, w Waiting, began time.Time) error {
	err := i.confirm(ctx, st, w.rest(i.cfg.RotateWait, began))
	st.Done = !w.Fleet || st.Confirmed
	return err
}

// supersede has others sign instead of these keys, and gives the one that it still waits for when the
// time is over, "" if none of the old ones signs any more. risk is what force has overridden.
func (i *Issuer) supersede(ctx context.Context, old []string, w Waiting) (waits, risk string, err error) {
	var next string
	try := func() (over bool, err error) {
		over, next, err = i.supersedeOne(ctx, old)
		if errors.Is(err, bus.ErrConflict) {
			return false, nil
		}
		return over, err
	}
	over, err := i.until(ctx, w.limit(i.cfg.RotateWait), try)
	for attempt := 0; w.Force && !over && err == nil && attempt < 4*maxAttempts; attempt++ {
		if next != "" {
			if risk, err = i.force(ctx, next); err != nil {
				break
			}
		}
		pause(ctx, attempt)
		over, err = try()
	}
	switch {
	case err != nil:
		return "", risk, err
	case over:
		return "", risk, nil
	case next == "":
		return "", risk, unavailable("replacing key", old[0], errors.New("no key stands by yet"))
	}
	return next, risk, nil
}

// supersedeOne activates one more successor of the old keys, if one is settled. over: none of them
// signs any more. Else next is the key that is waited for, "" where none is announced yet.
func (i *Issuer) supersedeOne(ctx context.Context, old []string) (over bool, next string, err error) {
	v, err := i.view(ctx, i.cfg.Alg)
	if err != nil {
		return false, "", err
	}
	lines := v.lines(v.alg, 0)
	at := slices.IndexFunc(lines, func(l line) bool { return l.active != nil && slices.Contains(old, l.active.KeyID) })
	if at < 0 {
		return true, "", nil
	}
	for _, k := range []*ringKey{lines[at].next, lines[at].standby} {
		if k == nil || slices.Contains(old, k.KeyID) {
			continue
		}
		next = k.KeyID
		r, err := i.announced(ctx, v, k)
		if err != nil {
			return false, next, err
		}
		if r.Confirmed {
			return false, next, i.activate(ctx, v, k)
		}
	}
	if next == "" {
		return false, "", i.Step(ctx) // which announces one
	}
	return false, next, nil
}

// withdraw revokes a key that signs nothing.
func (i *Issuer) withdraw(ctx context.Context, kid string) error {
	for attempt := range maxAttempts {
		v, err := i.view(ctx, i.cfg.Alg)
		if err == nil {
			k := v.key(kid)
			if k == nil || k.state() == keyring.Revoked {
				return nil
			}
			life := max(time.Duration(k.MaxLifetime)*time.Second, i.cfg.longestToken())
			err = i.become(ctx, v, k, keyring.Revoked, func(f *bus.KeyFact) { f.ExpiresAt = v.now.Add(life).Unix() + i.tail() })
		}
		switch {
		case err == nil:
			i.private.drop(kid)
			i.event(ctx, "key revoked", "kid", kid)
			return nil
		case !errors.Is(err, bus.ErrConflict):
			return err
		case !pause(ctx, attempt):
			return ctx.Err()
		}
	}
	return unavailable("revoking key", kid, bus.ErrConflict)
}
