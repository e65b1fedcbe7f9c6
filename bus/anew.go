package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
)

// Why an issuer may not begin the log anew.
var (
	ErrClaimed = errors.New("another issuer is beginning the log anew")                               // and has not said yet that it has
	ErrBegun   = errors.New("another issuer has begun the log anew, and this one does not know that") // it has to go on with it
)

// AnewClaim is the right to begin the log anew, which one issuer has at a time: who does it deletes the stream, and must
// not delete what another has begun and appended to.
//
// It has no end by itself: an issuer that is paused while it has it finds it still its own when it goes on. One that
// died takes it again when it starts, as no second process runs on its data_dir; where it does not come back a person has to
// say so.
type AnewClaim struct {
	bucket   *Bucket
	record   anewRecord
	revision uint64
}

// anewRecord is kept in BucketDuties.
//
//	{"issuer": "issuer-1", "since": 1790000000, "epoch": 0}
type anewRecord struct {
	Issuer string `json:"issuer"`          // who has, or last had, the claim
	Since  int64  `json:"since"`           // NumericDate
	Epoch  uint64 `json:"epoch,omitempty"` // that it has begun: the claim has ended. 0: it has not
}

const anewName = "anew"

// ClaimAnew takes the right to begin the log anew for an issuer that knows it up to an epoch, by compare-and-set in the
// bucket of BucketDuties. ErrClaimed: another one has the right. ErrBegun: another has begun an epoch that this one does not
// know. takeOver is a person's word that neither shall count.
func ClaimAnew(ctx context.Context, b *Bucket, issuer string, known uint64, takeOver bool) (*AnewClaim, error) {
	for {
		c := &AnewClaim{bucket: b, record: anewRecord{Issuer: issuer, Since: time.Now().Unix()}}
		rec, err := b.Get(ctx, anewName)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, fmt.Errorf("looking who begins the log anew: %w", err)
		}
		if err == nil {
			var was anewRecord
			if err := json.Unmarshal(rec.Value, &was); err != nil {
				return nil, fmt.Errorf("looking who begins the log anew: the record is damaged: %w", err)
			}
			if err := was.forbids(issuer, known); err != nil && !takeOver {
				return nil, err
			}
		}
		switch err = c.write(ctx, rec.Revision); {
		case err == nil:
			return c, nil
		case !errors.Is(err, ErrConflict) && !errors.Is(err, ErrExists):
			return nil, fmt.Errorf("claiming to begin the log anew: %w", err)
		}
	}
}

func (was anewRecord) forbids(issuer string, known uint64) error {
	at := time.Unix(was.Since, 0).UTC().Format(time.RFC3339)
	switch {
	case was.Issuer == issuer || was.Epoch != 0 && was.Epoch <= known:
		return nil
	case was.Epoch == 0:
		return fmt.Errorf("%w: %q since %s", ErrClaimed, was.Issuer, at)
	}
	return fmt.Errorf("%w: %q, at %s, with epoch %d", ErrBegun, was.Issuer, at, was.Epoch)
}

func (c *AnewClaim) write(ctx context.Context, revision uint64) error {
	text, err := json.Marshal(c.record)
	if err != nil {
		return err
	}
	if revision == 0 {
		c.revision, err = c.bucket.Create(ctx, anewName, text)
	} else {
		c.revision, err = c.bucket.Update(ctx, anewName, text, revision)
	}
	return err
}

// Done ends the claim: the log stands, with this epoch.
func (c *AnewClaim) Done(ctx context.Context, epoch uint64) error {
	c.record.Epoch = epoch
	if err := c.write(ctx, c.revision); err != nil {
		return fmt.Errorf("saying that the log was begun anew: %w", err)
	}
	return nil
}

// EndAnew ends a claim of this issuer's that still stands though the log does, with this epoch: it died after it had begun the log anew,
// and before it could say so. Others that wait for its word would wait for ever.
func EndAnew(ctx context.Context, b *Bucket, issuer string, epoch uint64) error {
	rec, err := b.Get(ctx, anewName)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	var was anewRecord
	if err == nil {
		err = json.Unmarshal(rec.Value, &was)
	}
	if err != nil {
		return fmt.Errorf("looking who begins the log anew: %w", err)
	}
	if was.Issuer != issuer || was.Epoch != 0 {
		return nil
	}
	err = (&AnewClaim{bucket: b, record: was, revision: rec.Revision}).Done(ctx, epoch)
	if errors.Is(err, ErrConflict) {
		return nil // a person has given it to another
	}
	return err
}

// Withdraw ends the claim with nothing done.
func (c *AnewClaim) Withdraw(ctx context.Context) error {
	if err := c.bucket.Delete(ctx, anewName, c.revision); err != nil {
		return fmt.Errorf("withdrawing the claim to begin the log anew: %w", err)
	}
	return nil
}

// upWithin is how long issuers are given to say that they are up.
const upWithin = 500 * time.Millisecond

// Present has this issuer answer those who ask which are up, until stop is called.
func (c *Conn) Present(issuer string) (stop func(), err error) {
	sub, err := c.nc.Subscribe(c.subjects.up(), func(m *nats.Msg) {
		_ = m.Respond([]byte(issuer)) // who asked waits no longer than it likes
	})
	if err != nil {
		return nil, fmt.Errorf("listening to who asks which issuers are up: %w", err)
	}
	return func() { _ = sub.Unsubscribe() }, nil // the connection may be closed already
}

// Up gives the names of the issuers that are up and reached by the bus.
func (c *Conn) Up(ctx context.Context) (issuers []string, err error) {
	inbox := c.nc.NewRespInbox()
	sub, err := c.nc.SubscribeSync(inbox)
	if err == nil {
		defer sub.Unsubscribe() //nolint:errcheck // the connection may be closed already
		err = c.nc.PublishRequest(c.subjects.up(), inbox, nil)
	}
	ctx, cancel := context.WithTimeout(ctx, upWithin)
	defer cancel()
	for err == nil {
		var m *nats.Msg
		if m, err = sub.NextMsgWithContext(ctx); err == nil && m.Header.Get("Status") == "" {
			issuers = append(issuers, string(m.Data))
		}
	}
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, nats.ErrNoResponders) {
		return nil, fmt.Errorf("asking which issuers are up: %w", err)
	}
	slices.Sort(issuers)
	return issuers, nil
}
