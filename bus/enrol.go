package bus

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/sidekey/sidekey/keyring"
)

// Bounds of enrolment.
const (
	DefaultTokenLife = time.Hour
	MaxTokenLife     = 7 * 24 * time.Hour // of a join token
	keptTokens       = 7 * 24 * time.Hour // how long an expired token's record tells that it was used
	joinWithin       = 10 * time.Second   // for one request
	joinsAtOnce      = 8
)

// invitation is a token in the bucket "joins", under Name(id).
type invitation struct {
	Role    Role   `json:"role"`
	Name    string `json:"name"`
	Nkey    string `json:"nkey"` // public: of the token's user
	Expires int64  `json:"exp"`
	// Audiences are those that the agent may serve; none: the ring's default alone.
	Audiences []string `json:"audiences,omitempty"`
	Used      int64    `json:"used,omitempty"` // NumericDate
	By        string   `json:"by,omitempty"`   // the nkey that it let in
}

// EnrolConfig is what an Enrolment works on. Server and Revoked are for the issuer that has the
// operator's key; Keys nil: this bus was not made by sidekey, and nobody can be let in.
type EnrolConfig struct {
	Conn      *Conn
	Keys      *Keys
	Server    *Server // the embedded one; nil: another, whose accounts are pushed
	Joins     *Bucket
	Agents    *Bucket
	Issuers   *Bucket
	Authority *keyring.Authority
	Master    *keyring.MasterKey
	URLs      []string // where those who join find the bus
	CA        []byte   // PEM: of the bus's certificates; nil: one that every system knows
	Revoked   string   // file that keeps the revoked nkeys for the next start
	Peers     *Peers   // the cluster that Server is in; nil: none
	// OnRemoved is called when this issuer finds that it was removed from the cluster.
	OnRemoved func(error)
	// OnJoin is called for each agent that joins, before it is answered, with its record written. Its
	// error is the agent's answer, and the agent tries again.
	OnJoin func(ctx context.Context, m Member) error
	// OnChange is called when a member has joined or was removed; nil: nobody wants to know.
	OnChange func()
	Logger   hclog.Logger
}

// Enrolment lets agents and issuers in, by tokens that are good for one use each, and strikes them off.
type Enrolment struct {
	cfg   EnrolConfig
	audit hclog.Logger
	subs  []*nats.Subscription
	slots chan struct{}
	busy  sync.WaitGroup
	stop  context.CancelFunc
	told  chan struct{} // holds one when another issuer has said that there is something to look at

	cut    sync.Mutex // one change of the accounts at a time
	agents agentsRead // who was removed, as last read
	pushed []string   // the revoked nkeys, sorted, that a server elsewhere was told of; nil: of none, as far as is known
}

// OpenEnrolment applies what was removed while this issuer was away, and begins to answer those who join.
func OpenEnrolment(ctx context.Context, cfg EnrolConfig) (*Enrolment, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	e := &Enrolment{cfg: cfg, audit: cfg.Logger.Named("audit"), slots: make(chan struct{}, joinsAtOnce), told: make(chan struct{}, 1)}
	if cfg.Keys == nil {
		return e, nil
	}
	if err := e.applyRemovals(ctx); err != nil {
		return nil, err
	}
	nc, s := cfg.Conn.nc, cfg.Conn.subjects
	if err := e.refreshPeers(ctx); err != nil {
		return nil, err
	}
	joins, err := nc.QueueSubscribe(s.join(Any), "issuers", e.hear)
	if err != nil {
		return nil, fmt.Errorf("listening to those who join: %w", err)
	}
	e.subs = append(e.subs, joins)
	if cfg.Keys.Operates() {
		removed, err := nc.Subscribe(s.removed(), e.hearRemoved)
		if err != nil {
			e.Close()
			return nil, fmt.Errorf("listening to removals: %w", err)
		}
		e.subs = append(e.subs, removed)
	}
	if cfg.Peers != nil || cfg.Keys.Operates() {
		lctx, stop := context.WithCancel(context.Background())
		e.stop = stop
		e.busy.Go(func() { e.keepLooking(lctx) })
	}
	return e, nil
}

