package bus

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"

	"github.com/nats-io/nats-server/v2/server"
)

// cutsAfterRemoval is how many looks at who is in the cluster end routes after a removal: this one, and the next, since
// a handshake that was under way at the first may have ended well.
const cutsAfterRemoval = 2

// keepRoutes ends the routes of servers that are not of present issuers, where somebody is gone: routeTLS lets no such
// server in, but one that was in already may not go by itself.
func (s *Server) keepRoutes(gone bool) error {
	s.routes.Lock()
	defer s.routes.Unlock()
	if gone {
		s.cuts = cutsAfterRemoval
	}
	if s.cuts == 0 {
		return nil
	}
	if err := s.cutStrangers(); err != nil {
		return fmt.Errorf("ending the routes of those who are not in the cluster: %w", err)
	}
	s.cuts--
	return nil
}

// cutStrangers pins the keys of present issuers to the routes: nats-server ends those that have others, whichever side
// opened them. Then it lets go of the pins, as routeTLS is who judges newcomers. Addresses of those who are gone are
// dialled no more.
func (s *Server) cutStrangers() error {
	pins := server.PinnedCertSet{}
	at := []string{s.opts.Routes[0].Host} // its own
	for _, p := range append(s.peers.Others(), s.peers.Self()) {
		der, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(p.Key))
		if err != nil {
			return err
		}
		sum := sha256.Sum256(der)
		pins[hex.EncodeToString(sum[:])] = struct{}{}
		at = append(at, p.Route)
	}
	for _, set := range []server.PinnedCertSet{pins, nil} {
		opts := s.opts.Clone()
		opts.TrustedKeys = nil // made of TrustedOperators
		opts.Cluster.TLSPinnedCerts = set
		opts.Routes = slices.DeleteFunc(opts.Routes, func(u *url.URL) bool { return !slices.Contains(at, u.Host) })
		if err := s.srv.ReloadOptions(opts); err != nil {
			return err
		}
		s.opts = opts
	}
	return nil
}
