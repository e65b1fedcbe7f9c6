package bus

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/sidekey/sidekey/keyring"
)

// ErrRemoved means that this issuer was removed from its cluster.
var ErrRemoved = errors.New("this issuer was removed")

// How often an issuer looks who is in the cluster and who was removed. It is told of changes, but a message may be lost.
var (
	lookForPeers = 10 * time.Second // at least
	lookWithin   = 30 * time.Second // each time
	knockPause   = time.Second      // between two looks because somebody unknown came, whom anybody can send
)

// OpenFounder gives the identity of the issuer that founds a cluster and so has joined nobody: a bus credential and
// keys of its own like any member's, kept in a file under the master key.
func OpenFounder(path, name string, keys *Keys, master *keyring.MasterKey) (*Identity, error) {
	j := new(joining)
	box, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if j, err = newJoining(founderJoin); err != nil {
			return nil, fmt.Errorf("making this issuer's identity: %w", err)
		}
		plain, err := json.Marshal(j)
		if err == nil {
			err = WriteFile(path, master.Sealer("founder").Seal(plain))
		}
		if err != nil {
			return nil, fmt.Errorf("writing this issuer's identity: %w", err)
		}
	case err == nil:
		var plain []byte
		if plain, err = master.Sealer("founder").Open(box); err == nil {
			err = json.Unmarshal(plain, j)
		}
		fallthrough
	default:
		if err != nil {
			return nil, fmt.Errorf("reading this issuer's identity %s: %w; put the file back that belongs to this master key", path, err)
		}
	}
	id := &Identity{Role: RoleIssuer, Name: name, Join: founderJoin, User: &User{Seed: j.Seed}, Master: master, Keys: keys, Signing: ed25519.NewKeyFromSeed(j.Signing)}
	if id.Sealing, err = keyring.ParseSealingKey(j.Sealing); err != nil {
		return nil, err
	}
	nkey, err := id.User.nkeyOf()
	if err != nil {
		return nil, err
	}
	id.User.JWT, err = keys.mintIssuer(name, nkey)
	return id, err
}

// founderJoin stands in a founder's record where others have the id of their token.
const founderJoin = "founder"

// newJoining makes the keys of one who joins.
func newJoining(id string) (*joining, error) {
	nkey, err := nkeys.CreateUser()
	if err != nil {
		return nil, err
	}
	seed, err := nkey.Seed()
	if err != nil {
		return nil, err
	}
	_, signing, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	sealing, err := keyring.GenerateSealingKey()
	if err != nil {
		return nil, err
	}
	return &joining{ID: id, Seed: seed, Signing: signing.Seed(), Sealing: sealing.Private()}, nil
}

// Peer is the issuer's server in a cluster.
func (id *Identity) Peer(route string, urls []string) (Peer, error) {
	nkey, err := id.User.nkeyOf()
	return Peer{Name: id.Name, Nkey: nkey, Key: id.Signing.Public().(ed25519.PublicKey), Route: route, URLs: urls}, err
}

// Register writes this issuer's own record where it is absent, as a founder's is, or where its addresses have
// changed. ErrRemoved: somebody has struck it off.
func (e *Enrolment) Register(ctx context.Context, id *Identity) error {
	self := e.cfg.Peers.Self()
	for {
		m, rev, err := readMember(ctx, e.cfg.Issuers, id.Name)
		switch {
		case errors.Is(err, ErrNotFound) && id.Join == founderJoin:
			m = Member{Name: id.Name, Nkey: self.Nkey, SigningKey: self.Key, SealingKey: id.Sealing.Public(), Join: founderJoin, Joined: time.Now().Unix()}
		case err != nil:
			return fmt.Errorf("reading this issuer's record: %w", err)
		case m.Nkey == self.Nkey && !m.Removed() && m.Route == self.Route && slices.Equal(m.URLs, self.URLs):
			return nil
		case m.Nkey != self.Nkey || m.Removed():
			return removedAt(m)
		}
		m.Route, m.URLs = self.Route, self.URLs
		if err = writeMember(ctx, e.cfg.Issuers, m, rev); !errors.Is(err, ErrConflict) && !errors.Is(err, ErrExists) {
			return errors.Join(err, e.tell())
		}
	}
}

