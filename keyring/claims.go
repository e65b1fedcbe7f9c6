package keyring

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sidekey/sidekey/keyring/strictjson"
)

// NumericDate is a time in seconds since 1970-01-01T00:00Z, with or without a fraction (RFC 7519 §2).
// The zero value means that the claim is absent; a token that says 0 for exp or iat is judged as of 1970.
type NumericDate float64

// MaxNumericDate is the end of the year 9999. Later times, and times before 1970, are malformed.
const MaxNumericDate NumericDate = 253402300799

// At returns the NumericDate of t, whole seconds, rounded down.
func At(t time.Time) NumericDate { return NumericDate(t.Unix()) }

// Time returns the time, in UTC. For the zero value that is 1970-01-01T00:00Z.
func (n NumericDate) Time() time.Time { return n.local().UTC() }

func (n NumericDate) local() time.Time {
	sec := int64(n)
	return time.Unix(sec, int64((float64(n)-float64(sec))*1e9))
}

// MarshalJSON writes a number without exponent.
func (n NumericDate) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(n)) || n < 0 || n > MaxNumericDate {
		return nil, fmt.Errorf("writing a NumericDate: %v is not between 1970 and 9999", float64(n))
	}
	return strconv.AppendFloat(nil, float64(n), 'f', -1, 64), nil
}

// Claims is what a token says (API.md §2), to make one and to read one. The zero value of a member means that the claim is
// absent, but where a Has member tells.
//
// As JSON, members stand in the order below; aud is a string when there is one; absent ones are left out.
type Claims struct {
	Issuer    string   // iss
	Subject   string   // sub, never empty in a token that is proven
	Audience  []string // aud
	ExpiresAt NumericDate
	NotBefore NumericDate
	IssuedAt  NumericDate
	ID        string // jti

	SessionID     string // sid
	SessionSeq    uint64 // session_seq
	HasSessionSeq bool   // session_seq is there (it may be 0)
	ClientID      string
	Scope         string

	// Of exchanged tokens (RFC 8693), which two clients answer for: ClientID is who exchanged, and its cutoffs
	// compare ClientSeq; SubjectClientID is the client of the token that was exchanged, whose compare SessionSeq.
	ClientSeq       uint64 // client_seq
	SubjectClientID string // subject_client_id; "": the token was not exchanged

	AuthTime  NumericDate
	TokenType string // token_type: "access", "refresh", "sliding"

	UserIDClaim string   // the name of the user id's claim; making only, "" means user_id
	UserID      string   // read from user_id, where that is a string
	Roles       []string // nil in a token whose roles are not an array of strings: see Raw
	Gen         uint64   // gen
	CSRF        string   // csrf, of a browser's session: base64url of the SHA-256 of its CSRF token

	Extra map[string]any // more claims, making only; a name that is taken is an error
	Raw   []byte         // reading only: the payload as signed, one strict JSON object; not to be changed
}

// claimNames are the claims that mean something here. No other claim may be named like one but for case.
var claimNames = []string{
	"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "sid", "session_seq", "client_id", "scope", "auth_time",
	"token_type", "user_id", "roles", "gen", "csrf", "client_seq", "subject_client_id",
}

// moreTaken are claims that mean something to others who read our tokens, or are written by name in places.
var moreTaken = []string{"refresh_exp", "act", "may_act", "cnf", "azp", "active", "nonce"}

// TakenClaim reports whether a claim of that name, whatever its case, has a meaning of its own, so that no custom claim may be
// named so.
func TakenClaim(name string) bool {
	same := func(known string) bool { return strings.EqualFold(known, name) }
	return slices.ContainsFunc(claimNames, same) || slices.ContainsFunc(moreTaken, same)
}

// MarshalJSON writes the claims for signing.
func (c Claims) MarshalJSON() ([]byte, error) {
	w := objectWriter{}
	w.text("iss", c.Issuer)
	w.text("sub", c.Subject)
	switch len(c.Audience) {
	case 0:
	case 1:
		w.text("aud", c.Audience[0])
	default:
		w.add("aud", c.Audience)
	}
	w.date("exp", c.ExpiresAt)
	w.date("nbf", c.NotBefore)
	w.date("iat", c.IssuedAt)
	w.text("jti", c.ID)
	w.text("sid", c.SessionID)
	if c.HasSessionSeq {
		w.add("session_seq", c.SessionSeq)
	}
	w.text("client_id", c.ClientID)
	w.text("scope", c.Scope)
	w.date("auth_time", c.AuthTime)
	w.text("token_type", c.TokenType)
	if c.UserIDClaim == "" || c.UserIDClaim == "user_id" {
		w.text("user_id", c.UserID)
	} else if c.UserID != "" {
		w.extra(c.UserIDClaim, c.UserID)
	}
	if len(c.Roles) > 0 {
		w.add("roles", c.Roles)
	}
	if c.Gen != 0 {
		w.add("gen", c.Gen)
	}
	w.text("csrf", c.CSRF)
	if c.ClientSeq != 0 {
		w.add("client_seq", c.ClientSeq)
	}
	w.text("subject_client_id", c.SubjectClientID)
	for _, name := range slices.Sorted(maps.Keys(c.Extra)) {
		if name == c.UserIDClaim {
			return nil, fmt.Errorf("writing claims: %q is the user id's claim and cannot be a custom one", name)
		}
		w.extra(name, c.Extra[name])
	}
	return w.end()
}