// Close stops answering and waits for the requests under way. It may be called twice.
func (e *Enrolment) Close() {
	for _, sub := range e.subs {
		sub.Unsubscribe() //nolint:errcheck // the connection may be closed already
	}
	e.subs = nil
	if e.stop != nil {
		e.stop()
	}
	e.busy.Wait()
}

// ErrNoKeys means that this issuer cannot let anybody in.
var ErrNoKeys = errors.New("the bus's keys are not here, so nobody can be let in: run `sidekey bus export` and configure the NATS server with what it writes, or use the embedded bus")

func (e *Enrolment) members(role Role) *Bucket {
	if role == RoleIssuer {
		return e.cfg.Issuers
	}
	return e.cfg.Agents
}

// Invite makes a join token and returns its text, which nobody sees again. life 0: DefaultTokenLife.
// ErrExists: the name has joined.
func (e *Enrolment) Invite(ctx context.Context, role Role, name string, life time.Duration, audiences ...string) (string, error) {
	if e.cfg.Keys == nil {
		return "", ErrNoKeys
	}
	if err := CheckName(name); err != nil {
		return "", err
	}
	if life == 0 {
		life = DefaultTokenLife
	}
	if life < 0 || life > MaxTokenLife {
		return "", fmt.Errorf("a join token lives up to %s, not %s", MaxTokenLife, life)
	}
	m, _, err := readMember(ctx, e.members(role), name)
	if err == nil && !m.Removed() {
		return "", fmt.Errorf("%s %q has joined already (%w); run `sidekey %s remove %s` first", role, name, ErrExists, role.command(), name)
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return "", err
	}
	t, err := e.newToken(role, name, time.Now().Add(life))
	if err != nil {
		return "", err
	}
	nkey, err := t.User.nkeyOf()
	if err != nil {
		return "", err
	}
	e.pruneTokens(ctx)
	record, err := json.Marshal(invitation{Role: role, Name: name, Nkey: nkey, Expires: t.Expires, Audiences: audiences})
	if err != nil {
		return "", err
	}
	if _, err := e.cfg.Joins.Create(ctx, Name(t.ID), record); err != nil {
		return "", err
	}
	e.audit.Info("join token made", "role", role, "name", name, "token_id", t.ID, "expires", time.Unix(t.Expires, 0).UTC().Format(time.RFC3339))
	return t.Text()
}

func (e *Enrolment) newToken(role Role, name string, expires time.Time) (*Token, error) {
	var id [16]byte
	rand.Read(id[:]) // never fails: crypto/rand ends the process instead
	t := &Token{
		Role: role, Name: name, ID: base64.RawURLEncoding.EncodeToString(id[:]), URLs: e.urls(),
		Authority: authorityFingerprint(e.cfg.Authority.Public()), Expires: expires.Unix(),
	}
	var err error
	if t.CA, err = caFingerprint(e.cfg.CA); err != nil {
		return nil, err
	}
	user, err := e.cfg.Keys.joinUser(t.ID, expires)
	if err != nil {
		return nil, err
	}
	t.User = *user
	return t, nil
}

// pruneTokens forgets tokens that have long expired. That it fails is no harm: the next does it.
func (e *Enrolment) pruneTokens(ctx context.Context) {
	recs, err := e.cfg.Joins.List(ctx, "")
	if err != nil {
		return
	}
	for _, rec := range recs {
		var inv invitation
		if json.Unmarshal(rec.Value, &inv) == nil && time.Since(time.Unix(inv.Expires, 0)) > keptTokens {
			e.cfg.Joins.Delete(ctx, rec.Name, rec.Revision) //nolint:errcheck // see above
		}
	}
}

// hear answers one request to join. Several are worked on at once: one may wait for the log.
func (e *Enrolment) hear(m *nats.Msg) {
	e.slots <- struct{}{}
	e.busy.Go(func() {
		defer func() { <-e.slots }()
		ctx, cancel := context.WithTimeout(context.Background(), joinWithin)
		defer cancel()
		ans := e.answer(ctx, m.Data)
		body, err := json.Marshal(ans)
		if err == nil {
			err = m.Respond(body)
		}
		if err != nil {
			e.cfg.Logger.Warn("could not answer one who joins", "error", err)
		}
	})
}