func removedAt(m Member) error {
	if !m.Removed() {
		return fmt.Errorf("%w: another one has joined as %q since; to take this host in again, let it join anew in a fresh data_dir", ErrRemoved, m.Name)
	}
	return fmt.Errorf("%w from the cluster at %s; to take this host in again, run `sidekey issuers add` at another issuer and let it join anew in a fresh data_dir",
		ErrRemoved, time.Unix(m.RemovedAt, 0).UTC().Format(time.RFC3339))
}

// urls are the addresses of the bus that those who join are told.
func (e *Enrolment) urls() []string {
	all := slices.Clone(e.cfg.URLs)
	if e.cfg.Peers != nil {
		for _, u := range e.cfg.Peers.URLs() {
			if !slices.Contains(all, u) {
				all = append(all, u)
			}
		}
	}
	return all
}

// checkServer refuses an issuer that brings no server to a cluster, or brings one where there is none.
func (e *Enrolment) checkServer(req *joinRequest) error {
	switch {
	case req.Role != RoleIssuer && (req.Route != "" || len(req.URLs) > 0):
		return errors.New("an agent brings no server")
	case req.Role != RoleIssuer:
		return nil
	case e.cfg.Peers == nil && req.Route != "":
		return errors.New("this bus is no cluster: set bus.cluster.listen on the issuer that has the bus, or leave it out on the one that joins")
	case e.cfg.Peers == nil:
		return nil
	case req.Route == "":
		return errors.New("this bus is a cluster: set bus.cluster.listen on the issuer that joins")
	}
	host, _, err := net.SplitHostPort(req.Route)
	if err != nil || host == "" || len(req.Route) > 300 || len(req.URLs) > 16 {
		return fmt.Errorf("the address of its routes, %q, is not host:port", req.Route)
	}
	return nil
}

// introduce tells one who joins a cluster who is in it, and the others of it.
func (e *Enrolment) introduce(ctx context.Context, ans *joinAnswer) error {
	if err := e.refreshPeers(ctx); err != nil {
		return err
	}
	ans.Peers = append(e.cfg.Peers.Others(), e.cfg.Peers.Self())
	var err error
	if ans.Group, err = e.cfg.Server.group(); err != nil {
		return err
	}
	return e.tell()
}

// refreshPeers takes over who is in the cluster, and notices when this issuer is not any more.
func (e *Enrolment) refreshPeers(ctx context.Context) error {
	if e.cfg.Peers == nil {
		return nil
	}
	members, err := listMembers(ctx, e.cfg.Issuers)
	if err != nil {
		return err
	}
	self := e.cfg.Peers.Self()
	var all []Peer
	for _, m := range members {
		if m.Name == self.Name && (m.Removed() || m.Nkey != self.Nkey) && e.cfg.OnRemoved != nil {
			e.cfg.OnRemoved(removedAt(m))
		}
		if !m.Removed() && m.Route != "" {
			all = append(all, m.peer())
		}
	}
	gone, err := e.cfg.Peers.set(all)
	if e.cfg.Server != nil {
		err = errors.Join(err, e.cfg.Server.keepRoutes(gone))
	}
	return err
}

