package agent

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/sidekey/sidekey/bus/replica"
)

// maxMemory is the longest time that an answer from outside is gone by.
const maxMemory = 60 * time.Second

// memory remembers whom an outside party has vouched for, for a short time. What it stands under is an HMAC with a key of this process:
// who reads the memory finds no credential in it, and no hash of one that could be guessed offline. It remembers no refusal,
// so that only who has right credentials can fill it.
type memory struct {
	key  [sha256.Size]byte
	who  *lru.Cache[memoryKey, *remembered]
	life time.Duration
}

type memoryKey [sha256.Size]byte

// remembered is whom somebody has vouched for.
type remembered struct {
	Principal
	ids   replica.IDs
	since time.Time // when the question was put
	life  time.Duration
}

func newMemory(size int, life time.Duration) (*memory, error) {
	m := &memory{life: min(life, maxMemory)}
	rand.Read(m.key[:]) // never fails
	var err error
	if m.who, err = lru.New[memoryKey, *remembered](size); err != nil {
		return nil, fmt.Errorf("making a memory for %d answers: %w", size, err)
	}
	return m, nil
}

// sum is what the answer to a question stands under: each part with its length, so that no two questions are one.
func (m *memory) sum(parts ...string) (key memoryKey) {
	mac := hmac.New(sha256.New, m.key[:])
	var length [8]byte
	for _, part := range parts {
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		mac.Write(length[:])
		mac.Write([]byte(part))
	}
	mac.Sum(key[:0])
	return key
}

// get gives whom the answer under key vouches for now, nil: it is to be asked for.
func (m *memory) get(key memoryKey, now time.Time) *remembered {
	got, ok := m.who.Get(key)
	if !ok {
		return nil
	}
	if age := now.Sub(got.since); age < 0 || age >= got.life { // a clock that was set back: fails closed
		m.who.Remove(key)
		return nil
	}
	return got
}

// add remembers an answer for its life, of which zero is none.
func (m *memory) add(key memoryKey, who *remembered, since time.Time, life time.Duration) {
	if who.since, who.life = since, min(life, m.life); who.life > 0 {
		m.who.Add(key, who)
	}
}
