package issuer

import (
	"context"
	"errors"
	"time"
)

// keepRechecked asks the Directory again and again for the users with open sessions, by the issuer that has the Duty, until ctx ends; each keeps
// the time, so that whoever takes over asks within one RecheckEvery. So a
// user who is disabled there loses their tokens at every agent without refreshing, and without anybody telling this issuer.
func (i *Issuer) keepRechecked(ctx context.Context) {
	if i.Directory == nil || i.cfg.RecheckEvery == 0 {
		return
	}
	for {
		t := time.NewTimer(jitter(i.cfg.RecheckEvery))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		if i.maySign() != nil {
			continue
		}
		mine, stop, held := i.onDuty(ctx)
		if !held {
			stop()
			continue
		}
		err := i.Recheck(mine)
		stop()
		if err != nil && ctx.Err() == nil {
			i.log.Warn("could not recheck the users with open sessions, trying again later", "error", err)
		}
	}
}

// goneAtOnce is how many users may be gone from a directory between two rechecks for that to be believed, unless most are there.
const goneAtOnce = 10

var errNobodyFound = errors.New("most users with open sessions are not in the directory; is it the right one? Their sessions end only as they refresh")

// Recheck asks the Directory for each user with an open session, one after the other, and ends what stands no more. It stops at the
// first user that the directory cannot be asked for. Run calls it; calling it more often is harmless.
func (i *Issuer) Recheck(ctx context.Context) error {
	recs, _, err := i.listSessions(ctx, "")
	if err != nil {
		return err
	}
	now := i.now()
	open := make(map[string][]*session)
	for _, s := range recs {
		if s.live(now) && s.Gen > 0 && !i.revoked(s) {
			open[s.Subject] = append(open[s.Subject], s)
		}
	}
	type ended struct {
		*session
		why string
	}
	var over []ended
	gone := 0
	for sub, sessions := range open {
		rec, why, err := i.stands(ctx, sub)
		if err != nil {
			var broken *RecordError
			if errors.As(err, &broken) { // one user's, not everybody's
				i.log.Error("could not recheck a user", "sub", sub, "error", err)
				continue
			}
			return err
		}
		if why != "" {
			if why == userGone {
				gone++
			}
			over = append(over, ended{sessions[0], why}) // a cutoff ends them all
			continue
		}
		for _, s := range sessions {
			if s.Mark != passwordMark(s.ID, rec.Marker) {
				over = append(over, ended{s, passwordChanged})
			}
		}
	}
	if gone > goneAtOnce && gone > len(open)/2 {
		return errNobodyFound
	}
	for _, e := range over {
		if err := i.endElsewhere(ctx, e.session, e.why); err != nil {
			return err
		}
	}
	return nil
}
