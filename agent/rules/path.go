package rules

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// The bounds of a path: what is beyond them is refused, never cut.
const (
	maxPath     = 8192 // bytes, as it was sent
	maxSegments = 128
)

// ErrAmbiguous means that a path could mean one thing here and another to the upstream.
var ErrAmbiguous = errors.New("ambiguous path")

func ambiguous(why string) error { return fmt.Errorf("%w: %s", ErrAmbiguous, why) }

// Path is a request's path in the one form that rules are compared in: percent-decoded (RFC 3986 §6.2.2.2) and cut into
// segments, a slash at the end left out. Make it with Canonical.
type Path struct {
	Text     string   // what is compared, "/" at least; an escaped slash stands in it as %2F
	segments []string // without empty ones
	slashes  bool
}

// Slashes says that a segment holds an escaped slash: only a rule that takes it literally may match.
func (p *Path) Slashes() bool { return p.slashes }

// Canonical reads the path of a request target as it was sent, without query. The error is ErrAmbiguous with what is
// wrong: "..", ".", "//", ";", a backslash, a control character, "%" that escapes nothing or escapes an escape, bytes
// that are no UTF-8, a target that is no path, or one beyond the bounds.
func Canonical(raw string) (Path, error) {
	switch {
	case raw == "" || raw[0] != '/':
		return Path{}, ambiguous("it does not begin with a slash")
	case len(raw) > maxPath:
		return Path{}, ambiguous("it is too long")
	case strings.IndexByte(raw, '#') >= 0 || strings.IndexByte(raw, '?') >= 0:
		return Path{}, ambiguous("it holds a fragment or a query")
	}
	text, slashes, err := decode(raw)
	if err != nil {
		return Path{}, err
	}
	p := Path{Text: text, slashes: slashes}
	if text == "/" {
		return p, nil
	}
	p.Text = strings.TrimSuffix(text, "/")
	p.segments = strings.Split(p.Text[1:], "/")
	if len(p.segments) > maxSegments {
		return Path{}, ambiguous("it has too many segments")
	}
	for _, s := range p.segments {
		if s == "" {
			return Path{}, ambiguous(`it holds "//"`)
		}
		if dots(s) {
			return Path{}, ambiguous(`it holds a segment "." or ".."`)
		}
	}
	return p, nil
}

// dots tells whether a segment, or a part of it between escaped slashes, is "." or "..": also a rule that takes escaped
// slashes literally stands before a service that may resolve them.
func dots(s string) bool {
	for {
		part, rest, more := strings.Cut(s, "%2F")
		if part == "." || part == ".." {
			return true
		}
		if !more {
			return false
		}
		s = rest
	}
}

// decode undoes percent-encoding, but for an escaped slash, which becomes %2F.
func decode(raw string) (text string, slashes bool, err error) {
	if strings.IndexByte(raw, '%') < 0 {
		return raw, false, checkBytes(raw)
	}
	b := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c != '%' {
			b = append(b, c)
			continue
		}
		if i+2 >= len(raw) || hexValue(raw[i+1]) < 0 || hexValue(raw[i+2]) < 0 {
			return "", false, ambiguous(`it holds a "%" that escapes nothing`)
		}
		c = byte(hexValue(raw[i+1])<<4 | hexValue(raw[i+2]))
		i += 2
		switch c {
		case '/':
			slashes = true
			b = append(b, "%2F"...)
			continue
		case '%': // what is behind it may be decoded a second time by somebody
			return "", false, ambiguous("it holds an escaped percent sign")
		}
		b = append(b, c)
	}
	return string(b), slashes, checkBytes(string(b))
}

// checkBytes refuses what some reader takes for a separator or an end, and bytes that are no text.
func checkBytes(s string) error {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == ';':
			return ambiguous(`it holds ";"`)
		case c == '\\':
			return ambiguous("it holds a backslash")
		case c < ' ' || c == 0x7f:
			return ambiguous("it holds a control character")
		}
	}
	if !utf8.ValidString(s) {
		return ambiguous("it is not UTF-8")
	}
	for _, c := range s {
		if 0x80 <= c && c < 0xa0 || c == '\u2028' || c == '\u2029' {
			return ambiguous("it holds a control character")
		}
	}
	return nil
}

func hexValue(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
