package bus

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sidekey/sidekey/keyring"
)

// Role is what somebody joins as.
type Role string

// The roles.
const (
	RoleAgent  Role = "agent"
	RoleIssuer Role = "issuer"
)

// command names the commands about a role: "agents".
func (r Role) command() string { return string(r) + "s" }

const tokenPrefix = "sidekey-join-1:"

// maxToken bounds a join token's text.
const maxToken = 16 << 10

// Token lets one agent or issuer join, once, under the name that it is for. As text it is
// "sidekey-join-1:" and base64url of
//
//	{"role": "agent", "name": "web-1", "id": "…", "urls": ["tls://10.0.0.5:7463"], "ca": "…", "authority": "…",
//	 "exp": 1767225600, "user": {"jwt": "…", "seed": "…"}}
//
// It is a secret: who has it first joins. The user may send one request and hear its answer.
type Token struct {
	Role      Role     `json:"role"`
	Name      string   `json:"name"`
	ID        string   `json:"id"`
	URLs      []string `json:"urls"`
	CA        []byte   `json:"ca,omitempty"` // SHA-256 of the bus's CA; none: the system's CAs, or no TLS
	Authority []byte   `json:"authority"`    // SHA-256 of the authority's public key
	Expires   int64    `json:"exp"`          // NumericDate
	User      User     `json:"user"`
}

// Text is the token as it is handed over.
func (t *Token) Text() (string, error) {
	body, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("writing a join token: %w", err)
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(body), nil
}

// ParseToken reads a token's text; white space around it is allowed.
func ParseToken(text []byte) (*Token, error) {
	text = bytes.TrimSpace(text)
	rest, ok := bytes.CutPrefix(text, []byte(tokenPrefix))
	body, err := base64.RawURLEncoding.DecodeString(string(rest))
	if !ok || err != nil || len(text) > maxToken {
		return nil, fmt.Errorf("reading the join token: it is not %q and base64url; copy the whole line that `sidekey agents add` printed", tokenPrefix)
	}
	t := new(Token)
	if err := json.Unmarshal(body, t); err != nil {
		return nil, errors.New("reading the join token: it is damaged; copy the whole line that `sidekey agents add` printed")
	}
	if t.Role != RoleAgent && t.Role != RoleIssuer || t.ID == "" || len(t.Authority) != sha256.Size || CheckName(t.Name) != nil ||
		len(t.URLs) == 0 || len(t.CA) != 0 && len(t.CA) != sha256.Size {
		return nil, errors.New("reading the join token: a part of it is missing; ask for another with `sidekey agents add`")
	}
	return t, nil
}

// expired says that, where it is so: sooner than a server's refusal would, and in plain words.
func (t *Token) expired(now time.Time) error {
	if at := time.Unix(t.Expires, 0); now.After(at) {
		return fmt.Errorf("joining as %q: the join token expired at %s; ask for another with `sidekey %s add %s`", t.Name, at.UTC().Format(time.RFC3339), t.Role.command(), t.Name)
	}
	return nil
}

func authorityFingerprint(key keyring.AuthorityKey) []byte {
	sum := sha256.Sum256(key)
	return sum[:]
}

// The words of joining. A request is signed by the token's user, by the new nkey and by the new
// Ed25519 key: whoever asks has all three. Its answer is signed by the authority.
type (
	joinRequest struct {
		ID         string `json:"id"`
		Role       Role   `json:"role"`
		Name       string `json:"name"`
		Nkey       string `json:"nkey"`
		SigningKey []byte `json:"signing_key"` // Ed25519, public
		SealingKey []byte `json:"sealing_key"` // MLKEM768X25519, public
		// Of an issuer that brings a server into a cluster: where its routes and its clients reach it.
		Route string   `json:"route,omitempty"`
		URLs  []string `json:"urls,omitempty"`

		audiences []string // those that the token allows, once it is proven
	}
	joinAsked struct {
		Request  []byte `json:"request"` // a joinRequest's JSON
		ByToken  []byte `json:"by_token"`
		ByNkey   []byte `json:"by_nkey"`
		BySigner []byte `json:"by_signer"`
	}
	joinAnswered struct {
		Error     string `json:"error,omitempty"`  // or:
		Answer    []byte `json:"answer,omitempty"` // a joinAnswer's JSON
		Signature []byte `json:"signature,omitempty"`
	}
	joinAnswer struct {
		JWT       string   `json:"jwt"`
		Authority string   `json:"authority"`
		CA        []byte   `json:"ca,omitempty"` // PEM
		URLs      []string `json:"urls"`
		Sealed    []byte   `json:"sealed,omitempty"` // an issuer's secrets, for its sealing key
		Peers     []Peer   `json:"peers,omitempty"`  // the issuers of the cluster that it joins
		Group     []string `json:"group,omitempty"`  // ids of the servers that hold its state
	}
	// issuerSecrets are what an issuer needs beside what an agent gets.
	issuerSecrets struct {
		Master string          `json:"master"`
		Keys   json.RawMessage `json:"keys"`
	}
)

func signedJoin(request []byte) []byte { return append([]byte("sidekey-join-1\x00"), request...) }

// signedAnswer binds an answer to what was asked.
func signedAnswer(request, answer []byte) []byte {
	sum := sha256.Sum256(request)
	return append(append([]byte("sidekey-joined-1\x00"), sum[:]...), answer...)
}

// joinInfo is where an issuer's secrets are sealed for.
func joinInfo(req *joinRequest) [][]byte {
	return [][]byte{[]byte("join"), []byte(req.ID), []byte(req.Name)}
}
