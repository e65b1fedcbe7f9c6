package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// What an issuer in a cluster has in its data_dir beside the others' files.
const (
	clusterStore = "cluster" // the store of its server; one that stands alone has aloneStore
	aloneStore   = "jetstream"
	peersFile    = "cluster.json"    // who the issuers are
	founderFile  = "issuer.identity" // a founder's keys, sealed
)

// defaultReplicas is how many servers of a cluster hold each entry.
const defaultReplicas = 3

// Bounds of a start and an end in a cluster.
const (
	clusterStartWithin = 10 * time.Minute // more than half of the servers have to be up
	clusterDrain       = 5 * time.Second  // where issuer.drain is not set
	askIfRemovedEvery  = 2 * time.Second
	maxDrain           = 10 * time.Minute
)

func (c *Config) clustered() bool { return c.Bus.Cluster.Listen != "" }

// replicas is how many replicas streams are made with. A cluster's grow with it.
func (c *Config) replicas() int {
	if c.clustered() {
		return 1
	}
	return max(c.Bus.Replicas, 1)
}

// keepReplicas has every stream held by as many servers as it should be, and says when it is.
func (p *issuerProcess) keepReplicas(ctx context.Context) {
	replicas := p.cfg.Bus.Replicas
	switch {
	case p.peers != nil:
		replicas = cmp.Or(replicas, defaultReplicas)
		p.conn.KeepReplicas(ctx, func() bool { return p.server.LeadsWith(replicas) }, replicas)
	case replicas > 1: // each issuer that was told so: they do the same
		p.conn.KeepReplicas(ctx, func() bool { return true }, replicas)
	}
}

// replicated tells whether a read may be answered by a replica that is late.
func (c *Config) replicated() bool { return c.clustered() || c.Bus.Replicas > 1 }

// route is where the others reach this issuer's routes.
func (c *Config) route() string {
	if c.Bus.Cluster.Advertise != "" {
		return c.Bus.Cluster.Advertise
	}
	host, port, _ := net.SplitHostPort(c.Bus.Cluster.Listen) // validate has judged it
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		for _, u := range c.Bus.Advertise {
			return net.JoinHostPort(hostOf(u), port)
		}
		return hostOf(reachableURL("nats://0.0.0.0:"+port)) + ":" + port
	}
	return c.Bus.Cluster.Listen
}

// clusterURLs are where agents reach this issuer's server, known before it is up.
func (c *Config) clusterURLs() []string {
	if len(c.Bus.Advertise) > 0 {
		return c.Bus.Advertise
	}
	scheme := "tls://"
	if host, _, _ := net.SplitHostPort(c.Bus.Listen); c.Bus.TLSCert == "" && (c.Insecure || loopbackHost(host)) {
		scheme = "nats://"
	}
	return []string{reachableURL(scheme + c.Bus.Listen)}
}

func loopbackHost(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (c *Config) validateCluster() error {
	if c.Issuer.Drain < 0 || c.Issuer.Drain > maxDrain {
		return c.fault("issuer.drain", "want 0s to %s, got %s", maxDrain, c.Issuer.Drain)
	}
	cl := c.Bus.Cluster
	if c.Bus.Replicas < 0 || c.Bus.Replicas > 5 {
		return c.fault("bus.replicas", "want 0 to 5, got %d", c.Bus.Replicas)
	}
	if cl.Listen == "" {
		if cl.Advertise != "" {
			return c.fault("bus.cluster.advertise", "is for a cluster: set bus.cluster.listen too, or leave it out")
		}
		if cl.Founder != "" {
			return c.fault("bus.cluster.founder", "is for a cluster: set bus.cluster.listen too, or leave it out")
		}
		if c.Bus.Replicas > 1 && len(c.Bus.URLs) == 0 {
			return c.fault("bus.replicas", "%d replicas want a cluster: set bus.cluster.listen, or bus.urls", c.Bus.Replicas)
		}
		return nil
	}
	if _, port, err := net.SplitHostPort(cl.Listen); err != nil || port == "" || port == "0" {
		return c.fault("bus.cluster.listen", "want host:port, got %q", cl.Listen)
	}
	if cl.Advertise != "" {
		if host, port, err := net.SplitHostPort(cl.Advertise); err != nil || host == "" || port == "" || port == "0" {
			return c.fault("bus.cluster.advertise", "want host:port, got %q", cl.Advertise)
		}
	}
	if len(c.Bus.URLs) > 0 {
		return c.fault("bus.cluster.listen", "joins the servers inside the issuers, and bus.urls names others: leave one of the two out")
	}
	return nil
}

// openCluster finds out who this issuer is in its cluster, where it is in one.
func (p *issuerProcess) openCluster() error {
	alone, joined := filepath.Join(p.cfg.DataDir, aloneStore), filepath.Join(p.cfg.DataDir, clusterStore)
	if !p.cfg.clustered() {
		if _, err := os.Stat(joined); err == nil && len(p.cfg.Bus.URLs) == 0 {
			return fmt.Errorf("opening the bus: this issuer is in a cluster (its store is %s): set bus.cluster.listen", joined)
		}
		return nil
	}
	if p.peers != nil {
		return nil
	}
	if _, err := os.Stat(alone); err == nil {
		if _, err := os.Stat(joined); errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("opening the bus: %s is the store of an issuer that stands alone, and a cluster's server does not take it over: start it without bus.cluster.listen, run `sidekey backup FILE`, and `sidekey restore` that into a fresh data_dir with bus.cluster.listen set", alone)
		}
	}
	if p.self = p.identity; p.self == nil {
		var err error
		if p.self, err = bus.OpenFounder(filepath.Join(p.cfg.DataDir, founderFile), p.cfg.Agent.Name, p.keys, p.master); err != nil {
			return err
		}
	} else if !p.keys.Operates() {
		return errors.New("opening the bus: this issuer joined before the bus was a cluster, and lacks the keys: remove it, and let it join anew in a fresh data_dir")
	}
	peer, err := p.self.Peer(p.cfg.route(), p.cfg.clusterURLs())
	if err != nil {
		return err
	}
	p.peers, err = bus.OpenPeers(filepath.Join(p.cfg.DataDir, peersFile), peer, p.self.Peers, p.self.Group)
	return err
}

