package issuer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sidekey/sidekey/bus"
)

// CredentialState says whether an API key or opaque token can be used.
type CredentialState string

// The states of a credential.
const (
	CredentialActive    CredentialState = "active"
	CredentialSuspended CredentialState = "suspended" // its user is disabled; it comes back with the user
	CredentialRevoked   CredentialState = "revoked"   // for good
	CredentialExpired   CredentialState = "expired"   // shown, never stored: it follows from Expires
)

// Credential is an API key or an opaque token, as it may be known: neither its text nor the hash of that is in it.
//
//	{"id":"cred_2f9c…","type":"api_key","name":"ci","sub":"0197…","username":"alice","scope":"read","roles":["staff"],
//	 "scope_limit":"read","networks":["10.0.0.0/8"],"created":1767225600,"expires":0,"last_used":1767229200,
//	 "last_agent":"web-1","state":"active"}
type Credential struct {
	ID       string             `json:"id"`
	Type     bus.CredentialType `json:"type"`
	Name     string             `json:"name"` // the operator's, not unique
	Subject  string             `json:"sub"`
	Username string             `json:"username"`
	ClientID string             `json:"client_id,omitempty"`
	// Scope and Roles are what it is good for now: the user's, within the limits.
	Scope      string         `json:"scope"`
	Roles      []string       `json:"roles"`
	ScopeLimit *string        `json:"scope_limit,omitempty"` // nil: all that the user has
	RolesLimit *[]string      `json:"roles_limit,omitempty"` // nil: all that the user has
	Networks   []netip.Prefix `json:"networks"`              // none: from everywhere
	Created    int64          `json:"created"`               // NumericDates, as the rest
	Expires    int64          `json:"expires"`               // 0: never
	LastUsed   int64          `json:"last_used"`             // to about a minute; 0: not so far
	LastAgent  string         `json:"last_agent,omitempty"`  // which agent told so
	Replaces   string         `json:"replaces,omitempty"`    // the one that this was rotated from
	ReplacedBy string         `json:"replaced_by,omitempty"`
	Imported   bool           `json:"imported,omitempty"`

	State  CredentialState `json:"state"`
	Reason string          `json:"reason,omitempty"` // why it is not active
}

// credentialRecord is a credential as the bucket "credentials" holds it, under bus.Name(sub, id):
//
//	{…Credential…, "hash": "base64 of 32 bytes", "known_seq": 411, "changed": 1767225600}
//
// A record is written before its entry, so that the log has no credential that no record knows; what a crash leaves
// different in the two is mended by the sweep, to the stricter of both.
type credentialRecord struct {
	Credential
	Hash    []byte `json:"hash"`
	Known   uint64 `json:"known_seq"` // bus.Credential's
	Changed int64  `json:"changed"`   // NumericDate: who changes it may be at work for a while after
}

// The bounds of a credential.
const (
	maxCredentialName = 128
	maxNetworks       = 64
)

func (c *credentialRecord) bucketName() string { return bus.Name(c.Subject, c.ID) }

// fact is what the log has to say of an active credential.
func (c *credentialRecord) fact() *bus.Credential {
	return &bus.Credential{
		ID: c.ID, Type: c.Type, Hash: c.Hash, Subject: c.Subject, ClientID: c.ClientID, Scope: c.Scope, Roles: c.Roles,
		Networks: c.Networks, IssuedAt: c.Created, ExpiresAt: c.Expires, KnownSeq: c.Known,
	}
}

// gone is what withdraws it.
func (c *credentialRecord) gone() *bus.Credential {
	return &bus.Credential{ID: c.ID, Type: c.Type, Hash: c.Hash, Subject: c.Subject, IssuedAt: c.Created, Gone: true}
}

// grant gives it what of its limits the user has now.
func (c *credentialRecord) grant(user *userRecord) {
	c.Scope, c.Roles = user.Scope, slices.Clone(user.Roles)
	if c.ScopeLimit != nil {
		c.Scope = narrow(*c.ScopeLimit, user.Scope)
	}
	if c.RolesLimit != nil {
		c.Roles = slices.DeleteFunc(slices.Clone(*c.RolesLimit), func(role string) bool { return !slices.Contains(user.Roles, role) })
	}
	if c.Roles == nil {
		c.Roles = []string{}
	}
}

