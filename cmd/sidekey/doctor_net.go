package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// issuerState asks the issuer of this host.
func (d *doctor) issuerState(ctx context.Context) {
	c, err := d.app.publicClient(func(c IssuerConfig) string { return c.OpsListen })
	if err != nil {
		d.failErr("issuer", "", err)
		return
	}
	r, header, began, took, err := d.ask(ctx, c, "/readyz")
	switch {
	case err != nil:
		d.failErr("issuer", "start it, or look at its log: journalctl -u sidekey-issuer", err)
		return
	case r.status != http.StatusOK:
		var why struct {
			Reason string `json:"reason"`
		}
		_ = json.Unmarshal(r.body, &why) // without one the status says enough
		d.fail("issuer", "wait a moment after a start; else look at its log", "the issuer at %s answers %d: %s", c.addr, r.status, why.Reason)
	default:
		d.ok("issuer", "ready at %s", c.addr)
	}
	d.httpClock("the issuer at "+c.addr, header, began, took)
	d.fleet(ctx)
}

// ask makes one call, and gives the answer's header and how long that took.
func (d *doctor) ask(ctx context.Context, c *client, path string) (r reply, header http.Header, began time.Time, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	req, err := c.request(ctx, http.MethodGet, path, nil)
	if err != nil {
		return r, nil, began, 0, err
	}
	began = time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		return r, nil, began, 0, c.unreachable(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return r, nil, began, 0, c.unreachable(err)
	}
	return reply{status: resp.StatusCode, body: body}, resp.Header, began, time.Since(began), nil
}

// fleet asks the issuer for the fleet, where the admin token is at hand.
func (d *doctor) fleet(ctx context.Context) {
	c, err := d.app.adminClient()
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, 2*probeWithin)
		defer cancel()
		var list agentsAnswer
		if err = read(ctx, c, "/admin/v1/agents", &list); err == nil {
			d.agents(list.Agents)
			var s fleetStatus
			if err = read(ctx, c, "/admin/v1/status", &s); err == nil {
				d.clocks(&s)
				return
			}
		}
	}
	d.warn("admin API", "run it as the issuer's user, or set "+envTokenFile, "%v", err)
}

