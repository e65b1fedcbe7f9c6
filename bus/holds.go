package bus

import (
	"context"
	"errors"
)

// Holds tells whether the log as it stands now holds an entry that the authority signed for, with these entries before it: nil if so.
// ErrRollback: it ends before it, or has others there; both are said only of what the stream itself shows, read anew. ErrEpoch: the
// log was begun anew since, which is no rollback. ErrBehind: it was purged beyond it. Of its very last entry it says nothing before a
// tick has come behind it: give ctx an end.
func (r *Reader) Holds(ctx context.Context, at Cursor) error {
	// What r has seen is not asked: it is what is in question.
	err := NewReader(r.conn, r.authority).Follow(ctx, at, func(entries []Entry, _ uint64) error {
		for _, en := range entries {
			if _, tick := en.Fact.(*Tick); tick {
				return errSeen
			}
		}
		return nil
	})
	if errors.Is(err, errSeen) {
		return nil
	}
	return err
}