// mayFound refuses to found a cluster where somebody else is to: an issuer that has lost its folder, or has not been given
// its token yet, would have a state of its own, and tokens that nobody else knows.
func (p *issuerProcess) mayFound() error {
	founder, name := p.cfg.Bus.Cluster.Founder, p.cfg.Agent.Name
	if !p.cfg.clustered() || founder == "" || founder == name {
		return nil
	}
	if _, err := os.Stat(filepath.Join(p.cfg.DataDir, founderFile)); err == nil {
		return nil // it has founded it
	}
	return fmt.Errorf("opening the bus: issuer %q has not joined the cluster, and bus.cluster.founder lets only %q found one: run `sidekey issuers add %s` at an issuer that is up, and start this one with --join FILE", name, founder, name)
}

// awaitBus returns when the bus can be used. Where it has several servers, that may take as long as it takes others to
// start; one that was removed meanwhile is told so by them.
func (p *issuerProcess) awaitBus(ctx context.Context) error {
	if err := p.conn.Await(ctx); err != nil || !p.cfg.replicated() {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var asks sync.WaitGroup
	defer asks.Wait()
	defer cancel(nil)
	if p.peers != nil {
		asks.Go(func() { p.askIfRemoved(ctx, func() bool { return true }, cancel) })
	}
	err := p.conn.AwaitLeader(ctx)
	if cause := context.Cause(ctx); errors.Is(cause, bus.ErrRemoved) {
		return cause
	}
	return err
}

// askIfRemoved asks the other issuers, while lost says that the bus is not to be had, whether they refuse this one's
// credential, and calls found then. Who was removed cannot read so in the bus: its server is out of the group that
// holds it.
func (p *issuerProcess) askIfRemoved(ctx context.Context, lost func() bool, found func(error)) {
	for ctx.Err() == nil {
		if lost() {
			for _, o := range p.peers.Others() {
				if bus.Refused(ctx, p.self, p.keys, o.URLs) {
					found(fmt.Errorf("%w from its cluster: issuer %q refuses its credential; to take this host in again, run `sidekey issuers add` there and let it join anew in a fresh data_dir", bus.ErrRemoved, o.Name))
					return
				}
			}
		}
		select {
		case <-time.After(askIfRemovedEvery):
		case <-ctx.Done():
		}
	}
}

// busLost tells whether this issuer has no bus: a server that was taken out of the cluster ends its JetStream, or, where the
// others were first to end its routes, has not heard of it.
func (p *issuerProcess) busLost() bool {
	return !p.server.JetStreamEnabled() || p.server.CutOff() || !p.conn.Connected()
}

// drain lets whoever sends requests go elsewhere first: /readyz says 503, and connections are not kept.
func (p *issuerProcess) drain(ctx context.Context) {
	within := p.cfg.Issuer.Drain
	if within == 0 && p.peers != nil && len(p.peers.Others()) > 0 {
		within = clusterDrain
	}
	if within == 0 {
		return
	}
	p.draining.Store(true)
	p.log.Info("draining", "for", within.String())
	select {
	case <-time.After(within):
	case <-ctx.Done():
	}
}

// drained is a handler that says when this issuer is about to stop.
func (p *issuerProcess) drained(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.draining.Load() {
			w.Header().Set("Connection", "close")
			if strings.TrimSuffix(r.URL.Path, "/") == "/readyz" {
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Cache-Control", "no-store")
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = w.Write([]byte(`{"status":"draining"}` + "\n")) // who asked may have gone
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// clusterConfig is the part in a cluster of this issuer's server; nil: none.
func (p *issuerProcess) clusterConfig() *bus.ClusterConfig {
	if p.peers == nil {
		return nil
	}
	return &bus.ClusterConfig{Listen: p.cfg.Bus.Cluster.Listen, Peers: p.peers, Signing: p.self.Signing}
}