// read asks for what must be there.
func read(ctx context.Context, c *client, path string, into any) error {
	r, err := c.call(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	return r.decode(into)
}

// agents compares the agents' versions with this binary's.
func (d *doctor) agents(agents []memberAnswer) {
	var silent, other []string
	for _, m := range agents {
		switch {
		case m.Removed != 0:
		case m.Seen == 0:
			silent = append(silent, m.Name)
		case m.Version != version():
			other = append(other, m.Name+" ("+m.Version+")")
		}
	}
	slices.Sort(silent)
	slices.Sort(other)
	if len(other) > 0 {
		d.warn("versions", "bring agents and issuers to one version, agents first", "this binary is %s, and of other versions are: %s", version(), few(other))
	} else {
		d.ok("versions", "every agent that is heard has this binary's, %s", version())
	}
	if len(silent) > 0 {
		d.warn("agents", "start them, or remove who is gone: sidekey agents remove NAME", "joined, and not heard since the issuer started: %s", few(silent))
	}
}

// few names some.
func few(names []string) string {
	const most = 10
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// agentState asks the agent of this host.
func (d *doctor) agentState(ctx context.Context) {
	c, err := d.app.agentClient("")
	if err != nil {
		d.failErr("agent", "", err)
		return
	}
	r, _, _, _, err := d.ask(ctx, c, "/v1/status")
	if err != nil {
		d.failErr("agent", "start it, or look at its log: journalctl -u sidekey-agent", err)
		return
	}
	var s struct {
		Version   string `json:"version"`
		Connected bool   `json:"connected"`
		Stale     bool   `json:"stale"`
		LeaseMS   int64  `json:"lease_ms"`
		Fault     string `json:"fault"`
		ClockOff  int64  `json:"clock_off_ms"`
		Applied   uint64 `json:"applied_seq"`
	}
	if r.status != http.StatusOK || json.Unmarshal(r.body, &s) != nil || s.Version == "" {
		d.fail("agent", "correct agent.listen, or what listens there", "what answers at %s is no agent (status %d)", c.addr, r.status)
		return
	}
	switch {
	case s.Fault != "":
		d.fail("agent", "docs/operations.md, What happens when", "it applies nothing more: %s", s.Fault)
	case s.Stale:
		d.fail("agent", "look at the bus and the issuer, below", "it has no lease, and vouches for nobody")
	case !s.Connected:
		d.warn("agent", "look at the bus, below", "it is not connected to the bus, and goes on for %s", (time.Duration(s.LeaseMS) * time.Millisecond).Round(time.Second))
	default:
		d.ok("agent", "vouching at %s, entry %d applied", c.addr, s.Applied)
	}
	if s.Version != version() {
		d.warn("versions", "restart the agent with this binary, or this binary is the old one", "the agent runs %s, and this binary is %s", s.Version, version())
	}
	against := "this host's clock against the issuers' ticks"
	if off := time.Duration(s.ClockOff) * time.Millisecond; d.issuer {
		d.differs(against, off) // the ticks may be this host's own
	} else {
		d.judgeClock(against, off)
	}
}

// busses looks whether every address of the bus answers, which version that is, and whether it syncs.
func (d *doctor) busses(ctx context.Context) {
	for _, b := range d.addresses() {
		pctx, cancel := context.WithTimeout(ctx, probeWithin)
		p, err := bus.Probe(pctx, b.url, b.ca)
		cancel()
		switch {
		case err != nil:
			d.failErr("bus", "start it; look at firewalls, and at the address", err)
			continue
		case bus.Outdated(p.Version):
			d.fail("bus", "upgrade it: older ones lose what they acknowledged", "nats-server %s at %s, and %s is the oldest that will do", p.Version, b.url, bus.OldestServer)
		default:
			d.ok("bus", "nats-server %s at %s%s", p.Version, b.url, map[bool]string{true: ", by TLS"}[p.TLS])
		}
		if p.TLS {
			d.judgeEnd("the certificate of the bus at "+b.url, p.NotAfter)
		}
	}
	if d.issuer {
		d.sync(ctx)
	}
}

// address is one of the bus, and the CA that its certificate is to come from; nil: one that the system knows.
type address struct {
	url string
	ca  []byte
}

// addresses are those that issuer and agent of this host use.
func (d *doctor) addresses() (all []address) {
	add := func(urls []string, ca []byte) {
		for _, u := range urls {
			if !slices.ContainsFunc(all, func(a address) bool { return a.url == u }) {
				all = append(all, address{u, ca})
			}
		}
	}
	var configured []byte
	if d.cfg.Bus.CA != "" {
		configured, _ = os.ReadFile(d.cfg.Bus.CA) // that it cannot be read is another check's to say
	}
	if d.agent {
		id, err := bus.ReadIdentity(filepath.Join(d.cfg.Agent.DataDir, identityDir))
		if err != nil {
			d.failErr("identity", "", err)
		} else if len(d.cfg.Bus.URLs) == 0 {
			add(id.URLs, id.CA)
		} else {
			add(d.cfg.Bus.URLs, id.CA)
		}
	}
	if !d.issuer {
		return all
	}
	add(d.cfg.Bus.URLs, configured)
	if id, err := bus.ReadIdentity(filepath.Join(d.cfg.DataDir, identityDir)); err == nil {
		add(id.URLs, id.CA)
	} else if len(d.cfg.Bus.URLs) == 0 {
		add(d.embedded())
	}
	return all
}

// embedded is where the server in the issuer listens, and its CA where it has one of its own.
func (d *doctor) embedded() ([]string, []byte) {
	l, err := parseListen(d.cfg.Bus.Listen)
	if err != nil || l.loopback() || d.cfg.Insecure && d.cfg.Bus.TLSCert == "" {
		return []string{"nats://" + d.cfg.Bus.Listen}, nil
	}
	if d.cfg.Bus.TLSCert != "" {
		return []string{reachableURL("tls://" + d.cfg.Bus.Listen)}, nil
	}
	master, err := readMasterKey(d.cfg)
	if err != nil {
		d.failErr("master key", "", err)
		return nil, nil
	}
	keys, err := bus.ReadKeys(filepath.Join(d.cfg.DataDir, bus.KeysFile), master)
	if err != nil {
		d.failErr("bus keys", "", err)
		return nil, nil
	}
	return []string{reachableURL("tls://" + d.cfg.Bus.Listen)}, keys.CAPEM()
}

// sync says whether what the bus acknowledges is on its disk.
func (d *doctor) sync(ctx context.Context) {
	joined := exists(filepath.Join(d.cfg.DataDir, identityDir))
	if d.cfg.clustered() || len(d.cfg.Bus.URLs) == 0 && !joined {
		d.ok("jetstream", "the embedded server syncs each write before it acknowledges it")
		return
	}
	do := "set jetstream { sync_interval: always } in nats-server.conf, and bus.monitor_url so that it can be checked"
	if joined && len(d.cfg.Bus.URLs) == 0 {
		do = "where another issuer has the bus inside, run doctor there, and nothing is to be done here; with a NATS of your own " + do
	}
	switch durability, err := bus.CheckDurability(ctx, d.cfg.Bus.MonitorURL); {
	case errors.Is(err, context.Canceled):
	case err != nil:
		d.failErr("jetstream", "", err)
	case durability == bus.Synced:
		d.ok("jetstream", "the bus syncs each write before it acknowledges it")
	case durability == bus.Delayed:
		d.fail("jetstream", do, "the bus acknowledges writes before they are on its disk: a power failure can lose acknowledged revocations")
	default:
		d.warn("jetstream", do, "whether the bus syncs what it acknowledges is not known")
	}
}
