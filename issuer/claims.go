package issuer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/strictjson"
)

// The bounds of custom claims. A token of 8192 bytes has room for them and for all of its own.
const (
	maxClaims     = 64
	maxClaimSize  = 1024 // of one, as JSON
	maxClaimsSize = 4096 // of all, as JSON
)

// ErrClaims means that the custom claims of a user cannot be made: one is too large, or an attribute is of the wrong kind.
var ErrClaims = errors.New("the custom claims of this user cannot be made")

// claimTemplates are the claims that the operator gives to access tokens (Config.Claims), by name. They are made from the user's
// record as it is when a token is made, and no claim is ever kept. There is no code in them and no loop.
//
//	"${attributes.tenant}"            the attribute as it is: text, number, true or false, list or object; left out where there is none
//	"urn:user:${username}"            text with values in it; left out where one of them is missing
//	"costs $${price}"                 $${ stands for ${
type claimTemplates map[string][]claimPart

// claimPart is literal text, or, where ref is not "", a reference to the user's record.
type claimPart struct{ text, ref string }

// CheckClaims tells what is wrong with Config.Claims. The claim of the user's id cannot be one of them.
func CheckClaims(claims map[string]string, userIDClaim string) error {
	_, err := parseClaims(claims, userIDClaim)
	return err
}

func parseClaims(claims map[string]string, userIDClaim string) (claimTemplates, error) {
	if len(claims) > maxClaims {
		return nil, fmt.Errorf("want %d claims at most, got %d", maxClaims, len(claims))
	}
	all := make(claimTemplates, len(claims))
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		if name == "" || len(name) > 128 || !printable(name) {
			return nil, fmt.Errorf("claim %q: want a name of 1 to 128 bytes without control characters", name)
		}
		if keyring.TakenClaim(name) || strings.EqualFold(name, userIDClaim) {
			return nil, fmt.Errorf("claim %q has a meaning of its own; take another name", name)
		}
		parts, err := parseTemplate(claims[name])
		if err != nil {
			return nil, fmt.Errorf("claim %q: %w", name, err)
		}
		all[name] = parts
	}
	return all, nil
}

// checkClaims refuses a user whose claims could not be made.
func (i *Issuer) checkClaims(rec *userRecord) error {
	if _, err := i.custom.of(rec); err != nil {
		return &InputError{"attributes", "do not fit issuer.claims: " + err.Error()}
	}
	return nil
}

func parseTemplate(text string) (parts []claimPart, err error) {
	if len(text) > maxClaimSize {
		return nil, fmt.Errorf("want %d bytes at most, got %d", maxClaimSize, len(text))
	}
	literal := ""
	for {
		before, rest, found := strings.Cut(text, "${")
		if !found {
			literal += text
			break
		}
		if plain, escaped := strings.CutSuffix(before, "$"); escaped {
			literal, text = literal+plain+"${", rest
			continue
		}
		ref, after, closed := strings.Cut(rest, "}")
		if !closed {
			return nil, errors.New("a ${ has no }; write $${ for the characters themselves")
		}
		if name, ok := strings.CutPrefix(ref, "attributes."); (!ok || name == "") && !slices.Contains([]string{"username", "email", "roles", "scope"}, ref) {
			return nil, fmt.Errorf("${%s} is nothing of a user: want ${username}, ${email}, ${roles}, ${scope} or ${attributes.NAME}", ref)
		}
		if literal += before; literal != "" {
			parts = append(parts, claimPart{text: literal})
		}
		parts, literal, text = append(parts, claimPart{ref: ref}), "", after
	}
	if literal != "" {
		parts = append(parts, claimPart{text: literal})
	}
	return parts, nil
}

// of makes the claims of a user, nil where there are none. The error is ErrClaims.
func (t claimTemplates) of(user *userRecord) (map[string]any, error) {
	if len(t) == 0 {
		return nil, nil
	}
	attributes, err := user.attributes()
	if err != nil {
		return nil, err
	}
	claims, total := make(map[string]any, len(t)), 0
	for _, name := range slices.Sorted(maps.Keys(t)) {
		value, err := render(t[name], user, attributes)
		if err != nil {
			return nil, fmt.Errorf("%w: claim %q: %w", ErrClaims, name, err)
		}
		if value == nil {
			continue
		}
		text := encode(value)
		if len(text) > maxClaimSize {
			return nil, fmt.Errorf("%w: claim %q would have %d bytes, and %d is the most; shorten what it is made of", ErrClaims, name, len(text), maxClaimSize)
		}
		if total += len(name) + len(text); total > maxClaimsSize {
			return nil, fmt.Errorf("%w: together they would have more than %d bytes; shorten what they are made of", ErrClaims, maxClaimsSize)
		}
		claims[name] = value
	}
	// What every verifier reads strictly must be so: an attribute may be nested deeper than they go.
	if err := strictjson.Object(encode(claims), nil, func([]byte, strictjson.Value) error { return nil }); err != nil {
		return nil, fmt.Errorf("%w: no verifier would read them: %w", ErrClaims, err)
	}
	return claims, nil
}

// attributes reads the operator's own attributes; of a member that is there twice, the last counts.
func (rec *userRecord) attributes() (map[string]any, error) {
	if len(rec.Attributes) == 0 {
		return nil, nil
	}
	var all map[string]any
	dec := json.NewDecoder(bytes.NewReader(rec.Attributes))
	dec.UseNumber() // a number stays as it was written
	if err := dec.Decode(&all); err != nil {
		return nil, fmt.Errorf("%w: the attributes are no JSON object", ErrClaims)
	}
	return all, nil
}

// render gives one claim's value, nil where it is to be left out.
func render(parts []claimPart, user *userRecord, attributes map[string]any) (any, error) {
	if len(parts) == 1 && parts[0].ref != "" {
		return parts[0].value(user, attributes), nil
	}
	var b strings.Builder
	for _, p := range parts {
		if p.ref == "" {
			b.WriteString(p.text)
			continue
		}
		switch v := p.value(user, attributes).(type) {
		case nil:
			return nil, nil
		case string:
			b.WriteString(v)
		case json.Number:
			b.WriteString(v.String())
		case bool:
			fmt.Fprint(&b, v)
		default:
			return nil, fmt.Errorf("${%s} is a list or an object, and cannot stand within text", p.ref)
		}
	}
	return b.String(), nil
}

// value is what a reference stands for, nil if the user has none.
func (p claimPart) value(user *userRecord, attributes map[string]any) any {
	text := ""
	switch p.ref {
	case "username":
		text = user.Username
	case "email":
		text = user.Email
	case "scope":
		text = user.Scope
	case "roles":
		if len(user.Roles) > 0 {
			return user.Roles
		}
	default:
		return attributes[strings.TrimPrefix(p.ref, "attributes.")]
	}
	if text == "" {
		return nil
	}
	return text
}
