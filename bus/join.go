package bus

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/sidekey/sidekey/keyring"
)

// JoinConfig is what joining needs. Logger may be nil.
type JoinConfig struct {
	Token  *Token
	Dir    string  // the folder that Identity will be, absent as yet; the one that it stands in is there
	Server *Server // the embedded bus of this very process, instead of the token's URLs
	// Insecure lets it join in clear beyond loopback, by a token that names no CA.
	Insecure bool
	// Route and URLs are where the others reach this issuer's server, where it brings one into a cluster.
	Route  string
	URLs   []string
	Logger hclog.Logger
}

// joining is what the folder Dir.joining holds until an answer has come: the keys that were sent, so
// that a process that dies meanwhile asks with the same ones again. It is a secret like the identity.
type joining struct {
	ID      string `json:"id"`
	Seed    []byte `json:"seed"`    // nkey
	Signing []byte `json:"signing"` // Ed25519 seed
	Sealing []byte `json:"sealing"`
}

const joiningFile = "joining.json"

// joinStep is called between the steps of joining; a test lets the process die there.
var joinStep = func(string) error { return nil }

// askJoin bounds one request of one who joins.
const askJoin = 12 * time.Second

// ErrJoined means that an identity is there already.
var ErrJoined = errors.New("it has joined already")

// Join exchanges a token for an identity: it makes the keys here, so that no private one crosses the
// bus, proves the bus by what the token pins, and writes the identity whole or not at all. Interrupted
// at any point, it can be called again with the same token. ErrJoined: Dir is there.
func Join(ctx context.Context, cfg JoinConfig) (*Identity, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	t := cfg.Token
	if _, err := os.Stat(cfg.Dir); err == nil {
		return nil, fmt.Errorf("joining as %q: %w: %s is there; remove that folder to join anew", t.Name, ErrJoined, cfg.Dir)
	}
	if err := t.expired(time.Now()); err != nil {
		return nil, err
	}
	keys, err := openJoining(cfg.Dir+".joining", t.ID)
	if err != nil {
		return nil, fmt.Errorf("joining as %q: %w", t.Name, err)
	}
	if err := joinStep("keys"); err != nil {
		return nil, err
	}
	id, err := keys.ask(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("joining as %q: %w", t.Name, err)
	}
	if err := joinStep("answer"); err != nil {
		return nil, err
	}
	if err := id.write(cfg.Dir); err != nil {
		return nil, fmt.Errorf("joining as %q: writing the identity: %w", t.Name, err)
	}
	return id, nil
}

