package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Member is an agent or an issuer that has joined, in the bucket "agents" or "issuers" under Name(name):
//
//	{"name": "web-1", "nkey": "U…", "signing_key": "base64", "sealing_key": "base64", "join": "…",
//	 "joined": 1767225600, "removed_at": 0, "former": ["U…"]}
type Member struct {
	Name       string   `json:"name"`
	Nkey       string   `json:"nkey"`        // public: of its bus credential
	SigningKey []byte   `json:"signing_key"` // public, Ed25519: lease requests and acknowledgements are signed with it
	SealingKey []byte   `json:"sealing_key"` // public, MLKEM768X25519: HS256 secrets are sealed to it
	Join       string   `json:"join"`        // id of the token that it joined with
	Joined     int64    `json:"joined"`      // NumericDate
	RemovedAt  int64    `json:"removed_at,omitempty"`
	Audiences  []string `json:"audiences,omitempty"`        // that an agent may serve, whatever it says; none: the ring's default alone
	Longest    int64    `json:"longest_lease_ms,omitempty"` // of an agent: the longest lease that it ever asked for
	Serves     bool     `json:"serves,omitempty"`           // of an agent: it has asked for a lease behind which it goes on (on_stale = "serve")
	Former     []string `json:"former,omitempty"`           // nkeys that had the name before, revoked for ever
	Route      string   `json:"route,omitempty"`            // of an issuer in a cluster: host:port of its server's routes
	URLs       []string `json:"urls,omitempty"`             // and those under which agents reach its server
}

// Removed tells whether the member was struck off.
func (m *Member) Removed() bool { return m.RemovedAt != 0 }

// peer is the member's server in a cluster.
func (m *Member) peer() Peer {
	return Peer{Name: m.Name, Nkey: m.Nkey, Key: m.SigningKey, Route: m.Route, URLs: m.URLs}
}

// readMember gives a member and its revision, or ErrNotFound.
func readMember(ctx context.Context, bucket *Bucket, name string) (Member, uint64, error) {
	rec, err := bucket.Get(ctx, Name(name))
	if err != nil {
		return Member{}, 0, err
	}
	var m Member
	if err := json.Unmarshal(rec.Value, &m); err != nil {
		return Member{}, 0, fmt.Errorf("reading the record of %q: %w", name, err)
	}
	return m, rec.Revision, nil
}

// writeMember replaces the record at a revision; 0: there is none.
func writeMember(ctx context.Context, bucket *Bucket, m Member, revision uint64) error {
	value, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if revision == 0 {
		_, err = bucket.Create(ctx, Name(m.Name), value)
	} else {
		_, err = bucket.Update(ctx, Name(m.Name), value, revision)
	}
	return err
}

// listMembers gives all, ordered by name.
func listMembers(ctx context.Context, bucket *Bucket) ([]Member, error) {
	recs, err := bucket.List(ctx, "")
	if err != nil {
		return nil, err
	}
	all := make([]Member, 0, len(recs))
	for _, rec := range recs {
		var m Member
		if err := json.Unmarshal(rec.Value, &m); err != nil {
			return nil, fmt.Errorf("reading the record of a member: %w", err)
		}
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}
