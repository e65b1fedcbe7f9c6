package bus

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/sidekey/sidekey/keyring"
)

// KeysFile is the name of Keys' file in an issuer's data_dir.
const KeysFile = "bus.keys"

// Keys say who may use a bus: the seeds with which operator, accounts and users are signed, in NATS'
// operator mode, and the CA of its TLS. Whoever holds them decides who comes in. There are three
// accounts: one for the issuers, which has all streams and buckets; one for the agents, which sees
// of the issuers' account only what that exports; and the system's.
//
// The operator's own seed and the CA's key stay with the issuer that made them; an issuer that joins gets the others,
// and can let agents in but not change the accounts. In a cluster all issuers have all: each has a server of its own to
// configure, and any of them may be the one that is left.
type Keys struct {
	operator, system nkeys.KeyPair // nil: held elsewhere
	issuers, agents  nkeys.KeyPair // the accounts' own keys; public only where operator is nil
	issuerSigner     nkeys.KeyPair // signs users of the issuers' account
	agentSigner      nkeys.KeyPair // signs agents: their account says what they may do
	joinSigner       nkeys.KeyPair // signs the holders of join tokens, likewise
	ca               *x509.Certificate
	caKey            *ecdsa.PrivateKey // nil: held elsewhere
	subjects         subjects
}

// storedKeys are Keys in their file, sealed under the master key: nkey seeds, or public keys where
// the seed is not held; the CA's certificate and key in DER.
type storedKeys struct {
	Operator     string `json:"operator,omitempty"`
	System       string `json:"system,omitempty"`
	Issuers      string `json:"issuers"`
	Agents       string `json:"agents"`
	IssuerSigner string `json:"issuer_signer"`
	AgentSigner  string `json:"agent_signer"`
	JoinSigner   string `json:"join_signer"`
	CA           []byte `json:"ca"`
	CAKey        []byte `json:"ca_key,omitempty"`
}

// NewKeys makes the keys of a new bus.
func NewKeys() (*Keys, error) {
	k := &Keys{subjects: DefaultPrefix}
	var err error
	if k.operator, err = nkeys.CreateOperator(); err != nil {
		return nil, fmt.Errorf("making the bus's keys: %w", err)
	}
	for _, kp := range []*nkeys.KeyPair{&k.system, &k.issuers, &k.agents, &k.issuerSigner, &k.agentSigner, &k.joinSigner} {
		if *kp, err = nkeys.CreateAccount(); err != nil {
			return nil, fmt.Errorf("making the bus's keys: %w", err)
		}
	}
	if k.ca, k.caKey, err = newCA(time.Now()); err != nil {
		return nil, err
	}
	return k, nil
}

// OpenKeys reads the keys from their file, and makes them where it is absent.
func OpenKeys(path string, master *keyring.MasterKey) (*Keys, error) {
	k, err := ReadKeys(path, master)
	if !errors.Is(err, os.ErrNotExist) {
		return k, err
	}
	if k, err = NewKeys(); err != nil {
		return nil, err
	}
	plain, err := k.marshal()
	if err != nil {
		return nil, err
	}
	if err := WriteFile(path, sealKeys(master, plain)); err != nil {
		return nil, fmt.Errorf("writing the bus's keys: %w", err)
	}
	return k, nil
}

// ReadKeys reads the keys from their file. os.ErrNotExist: there is none.
func ReadKeys(path string, master *keyring.MasterKey) (*Keys, error) {
	box, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the bus's keys: %w", err)
	}
	if err := CheckPrivateFile(path); err != nil {
		return nil, err
	}
	plain, err := master.Sealer("bus keys").Open(box)
	if err != nil {
		return nil, fmt.Errorf("reading the bus's keys %s: %w; put the file back that belongs to this master key", path, err)
	}
	k, err := parseKeys(plain)
	if err != nil {
		return nil, fmt.Errorf("reading the bus's keys %s: %w", path, err)
	}
	return k, nil
}

func sealKeys(master *keyring.MasterKey, plain []byte) []byte {
	return master.Sealer("bus keys").Seal(plain)
}