// openJoining takes up the keys of an attempt with the same token, or makes new ones.
func openJoining(dir, id string) (*joining, error) {
	path := filepath.Join(dir, joiningFile)
	j := new(joining)
	if text, err := os.ReadFile(path); err == nil && json.Unmarshal(text, j) == nil && j.ID == id {
		return j, CheckPrivate(dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	j, err := newJoining(id)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	return j, WriteFile(path, text)
}

// request makes what is sent, signed by token, nkey and signing key.
func (j *joining) request(cfg JoinConfig) (*joinRequest, *joinAsked, error) {
	t := cfg.Token
	nkey, err := nkeys.FromSeed(j.Seed)
	if err != nil {
		return nil, nil, err
	}
	byToken, err := nkeys.FromSeed(t.User.Seed)
	if err != nil {
		return nil, nil, errors.New("the join token is damaged")
	}
	sealing, err := keyring.ParseSealingKey(j.Sealing)
	if err != nil {
		return nil, nil, err
	}
	signing := ed25519.NewKeyFromSeed(j.Signing)
	req := &joinRequest{ID: t.ID, Role: t.Role, Name: t.Name, SigningKey: signing.Public().(ed25519.PublicKey), SealingKey: sealing.Public(), Route: cfg.Route, URLs: cfg.URLs}
	if req.Nkey, err = nkey.PublicKey(); err != nil {
		return nil, nil, err
	}
	a := new(joinAsked)
	if a.Request, err = json.Marshal(req); err != nil {
		return nil, nil, err
	}
	msg := signedJoin(a.Request)
	if a.ByToken, err = byToken.Sign(msg); err != nil {
		return nil, nil, err
	}
	if a.ByNkey, err = nkey.Sign(msg); err != nil {
		return nil, nil, err
	}
	a.BySigner = ed25519.Sign(signing, msg)
	return req, a, nil
}

// ask sends the request until an issuer answers, and proves the answer.
func (j *joining) ask(ctx context.Context, cfg JoinConfig) (*Identity, error) {
	t := cfg.Token
	req, asked, err := j.request(cfg)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(asked)
	if err != nil {
		return nil, err
	}
	c, err := Connect(ConnectConfig{
		URLs: t.URLs, Server: cfg.Server, User: &t.User, Name: "joining as " + t.Name, Logger: cfg.Logger,
		Insecure: cfg.Insecure, pinned: t.CA, inbox: joinInbox + "." + t.ID,
	})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.awaitJoin(ctx); err != nil {
		return nil, err
	}
	for {
		actx, cancel := context.WithTimeout(ctx, askJoin)
		m, err := c.nc.RequestMsgWithContext(actx, &nats.Msg{Subject: c.subjects.join(t.ID), Data: body})
		cancel()
		switch {
		case err == nil:
			return j.take(t, req, asked, m.Data)
		case ctx.Err() != nil:
			return nil, fmt.Errorf("asking an issuer: %w; is one up?", errors.Join(ctx.Err(), err))
		}
		cfg.Logger.Warn("no issuer has answered, trying again", "error", err)
		sleep(ctx, 250*time.Millisecond)
	}
}

// awaitJoin is Await, but for refusals that no time mends.
func (c *Conn) awaitJoin(ctx context.Context) error {
	for !c.nc.IsConnected() {
		err := c.nc.LastError()
		switch {
		case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired):
			return errors.New("the bus refuses the join token (authorization violation): it has expired, or is of another bus")
		case errors.Is(err, errNotPinned), errors.Is(err, nats.ErrSecureConnWanted):
			return err
		case ctx.Err() != nil:
			return c.Await(ctx) // it says what to look at
		}
		sleep(ctx, 10*time.Millisecond)
	}
	return c.Await(ctx)
}

// take proves an answer by what the token pins, and makes the identity of it.
func (j *joining) take(t *Token, req *joinRequest, asked *joinAsked, data []byte) (*Identity, error) {
	var got joinAnswered
	if err := json.Unmarshal(data, &got); err != nil {
		return nil, errors.New("the issuer's answer is not what this version of sidekey knows")
	}
	if got.Error != "" {
		return nil, fmt.Errorf("the issuer refused: %s", got.Error)
	}
	var ans joinAnswer
	if err := json.Unmarshal(got.Answer, &ans); err != nil {
		return nil, errors.New("the issuer's answer is not what this version of sidekey knows")
	}
	authority, err := keyring.ParseAuthorityKey(ans.Authority)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(authorityFingerprint(authority), t.Authority) || !authority.Verify(signedAnswer(asked.Request, got.Answer), got.Signature) {
		return nil, fmt.Errorf("%w: the answer is not signed by the authority that the join token names", ErrForged)
	}
	if print, err := caFingerprint(ans.CA); err != nil || !bytes.Equal(print, t.CA) {
		return nil, fmt.Errorf("%w: the bus's CA is not the one that the join token names", ErrForged)
	}
	id := &Identity{
		Role: t.Role, Name: t.Name, Join: t.ID, URLs: ans.URLs, User: &User{JWT: ans.JWT, Seed: j.Seed},
		Signing: ed25519.NewKeyFromSeed(j.Signing), Authority: authority, CA: ans.CA, Peers: ans.Peers, Group: ans.Group,
	}
	if id.Sealing, err = keyring.ParseSealingKey(j.Sealing); err != nil {
		return nil, err
	}
	if t.Role == RoleIssuer {
		return id, id.open(ans.Sealed, req)
	}
	return id, nil
}

// open takes an issuer's secrets out of their box.
func (id *Identity) open(box []byte, req *joinRequest) error {
	plain, err := id.Sealing.Open(box, joinInfo(req)...)
	if err != nil {
		return fmt.Errorf("opening the issuers' secrets: %w", err)
	}
	var s issuerSecrets
	if err := json.Unmarshal(plain, &s); err != nil {
		return errors.New("the issuers' secrets are not what this version of sidekey knows")
	}
	if id.Master, err = keyring.ParseMasterKey([]byte(s.Master)); err != nil {
		return err
	}
	id.Keys, err = parseKeys(s.Keys)
	return err
}

// write puts the identity in place: its files are written beside, and the folder is renamed once all
// are on the disk.
func (id *Identity) write(dir string) error {
	files, err := id.files()
	if err != nil {
		return err
	}
	temp := dir + ".joining"
	for name, content := range files {
		if err := joinStep("file " + name); err != nil {
			return err
		}
		if err := WriteFile(filepath.Join(temp, name), content); err != nil {
			return err
		}
	}
	if err := joinStep("files"); err != nil {
		return err
	}
	if err := os.Rename(temp, dir); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := joinStep("renamed"); err != nil {
		return err
	}
	return os.Remove(filepath.Join(dir, joiningFile))
}
