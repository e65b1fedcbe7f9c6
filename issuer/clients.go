package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// How a client authenticates, and what it may ask the token endpoint for, by the names that RFC 7591 §2 and RFC 8693
// register.
const (
	authBasic = "client_secret_basic"
	authPost  = "client_secret_post"
	authJWT   = "private_key_jwt"
	authNone  = "none"

	grantClient   = "client_credentials"
	grantRefresh  = "refresh_token"
	grantPassword = "password"
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
)

// oauthGrants are all that the token endpoint may have.
var oauthGrants = []string{grantClient, grantRefresh, grantPassword, grantExchange}

// Client is what may be known of an OAuth client; a secret is not in it.
//
//	{"client_id":"billing","client_name":"Billing","auth_methods":["client_secret_basic"],"grant_types":["client_credentials"],
//	 "scope":"read","audiences":["https://auth.example"],"access_lifetime":"5m","roles":[],"disabled":false,
//	 "created":1767225600,"secrets":[{"created":1767225600,"expires":0}]}
type Client struct {
	ID             string          `json:"client_id"` // also the sub of the tokens that it gets for itself
	Name           string          `json:"client_name"`
	AuthMethods    []string        `json:"auth_methods"`
	JWKS           json.RawMessage `json:"jwks,omitempty"` // RFC 7517 §5: public keys, for private_key_jwt
	Grants         []string        `json:"grant_types"`
	Scope          string          `json:"scope"`           // the most that its tokens have
	Audiences      []string        `json:"audiences"`       // what its tokens may be for, and whose it may introspect; the first is the default
	AccessLifetime string          `json:"access_lifetime"` // Go's duration, "": the issuer's own, which is also the most
	Roles          []string        `json:"roles"`           // of the tokens that it gets for itself
	Disabled       bool            `json:"disabled"`
	Created        int64           `json:"created"` // NumericDate
	Secrets        []ClientSecret  `json:"secrets"` // the newest first, two at most
}

// ClientSecret is what may be known of a secret.
type ClientSecret struct {
	Created int64 `json:"created"` // NumericDate
	Expires int64 `json:"expires"` // NumericDate, 0: never
}

// clientRecord is a client as the bucket "clients" holds it, under bus.Name("client", client_id):
//
//	{…Client…, "secrets": [{"sha256": "…", "created": 1767225600, "expires": 0}], "seq": 411}
//
// Secrets are 256 random bits, so a plain hash of one cannot be turned around. Seq is as userRecord's.
type clientRecord struct {
	Client
	Secrets []storedSecret `json:"secrets"`
	Seq     uint64         `json:"seq"`
}

type storedSecret struct {
	Hash []byte `json:"sha256"`
	ClientSecret
}

// NewClient is what AddClient needs; only ID may not be left out.
type NewClient struct {
	ID             string          `json:"client_id"`
	Name           string          `json:"client_name"`
	AuthMethods    []string        `json:"auth_methods"` // none: private_key_jwt with JWKS, else both ways of giving a secret
	JWKS           json.RawMessage `json:"jwks"`
	Grants         []string        `json:"grant_types"` // none: client_credentials, for a public client refresh_token
	Scope          string          `json:"scope"`
	Audiences      []string        `json:"audiences"` // none: the issuer's
	AccessLifetime string          `json:"access_lifetime"`
	Roles          []string        `json:"roles"`
	Disabled       bool            `json:"disabled"`
}

// ClientChange is what ChangeClient changes: members that are nil stay. AuthMethods is not among them: a client that
// authenticates in another way is another client.
type ClientChange struct {
	Name           *string          `json:"client_name"`
	JWKS           *json.RawMessage `json:"jwks"`
	Grants         *[]string        `json:"grant_types"`
	Scope          *string          `json:"scope"`
	Audiences      *[]string        `json:"audiences"`
	AccessLifetime *string          `json:"access_lifetime"`
	Roles          *[]string        `json:"roles"`
	Disabled       *bool            `json:"disabled"`
}

func (rec *clientRecord) public() *Client {
	c := rec.Client
	c.Secrets = make([]ClientSecret, 0, len(rec.Secrets))
	for _, s := range rec.Secrets {
		c.Secrets = append(c.Secrets, s.ClientSecret)
	}
	return &c
}

// confidential tells whether the client has to prove who it is.
func (rec *clientRecord) confidential() bool { return !slices.Contains(rec.AuthMethods, authNone) }

func (rec *clientRecord) hasSecrets() bool {
	return slices.Contains(rec.AuthMethods, authBasic) || slices.Contains(rec.AuthMethods, authPost)
}

// lifetime is how long its access tokens live: never longer than the issuer's own, which keys and revocations
// are kept for.
func (rec *clientRecord) lifetime(issuers time.Duration) time.Duration {
	if d, err := time.ParseDuration(rec.AccessLifetime); err == nil && d > 0 {
		return min(d, issuers)
	}
	return issuers
}