// keepLooking looks who is in the cluster and who was removed: when it is told, now and then, so that what failed or was not heard
// is done all the same, and when somebody comes whom it does not know.
func (e *Enrolment) keepLooking(ctx context.Context) {
	look := time.NewTicker(lookForPeers)
	defer look.Stop()
	knocked := e.knocks()
	var quiet <-chan time.Time
	for {
		select {
		case <-look.C:
		case <-e.told:
		case <-knocked:
			knocked, quiet = nil, time.After(knockPause)
		case <-quiet:
			knocked, quiet = e.knocks(), nil
			continue
		case <-ctx.Done():
			return
		}
		if err := e.lookWhoIsIn(ctx); err != nil && ctx.Err() == nil {
			e.cfg.Logger.Error("could not look who was removed and who is in the cluster, trying again", "error", err)
		}
	}
}

// knocks tells of those who came and are not known; nil: this is no cluster.
func (e *Enrolment) knocks() <-chan struct{} {
	if e.cfg.Peers == nil {
		return nil
	}
	return e.cfg.Peers.knocked
}

// dismiss takes a removed issuer's server out of the group that holds the cluster's state: its place in the streams
// goes to another, as soon as there is one.
func (e *Enrolment) dismiss(ctx context.Context, name string) error {
	m, _, err := readMember(ctx, e.cfg.Issuers, name)
	if err != nil {
		return err
	}
	if err := e.refreshPeers(ctx); err != nil {
		return err
	}
	if m.Route == "" {
		return nil
	}
	user, err := e.cfg.Keys.SystemUser()
	if err != nil {
		return err
	}
	sys, err := Connect(ConnectConfig{Server: e.cfg.Server, User: user, Name: "sidekey cluster", Logger: e.cfg.Logger})
	if err != nil {
		return err
	}
	defer sys.Close()
	body, err := json.Marshal(map[string]string{"peer": m.peer().Server(), "peer_id": peerID(m.peer().Server())})
	if err != nil {
		return err
	}
	err = retry(ctx, func(ctx context.Context) error { return sys.removeServer(ctx, body) })
	if err != nil {
		return fmt.Errorf("taking the server of %q out of the cluster: %w; that needs more than half of the servers: when they are up, run the command again", name, err)
	}
	return nil
}

func (c *Conn) removeServer(ctx context.Context, body []byte) error {
	const (
		subject   = "$JS.API.SERVER.REMOVE"
		notMember = 10044 // JSClusterServerNotMemberErr
		inFlight  = 10202 // JSClusterServerMemberChangeInflightErr
	)
	m, err := c.nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: subject, Data: body})
	if err != nil {
		return err
	}
	var ans struct {
		Error *struct {
			ErrCode     int    `json:"err_code"`
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &ans); err != nil {
		return err
	}
	switch {
	case ans.Error == nil || ans.Error.ErrCode == notMember:
		return nil
	case ans.Error.ErrCode == inFlight:
		return nats.ErrTimeout // another change is under way: try again
	}
	return fmt.Errorf("the server answered: %s (%d)", ans.Error.Description, ans.Error.ErrCode)
}

// Refused tells whether a server of the cluster refuses this issuer's credential: then it was removed.
func Refused(ctx context.Context, id *Identity, keys *Keys, urls []string) bool {
	for _, u := range urls {
		if ctx.Err() != nil {
			return false
		}
		cfg := ConnectConfig{URLs: []string{u}, User: id.User, CA: keys.CAPEM(), Name: "issuer " + id.Name}
		if !strings.HasPrefix(u, "tls://") {
			cfg.CA, cfg.Insecure = nil, true // the question tells nobody anything: the nonce is signed, not the seed sent
		}
		auth, err := credential(cfg)
		if err != nil {
			return false
		}
		c := &Conn{servers: openServers(cfg, hclog.NewNullLogger())}
		secure, err := c.secureOptions(cfg)
		if err != nil {
			return false
		}
		nc, err := nats.Connect(u, append(secure, auth, nats.Name(cfg.Name), nats.NoReconnect(), nats.Timeout(attempt))...)
		if err == nil {
			nc.Close()
			continue
		}
		if ctx.Err() == nil && (errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthRevoked)) {
			return true
		}
	}
	return false
}
