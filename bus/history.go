package bus

import (
	"crypto/sha256"
	"fmt"
	"sync"
)

// remembered is how many of the newest entries a history knows.
const remembered = 4096

// history remembers the newest entries that a Reader has taken, by hash, so that it can tell one
// that is delivered again from the work of a log that was rolled back and written anew. All Follows
// of a Reader share it. The zero value remembers nothing.
type history struct {
	mu    sync.Mutex
	slots []remembrance // by sequence
}

type remembrance struct {
	at  Position
	sum [sha256.Size]byte
}

// check compares a message with the entry that stood at its place. known: it is that one. Another
// one is ErrRollback; a place that is not remembered is neither.
func (h *history) check(msg message) (known bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.checkLocked(remembrance{msg.at, sha256.Sum256(msg.signed)})
}

func (h *history) checkLocked(now remembrance) (known bool, err error) {
	if h.slots == nil {
		return false, nil
	}
	was := h.slots[now.at.Seq%remembered]
	if was.at != now.at {
		return false, nil
	}
	if was.sum != now.sum {
		return false, fmt.Errorf("%w: entry %d is not what it was", ErrRollback, now.at.Seq)
	}
	return true, nil
}

// note remembers a proven message, or gives ErrRollback if another one stood at its place.
func (h *history) note(msg message) error {
	now := remembrance{msg.at, sha256.Sum256(msg.signed)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.checkLocked(now); err != nil {
		return err
	}
	if h.slots == nil {
		h.slots = make([]remembrance, remembered)
	}
	if slot := &h.slots[msg.at.Seq%remembered]; slot.at.Before(msg.at) {
		*slot = now
	}
	return nil
}
