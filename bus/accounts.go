package bus

import (
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// agentScope is the allow-list of an agent (DESIGN §9), with {{name()}} for its encoded name: read
// the log live and back, read checkpoints, ask for a lease, acknowledge, tell its status and which
// credentials were used, ask whether a password is right, hear the issuers' questions and answer them,
// hear its own answers; nothing else.
func (s subjects) agentScope() jwt.Permissions {
	const self = "{{name()}}"
	return jwt.Permissions{
		Pub: jwt.Permission{Allow: append(s.directReads(), s.lease(self), s.ack(self), s.status(self), s.used(self), s.basic(self), s.answer(self))},
		Sub: jwt.Permission{Allow: []string{s.live(">"), s.ask(), agentInbox + "." + self + ".>"}},
	}
}

// joinScope is the allow-list of a join token's holder: ask to join, hear the answer.
func (s subjects) joinScope() jwt.Permissions {
	const self = "{{name()}}"
	return jwt.Permissions{
		Pub: jwt.Permission{Allow: []string{s.join(self)}},
		Sub: jwt.Permission{Allow: []string{joinInbox + "." + self + ".>"}},
	}
}

// directReads are the requests by which log and checkpoints are read.
func (s subjects) directReads() (all []string) {
	for _, stream := range []string{s.logStream(), s.checkpointStream()} {
		all = append(all, "$JS.API.DIRECT.GET."+stream, "$JS.API.DIRECT.GET."+stream+".>")
	}
	return all
}

// heard are the messages of the issuers' account that reach into the agents'.
func (s subjects) heard() []string { return []string{s.live(">"), s.ask()} }

// services are the requests that reach from the agents' account into the issuers'. Agents stand in
// an account of their own because permissions alone would not hold them: nats-server does not check
// the reply subject of a request, so a direct get whose answer is addressed to <prefix>.log.revoke
// would be written into the log, and stop every reader. The answer to a request across accounts goes
// back to the asking account, and nowhere else.
func (s subjects) services() []string {
	return append(s.directReads(), s.lease(Any), s.ack(Any), s.status(Any), s.used(Any), s.basic(Any), s.answer(Any), s.join(Any))
}

// operatorClaims, systemJWT and accountJWTs are what a server is configured with.
func (k *Keys) operatorClaims() (*jwt.OperatorClaims, string, error) {
	if k.operator == nil {
		return nil, "", errors.New("describing the bus: its operator's key is with the issuer that made it")
	}
	operator, oerr := k.operator.PublicKey()
	system, serr := k.system.PublicKey()
	if err := errors.Join(oerr, serr); err != nil {
		return nil, "", err
	}
	oc := jwt.NewOperatorClaims(operator)
	oc.Name = "sidekey"
	oc.SystemAccount = system
	token, err := oc.Encode(k.operator)
	return oc, token, err
}

// account is an account's public key and its JWT.
type account struct{ name, key, token string }

func (k *Keys) systemAccount() (account, error) {
	key, err := k.system.PublicKey()
	if err != nil {
		return account{}, err
	}
	ac := jwt.NewAccountClaims(key)
	ac.Name = "SYS"
	token, err := ac.Encode(k.operator)
	return account{ac.Name, key, token}, err
}

// accounts describes the issuers' and the agents' account, without the users in revoked (nkeys).
func (k *Keys) accounts(revoked []string) ([]account, error) {
	if k.operator == nil {
		return nil, errors.New("changing the bus's accounts: the operator's key is with the issuer that made this bus; run this there")
	}
	issuers, err := k.issuersClaims()
	if err != nil {
		return nil, err
	}
	agents, err := k.agentsClaims(issuers.Subject)
	if err != nil {
		return nil, err
	}
	var all []account
	for _, ac := range []*jwt.AccountClaims{issuers, agents} {
		a, err := k.signAccount(ac, revoked)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// signAccount signs an account that lets the users in revoked (nkeys) in no more.
func (k *Keys) signAccount(ac *jwt.AccountClaims, revoked []string) (account, error) {
	for _, nkey := range revoked {
		// An nkey is never used again, so no JWT of it, whenever it was signed, is of use.
		ac.Revocations.Revoke(nkey, time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC))
	}
	token, err := ac.Encode(k.operator)
	if err != nil {
		return account{}, fmt.Errorf("signing account %s: %w", ac.Name, err)
	}
	return account{ac.Name, ac.Subject, token}, nil
}

func (k *Keys) issuersClaims() (*jwt.AccountClaims, error) {
	key, kerr := k.issuers.PublicKey()
	signer, serr := k.issuerSigner.PublicKey()
	if err := errors.Join(kerr, serr); err != nil {
		return nil, err
	}
	ac := jwt.NewAccountClaims(key)
	ac.Name = "SIDEKEY"
	ac.Revocations = jwt.RevocationList{}
	ac.SigningKeys.Add(signer)
	ac.Limits.JetStreamLimits = jwt.JetStreamLimits{
		MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit, MaxAckPending: jwt.NoLimit,
	}
	for _, subject := range k.subjects.heard() {
		ac.Exports.Add(&jwt.Export{Name: subject, Subject: jwt.Subject(subject), Type: jwt.Stream})
	}
	for _, subject := range k.subjects.services() {
		ac.Exports.Add(&jwt.Export{Name: subject, Subject: jwt.Subject(subject), Type: jwt.Service, ResponseType: jwt.ResponseTypeStream}) // a direct get has many answers
	}
	return ac, nil
}

// agentsClaims describes the agents' account as the servers with the issuers have it.
func (k *Keys) agentsClaims(issuers string) (*jwt.AccountClaims, error) {
	ac, err := k.agentsAlone()
	if err != nil {
		return nil, err
	}
	for _, subject := range k.subjects.heard() {
		ac.Imports.Add(&jwt.Import{Name: subject, Subject: jwt.Subject(subject), Account: issuers, Type: jwt.Stream})
	}
	for _, subject := range k.subjects.services() {
		ac.Imports.Add(&jwt.Import{Name: subject, Subject: jwt.Subject(subject), Account: issuers, Type: jwt.Service})
	}
	return ac, nil
}

// agentsAlone describes the agents' account with who may come in and nothing that comes from the issuers'.
func (k *Keys) agentsAlone() (*jwt.AccountClaims, error) {
	key, err := k.agents.PublicKey()
	if err != nil {
		return nil, err
	}
	ac := jwt.NewAccountClaims(key)
	ac.Name = "SIDEKEY_AGENTS"
	ac.Revocations = jwt.RevocationList{}
	for _, scope := range []struct {
		role   string
		signer nkeys.KeyPair
		may    jwt.Permissions
	}{{"agent", k.agentSigner, k.subjects.agentScope()}, {"join", k.joinSigner, k.subjects.joinScope()}} {
		us := jwt.NewUserScope()
		if us.Key, err = scope.signer.PublicKey(); err != nil {
			return nil, err
		}
		us.Role = scope.role
		us.Template.Permissions = scope.may
		us.Template.NatsLimits = jwt.NatsLimits{Subs: 256, Data: jwt.NoLimit, Payload: 128 << 10}
		us.Template.AllowedConnectionTypes = []string{jwt.ConnectionTypeStandard, jwt.ConnectionTypeInProcess}
		if scope.role == "join" {
			us.Template.NatsLimits.Subs = 8
		}
		ac.SigningKeys.AddScopedSigner(us)
	}
	return ac, nil
}
