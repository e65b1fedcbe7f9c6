package keyring

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// validator is golang-jwt's validator for one expectation, with the claims and the time to judge, which can be set: making
// one takes ten allocations, and the expectation of a process hardly changes. It is the jwt.Claims that it hands over.
type validator struct {
	issuer    string
	audiences []string
	leeway    time.Duration
	jwt       *jwt.Validator

	now           time.Time
	claims        *Claims
	foreign       bool // the token is not ours
	exp, nbf, iat jwt.NumericDate
}

var validators = sync.Pool{New: func() any { return new(validator) }}

// validate lets golang-jwt's validator judge.
func (r *Ring) validate(t *Token, want Expect) error {
	v := validators.Get().(*validator)
	defer func() {
		v.claims = nil
		validators.Put(v)
	}()
	audiences := want.Audiences
	if len(audiences) == 0 {
		audiences = r.audiences[:]
	}
	if v.jwt == nil || v.issuer != r.issuer || v.leeway != want.Leeway || !slices.Equal(v.audiences, audiences) {
		v.build(r.issuer, audiences, want.Leeway)
	}
	v.now, v.claims, v.foreign = want.Now, &t.Claims, t.Accept != ""
	// With their fractions, which jwt.NewNumericDate would cut off.
	v.exp.Time, v.nbf.Time, v.iat.Time = t.Claims.ExpiresAt.local(), t.Claims.NotBefore.local(), t.Claims.IssuedAt.local()
	return v.jwt.Validate(v)
}

// build makes the validator, with every check that golang-jwt leaves out unless told:
// exp must be there, iat must not lie ahead, iss and aud must be ours.
func (v *validator) build(issuer string, audiences []string, leeway time.Duration) {
	v.issuer, v.audiences, v.leeway = issuer, slices.Clone(audiences), leeway
	v.jwt = jwt.NewValidator(
		jwt.WithTimeFunc(func() time.Time { return v.now }),
		jwt.WithLeeway(leeway),
		jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(),
		jwt.WithIssuer(issuer),
		jwt.WithAudience(v.audiences...),
	)
}

func (v *validator) GetExpirationTime() (*jwt.NumericDate, error) { return &v.exp, nil }
func (v *validator) GetIssuedAt() (*jwt.NumericDate, error)       { return &v.iat, nil }

// GetNotBefore: nbf is optional, and none is as one of 1970.
func (v *validator) GetNotBefore() (*jwt.NumericDate, error) { return &v.nbf, nil }

// GetIssuer and GetAudience: those of a foreign token the ring has judged by the rules of its key, before this is asked.
func (v *validator) GetIssuer() (string, error) {
	if v.foreign {
		return v.issuer, nil
	}
	return v.claims.Issuer, nil
}
func (v *validator) GetSubject() (string, error) { return v.claims.Subject, nil }

// GetAudience: see GetIssuer.
func (v *validator) GetAudience() (jwt.ClaimStrings, error) {
	if v.foreign {
		return v.audiences, nil
	}
	return v.claims.Audience, nil
}

// reasonFor maps what golang-jwt's validator found, joined, to one reason. The order is Recheck's.
func reasonFor(err error) Reason {
	switch {
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return WrongIssuer
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return WrongAudience
	case errors.Is(err, jwt.ErrTokenExpired):
		return Expired
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return NotYetValid
	}
	return Malformed // a claim that is required is missing: the reader has let none pass
}
