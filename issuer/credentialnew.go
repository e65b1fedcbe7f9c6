package issuer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// NewCredential is what AddCredential needs: Name, and exactly one of Username and Subject.
type NewCredential struct {
	Type      bus.CredentialType `json:"type"` // "": an API key
	Name      string             `json:"name"`
	Username  string             `json:"username"`
	Subject   string             `json:"sub"`
	ClientID  string             `json:"client_id"` // so that it ends with the client
	Scope     *string            `json:"scope"`     // nil: all that the user has, now and later
	Roles     *[]string          `json:"roles"`     // nil: all that the user has, now and later
	Networks  []string           `json:"networks"`  // CIDR, or an address alone; none: from everywhere
	Expires   int64              `json:"expires"`   // NumericDate, 0: never
	ExpiresIn string             `json:"expires_in"`
}

// MadeCredential is a new credential with its text, which nobody can ask for again.
type MadeCredential struct {
	Credential
	Secret string `json:"secret"`
	Seq    uint64 `json:"seq"` // an agent that has applied it accepts the text
}

// ErrTooManyCredentials means that the user has issuer.max_credentials usable ones.
var ErrTooManyCredentials = errors.New("too many credentials; delete one of them first")

// AddCredential makes an API key or an opaque token for a user who is there and enabled. Its record is written first,
// its entry second. The errors are *InputError, *ConflictError (the user is disabled), ErrNotFound,
// ErrTooManyCredentials and ErrUnavailable; after an error no usable one is left, but for what the next sweep withdraws.
func (i *Issuer) AddCredential(ctx context.Context, n NewCredential) (*MadeCredential, error) {
	if _, err := i.credentials(); err != nil {
		return nil, err
	}
	c, err := i.newCredential(&n)
	if err != nil {
		return nil, err
	}
	if (n.Username == "") == (n.Subject == "") {
		return nil, &InputError{"username, sub", "must be exactly one of them"}
	}
	user, known, err := i.owner(ctx, n.Username, n.Subject)
	if err != nil {
		return nil, err
	}
	return i.makeCredential(ctx, c, user, known)
}

// makeCredential gives a credential, complete but for its owner and its text, both, and writes it.
func (i *Issuer) makeCredential(ctx context.Context, c *credentialRecord, user *userRecord, known uint64) (*MadeCredential, error) {
	text := newCredentialText()
	c.identify(text)
	if err := i.own(c, user, known); err != nil {
		return nil, err
	}
	if err := i.roomFor(ctx, user.ID); err != nil {
		return nil, err
	}
	if _, err := i.Credentials.Create(ctx, c.bucketName(), encode(c)); err != nil {
		return nil, unavailable("adding a credential of", user.Username, err)
	}
	pos, err := i.stand(ctx, c)
	if err != nil {
		i.discard(ctx, c)
		return nil, err
	}
	i.event(ctx, "credential added", "id", c.ID, "type", c.Type, "name", c.Name, "sub", c.Subject, "client_id", c.ClientID, "scope", c.Scope, "expires", c.Expires)
	return &MadeCredential{Credential: *i.shown(c), Secret: text, Seq: pos.Seq}, nil
}

// newCredential reads a request, but for whose it is.
func (i *Issuer) newCredential(n *NewCredential) (*credentialRecord, error) {
	c := &credentialRecord{Credential: Credential{Type: n.Type, Name: n.Name, ClientID: n.ClientID, ScopeLimit: n.Scope, RolesLimit: n.Roles}}
	if c.Type == "" {
		c.Type = bus.APIKey
	}
	var err error
	if c.Expires, err = i.expiry(n.Expires, n.ExpiresIn); err != nil {
		return nil, err
	}
	if c.Networks, err = readNetworks(n.Networks); err != nil {
		return nil, err
	}
	return c, c.check()
}

// check bounds what an operator chooses.
func (c *credentialRecord) check() error {
	switch {
	case c.Type != bus.APIKey && c.Type != bus.Opaque:
		return &InputError{"type", fmt.Sprintf("must be %q or %q", bus.APIKey, bus.Opaque)}
	case c.Name == "" || len(c.Name) > maxCredentialName || !printable(c.Name) || strings.TrimSpace(c.Name) != c.Name:
		return &InputError{"name", fmt.Sprintf("must be 1 to %d bytes of UTF-8 without control characters and without blanks at either end", maxCredentialName)}
	case len(c.ClientID) > bus.MaxID || !printable(c.ClientID):
		return &InputError{"client_id", fmt.Sprintf("must be %d bytes at most, without control characters", bus.MaxID)}
	case c.ScopeLimit != nil && !validScope(*c.ScopeLimit):
		return &InputError{"scope", "must be words of printable ASCII without quote and backslash, one blank between them, 1024 bytes at most (RFC 6749 §3.3)"}
	case c.RolesLimit != nil && len(*c.RolesLimit) > 64:
		return &InputError{"roles", "must be 64 at most"}
	}
	return nil
}

