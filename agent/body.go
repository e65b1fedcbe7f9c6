package agent

import (
	"errors"
	"fmt"
	"slices"
	"time"
	"unsafe"

	"github.com/sidekey/sidekey/keyring/strictjson"
)

// The members of the JSON bodies that are read strictly: any other is refused by name, for a
// caller who misspells "scope" must not be told that the token has it.
var (
	verifyMembers = []string{"token", "audience", "scope", "at_least_seq", "max_staleness"}
	batchMembers  = []string{"tokens", "audience", "scope", "at_least_seq", "max_staleness"}
)

// request is the body of /v1/verify or /v1/verify/batch, read. It points into the body.
type request struct {
	Query
	token  []byte
	tokens strictjson.Value // an array of strings, at most maxBatch
}

// read reads a body, allocating nothing unless it has escapes. The error is for the client.
func (r *request) read(body []byte, members []string) error {
	err := strictjson.Object(body, members, func(name []byte, v strictjson.Value) error {
		for _, m := range members {
			if string(name) == m {
				return r.member(m, v)
			}
		}
		return fmt.Errorf("the body has an unknown member %q", clip(name))
	})
	var bad *strictjson.Error
	switch {
	case errors.As(err, &bad):
		return fmt.Errorf("the body must be one JSON object: %w", err)
	case err != nil:
		return err
	case members[0] == "tokens" && r.tokens.Kind() == 0:
		return errors.New(`the body lacks "tokens"`)
	}
	return nil
}

// member takes in one member whose name is known.
func (r *request) member(name string, v strictjson.Value) error {
	ok := true
	switch name {
	case "token":
		r.token, ok = v.Bytes(nil)
	case "audience":
		r.Audience, ok = text(v)
	case "scope":
		if r.Scope, ok = text(v); ok && !validScope(r.Scope) {
			return errors.New(`"scope" must be scope tokens separated by spaces (RFC 6749 §3.3)`)
		}
	case "at_least_seq":
		if r.AtLeastSeq, ok = v.Uint(); !ok {
			return errors.New(`"at_least_seq" must be a whole number`)
		}
	case "max_staleness":
		d, isText := text(v)
		var err error
		if r.MaxStaleness, err = time.ParseDuration(d); !isText || err != nil || r.MaxStaleness <= 0 {
			return errors.New(`"max_staleness" must be a duration over zero, such as "2s"`)
		}
	case "tokens":
		r.tokens = v
		return checkTokens(v)
	}
	if !ok {
		return fmt.Errorf("%q must be a string", name)
	}
	return nil
}

// checkTokens holds a batch's tokens against their bounds.
func checkTokens(v strictjson.Value) error {
	if v.Kind() != strictjson.KindArray {
		return errors.New(`"tokens" must be an array of strings`)
	}
	n := 0
	return v.Each(func(e strictjson.Value) error {
		if n++; n > maxBatch {
			return fmt.Errorf(`"tokens" may hold at most %d`, maxBatch)
		}
		if e.Kind() != strictjson.KindString {
			return errors.New(`"tokens" must be an array of strings`)
		}
		return nil
	})
}

func text(v strictjson.Value) (string, bool) {
	b, ok := v.Bytes(nil)
	return borrow(b), ok
}

// validScope tells whether s can stand in a challenge: printable, no quote, no backslash.
func validScope(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// clip bounds a name from outside for an answer.
func clip(name []byte) []byte {
	const longest = 64
	if len(name) <= longest {
		return name
	}
	return append(slices.Clip(name[:longest]), "…"...)
}

// borrow lends b as a string, without a copy. The string dies with the request whose buffer b is:
// whoever keeps it must clone it first.
func borrow(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// unsafeBytes lends s as bytes, without a copy, to whoever only reads them and keeps none.
func unsafeBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