// AddClient registers a client, and gives its secret where it has one: it can never be had again. The errors are
// *InputError, ErrExists and ErrUnavailable.
func (i *Issuer) AddClient(ctx context.Context, n NewClient) (*Client, string, error) {
	now := i.now().Unix()
	rec := &clientRecord{Seq: i.Replica.Snapshot().Position.Seq, Client: Client{
		ID: n.ID, Name: n.Name, AuthMethods: n.AuthMethods, JWKS: n.JWKS, Grants: n.Grants, Scope: n.Scope, Audiences: n.Audiences,
		AccessLifetime: n.AccessLifetime, Roles: n.Roles, Disabled: n.Disabled, Created: now,
	}}
	rec.setDefaults(i.cfg.Audience)
	if err := i.checkClient(rec); err != nil {
		return nil, "", err
	}
	secret := ""
	if rec.hasSecrets() {
		var stored storedSecret
		secret, stored = newClientSecret(now)
		rec.Secrets = []storedSecret{stored}
	}
	// No user may have the id as sub (RFC 9068 §5): what is not a user's name stands there for it.
	if err := i.checkNoUser(ctx, rec.ID); err != nil {
		return nil, "", err
	}
	claimed, err := i.claimSubject(ctx, rec.ID, clientSubject(rec.ID))
	if err != nil {
		return nil, "", err
	}
	if _, err := i.Clients.Create(ctx, clientName(rec.ID), encode(rec)); err != nil {
		if errors.Is(err, bus.ErrExists) {
			i.releaseSubject(ctx, rec.ID, claimed)
			return nil, "", fmt.Errorf("adding client %q: %w", rec.ID, ErrExists)
		}
		return nil, "", unavailable("adding client", rec.ID, err)
	}
	i.event(ctx, "client added", "client_id", rec.ID)
	return rec.public(), secret, nil
}

// checkNoUser refuses an id that a user of the Directory has. Such a user that comes later is refused at the login.
func (i *Issuer) checkNoUser(ctx context.Context, id string) error {
	if i.Directory == nil {
		return nil
	}
	switch _, err := i.Directory.ByID(ctx, id); {
	case err == nil:
		return fmt.Errorf("a user has the id %q: %w", id, ErrExists)
	case !errors.Is(err, ErrNotFound):
		return fmt.Errorf("asking the directory for %q: %w: %w", id, ErrUnavailable, err)
	}
	return nil
}

// Client gives one client, or ErrNotFound.
func (i *Issuer) Client(ctx context.Context, id string) (*Client, error) {
	rec, _, err := i.client(ctx, id)
	if err != nil {
		return nil, err
	}
	return rec.public(), nil
}