// expiry reads when a credential is to end.
func (i *Issuer) expiry(at int64, in string) (int64, error) {
	now := i.now()
	if in != "" {
		d, err := time.ParseDuration(in)
		if at != 0 || err != nil || d < time.Second || d > 100*365*24*time.Hour {
			return 0, &InputError{"expires_in", `must be a duration of a second or more, such as "720h", and without "expires"`}
		}
		return now.Add(d).Unix(), nil
	}
	if at != 0 && at <= now.Unix() {
		return 0, &InputError{"expires", "must be a time to come (NumericDate), or 0 for never"}
	}
	return at, nil
}

// readNetworks reads networks, and addresses that stand for themselves.
func readNetworks(texts []string) ([]netip.Prefix, error) {
	if len(texts) > maxNetworks {
		return nil, &InputError{"networks", fmt.Sprintf("must be %d at most", maxNetworks)}
	}
	networks := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if addr, aerr := netip.ParseAddr(text); err != nil && aerr == nil && addr.Zone() == "" {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() || p != p.Masked() {
			return nil, &InputError{"networks", fmt.Sprintf("must each be a network such as 10.0.0.0/8 or 2001:db8::/32, without bits behind its length, or an address; %q is not", text)}
		}
		if !slices.Contains(networks, p) {
			networks = append(networks, p)
		}
	}
	return networks, nil
}

// identify gives a credential the hash of its text, and the id that follows from it.
func (c *credentialRecord) identify(text string) {
	hash := bus.HashCredential([]byte(text))
	c.Hash, c.ID = hash[:], credentialID(hash)
}

// own makes the credential the user's, as far as the user's own rights go.
func (i *Issuer) own(c *credentialRecord, user *userRecord, known uint64) error {
	if user.Disabled {
		return &ConflictError{fmt.Sprintf("user %q is disabled; enable it first", user.Username)}
	}
	c.Subject, c.Username, c.Known = user.ID, user.Username, known
	c.State, c.Changed = CredentialActive, i.now().Unix()
	if c.Created == 0 {
		c.Created = c.Changed
	}
	c.grant(user)
	switch {
	case c.ScopeLimit != nil && len(strings.Fields(c.Scope)) != len(strings.Fields(*c.ScopeLimit)):
		return &InputError{"scope", "must be within the user's own"}
	case c.RolesLimit != nil && len(c.Roles) != len(*c.RolesLimit):
		return &InputError{"roles", "must be among the user's own"}
	}
	return nil
}

// owner reads the user of that sub, or where it is empty of that name, and the sequence that this issuer had applied
// before. As in authenticate, a record from before a cutoff is not believed until a compare-and-set has proven that it is
// the newest. ErrNotFound: there is none.
func (i *Issuer) owner(ctx context.Context, username, sub string) (*userRecord, uint64, error) {
	if i.Directory != nil {
		return i.ownerElsewhere(ctx, username, sub)
	}
	if sub != "" {
		held, err := i.Subjects.Get(ctx, bus.Name(sub))
		switch {
		case errors.Is(err, bus.ErrNotFound):
			return nil, 0, fmt.Errorf("looking for the user with id %q: %w", sub, ErrNotFound)
		case err != nil:
			return nil, 0, unavailable("looking for the user with id", sub, err)
		}
		username = string(held.Value)
	}
	for attempt := range maxAttempts {
		known := i.Replica.Snapshot().Position.Seq
		user, revision, err := i.user(ctx, username)
		if err == nil && sub != "" && user.ID != sub {
			err = fmt.Errorf("looking for the user with id %q: %w", sub, ErrNotFound)
		}
		if err != nil {
			return nil, 0, err
		}
		err = i.refreshUser(ctx, user, revision, "", false)
		switch {
		case err == nil:
			return user, known, nil
		case !errors.Is(err, bus.ErrConflict):
			return nil, 0, unavailable("reading user", username, err)
		case !pause(ctx, attempt):
			return nil, 0, ctx.Err()
		}
	}
	return nil, 0, unavailable("reading user", username, bus.ErrConflict)
}