// objectWriter writes a JSON object, member by member; its first error is kept to the end.
type objectWriter struct {
	buf []byte
	err error
}

func (w *objectWriter) add(name string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		w.err = errors.Join(w.err, fmt.Errorf("writing claim %q: %w", name, err))
		return
	}
	w.buf = append(w.buf, ',')
	w.buf = append(w.buf, quote(name)...)
	w.buf = append(w.buf, ':')
	w.buf = append(w.buf, b...)
}

func (w *objectWriter) text(name, v string) {
	if v != "" {
		w.add(name, v)
	}
}

func (w *objectWriter) date(name string, v NumericDate) {
	if v != 0 {
		w.add(name, v)
	}
}

// extra writes a claim whose name comes from configuration.
func (w *objectWriter) extra(name string, v any) {
	if slices.ContainsFunc(claimNames, func(known string) bool { return strings.EqualFold(known, name) }) {
		w.err = errors.Join(w.err, fmt.Errorf("writing claims: a custom claim cannot be named %q, which is taken; choose another name", name))
		return
	}
	w.add(name, v)
}

func (w *objectWriter) end() ([]byte, error) {
	if w.err != nil {
		return nil, w.err
	}
	if len(w.buf) == 0 {
		return []byte("{}"), nil
	}
	w.buf[0] = '{'
	return append(w.buf, '}'), nil
}

// claimError names a claim that is missing or of the wrong type.
type claimError string

func (e claimError) Error() string {
	return "claim " + string(e) + " is missing or not as it must be"
}

// claimsReader fills Claims from a payload.
type claimsReader struct {
	*Claims
	hasIss, hasExp, hasIat bool
	ring                   *Ring // whose strings are used again where they are equal
}

// readClaims reads a payload into c, which is empty, and keeps the payload as Raw. iss, sub, exp, iat and jti must be there;
// aud may be absent (which no expectation accepts). Numbers are bounded, so that no arithmetic on them can overflow.
// After an error c is of no use.
func readClaims(c *Claims, raw []byte, ring *Ring) error {
	r := claimsReader{Claims: c, ring: ring}
	if err := strictjson.Object(raw, claimNames, r.claim); err != nil {
		return err
	}
	switch {
	case !r.hasIss:
		return claimError("iss")
	case c.Subject == "":
		return claimError("sub")
	case !r.hasExp:
		return claimError("exp")
	case !r.hasIat:
		return claimError("iat")
	case c.ID == "":
		return claimError("jti")
	}
	c.Raw = raw
	return nil
}

// claim takes one member of the payload.
func (r *claimsReader) claim(name []byte, v strictjson.Value) error {
	ok := true
	switch string(name) {
	case "iss":
		r.Issuer, ok = r.text(v, r.ring.issuer)
		r.hasIss = true
	case "sub":
		r.Subject, ok = v.Text()
	case "aud":
		r.Audience, ok = r.audience(v)
	case "exp":
		r.ExpiresAt, ok = date(v)
		r.hasExp = true
	case "nbf":
		r.NotBefore, ok = date(v)
	case "iat":
		r.IssuedAt, ok = date(v)
		r.hasIat = true
	case "jti":
		r.ID, ok = v.Text()
	case "sid":
		r.SessionID, ok = v.Text()
	case "session_seq":
		r.SessionSeq, ok = v.Uint()
		r.HasSessionSeq = true
	case "client_id":
		r.ClientID, ok = v.Text()
	case "scope":
		r.Scope, ok = v.Text()
	case "auth_time":
		r.AuthTime, ok = date(v)
	case "token_type":
		r.TokenType, ok = r.text(v, "access")
	case "user_id": // a foreign token may hold a number: that is no id of ours
		r.UserID, _ = v.Text()
	case "roles": // RFC 9068 §2.2.3.1 allows objects: they stay in Raw
		r.Roles, _ = v.Texts()
	case "gen":
		r.Gen, ok = v.Uint()
	case "csrf":
		r.CSRF, ok = v.Text()
	case "client_seq":
		r.ClientSeq, ok = v.Uint()
	case "subject_client_id":
		r.SubjectClientID, ok = v.Text()
	}
	if !ok {
		return claimError(name)
	}
	return nil
}

// text returns a string, usual itself if it is that.
func (r *claimsReader) text(v strictjson.Value, usual string) (string, bool) {
	if b, ok := v.Bytes(nil); ok && string(b) == usual {
		return usual, true
	}
	return v.Text()
}

// audience reads aud: a string or an array of strings (RFC 7519 §4.1.3).
func (r *claimsReader) audience(v strictjson.Value) ([]string, bool) {
	if v.Kind() == strictjson.KindString {
		one, ok := r.text(v, r.ring.audience)
		return []string{one}, ok
	}
	return v.Texts()
}

// date reads a NumericDate between 1970 and 9999.
func date(v strictjson.Value) (NumericDate, bool) {
	f, ok := v.Float()
	return NumericDate(f), ok && f >= 0 && f <= float64(MaxNumericDate)
}
