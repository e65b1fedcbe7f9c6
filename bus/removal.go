package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
)

// ErrOwnRemoval refuses what would leave a cluster to whom it has removed.
var ErrOwnRemoval = errors.New("an issuer does not remove itself from its cluster: run this at another one, with --addr")

// Remove strikes a member off: its record says so, its credential is revoked, its connections are
// closed at once, and its unused tokens are void. ErrNotFound: nobody of that name, or removed before;
// of one removed before, what a failure may have left undone is done again.
func (e *Enrolment) Remove(ctx context.Context, role Role, name string) error {
	if role == RoleIssuer && e.cfg.Peers != nil && e.cfg.Peers.Self().Name == name {
		return ErrOwnRemoval
	}
	before, err := e.markRemoved(ctx, role, name)
	if err != nil {
		return err
	}
	if before == 0 && e.cfg.OnChange != nil {
		e.cfg.OnChange()
	}
	if err := e.cutOff(ctx, role, name); err != nil {
		return err
	}
	if before != 0 {
		return fmt.Errorf("%w: %s %q was removed at %s", ErrNotFound, role, name, time.Unix(before, 0).UTC().Format(time.RFC3339))
	}
	return nil
}

// markRemoved writes it into the member's record, and tells when that was done before; 0: it was not.
func (e *Enrolment) markRemoved(ctx context.Context, role Role, name string) (before int64, err error) {
	bucket := e.members(role)
	for {
		m, rev, err := readMember(ctx, bucket, name)
		if err != nil {
			return 0, err
		}
		if m.Removed() {
			return m.RemovedAt, nil
		}
		m.RemovedAt = time.Now().Unix()
		if err = writeMember(ctx, bucket, m, rev); !errors.Is(err, ErrConflict) {
			return 0, err
		}
	}
}

// cutOff is what follows from a member's record. It may be repeated.
func (e *Enrolment) cutOff(ctx context.Context, role Role, name string) error {
	if err := e.voidTokens(ctx, role, name); err != nil {
		return err
	}
	if e.cfg.Keys == nil {
		return nil // its credential is somebody else's
	}
	if role == RoleIssuer && e.cfg.Peers != nil {
		if err := e.dismiss(ctx, name); err != nil {
			return err
		}
	}
	if err := e.applyRemovals(ctx); err != nil || e.cfg.Peers == nil {
		return err
	}
	return e.tell()
}

// voidTokens takes back the tokens of a name that nobody has used.
func (e *Enrolment) voidTokens(ctx context.Context, role Role, name string) error {
	recs, err := e.cfg.Joins.List(ctx, "")
	if err != nil {
		return err
	}
	for _, rec := range recs {
		var inv invitation
		if json.Unmarshal(rec.Value, &inv) != nil || inv.Role != role || inv.Name != name || inv.Used != 0 {
			continue
		}
		if err := e.cfg.Joins.Delete(ctx, rec.Name, rec.Revision); err != nil && !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return nil
}

// hearRemoved has keepLooking look: another issuer has removed somebody, or let one in.
func (e *Enrolment) hearRemoved(*nats.Msg) {
	select {
	case e.told <- struct{}{}:
	default: // it is about to
	}
}

// lookWhoIsIn takes over who was removed and who came. First it looks whether it is this issuer that was: its own server
// refuses it once the removal is applied, and then it could not read so any more.
func (e *Enrolment) lookWhoIsIn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	err := e.refreshPeers(ctx)
	if !e.cfg.Keys.Operates() {
		return err
	}
	return errors.Join(err, e.applyRemovals(ctx))
}

// applyRemovals makes the bus's accounts refuse everybody who was removed. Without the operator's
// key it asks the issuer that has it.
func (e *Enrolment) applyRemovals(ctx context.Context) error {
	if !e.cfg.Keys.Operates() {
		return e.tell()
	}
	e.cut.Lock()
	defer e.cut.Unlock()
	revoked, err := e.revokedLocked(ctx)
	if err != nil {
		return err
	}
	if e.cfg.Server != nil {
		return e.cfg.Server.Revoke(revoked)
	}
	if len(revoked) == 0 || slices.Equal(e.pushed, revoked) {
		return nil
	}
	e.pushed = nil // until all is done
	if err := e.cfg.Conn.pushAccounts(ctx, e.cfg.Keys, revoked); err != nil {
		return err
	}
	e.pushed = revoked
	return nil
}

