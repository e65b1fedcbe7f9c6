package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

type segmentKind uint8

const (
	segmentLiteral segmentKind = iota
	segmentOne                 // "*", "{name}"
	segmentRest                // "**"
)

// segment is one part of a path pattern.
type segment struct {
	kind segmentKind
	text string // of a literal; the name of a named one
}

// maxRest is how many "**" a pattern may have.
const maxRest = 2

// parsePattern reads a path pattern: "/", "/api/articles", "/users/{id}/posts", "/static/*", "/api/**". A literal is
// compared as Canonical leaves a path, so that it may hold no escape.
func parsePattern(text string) ([]segment, error) {
	if text == "" || text[0] != '/' {
		return nil, errors.New("a path begins with a slash")
	}
	if text == "/" {
		return nil, nil
	}
	if err := checkBytes(text); err != nil {
		return nil, err
	}
	var all []segment
	names := map[string]bool{}
	rests := 0
	for part := range strings.SplitSeq(strings.TrimSuffix(text[1:], "/"), "/") {
		s, err := parseSegment(part)
		if err != nil {
			return nil, err
		}
		if s.kind == segmentOne && s.text != "" {
			if names[s.text] {
				return nil, fmt.Errorf("{%s} stands in it twice", s.text)
			}
			names[s.text] = true
		}
		if s.kind == segmentRest {
			if rests++; rests > maxRest {
				return nil, fmt.Errorf(`it has more than %d "**"`, maxRest)
			}
			if n := len(all); n > 0 && all[n-1].kind == segmentRest {
				return nil, errors.New(`"**" follows "**"`)
			}
		}
		all = append(all, s)
	}
	if len(all) > maxSegments {
		return nil, fmt.Errorf("it has more than %d segments", maxSegments)
	}
	return all, nil
}

func parseSegment(part string) (segment, error) {
	switch {
	case part == "":
		return segment{}, errors.New(`it holds "//"`)
	case part == "." || part == "..":
		return segment{}, fmt.Errorf("it holds a segment %q, which no request's path has", part)
	case part == "*":
		return segment{kind: segmentOne}, nil
	case part == "**":
		return segment{kind: segmentRest}, nil
	}
	if name, ok := strings.CutPrefix(part, "{"); ok && strings.HasSuffix(name, "}") {
		name = strings.TrimSuffix(name, "}")
		if !validName(name) {
			return segment{}, fmt.Errorf("%q names a segment; a name is letters, digits and _, and begins with a letter", part)
		}
		return segment{kind: segmentOne, text: name}, nil
	}
	if strings.ContainsAny(part, "*{}?#") || strings.Contains(strings.ReplaceAll(part, "%2F", ""), "%") {
		return segment{}, fmt.Errorf(`segment %q: "*", "**" and "{name}" stand for whole segments; escapes are written out, but for %%2F`, part)
	}
	return segment{text: part}, nil
}

func validName(name string) bool {
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != "" && len(name) <= 64
}

// params gives the named segments of a path that matches the pattern, nil where there are none. Behind a "**" the path
// is read from its end, so a name behind two of them is none.
func params(pattern []segment, path []string) map[string]string {
	var got map[string]string
	note := func(s segment, value string) {
		if s.kind == segmentOne && s.text != "" {
			if got == nil {
				got = make(map[string]string)
			}
			got[s.text] = value
		}
	}
	first := slices.IndexFunc(pattern, func(s segment) bool { return s.kind == segmentRest })
	if first < 0 {
		first = len(pattern)
	}
	for i, s := range pattern[:first] {
		note(s, path[i])
	}
	for i := len(pattern) - 1; i > first && pattern[i].kind != segmentRest; i-- {
		note(pattern[i], path[len(path)-(len(pattern)-i)])
	}
	return got
}

// matches is the pattern's own judge, which the index must agree with.
func matches(pattern []segment, path []string) bool {
	if len(pattern) == 0 {
		return len(path) == 0
	}
	switch s := pattern[0]; s.kind {
	case segmentRest:
		for skip := 0; skip <= len(path); skip++ {
			if matches(pattern[1:], path[skip:]) {
				return true
			}
		}
		return false
	case segmentOne:
		return len(path) > 0 && matches(pattern[1:], path[1:])
	default:
		return len(path) > 0 && path[0] == s.text && matches(pattern[1:], path[1:])
	}
}