func (c *credentialRecord) expired(now int64) bool { return c.Expires != 0 && c.Expires <= now }

// usable tells whether it counts among those that issuer.max_credentials bounds.
func (c *credentialRecord) usable(now int64) bool {
	return c.State != CredentialRevoked && !c.expired(now)
}

// shown is what may be known of it now.
func (i *Issuer) shown(c *credentialRecord) *Credential {
	public := c.Credential
	if public.State != CredentialRevoked && c.expired(i.now().Unix()) {
		public.State = CredentialExpired
	}
	if held := i.Replica.CredentialByID(c.ID); public.State == CredentialActive && held != nil && i.Replica.CredentialRevoked(held) {
		public.State, public.Reason = CredentialRevoked, "cut off" // and the record soon
	}
	if public.Networks == nil {
		public.Networks = []netip.Prefix{}
	}
	return &public
}

// credentials is the bucket, or says that there is none.
func (i *Issuer) credentials() (Bucket, error) {
	if i.Credentials == nil {
		return nil, fmt.Errorf("%w: this issuer keeps no credentials", ErrNotFound)
	}
	return i.Credentials, nil
}

func readCredential(r bus.Record) (*credentialRecord, error) {
	c := new(credentialRecord)
	if err := json.Unmarshal(r.Value, c); err != nil {
		return nil, fmt.Errorf("reading credential record %q: %w", r.Name, err)
	}
	return c, nil
}

// credential reads the record of an id.
func (i *Issuer) credential(ctx context.Context, id string) (*credentialRecord, uint64, error) {
	recs, revisions, err := i.listCredentials(ctx, bus.Ending(id))
	if err == nil && len(recs) == 0 {
		err = fmt.Errorf("reading credential %q: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, 0, err
	}
	return recs[0], revisions[0], nil
}

// credentialAgain reads a record whose place is known.
func (i *Issuer) credentialAgain(ctx context.Context, name string) (*credentialRecord, uint64, error) {
	r, err := i.Credentials.Get(ctx, name)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, 0, fmt.Errorf("reading a credential: %w", ErrNotFound)
	}
	if err != nil {
		return nil, 0, unavailable("reading", "a credential", err)
	}
	c, err := readCredential(r)
	return c, r.Revision, err
}

// listCredentials reads the records under a filter.
func (i *Issuer) listCredentials(ctx context.Context, filter string) ([]*credentialRecord, []uint64, error) {
	bucket, err := i.credentials()
	if err != nil {
		return nil, nil, err
	}
	recs, err := bucket.List(ctx, filter)
	if err != nil {
		return nil, nil, unavailable("listing", "credentials", err)
	}
	all, revisions := make([]*credentialRecord, 0, len(recs)), make([]uint64, 0, len(recs))
	for _, r := range recs {
		c, err := readCredential(r)
		if err != nil {
			return nil, nil, err
		}
		all, revisions = append(all, c), append(revisions, r.Revision)
	}
	return all, revisions, nil
}

// Credential gives one credential, or ErrNotFound.
func (i *Issuer) Credential(ctx context.Context, id string) (*Credential, error) {
	c, _, err := i.credential(ctx, id)
	if err != nil {
		return nil, err
	}
	return i.shown(c), nil
}

// ListCredentials gives the credentials of a sub, or of a user name, or all where both are empty, newest first.
func (i *Issuer) ListCredentials(ctx context.Context, sub, username string) ([]*Credential, error) {
	if sub == "" && username != "" {
		user, _, err := i.owner(ctx, username, "")
		if err != nil {
			return nil, err
		}
		sub = user.ID
	}
	filter := ""
	if sub != "" {
		filter = bus.Under(sub)
	}
	recs, _, err := i.listCredentials(ctx, filter)
	if err != nil {
		return nil, err
	}
	all := make([]*Credential, 0, len(recs))
	for _, c := range recs {
		all = append(all, i.shown(c))
	}
	slices.SortFunc(all, func(a, b *Credential) int {
		return cmp.Or(cmp.Compare(b.Created, a.Created), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}