func (e *Enrolment) answer(ctx context.Context, asked []byte) joinAnswered {
	var a joinAsked
	var req joinRequest
	if len(asked) > maxToken || json.Unmarshal(asked, &a) != nil || json.Unmarshal(a.Request, &req) != nil {
		return joinAnswered{Error: "the request to join is not what this version of sidekey knows"}
	}
	body, err := e.admit(ctx, &a, &req)
	if err != nil {
		e.cfg.Logger.Warn("could not let somebody in", "role", req.Role, "name", req.Name, "error", err)
		return joinAnswered{Error: err.Error()}
	}
	return joinAnswered{Answer: body, Signature: e.cfg.Authority.Sign(signedAnswer(a.Request, body))}
}

// admit takes a member in, and makes its answer. Asked again by the same, whose answer was lost, it
// answers again.
func (e *Enrolment) admit(ctx context.Context, a *joinAsked, req *joinRequest) ([]byte, error) {
	if err := e.checkServer(req); err != nil {
		return nil, err
	}
	if err := e.spend(ctx, a, req); err != nil {
		return nil, err
	}
	m, fresh, err := e.enter(ctx, req)
	if err != nil {
		return nil, err
	}
	if req.Role == RoleAgent && e.cfg.OnJoin != nil {
		if err := e.cfg.OnJoin(ctx, m); err != nil {
			return nil, err
		}
	}
	ans := joinAnswer{Authority: e.cfg.Authority.Public().Text(), CA: e.cfg.CA, URLs: e.urls()}
	if req.Role == RoleIssuer {
		if ans.JWT, err = e.cfg.Keys.mintIssuer(req.Name, req.Nkey); err == nil {
			ans.Sealed, err = e.sealSecrets(req)
		}
		if err == nil && e.cfg.Peers != nil {
			err = e.introduce(ctx, &ans)
		}
	} else {
		ans.JWT, err = e.cfg.Keys.mintAgent(req.Name, req.Nkey)
	}
	if err != nil {
		return nil, err
	}
	if fresh {
		e.audit.Info("joined", "role", req.Role, "name", req.Name, "token_id", req.ID, "nkey", req.Nkey)
		if e.cfg.OnChange != nil {
			e.cfg.OnChange()
		}
	}
	return json.Marshal(ans)
}

// spend proves a request and uses its token up for the nkey that asks.
func (e *Enrolment) spend(ctx context.Context, a *joinAsked, req *joinRequest) error {
	for {
		rec, err := e.cfg.Joins.Get(ctx, Name(req.ID))
		if errors.Is(err, ErrNotFound) {
			return errors.New("this join token is not known here; ask for another with `sidekey agents add`")
		}
		if err != nil {
			return err
		}
		var inv invitation
		if err := json.Unmarshal(rec.Value, &inv); err != nil {
			return fmt.Errorf("reading a join token's record: %w", err)
		}
		if err := inv.prove(a, req); err != nil {
			e.audit.Error("a join token was misused", "role", inv.Role, "name", inv.Name, "token_id", req.ID, "asked_name", req.Name, "error", err)
			return err
		}
		req.audiences = inv.Audiences
		again := fmt.Sprintf("ask for another with `sidekey %s add %s`", inv.Role.command(), inv.Name)
		switch {
		case inv.Used != 0 && inv.By == req.Nkey:
			return nil
		case inv.Used != 0:
			at := time.Unix(inv.Used, 0).UTC().Format(time.RFC3339)
			e.audit.Error("a join token was used a second time: one of the two who used it has stolen it; remove the member and let it join anew",
				"role", inv.Role, "name", inv.Name, "token_id", req.ID, "first_used", at, "first_nkey", inv.By, "second_nkey", req.Nkey)
			return fmt.Errorf("this join token was used already, at %s, by another; if that was not you, run `sidekey %s remove %s` at once, then %s", at, inv.Role.command(), inv.Name, again)
		case time.Now().After(time.Unix(inv.Expires, 0)):
			return fmt.Errorf("this join token has expired; %s", again)
		}
		inv.Used, inv.By = time.Now().Unix(), req.Nkey
		value, err := json.Marshal(inv)
		if err != nil {
			return err
		}
		if _, err = e.cfg.Joins.Update(ctx, rec.Name, value, rec.Revision); !errors.Is(err, ErrConflict) {
			return err
		}
	}
}

