package strictjson

import (
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Kind is what a value is. The zero Kind is that of no value.
type Kind byte

// The kinds of JSON values.
const (
	KindNull Kind = iota + 1
	KindBool
	KindNumber
	KindString
	KindArray
	KindObject
)

// Value is a value that has been read and found well formed. It points into the document. The zero Value is of no kind,
// and every accessor refuses it. Accessors answer false for a value of another kind; nothing is converted.
type Value struct {
	raw     []byte // as written; of a string, what stands between the quotes
	kind    Kind
	escaped bool // a string with escapes in it
}

// Kind returns what the value is.
func (v Value) Kind() Kind { return v.kind }

// Raw returns the value as written, for a string without its quotes and with its escapes. It points into the document.
func (v Value) Raw() []byte { return v.raw }

// Text returns a string, decoded and copied.
func (v Value) Text() (string, bool) {
	b, ok := v.Bytes(nil)
	return string(b), ok
}

// Bytes returns a string, decoded: a part of the document if it has no escapes, else appended to buf[:0].
func (v Value) Bytes(buf []byte) ([]byte, bool) {
	if v.kind != KindString {
		return nil, false
	}
	if !v.escaped {
		return v.raw, true
	}
	return unescape(buf[:0], v.raw), true
}

// Bool returns the value of true or false.
func (v Value) Bool() (value, ok bool) {
	return v.kind == KindBool && v.raw[0] == 't', v.kind == KindBool
}

// Float returns a number; false also if it is too large for a float64.
func (v Value) Float() (float64, bool) {
	if v.kind != KindNumber {
		return 0, false
	}
	if len(v.raw) <= 15 { // up to 15 digits are exact in a float64
		if n, ok := v.Uint(); ok {
			return float64(n), true
		}
	}
	f, err := strconv.ParseFloat(string(v.raw), 64)
	return f, err == nil
}

// Uint returns a number written as digits only: no sign, fraction or exponent, and at most 2^64-1.
func (v Value) Uint() (uint64, bool) {
	if v.kind != KindNumber || len(v.raw) > 20 {
		return 0, false
	}
	var n uint64
	for _, c := range v.raw {
		d := uint64(c - '0')
		if d > 9 || n > (1<<64-1-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}

// Texts returns an array of strings, decoded and copied; false if any element is something else.
func (v Value) Texts() ([]string, bool) {
	texts := []string{}
	ok := v.kind == KindArray && v.Each(func(e Value) error {
		t, isText := e.Text()
		if !isText {
			return ErrSyntax
		}
		texts = append(texts, t)
		return nil
	}) == nil
	if !ok {
		return nil, false
	}
	return texts, true
}

// Each calls fn for the elements of an array, in order, until it fails, and returns that error.
// A value that is no array is an error.
func (v Value) Each(fn func(Value) error) error {
	s := scanner{data: v.raw}
	if v.kind != KindArray {
		return s.fail(ErrSyntax)
	}
	return s.array(1, fn)
}

// Members reads an object inside the document as [Object] does. A value that is no object is an error.
func (v Value) Members(known []string, fn func(name []byte, v Value) error) error {
	return Object(v.raw, known, fn)
}

// unescape appends to dst what raw, well formed, means.
func unescape(dst, raw []byte) []byte {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			dst = append(dst, raw[i])
			continue
		}
		i++
		switch c := raw[i]; c {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r, _ := hex4(raw[i-1:])
			i += 4
			if utf16.IsSurrogate(r) {
				low, _ := hex4(raw[i+1:])
				r = utf16.DecodeRune(r, low)
				i += 6
			}
			dst = utf8.AppendRune(dst, r)
		default: // the quote, the backslash, the slash
			dst = append(dst, c)
		}
	}
	return dst
}