func (k *Keys) marshal() ([]byte, error) {
	s := storedKeys{CA: k.ca.Raw}
	for _, m := range []struct {
		to *string
		kp nkeys.KeyPair
	}{
		{&s.Operator, k.operator}, {&s.System, k.system}, {&s.Issuers, k.issuers}, {&s.Agents, k.agents},
		{&s.IssuerSigner, k.issuerSigner}, {&s.AgentSigner, k.agentSigner}, {&s.JoinSigner, k.joinSigner},
	} {
		if m.kp == nil {
			continue
		}
		seed, err := m.kp.Seed()
		if errors.Is(err, nkeys.ErrPublicKeyOnly) {
			*m.to, err = m.kp.PublicKey()
		} else {
			*m.to = string(seed)
		}
		if err != nil {
			return nil, fmt.Errorf("writing the bus's keys: %w", err)
		}
	}
	if k.caKey != nil {
		var err error
		if s.CAKey, err = x509.MarshalPKCS8PrivateKey(k.caKey); err != nil {
			return nil, fmt.Errorf("writing the bus's keys: %w", err)
		}
	}
	return json.Marshal(s)
}

func parseKeys(plain []byte) (*Keys, error) {
	var s storedKeys
	if err := json.Unmarshal(plain, &s); err != nil {
		return nil, err
	}
	k := &Keys{subjects: DefaultPrefix}
	for _, m := range []struct {
		kp       *nkeys.KeyPair
		from     string
		optional bool
	}{
		{&k.operator, s.Operator, true}, {&k.system, s.System, true}, {&k.issuers, s.Issuers, false}, {&k.agents, s.Agents, false},
		{&k.issuerSigner, s.IssuerSigner, false}, {&k.agentSigner, s.AgentSigner, false}, {&k.joinSigner, s.JoinSigner, false},
	} {
		var err error
		switch {
		case m.from == "" && m.optional:
		case nkeys.IsValidPublicAccountKey(m.from):
			*m.kp, err = nkeys.FromPublicKey(m.from)
		default:
			*m.kp, err = nkeys.FromSeed([]byte(m.from))
		}
		if err != nil {
			return nil, errors.New("a seed in it is damaged")
		}
	}
	var err error
	if k.ca, err = x509.ParseCertificate(s.CA); err != nil {
		return nil, fmt.Errorf("its CA: %w", err)
	}
	if s.CAKey != nil {
		key, err := x509.ParsePKCS8PrivateKey(s.CAKey)
		if err != nil {
			return nil, fmt.Errorf("its CA: %w", err)
		}
		var ok bool
		if k.caKey, ok = key.(*ecdsa.PrivateKey); !ok {
			return nil, errors.New("its CA's key is no ECDSA key")
		}
	}
	return k, nil
}