// ListClients gives all clients, by id.
func (i *Issuer) ListClients(ctx context.Context) ([]*Client, error) {
	recs, err := i.Clients.List(ctx, bus.Under("client"))
	if err != nil {
		return nil, unavailable("listing", "clients", err)
	}
	all := make([]*Client, 0, len(recs))
	for _, r := range recs {
		rec := new(clientRecord)
		if err := json.Unmarshal(r.Value, rec); err != nil {
			return nil, fmt.Errorf("reading client record %q: %w", r.Name, err)
		}
		all = append(all, rec.public())
	}
	slices.SortFunc(all, func(a, b *Client) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// ChangeClient changes what ch names. Disabling refuses all tokens of the client, everywhere.
func (i *Issuer) ChangeClient(ctx context.Context, id string, ch ClientChange) (*Client, error) {
	c, _, err := i.changeClient(ctx, id, ch)
	return c, err
}

// changeClient gives also where the newest cutoff stands, the zero Position if there was none.
func (i *Issuer) changeClient(ctx context.Context, id string, ch ClientChange) (*Client, bus.Position, error) {
	rec, cut, err := i.updateClient(ctx, id, func(rec *clientRecord) (string, error) {
		ch.apply(rec)
		reason := ""
		if rec.Disabled {
			reason = "client disabled"
		}
		if ch == (ClientChange{Disabled: ch.Disabled}) {
			return reason, nil // always: also where the configuration has outgrown the rest of the record
		}
		return reason, i.checkClient(rec)
	})
	if err != nil {
		return nil, cut, err
	}
	i.event(ctx, "client changed", "client_id", id, "disabled", rec.Disabled)
	return rec.public(), cut, nil
}

func (ch *ClientChange) apply(rec *clientRecord) {
	set(&rec.Name, ch.Name)
	set(&rec.JWKS, ch.JWKS)
	set(&rec.Grants, ch.Grants)
	set(&rec.Scope, ch.Scope)
	set(&rec.Audiences, ch.Audiences)
	set(&rec.AccessLifetime, ch.AccessLifetime)
	set(&rec.Roles, ch.Roles)
	set(&rec.Disabled, ch.Disabled)
}

// updateClient changes a record by compare-and-set. Where change gives a reason, all tokens of the client so far are
// cut off first, so that a crash between the two leaves the stricter state.
func (i *Issuer) updateClient(ctx context.Context, id string, change func(*clientRecord) (cutBecause string, err error)) (*clientRecord, bus.Position, error) {
	var cut bus.Position
	for attempt := range maxAttempts {
		rec, revision, err := i.client(ctx, id)
		if err != nil {
			return nil, cut, err
		}
		reason, err := change(rec)
		if err != nil {
			return nil, cut, err
		}
		if reason != "" {
			if cut, err = i.cutoff(ctx, &bus.Revocation{ClientID: id, Reason: reason}); err != nil {
				return nil, cut, err
			}
		}
		rec.Seq = i.Replica.Snapshot().Position.Seq
		_, err = i.Clients.Update(ctx, clientName(id), encode(rec), revision)
		switch {
		case err == nil:
			return rec, cut, nil
		case !errors.Is(err, bus.ErrConflict):
			return nil, cut, unavailable("changing client", id, err)
		case !pause(ctx, attempt):
			return nil, cut, ctx.Err()
		}
	}
	return nil, cut, unavailable("changing client", id, bus.ErrConflict)
}

// DeleteClient removes a client and refuses all its tokens.
func (i *Issuer) DeleteClient(ctx context.Context, id string) error {
	_, err := i.deleteClient(ctx, id)
	return err
}

func (i *Issuer) deleteClient(ctx context.Context, id string) (cut bus.Position, err error) {
	for attempt := range maxAttempts {
		_, revision, err := i.client(ctx, id)
		if err != nil {
			return cut, err
		}
		if cut, err = i.cutoff(ctx, &bus.Revocation{ClientID: id, Reason: "client deleted"}); err != nil {
			return cut, err
		}
		err = i.Clients.Delete(ctx, clientName(id), revision)
		switch {
		case err == nil:
			if held, err := i.Subjects.Get(ctx, bus.Name(id)); err == nil && string(held.Value) == clientSubject(id) {
				i.releaseSubject(ctx, id, held.Revision)
			}
			i.event(ctx, "client deleted", "client_id", id)
			return cut, nil
		case !errors.Is(err, bus.ErrConflict):
			return cut, unavailable("deleting client", id, err)
		case !pause(ctx, attempt):
			return cut, ctx.Err()
		}
	}
	return cut, unavailable("deleting client", id, bus.ErrConflict)
}

// client reads one record. An id that no client can have is ErrNotFound too.
func (i *Issuer) client(ctx context.Context, id string) (*clientRecord, uint64, error) {
	if !validClientID(id) {
		return nil, 0, fmt.Errorf("reading a client: %w", ErrNotFound)
	}
	r, err := i.Clients.Get(ctx, clientName(id))
	if errors.Is(err, bus.ErrNotFound) {
		return nil, 0, fmt.Errorf("reading client %q: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, 0, unavailable("reading client", id, err)
	}
	rec := new(clientRecord)
	if err := json.Unmarshal(r.Value, rec); err != nil {
		return nil, 0, fmt.Errorf("reading client record %q: %w", id, err)
	}
	return rec, r.Revision, nil
}

// currentClient reads one record as it certainly is: where a cutoff of the client is newer than the record says, the
// record may be a follower's old copy, from before the client was disabled or its secret withdrawn, and only a
// compare-and-set can tell. seq is what this issuer had applied before it read: a change since then cuts tokens off.
func (i *Issuer) currentClient(ctx context.Context, id string) (rec *clientRecord, seq uint64, err error) {
	for attempt := range maxAttempts {
		seq = i.Replica.Snapshot().Position.Seq
		rec, revision, err := i.client(ctx, id)
		if err != nil {
			return nil, 0, err
		}
		ids := replica.Fingerprint(&keyring.Claims{ClientID: rec.ID, SessionSeq: rec.Seq, HasSessionSeq: true})
		if !i.Replica.Revoked(&ids) {
			return rec, seq, nil
		}
		rec.Seq = i.Replica.Snapshot().Position.Seq
		_, err = i.Clients.Update(ctx, clientName(id), encode(rec), revision)
		switch {
		case err == nil:
			return rec, seq, nil
		case !errors.Is(err, bus.ErrConflict):
			return nil, 0, unavailable("reading client", id, err)
		case !pause(ctx, attempt):
			return nil, 0, ctx.Err()
		}
	}
	return nil, 0, unavailable("reading client", id, bus.ErrConflict)
}

func clientName(id string) string { return bus.Name("client", id) }

// clientSubject is what the bucket "subjects" holds for a client's sub: no user name has a control character.
func clientSubject(id string) string { return "\x00client " + id }
