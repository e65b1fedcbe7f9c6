package strictjson

import (
	"bytes"
	"errors"
	"fmt"
)

// The bounds of what is read. They are generous for tokens, keys and requests, and small enough that no
// input makes the reader's work grow faster than its length.
const (
	MaxLength  = 4 << 20 // bytes of one document
	MaxDepth   = 32      // objects and arrays within each other; the outermost is 1
	MaxMembers = 256     // members of one object
	MaxNumber  = 64      // characters of one number
)

// The kinds of refusal. Each error of this package is an [*Error] that wraps one of them, or what a callback returned.
var (
	ErrSyntax    = errors.New("invalid JSON")
	ErrText      = errors.New("text that is not valid Unicode")
	ErrDuplicate = errors.New("a member named twice")
	ErrFolded    = errors.New("a member whose name differs from a known one only in case")
	ErrBounds    = errors.New("larger or deeper than is read here")
)

// Error says why a document was refused and at which byte, counted from 0. It never quotes the document.
type Error struct {
	Offset int
	Err    error // one of the Err variables
}

func (e *Error) Error() string { return fmt.Sprintf("%v at byte %d", e.Err, e.Offset) }

// Unwrap returns the kind of refusal.
func (e *Error) Unwrap() error { return e.Err }

// Object reads data, which must be one JSON object and nothing more, and calls fn for each member of it in order, with
// the name decoded. An error of fn ends the reading and is returned as it is. fn may be nil: the object is only judged.
//
// known lists the names that mean something to the caller, in lower case: a member whose name equals one of them only when
// case is ignored (by Unicode's simple folding, as encoding/json does) is refused. Only the outermost names are compared.
//
// fn is called before the rest of the document is known to be well formed: what it collects counts only if Object
// returns nil. Name and value point into data and live as long as it does.
func Object(data []byte, known []string, fn func(name []byte, v Value) error) error {
	s := scanner{data: data}
	if len(data) > MaxLength {
		return s.fail(ErrBounds)
	}
	s.skip()
	if s.peek() != '{' {
		return s.fail(ErrSyntax)
	}
	if err := s.object(1, known, fn); err != nil {
		return err
	}
	s.skip()
	if s.pos != len(data) {
		return s.fail(ErrSyntax)
	}
	return nil
}

// seen is the name of a member of an object that is being read.
type seen struct {
	hash uint32
	text []byte
}

// object reads an object whose '{' is next.
func (s *scanner) object(depth int, known []string, fn func(name []byte, v Value) error) error {
	if depth > MaxDepth {
		return s.fail(ErrBounds)
	}
	s.pos++
	s.skip()
	if s.take('}') {
		return nil
	}
	base, filter := s.open, uint64(0)
	for {
		name, err := s.name(base, &filter)
		if err != nil {
			return err
		}
		if folds(name, known) {
			return s.fail(ErrFolded)
		}
		v, err := s.value(depth)
		if err != nil {
			return err
		}
		if fn != nil {
			if err := fn(name, v); err != nil {
				return err
			}
		}
		s.skip()
		if s.take('}') {
			s.open = base
			return nil
		}
		if !s.take(',') {
			return s.fail(ErrSyntax)
		}
		s.skip()
	}
}

// name reads a member's name and the colon behind it, and refuses it if the object, whose names begin at base, has it
// already. filter has a bit for the hash of each name so far: most names are new by one look at it.
func (s *scanner) name(base int, filter *uint64) ([]byte, error) {
	at := s.pos
	if s.peek() != '"' {
		return nil, s.fail(ErrSyntax)
	}
	v, err := s.text()
	if err != nil {
		return nil, err
	}
	text, _ := v.Bytes(nil)
	h := hash(text)
	bit := uint64(1) << (h & 63)
	if *filter&bit != 0 {
		for i := base; i < s.open; i++ {
			if n := s.nth(i); n.hash == h && bytes.Equal(n.text, text) {
				return nil, &Error{Offset: at, Err: ErrDuplicate}
			}
		}
	}
	*filter |= bit
	if s.open-base >= MaxMembers {
		return nil, &Error{Offset: at, Err: ErrBounds}
	}
	s.push(seen{hash: h, text: text})
	s.skip()
	if !s.take(':') {
		return nil, s.fail(ErrSyntax)
	}
	s.skip()
	return text, nil
}

// hash is FNV-1a. Someone who makes names collide costs us MaxMembers squared comparisons of a word, no more.
func hash(b []byte) uint32 {
	h := uint32(2166136261)
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	return h ^ h>>16
}

// folds reports whether name is another spelling of a known name. Known names are in lower case, so a name
// without capitals and without letters beyond ASCII is none.
func folds(name []byte, known []string) bool {
	if len(known) == 0 {
		return false
	}
	plain := true
	for _, c := range name {
		if c >= 0x80 || 'A' <= c && c <= 'Z' {
			plain = false
			break
		}
	}
	if plain {
		return false
	}
	for _, k := range known {
		// A folded letter takes at most three bytes more (U+017F, U+212A): longer names cannot match.
		if len(name) <= 3*len(k) && string(name) != k && bytes.EqualFold(name, []byte(k)) {
			return true
		}
	}
	return false
}
