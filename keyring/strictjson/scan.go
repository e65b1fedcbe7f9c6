package strictjson

import (
	"unicode/utf8"
)

// scanner is a place in a document that is being read.
type scanner struct {
	data []byte
	pos  int

	// The names of the objects that are open, the innermost last. The first lie in the scanner itself, and so on
	// the stack; a slice of an array beside it would be moved to the heap.
	open int
	near [24]seen
	far  []seen
}

func (s *scanner) nth(i int) *seen {
	if i < len(s.near) {
		return &s.near[i]
	}
	return &s.far[i-len(s.near)]
}

func (s *scanner) push(n seen) {
	if s.open < len(s.near) {
		s.near[s.open] = n
	} else {
		s.far = append(s.far[:s.open-len(s.near)], n)
	}
	s.open++
}

func (s *scanner) fail(kind error) error { return &Error{Offset: s.pos, Err: kind} }

// peek returns the next byte, 0 at the end (which no grammar rule starts with).
func (s *scanner) peek() byte {
	if s.pos < len(s.data) {
		return s.data[s.pos]
	}
	return 0
}

// take goes past c if it is next.
func (s *scanner) take(c byte) bool {
	if s.pos < len(s.data) && s.data[s.pos] == c {
		s.pos++
		return true
	}
	return false
}

// skip goes past white space (RFC 8259 §2).
func (s *scanner) skip() {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

// value reads any value inside a container at depth.
func (s *scanner) value(depth int) (Value, error) {
	start := s.pos
	var kind Kind
	var err error
	switch c := s.peek(); {
	case c == '"':
		return s.text()
	case c == '{':
		kind, err = KindObject, s.object(depth+1, nil, nil)
	case c == '[':
		kind, err = KindArray, s.array(depth+1, nil)
	case c == '-' || '0' <= c && c <= '9':
		kind, err = KindNumber, s.number()
	case c == 't':
		kind, err = KindBool, s.word("true")
	case c == 'f':
		kind, err = KindBool, s.word("false")
	case c == 'n':
		kind, err = KindNull, s.word("null")
	default:
		err = s.fail(ErrSyntax)
	}
	if err != nil {
		return Value{}, err
	}
	return Value{kind: kind, raw: s.data[start:s.pos]}, nil
}

// array reads an array whose '[' is next.
func (s *scanner) array(depth int, fn func(Value) error) error {
	if depth > MaxDepth {
		return s.fail(ErrBounds)
	}
	s.pos++
	s.skip()
	if s.take(']') {
		return nil
	}
	for {
		v, err := s.value(depth)
		if err != nil {
			return err
		}
		if fn != nil {
			if err := fn(v); err != nil {
				return err
			}
		}
		s.skip()
		if s.take(']') {
			return nil
		}
		if !s.take(',') {
			return s.fail(ErrSyntax)
		}
		s.skip()
	}
}

func (s *scanner) word(w string) error {
	if len(s.data)-s.pos < len(w) || string(s.data[s.pos:s.pos+len(w)]) != w {
		return s.fail(ErrSyntax)
	}
	s.pos += len(w)
	return nil
}

// number reads a number by the grammar of RFC 8259 §6.
func (s *scanner) number() error {
	start := s.pos
	s.take('-')
	if !s.take('0') && s.digits() == 0 {
		return s.fail(ErrSyntax)
	}
	if s.take('.') && s.digits() == 0 {
		return s.fail(ErrSyntax)
	}
	if s.take('e') || s.take('E') {
		if !s.take('+') {
			s.take('-')
		}
		if s.digits() == 0 {
			return s.fail(ErrSyntax)
		}
	}
	if s.pos-start > MaxNumber {
		return s.fail(ErrBounds)
	}
	return nil
}

func (s *scanner) digits() int {
	start := s.pos
	for s.pos < len(s.data) && '0' <= s.data[s.pos] && s.data[s.pos] <= '9' {
		s.pos++
	}
	return s.pos - start
}

// plain are the bytes that a string has most of: ASCII that is printable and neither the quote nor the backslash.
var plain = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// text reads a string whose quote is next. Escapes are judged here and decoded only when asked for.
func (s *scanner) text() (Value, error) {
	s.pos++
	start := s.pos
	data := s.data
	escaped, ascii := false, true
	for i := start; i < len(data); i++ {
		if plain[data[i]] {
			continue
		}
		switch c := data[i]; {
		case c == '"':
			s.pos = i + 1
			raw := data[start:i]
			if !ascii && !utf8.Valid(raw) {
				return Value{}, s.fail(ErrText)
			}
			return Value{kind: KindString, raw: raw, escaped: escaped}, nil
		case c == '\\':
			n, err := escape(data[i:])
			if err != nil {
				s.pos = i
				return Value{}, s.fail(err)
			}
			i += n - 1
			escaped = true
		case c >= utf8.RuneSelf:
			ascii = false
		default: // a control character
			s.pos = i
			return Value{}, s.fail(ErrSyntax)
		}
	}
	s.pos = len(data)
	return Value{}, s.fail(ErrSyntax)
}

// escape returns the length of the escape at the start of b, a surrogate pair being one (RFC 8259 §7). Half a
// pair is refused: a decoder makes U+FFFD of it, so two texts that differ would decode to one.
func escape(b []byte) (int, error) {
	if len(b) < 2 {
		return 0, ErrSyntax
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2, nil
	case 'u':
	default:
		return 0, ErrSyntax
	}
	r, ok := hex4(b)
	switch {
	case !ok:
		return 0, ErrSyntax
	case r < 0xD800 || r > 0xDFFF:
		return 6, nil
	case r > 0xDBFF:
		return 0, ErrText
	}
	if low, ok := hex4(b[6:]); ok && 0xDC00 <= low && low <= 0xDFFF {
		return 12, nil
	}
	return 0, ErrText
}

// hex4 reads \uXXXX at the start of b.
func hex4(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range b[2:6] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