// shared are the keys that an issuer gets when it joins: it may let issuers and agents in.
func (k *Keys) shared() (*Keys, error) {
	s := &Keys{issuerSigner: k.issuerSigner, agentSigner: k.agentSigner, joinSigner: k.joinSigner, ca: k.ca, subjects: k.subjects}
	for _, m := range []struct{ from, to *nkeys.KeyPair }{{&k.issuers, &s.issuers}, {&k.agents, &s.agents}} {
		pub, err := (*m.from).PublicKey()
		if err != nil {
			return nil, err
		}
		if *m.to, err = nkeys.FromPublicKey(pub); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Operates tells whether the operator's own seed is held here: without it accounts cannot be changed,
// so nobody can be cut off here.
func (k *Keys) Operates() bool { return k.operator != nil }

// User is who connects to a bus: a JWT that says what it may do, and the seed of the nkey it is for.
type User struct {
	JWT  string `json:"jwt"`
	Seed []byte `json:"seed"`
}

// ParseUser reads a .creds file, as Creds writes it.
func ParseUser(creds []byte) (*User, error) {
	token, err := jwt.ParseDecoratedJWT(creds)
	if err != nil {
		return nil, fmt.Errorf("reading a bus credential: %w", err)
	}
	kp, err := jwt.ParseDecoratedUserNKey(creds)
	if err != nil {
		return nil, fmt.Errorf("reading a bus credential: %w", err)
	}
	seed, err := kp.Seed()
	if err != nil {
		return nil, fmt.Errorf("reading a bus credential: %w", err)
	}
	return &User{JWT: token, Seed: seed}, nil
}

// Creds is the user as nats.go, the nats command and ParseUser read it.
func (u *User) Creds() ([]byte, error) { return jwt.FormatUserConfig(u.JWT, u.Seed) }

// newUser makes a user with an nkey of its own.
func newUser(mint func(nkey string) (string, error)) (*User, error) {
	kp, err := nkeys.CreateUser()
	if err != nil {
		return nil, fmt.Errorf("making a bus credential: %w", err)
	}
	u := new(User)
	if u.Seed, err = kp.Seed(); err != nil {
		return nil, fmt.Errorf("making a bus credential: %w", err)
	}
	nkey, err := kp.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("making a bus credential: %w", err)
	}
	u.JWT, err = mint(nkey)
	return u, err
}

// IssuerUser makes a user of the issuers' account that may do everything in it. Its seed is new: it
// is made at each start, and never leaves the process.
func (k *Keys) IssuerUser(name string) (*User, error) {
	return newUser(func(nkey string) (string, error) { return k.mintIssuer(name, nkey) })
}

func (k *Keys) mintIssuer(name, nkey string) (string, error) {
	uc := jwt.NewUserClaims(nkey)
	uc.Name = "issuer " + name
	return k.mint(uc, k.issuers, k.issuerSigner)
}

// SystemUser makes a user of the system account, which may change accounts on a server with the full resolver.
func (k *Keys) SystemUser() (*User, error) {
	if k.operator == nil {
		return nil, errors.New("making a credential of the system account: its key is with the issuer that made this bus")
	}
	return newUser(func(nkey string) (string, error) {
		uc := jwt.NewUserClaims(nkey)
		uc.Name = "sidekey system"
		uc.Expires = time.Now().Add(time.Hour).Unix()
		return k.mint(uc, k.system, k.system)
	})
}

// mintAgent makes the JWT of an agent's nkey. What it may do stands in its account, as a template
// over the name, so that a later version may allow more without the agents' joining again.
func (k *Keys) mintAgent(agent, nkey string) (string, error) {
	uc := jwt.NewUserClaims(nkey)
	uc.SetScoped(true)
	uc.Name = encodePart(agent)
	return k.mint(uc, k.agents, k.agentSigner)
}

// AgentUser makes a user that may do what the agent of a name may. It is for tests and tools: an agent
// that joins makes its seed itself, and nobody else ever has it.
func (k *Keys) AgentUser(agent string) (*User, error) {
	return newUser(func(nkey string) (string, error) { return k.mintAgent(agent, nkey) })
}

// joinUser makes the credential in a join token.
func (k *Keys) joinUser(id string, expires time.Time) (*User, error) {
	return newUser(func(nkey string) (string, error) {
		uc := jwt.NewUserClaims(nkey)
		uc.SetScoped(true)
		uc.Name = id
		uc.Expires = expires.Unix()
		return k.mint(uc, k.agents, k.joinSigner)
	})
}

func (k *Keys) mint(uc *jwt.UserClaims, account, signer nkeys.KeyPair) (string, error) {
	pub, err := account.PublicKey()
	if err == nil && signer != account {
		uc.IssuerAccount = pub
	}
	if err != nil {
		return "", fmt.Errorf("making a bus credential: %w", err)
	}
	token, err := uc.Encode(signer)
	if err != nil {
		return "", fmt.Errorf("making a bus credential: %w", err)
	}
	return token, nil
}

// nkeyOf is a user's public key.
func (u *User) nkeyOf() (string, error) {
	kp, err := nkeys.FromSeed(u.Seed)
	if err != nil {
		return "", fmt.Errorf("reading a bus credential: %w", err)
	}
	return kp.PublicKey()
}

// sortedSet gives each once, in order.
func sortedSet(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}