// prove checks that who asks has the token, is who it is for, and holds the keys that it shows.
func (inv *invitation) prove(a *joinAsked, req *joinRequest) error {
	msg := signedJoin(a.Request)
	for _, by := range []struct {
		nkey string
		sig  []byte
	}{{inv.Nkey, a.ByToken}, {req.Nkey, a.ByNkey}} {
		kp, err := nkeys.FromPublicKey(by.nkey)
		if err != nil || !nkeys.IsValidPublicUserKey(by.nkey) || kp.Verify(msg, by.sig) != nil {
			return errors.New("the request to join is not signed by the token and the new key")
		}
	}
	if len(req.SigningKey) != ed25519.PublicKeySize || !ed25519.Verify(req.SigningKey, msg, a.BySigner) {
		return errors.New("the request to join is not signed by the new signing key")
	}
	if _, err := keyring.SealTo(req.SealingKey, nil); err != nil {
		return err
	}
	if inv.Role != req.Role || inv.Name != req.Name {
		return fmt.Errorf("this join token is for %s %q, not for %s %q", inv.Role, inv.Name, req.Role, req.Name)
	}
	return nil
}

// enter writes a member down. fresh: it was not there before.
func (e *Enrolment) enter(ctx context.Context, req *joinRequest) (m Member, fresh bool, err error) {
	bucket := e.members(req.Role)
	for {
		old, rev, err := readMember(ctx, bucket, req.Name)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return m, false, err
		}
		switch {
		case err == nil && !old.Removed() && old.Nkey == req.Nkey:
			return old, false, nil
		case err == nil && !old.Removed():
			e.audit.Error("a second one asked to join under a name that is taken", "role", req.Role, "name", req.Name, "token_id", req.ID)
			return m, false, fmt.Errorf("%s %q has joined already; run `sidekey %s remove %s` first, then let it join anew", req.Role, req.Name, req.Role.command(), req.Name)
		case err == nil && (old.Nkey == req.Nkey || slices.Contains(old.Former, req.Nkey)):
			return m, false, fmt.Errorf("%s %q was removed; ask for another join token", req.Role, req.Name)
		}
		m = Member{Name: req.Name, Nkey: req.Nkey, SigningKey: req.SigningKey, SealingKey: req.SealingKey, Join: req.ID, Joined: time.Now().Unix(), Audiences: req.audiences, Route: req.Route, URLs: req.URLs}
		if err == nil {
			m.Former = append(old.Former, old.Nkey)
			m.Longest, m.Serves = old.Longest, old.Serves // a process of then may still hold it
		}
		if err = writeMember(ctx, bucket, m, rev); !errors.Is(err, ErrConflict) && !errors.Is(err, ErrExists) {
			return m, true, err
		}
	}
}

// sealSecrets seals to an issuer what it needs to be one.
func (e *Enrolment) sealSecrets(req *joinRequest) ([]byte, error) {
	shared := e.cfg.Keys
	if e.cfg.Peers == nil {
		var err error
		if shared, err = shared.shared(); err != nil {
			return nil, err
		}
	}
	keys, err := shared.marshal()
	if err != nil {
		return nil, err
	}
	plain, err := json.Marshal(issuerSecrets{Master: string(e.cfg.Master.Text()), Keys: keys})
	if err != nil {
		return nil, err
	}
	return keyring.SealTo(req.SealingKey, plain, joinInfo(req)...)
}

// Members lists those who joined in a role, also the removed, ordered by name.
func (e *Enrolment) Members(ctx context.Context, role Role) ([]Member, error) {
	return listMembers(ctx, e.members(role))
}
