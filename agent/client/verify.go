package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"
)

// Query is what is demanded of a token beyond its being good. The zero Query demands nothing.
type Query struct {
	Audience string // the one audience to accept; "": the agent's own
	Scope    string // scopes, by blanks, that the token must have all
	// AtLeastSeq is a sequence that a revocation answered: an agent that has not applied it refuses with 503, so that a caller
	// reads its own writes.
	AtLeastSeq uint64
	// MaxStaleness bounds how old the agent's knowledge may be; 0: as the agent's config has it.
	MaxStaleness time.Duration
}

// Token is what the agent says of a good token. Claims has all that was signed.
type Token struct {
	Issuer    string         `json:"iss"`
	Subject   string         `json:"sub"`
	ExpiresAt float64        `json:"exp"` // NumericDate
	IssuedAt  float64        `json:"iat"`
	ID        string         `json:"jti"`
	SessionID string         `json:"sid"`
	ClientID  string         `json:"client_id"`
	Scope     string         `json:"scope"`
	KeyID     string         `json:"kid"`
	Alg       string         `json:"alg"`
	Seq       uint64         `json:"seq"` // what the agent had applied
	Claims    map[string]any `json:"claims"`
}

// Refusal is why a token is not accepted.
type Refusal struct {
	Status     int    // 401; 403: it lacks a scope; 503: the agent does not know now, which errors.Is takes for ErrUnavailable
	Reason     string // such as "expired", "revoked", "insufficient_scope", "stale"
	Challenges []string
	RetryAfter time.Duration // of 503
}

func (r *Refusal) Error() string { return "the token is refused: " + r.Reason }

// Is makes a 503 an ErrUnavailable.
func (r *Refusal) Is(target error) bool {
	return target == ErrUnavailable && r.Status == http.StatusServiceUnavailable
}

// maxToken is beyond what the agent reads as a token (8,192 bytes).
const maxToken = 16 << 10

var errMalformed = &Refusal{Status: http.StatusUnauthorized, Reason: "malformed"}

// Verify asks whether an access token is good: POST /v1/verify. The error is a *Refusal, or wraps ErrUnavailable.
func (c *Client) Verify(ctx context.Context, token string, q Query) (*Token, error) {
	if len(token) > maxToken || !utf8.ValidString(token) {
		return nil, errMalformed
	}
	question := map[string]any{"token": token}
	for name, value := range map[string]string{"audience": q.Audience, "scope": q.Scope} {
		if value != "" {
			question[name] = value
		}
	}
	if q.AtLeastSeq != 0 {
		question["at_least_seq"] = q.AtLeastSeq
	}
	if q.MaxStaleness != 0 {
		question["max_staleness"] = q.MaxStaleness.String()
	}
	a, err := c.ask(ctx, "/v1/verify", question)
	if err != nil {
		return nil, err
	}
	switch a.status {
	case http.StatusOK:
		var got struct {
			Active bool `json:"active"`
			Token
		}
		if err := a.read("application/json", &got); err != nil {
			return nil, err
		}
		if !got.Active || got.Subject == "" {
			return nil, fmt.Errorf("%w: it answers 200 and names nobody", ErrUnavailable)
		}
		return &got.Token, nil
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusServiceUnavailable:
		return nil, a.refusal()
	}
	return nil, fmt.Errorf("%w: it answers %d to a question that it should understand", ErrUnavailable, a.status)
}

// refusal reads why.
func (a *answer) refusal() error {
	var got struct {
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(a.body, &got); err != nil || got.Reason == "" {
		return errors.Join(ErrUnavailable, fmt.Errorf("it answers %d without a reason", a.status))
	}
	r := &Refusal{Status: a.status, Reason: got.Reason, Challenges: a.header.Values("WWW-Authenticate")}
	if a.status == http.StatusServiceUnavailable {
		r.RetryAfter = a.retryAfter()
	}
	return r
}