// ownerElsewhere is owner for users of the Directory. The sequence is taken first: who disables a user there and then
// revokes the sub here cuts off what follows from the old answer.
func (i *Issuer) ownerElsewhere(ctx context.Context, username, sub string) (*userRecord, uint64, error) {
	known := i.Replica.Snapshot().Position.Seq
	account, err := (*Account)(nil), ErrNotFound
	switch {
	case sub != "":
		account, err = i.Directory.ByID(ctx, sub)
	case checkUsername(username) == nil:
		account, err = i.Directory.Lookup(ctx, username)
	}
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, 0, fmt.Errorf("looking for a user in the directory: %w", ErrNotFound)
	case err != nil:
		return nil, 0, unavailable("asking", "the directory", err)
	case sub != "" && account.ID != sub:
		return nil, 0, unavailable("asking", "the directory", &RecordError{"the query by id gave another id"})
	}
	user, err := account.record()
	if err == nil {
		err = i.checkNoClient(ctx, user.ID)
	}
	if err != nil {
		return nil, 0, unavailable("asking", "the directory", err)
	}
	return user, known, nil
}

// roomFor holds issuer.max_credentials. Those made at the same moment may exceed it by their number.
func (i *Issuer) roomFor(ctx context.Context, sub string) error {
	if i.cfg.MaxCredentials == 0 {
		return nil
	}
	n, err := i.Credentials.Count(ctx, bus.Under(sub))
	if err != nil {
		return unavailable("counting the credentials of", sub, err)
	}
	if n < i.cfg.MaxCredentials {
		return nil
	}
	recs, _, err := i.listCredentials(ctx, bus.Under(sub))
	if err != nil {
		return err
	}
	now := i.now().Unix()
	usable := slices.DeleteFunc(recs, func(c *credentialRecord) bool { return !c.usable(now) })
	if len(usable) >= i.cfg.MaxCredentials {
		i.refusal(ctx, "credential refused: too many", "sub", sub, "credentials", len(usable))
		return ErrTooManyCredentials
	}
	return nil
}

// stand writes the entries of new credentials of one user or several, and looks at the first one's user again: who was
// disabled, or cut off, since they were read must have none. The replicas refuse it by KnownSeq, but when the cutoff is
// forgotten nothing would.
func (i *Issuer) stand(ctx context.Context, all ...*credentialRecord) (bus.Position, error) {
	facts := make([]bus.Fact, len(all))
	for at, c := range all {
		facts[at] = c.fact()
	}
	pos, err := i.Log.Append(ctx, facts...)
	if err != nil {
		return pos, unavailable("adding a credential of", all[0].Username, err)
	}
	if err := i.settle(ctx, pos); err != nil {
		return pos, err
	}
	for _, c := range all {
		if err := i.standsStill(ctx, c); err != nil {
			return pos, err
		}
	}
	return pos, nil
}

func (i *Issuer) standsStill(ctx context.Context, c *credentialRecord) error {
	ids := replica.Fingerprint(&keyring.Claims{ID: c.ID, Subject: c.Subject, ClientID: c.ClientID, SessionSeq: c.Known, HasSessionSeq: true})
	if i.Replica.Revoked(&ids) {
		return fmt.Errorf("adding a credential of %q, who was cut off meanwhile: %w", c.Username, ErrUnavailable)
	}
	user, _, err := i.owner(ctx, "", c.Subject)
	switch {
	case err != nil:
		return err
	case user.Disabled:
		return &ConflictError{fmt.Sprintf("user %q was disabled or deleted meanwhile", c.Username)}
	}
	now := *c
	if now.grant(user); now.Scope != c.Scope || !slices.Equal(now.Roles, c.Roles) {
		return fmt.Errorf("adding a credential of %q, whose rights were changed meanwhile: %w", c.Username, ErrUnavailable)
	}
	return nil
}

// discard takes back a credential whose text nobody was told. What fails is left to the sweep.
func (i *Issuer) discard(ctx context.Context, c *credentialRecord) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), applyTimeout)
	defer cancel()
	_, err := i.Log.Append(ctx, c.gone())
	if err == nil {
		err = i.dropRecord(ctx, c.bucketName())
	}
	if err != nil {
		i.log.Warn("could not take back a credential that nobody was told of, a sweep will", "id", c.ID, "error", err)
	}
}
