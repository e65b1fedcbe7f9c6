package bus

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
)

// Peer is an issuer of a cluster, as the others know its server.
type Peer struct {
	Name  string   `json:"name"`           // the issuer's
	Nkey  string   `json:"nkey"`           // public: of its bus credential
	Key   []byte   `json:"key"`            // its Ed25519 key, public: its routes' certificates are for it
	Route string   `json:"route"`          // host:port at which its routes are met
	URLs  []string `json:"urls,omitempty"` // under which agents reach it
}

// Server is the name of the peer's server. It is another one each time that an issuer joins: a cluster does not take
// a server back under the name of one that was removed, and its store begins empty.
func (p Peer) Server() string {
	sum := sha256.Sum256([]byte(p.Nkey))
	return strings.Trim(p.Name, ".") + "-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
}

// Peers are the issuers of a cluster, in a file of the one whose process this is: a server has to know whom it lets
// in before there is a bus to ask. It is no secret.
//
//	{"self": {"name": "a", …}, "peers": [{"name": "b", …}], "group": ["hX3k2P5q"], "begun": true}
type Peers struct {
	path string

	mu      sync.Mutex
	state   peersState
	knocked chan struct{} // holds one when somebody unknown came
}

type peersState struct {
	Self  Peer     `json:"self"`
	Peers []Peer   `json:"peers"` // without self
	Group []string `json:"group"` // ids of the servers that held the cluster's state as this one joined; none: it founded the cluster
	Begun bool     `json:"begun"` // its server has run: a store that is gone has been lost
}

// OpenPeers reads the file. Absent, it is made of what joining gave: a founder's group is empty. The
// names and keys of self stand; its addresses are those given.
func OpenPeers(path string, self Peer, joined []Peer, group []string) (*Peers, error) {
	p := &Peers{path: path, knocked: make(chan struct{}, 1)}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		p.state = peersState{Peers: joined, Group: group}
	case err == nil:
		err = json.Unmarshal(text, &p.state)
		fallthrough
	default:
		if err != nil {
			return nil, fmt.Errorf("reading the issuers of the cluster, %s: %w; put the file back, or remove this issuer and join anew", path, err)
		}
		if was := p.state.Self; was.Nkey != self.Nkey || was.Name != self.Name {
			return nil, fmt.Errorf("reading the issuers of the cluster, %s: it is of issuer %q, and this is %q; give each issuer a data_dir of its own", path, was.Name, self.Name)
		}
	}
	p.state.Self = self
	p.state.Peers = slices.DeleteFunc(p.state.Peers, func(o Peer) bool { return o.Name == self.Name })
	return p, p.write()
}

func (p *Peers) write() error {
	text, err := json.Marshal(p.state)
	if err == nil {
		err = WriteFile(p.path, append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("writing the issuers of the cluster: %w", err)
	}
	return nil
}

// Self is the issuer whose file it is.
func (p *Peers) Self() Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.Self
}

// Others are the other issuers.
func (p *Peers) Others() []Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.state.Peers)
}

// URLs are the addresses at which agents find the cluster, one's own first.
func (p *Peers) URLs() (all []string) {
	for _, o := range append([]Peer{p.Self()}, p.Others()...) {
		for _, u := range o.URLs {
			if !slices.Contains(all, u) {
				all = append(all, u)
			}
		}
	}
	return all
}

// set replaces the others, and tells whether somebody is gone.
func (p *Peers) set(all []Peer) (gone bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	others := slices.DeleteFunc(slices.Clone(all), func(o Peer) bool { return o.Name == p.state.Self.Name })
	was, _ := json.Marshal(p.state.Peers) // plain data
	now, _ := json.Marshal(others)
	if bytes.Equal(was, now) {
		return false, nil
	}
	for _, o := range p.state.Peers {
		gone = gone || !slices.ContainsFunc(others, func(now Peer) bool { return bytes.Equal(now.Key, o.Key) })
	}
	p.state.Peers = others
	return gone, p.write()
}

// known tells whether a key is of a present issuer.
func (p *Peers) known(key []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if bytes.Equal(p.state.Self.Key, key) {
		return true
	}
	return slices.ContainsFunc(p.state.Peers, func(o Peer) bool { return bytes.Equal(o.Key, key) })
}

func (p *Peers) knock() {
	select {
	case p.knocked <- struct{}{}:
	default:
	}
}

func (p *Peers) begun() (group []string, yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.Group, p.state.Begun
}

func (p *Peers) begin() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state.Begun {
		return nil
	}
	p.state.Begun = true
	return p.write()
}