// revokedLocked gives the nkeys that are refused from now on, and keeps them in the file. e.cut is held.
func (e *Enrolment) revokedLocked(ctx context.Context) ([]string, error) {
	revoked, err := ReadRevoked(e.cfg.Revoked)
	if err != nil {
		return nil, err
	}
	known := len(revoked)
	if err := e.readAgentsLocked(ctx); err != nil {
		return nil, err
	}
	issuers, err := listMembers(ctx, e.cfg.Issuers)
	if err != nil {
		return nil, err
	}
	revoked = sortedSet(slices.Concat(revoked, e.agents.revoked, revokedOf(issuers)))
	if e.cfg.Revoked == "" || len(revoked) == known {
		return revoked, nil
	}
	text, err := json.Marshal(revoked)
	if err != nil {
		return nil, err
	}
	if err := WriteFile(e.cfg.Revoked, append(text, '\n')); err != nil {
		return nil, fmt.Errorf("writing the list of removed credentials: %w", err)
	}
	return revoked, nil
}

// readAgentsLocked reads which agents were removed, if anything was written since it last did: there may be thousands, and it is
// asked every few seconds. e.cut is held.
func (e *Enrolment) readAgentsLocked(ctx context.Context) error {
	last, err := e.cfg.Agents.lastSeq(ctx)
	if err != nil {
		return err
	}
	if e.agents.read && e.agents.last == last {
		return nil
	}
	members, err := listMembers(ctx, e.cfg.Agents)
	if err != nil {
		return err
	}
	e.agents = agentsRead{read: true, last: last, revoked: revokedOf(members)}
	return nil
}

// agentsRead is what the agents' records said when they were last read.
type agentsRead struct {
	read    bool
	last    uint64 // the bucket's last sequence, before
	revoked []string
}

// revokedOf gives the nkeys that the members had and have no longer.
func revokedOf(members []Member) (nkeys []string) {
	for _, m := range members {
		nkeys = append(nkeys, m.Former...)
		if m.Removed() {
			nkeys = append(nkeys, m.Nkey)
		}
	}
	return nkeys
}

// tell has the issuers that have the bus's keys look who was removed, and who came.
func (e *Enrolment) tell() error {
	if err := e.cfg.Conn.nc.Publish(e.cfg.Conn.subjects.removed(), nil); err != nil {
		return fmt.Errorf("telling the issuer that has the bus's keys of a removal: %w", err)
	}
	return nil
}

// ReadRevoked reads the nkeys that were revoked before, for a server that starts; none where the
// file is absent or has no name.
func ReadRevoked(path string) ([]string, error) {
	text, err := os.ReadFile(path)
	if path == "" || errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var revoked []string
	if err == nil {
		err = json.Unmarshal(text, &revoked)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the list of removed credentials %s: %w; remove it, and it is made anew", path, err)
	}
	return revoked, nil
}

// pushAccounts hands the accounts to a server elsewhere, which spreads them in its cluster.
func (c *Conn) pushAccounts(ctx context.Context, keys *Keys, revoked []string) error {
	user, err := keys.SystemUser()
	if err != nil {
		return err
	}
	cfg := c.cfg
	cfg.User, cfg.Credentials, cfg.Name = user, "", cfg.Name+" (accounts)"
	sys, err := Connect(cfg)
	if err != nil {
		return err
	}
	defer sys.Close()
	if err := sys.Await(ctx); err != nil {
		return err
	}
	accounts, err := keys.accounts(revoked)
	if err != nil {
		return err
	}
	for _, a := range accounts {
		if err := sys.pushAccount(ctx, a); err != nil {
			return fmt.Errorf("changing account %s on the bus: %w; has the server the resolver that `sidekey bus export` writes (type: full)?", a.name, err)
		}
	}
	return nil
}

func (c *Conn) pushAccount(ctx context.Context, a account) error {
	return retry(ctx, func(ctx context.Context) error {
		m, err := c.nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: "$SYS.REQ.CLAIMS.UPDATE", Data: []byte(a.token)})
		if err != nil {
			return err
		}
		var ans struct {
			Data  *struct{ Code int }
			Error *struct {
				Code        int
				Description string
			}
		}
		if err := json.Unmarshal(m.Data, &ans); err != nil {
			return err
		}
		if ans.Error != nil {
			return fmt.Errorf("the server answered: %s (%d)", ans.Error.Description, ans.Error.Code)
		}
		return nil
	})
}
