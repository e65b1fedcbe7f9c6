package issuer

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/sidekey/sidekey/keyring"
)

// keyAnswer is a key in the admin API.
type keyAnswer struct {
	KeyID       string        `json:"kid"`
	Alg         keyring.Alg   `json:"alg"`
	Bits        int           `json:"bits"`
	Audience    string        `json:"aud,omitempty"`
	State       keyring.State `json:"state"`
	Created     int64         `json:"created"`
	RetiredAt   int64         `json:"retired_at,omitempty"`
	Seq         uint64        `json:"seq"`
	ActivatesAt int64         `json:"activates_at,omitempty"`
	Shared      bool          `json:"shared,omitempty"`
	Agents      []string      `json:"agents,omitempty"`

	Accept  keyring.AcceptKind `json:"accept,omitempty"`
	Expires int64              `json:"expires,omitempty"` // accept: when it is dropped
}

func newKeyAnswer(k *KeyStatus) keyAnswer {
	return keyAnswer{
		k.KeyID, k.Alg, k.Bits, k.Audience, k.State, k.Created.Unix(), numericDate(k.RetiredAt), k.Seq, numericDate(k.ActivatesAt),
		k.Shared, k.Agents, k.Accept, numericDate(k.Expires),
	}
}

func (i *Issuer) adminListKeys(r *http.Request) (int, any, error) {
	all, err := i.ListKeys(r.Context())
	keys := make([]keyAnswer, len(all))
	for at := range all {
		keys[at] = newKeyAnswer(&all[at])
	}
	return http.StatusOK, map[string]any{"keys": keys}, err
}

// keyStatus answers 200 when what was asked for is so, 202 while it waits. The receipt's members
// stand beside the key's.
func keyStatus(k *KeyStatus, err error) (int, any, error) {
	if err != nil {
		return 0, nil, err
	}
	answer := struct {
		keyAnswer
		Confirmed bool     `json:"confirmed"`
		Applied   []string `json:"applied"`
		Fenced    []string `json:"fenced"`
		Pending   []string `json:"pending"`
		Serving   []string `json:"serving"`
		NextMS    int64    `json:"next_ms,omitempty"`
		Revoked   []string `json:"revoked,omitempty"`
		Risk      string   `json:"risk,omitempty"`
	}{newKeyAnswer(k), k.Confirmed, k.Applied, k.Fenced, k.Pending, k.Serving, k.NextMS, k.Revoked, k.Risk}
	if k.Done {
		return http.StatusOK, answer, nil
	}
	return http.StatusAccepted, answer, nil
}

// waiting is what a request about a key waits for. "none" waits for nobody; without "wait" it waits
// a little for what must come first, as Config.RotateWait says.
func (w *wait) waiting(force bool) Waiting {
	how := Waiting{Fleet: w.fleet(), Force: force}
	if w.Wait != "" || w.Timeout != "" {
		limit := w.limit()
		if w.Wait == "" {
			limit, _ = time.ParseDuration(w.Timeout) // check has been called
		}
		how.For = &limit
	}
	return how
}

func (i *Issuer) adminRotate(r *http.Request) (int, any, error) {
	var in struct {
		Alg          keyring.Alg `json:"alg"`
		Bits         int         `json:"bits"`
		PublishAhead *string     `json:"publish_ahead"`
		Force        bool        `json:"force"`
		Emergency    bool        `json:"emergency"`
		wait
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	if err := in.check(); err != nil {
		return 0, nil, err
	}
	rotation := Rotation{Alg: in.Alg, Bits: in.Bits, Emergency: in.Emergency, Waiting: in.waiting(in.Force)}
	if in.PublishAhead != nil {
		d, err := time.ParseDuration(*in.PublishAhead)
		if err != nil {
			return 0, nil, &InputError{"publish_ahead", `must be a duration, such as "10m"`}
		}
		rotation.PublishAhead = &d
	}
	return keyStatus(i.Rotate(r.Context(), rotation))
}

func (i *Issuer) adminImport(r *http.Request) (int, any, error) {
	var in struct {
		PEM      string          `json:"pem"`
		JWK      json.RawMessage `json:"jwk"`
		Secret   string          `json:"secret"`
		Alg      keyring.Alg     `json:"alg"`
		Activate bool            `json:"activate"`
		Shared   bool            `json:"shared"`
		Agents   []string        `json:"agents"`

		Accept      keyring.AcceptKind `json:"accept"`
		AcceptFor   string             `json:"accept_for"`
		UserIDClaim string             `json:"user_id_claim"`
		Issuer      string             `json:"iss"`
		Audience    string             `json:"aud"`
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	var life time.Duration
	if in.AcceptFor != "" {
		var err error
		if life, err = time.ParseDuration(in.AcceptFor); err != nil {
			return 0, nil, &InputError{"accept_for", `must be a duration, such as "720h"`}
		}
	}
	return keyStatus(i.ImportKey(r.Context(), Import{
		PEM: in.PEM, JWK: in.JWK, Secret: in.Secret, Alg: in.Alg, Activate: in.Activate, Shared: in.Shared, Agents: in.Agents,
		Accept:    keyring.Accept{Kind: in.Accept, UserIDClaim: in.UserIDClaim, Issuer: in.Issuer, Audience: in.Audience},
		AcceptFor: life,
	}))
}

func (i *Issuer) adminRevokeKey(r *http.Request) (int, any, error) {
	var in struct {
		Force bool `json:"force"`
		wait
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	if err := in.check(); err != nil {
		return 0, nil, err
	}
	return keyStatus(i.RevokeKey(r.Context(), r.PathValue("kid"), in.waiting(in.Force)))
}
