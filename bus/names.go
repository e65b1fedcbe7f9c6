package bus

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// Any, as a whole part of a filter, stands for any one part of a bucket name. No name has such a part.
const Any = "*"

// Name makes one bucket name from parts that come from outside (user names, a sub, a sid). Each
// part is encoded by itself, so that no part can hold the dot, the wildcards or the blanks that
// NATS gives a meaning to, and no two lists of parts give one name.
func Name(parts ...string) string {
	enc := make([]string, len(parts))
	for i, p := range parts {
		enc[i] = encodePart(p)
	}
	return strings.Join(enc, ".")
}

// Under is the filter for the names that have one part more than these. The parts are encoded as
// Name does it: one that comes from outside is never a wildcard, whatever it says.
func Under(parts ...string) string { return Name(parts...) + "." + Any }

// Ending is the filter for the names that have one part before these.
func Ending(parts ...string) string { return Any + "." + Name(parts...) }

// encodePart gives "_" and the base64url of the part; an empty part is "_" alone.
func encodePart(p string) string {
	return "_" + base64.RawURLEncoding.EncodeToString([]byte(p))
}

// Matches tells whether a bucket name falls under a filter: "*" stands for one part, ">" at the
// end for one or more, "" for everything.
func Matches(filter, name string) bool {
	if filter == "" {
		return true
	}
	want, have := strings.Split(filter, "."), strings.Split(name, ".")
	for i, w := range want {
		switch {
		case w == ">":
			return len(have) > i
		case i >= len(have), w != Any && w != have[i]:
			return false
		}
	}
	return len(want) == len(have)
}

// decodePart is the reverse of encodePart.
func decodePart(enc string) (string, error) {
	text, ok := strings.CutPrefix(enc, "_")
	part, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if !ok || err != nil {
		return "", fmt.Errorf("%q is no encoded name", enc)
	}
	return string(part), nil
}

// Parts gives the parts that Name made a name of.
func Parts(name string) ([]string, error) {
	parts := strings.Split(name, ".")
	for i, enc := range parts {
		part, err := decodePart(enc)
		if err != nil {
			return nil, err
		}
		parts[i] = part
	}
	return parts, nil
}
