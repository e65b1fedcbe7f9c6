package issuer

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/sidekey/sidekey/keyring"
)

// caller is the client that a request comes from: proven, or public.
type caller struct {
	*clientRecord
	seq    uint64 // what this issuer had applied before it read the record: cutoffs of the client compare it
	proven bool   // it has authenticated
}

// errClient is the one answer to every client that cannot prove itself, whatever the cause.
func errClient(challenge bool) error {
	return &oauthError{http.StatusUnauthorized, invalidClient, "The client is unknown, or could not prove who it is.", challenge}
}

// proof is how a request says which client it comes from.
type proof struct {
	method    string // of auth_methods
	id        string
	secret    string
	assertion string
}

// assertionType is RFC 7523 §2.2's.
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// readProof finds the one way in which a request names its client (RFC 6749 §2.3: not more than one).
func readProof(r *http.Request, f form) (*proof, error) {
	var found []*proof
	if headers := r.Header.Values("Authorization"); len(headers) > 0 {
		p, err := basicProof(headers)
		if err != nil {
			return nil, err
		}
		found = append(found, p)
	}
	id := f.get("client_id")
	if secret := f.get("client_secret"); secret != "" {
		found = append(found, &proof{method: authPost, id: id, secret: secret})
	}
	if a := f.get("client_assertion"); a != "" || f.get("client_assertion_type") != "" {
		if f.get("client_assertion_type") != assertionType {
			return nil, oauthFault(invalidRequest, "client_assertion_type must be %s", assertionType)
		}
		found = append(found, &proof{method: authJWT, id: id, assertion: a})
	}
	switch len(found) {
	case 0:
		return &proof{method: authNone, id: id}, nil
	case 1:
	default:
		return nil, oauthFault(invalidRequest, "the client authenticates in more than one way")
	}
	p := found[0]
	if p.method == authBasic && id != "" && id != p.id {
		return nil, oauthFault(invalidRequest, "client_id is not the client that Authorization names")
	}
	return p, nil
}

// basicProof reads Authorization: Basic, whose two halves are form-encoded (RFC 6749 §2.3.1).
func basicProof(headers []string) (*proof, error) {
	if len(headers) > 1 {
		return nil, oauthFault(invalidRequest, "Authorization is there twice")
	}
	scheme, encoded, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Basic") {
		return nil, errClient(true)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		return nil, errClient(true)
	}
	id, secret, ok := strings.Cut(string(raw), ":")
	id, err1 := url.QueryUnescape(id)
	secret, err2 := url.QueryUnescape(secret)
	if !ok || err1 != nil || err2 != nil || !utf8.ValidString(id+secret) {
		return nil, errClient(true)
	}
	return &proof{method: authBasic, id: id, secret: secret}, nil
}

// identify gives the client that a request comes from: one that has proven itself, a public one that is named, or, where
// none is named, the public default client, which user name logins are of. An *oauthError or a *BusyError says
// why not; ErrUnavailable that it cannot be told now.
func (i *Issuer) identify(r *http.Request, f form) (*caller, error) {
	p, err := readProof(r, f)
	if err != nil {
		return nil, err
	}
	if p.method == authNone && (p.id == "" || p.id == i.cfg.DefaultClient) {
		return i.defaultCaller(), nil
	}
	address := clientAddress(r)
	if err := i.clients.before(address, i.now()); err != nil {
		return nil, err
	}
	c, err := i.authenticateClient(r.Context(), p)
	if errors.Is(err, errNotProven) {
		i.refusal(r.Context(), "client refused", "client_id", loggedClient(p.id), "auth_method", p.method)
		if err := i.clients.failed(p.id, address, i.now()); err != nil {
			return nil, err
		}
		return nil, errClient(p.method == authBasic)
	}
	return c, err
}

// credentialLike is from which length on an id that begins as a credential may be one.
const credentialLike = 40

// loggedClient keeps from the log what is no client_id: it may be a secret in the wrong place.
func loggedClient(id string) string {
	if !validClientID(id) || strings.HasPrefix(id, secretPrefix) || len(id) >= credentialLike && strings.HasPrefix(id, credentialPrefix) {
		return ""
	}
	return id
}

// defaultCaller is the client of user name logins: it is in no bucket, and proves nothing.
func (i *Issuer) defaultCaller() *caller {
	rec := &clientRecord{Client: Client{
		ID: i.cfg.DefaultClient, AuthMethods: []string{authNone}, Grants: []string{grantRefresh, grantPassword}, Audiences: []string{i.cfg.Audience},
	}}
	return &caller{clientRecord: rec, seq: i.Replica.Snapshot().Position.Seq}
}

// isDefault tells whether nobody in particular asks.
func (i *Issuer) isDefault(c *caller) bool { return c.ID == i.cfg.DefaultClient }

// errNotProven: the client is unknown or disabled, may not authenticate like this, or its proof is wrong.
var errNotProven = errors.New("the client could not prove who it is")

// authenticateClient judges a proof. A client that does not exist costs what one with a wrong secret does.
func (i *Issuer) authenticateClient(ctx context.Context, p *proof) (*caller, error) {
	now := i.now()
	var a *keyring.Assertion
	if p.method == authJWT {
		// Who it says that it is decides which keys may prove it.
		claimed, err := keyring.PeekAssertion(p.assertion)
		if err != nil || p.id != "" && p.id != claimed.Subject {
			return nil, errNotProven
		}
		p.id = claimed.Subject
	}
	rec, seq, err := i.currentClient(ctx, p.id)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	var ok bool
	switch p.method {
	case authBasic, authPost:
		ok = rec.hasSecret(p.secret, now.Unix())
	case authJWT:
		a, ok = i.proveAssertion(rec, p.assertion, now)
	case authNone:
		ok = true
	}
	if !ok || rec == nil || rec.Disabled || !slices.Contains(rec.AuthMethods, p.method) {
		return nil, errNotProven
	}
	if a != nil { // last: nobody but the client itself uses one up
		if err := i.useAssertion(ctx, rec.ID, a, now); err != nil {
			return nil, err
		}
	}
	return &caller{clientRecord: rec, seq: seq, proven: p.method != authNone}, nil
}
