package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A NATS cluster of an operator's own under two issuers and two agents, one of them behind a site's leaf node: what is
// revoked is refused, each stream has three copies, no acknowledged entry is lost with the server that leads the log, the
// leaf node finds another hub, and a rolling restart of the three fails no request.
func TestNATSCluster(t *testing.T) {
	need(t)
	c := startNATSCluster(t)
	t.Logf("on three servers each: %s", strings.Join(c.awaitWhole(), " "))
	t.Run("revoke", c.revokes)
	t.Run("kill the log's leader", c.losesTheLeader)
	t.Run("kill the leaf node's hub", c.losesTheHub)
	t.Run("rolling restart", c.rolls)
	t.Run("lose the log", c.losesTheLog)
	t.Run("lose the log under an issuer", c.losesTheLogUnderOne)
}

func (c *natsCluster) revokes(t *testing.T) {
	access, _, err := login(c.issuer[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, agent := range []string{c.near, c.far} {
		awaitVerify(t, "the token at "+agent, agent, access, http.StatusOK)
	}
	if out := c.sidekey("revoke", "--token", access, "--wait"); !strings.Contains(out, "confirmed") {
		t.Errorf("revoke --wait: got %s", out)
	}
	for _, agent := range []string{c.near, c.far} {
		if got := verify(t, agent, access); got != http.StatusUnauthorized {
			t.Errorf("%s after a confirmed revocation: got %d, want 401", agent, got)
		}
	}
}

// ackLoad logs in and revokes without end, and keeps what was acknowledged.
type ackLoad struct {
	mu            sync.Mutex
	refresh       []string // of sessions that stand
	revoked       []string // access tokens
	last          time.Time
	gap           time.Duration // the longest between two acknowledged revocations
	refused, lost int           // requests that were answered otherwise, or not
}

// turn is one login that stands, and one that is revoked.
func (l *ackLoad) turn(c *natsCluster, n int) {
	issuer := c.issuer[n%len(c.issuer)]
	status, answer, err := postJSON(issuer+"/api/token/", []byte(`{"username":"alice","password":"wonderland"}`))
	if l.failed(status, err) {
		return
	}
	access, _ := answer["access"].(string)
	if n%2 == 0 {
		l.mu.Lock()
		l.refresh = append(l.refresh, answer["refresh"].(string))
		l.mu.Unlock()
		return
	}
	status, err = c.revokeAt(issuer, access)
	if l.failed(status, err) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revoked = append(l.revoked, access)
	now := time.Now()
	if !l.last.IsZero() {
		l.gap = max(l.gap, now.Sub(l.last))
	}
	l.last = now
}

func (l *ackLoad) failed(status int, err error) bool {
	if err == nil && status/100 == 2 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || status != http.StatusServiceUnavailable {
		l.lost++
	}
	l.refused++
	time.Sleep(20 * time.Millisecond)
	return true
}

func (c *natsCluster) revokeAt(issuer, access string) (int, error) {
	req, err := http.NewRequest(http.MethodPost, issuer+"/admin/v1/revocations", strings.NewReader(`{"token":"`+access+`"}`))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+c.adminToken)
	req.Header.Set("Content-Type", "application/json")
	resp, err := loader.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return resp.StatusCode, nil
}

// during runs the load while f runs, and a while before and after.
func (l *ackLoad) during(c *natsCluster, f func()) {
	stop := make(chan struct{})
	var load sync.WaitGroup
	for worker := range 4 {
		load.Go(func() {
			for n := worker; ; n += 3 { // an odd step: each worker does both kinds of turns
				select {
				case <-stop:
					return
				default:
					l.turn(c, n)
				}
			}
		})
	}
	l.awaitMore(c)
	f()
	l.awaitMore(c)
	close(stop)
	load.Wait()
}

// awaitMore waits for revocations to be acknowledged that begin from now on.
func (l *ackLoad) awaitMore(c *natsCluster) {
	c.t.Helper()
	count := func() int { l.mu.Lock(); defer l.mu.Unlock(); return len(l.revoked) }
	begun := count()
	awaitFor(c.t, 2*time.Minute, "revocations to be acknowledged", func() error {
		if n := count(); n < begun+20 {
			return fmt.Errorf("%d were", n-begun)
		}
		return nil
	})
}

// check: what was acknowledged is there.
func (l *ackLoad) check(t *testing.T, c *natsCluster) {
	t.Helper()
	for _, agent := range []string{c.near, c.far} {
		awaitVerify(t, "the newest revocation at "+agent, agent, l.revoked[len(l.revoked)-1], http.StatusUnauthorized)
		for n, token := range l.revoked {
			if got := verify(t, agent, token); got != http.StatusUnauthorized {
				t.Errorf("%s, acknowledged revocation %d of %d: got %d, want 401", agent, n, len(l.revoked), got)
			}
		}
	}
	var elsewhere atomic.Int64
	for n, refresh := range l.refresh {
		if _, err := balanced(c.issuer, n, "/api/token/refresh/", map[string]any{"refresh": refresh}, &elsewhere); err != nil {
			t.Errorf("acknowledged session %d of %d: %v", n, len(l.refresh), err)
		}
	}
	t.Logf("%d sessions and %d revocations acknowledged, none lost; %d requests refused (%d without an answer of 503); longest time without an acknowledged revocation %s",
		len(l.refresh), len(l.revoked), l.refused, l.lost, l.gap.Round(10*time.Millisecond))
}

// losesTheLeader: how long nothing is written is logged and in docs/operations.md; a busy machine elects late.
func (c *natsCluster) losesTheLeader(t *testing.T) {
	var l ackLoad
	n := c.leader("sidekey_log")
	l.during(c, n.kill)
	l.check(t, c)
	n.restart()
	c.awaitWhole()
}

// losesTheHub: the leaf node goes to another server, of which its configuration and the hub have told it.
func (c *natsCluster) losesTheHub(t *testing.T) {
	access, _, err := login(c.issuer[0])
	if err != nil {
		t.Fatal(err)
	}
	awaitVerify(t, "the token behind the leaf node", c.far, access, http.StatusOK)
	n := c.hub()
	n.kill()
	begun := time.Now()
	if on := c.hub(); on == n {
		t.Fatalf("the leaf node is on %s, which is dead", on.Name)
	}
	linked := time.Since(begun)
	await(t, "a revocation", func() error {
		status, err := c.revokeAt(c.issuer[0], access)
		if err == nil && status/100 != 2 {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
	awaitVerify(t, "what was revoked since, behind the leaf node", c.far, access, http.StatusUnauthorized)
	t.Logf("linked to another hub after %s; an entry since then is known there after %s", linked.Round(10*time.Millisecond), time.Since(begun).Round(10*time.Millisecond))
	n.restart()
	c.awaitWhole()
}

// rolls: each server in turn is drained and started again, and no request fails.
func (c *natsCluster) rolls(t *testing.T) {
	stop := make(chan struct{})
	var done, elsewhere atomic.Int64
	var load sync.WaitGroup
	for worker := range 4 {
		load.Go(func() {
			for turn := worker; ; turn++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := oneSession(c.issuer, turn, []string{c.near, c.far}[turn%2], &elsewhere); err != nil {
					t.Errorf("a request failed: %v", err)
					return
				}
				done.Add(1)
			}
		})
	}
	begun := time.Now()
	for _, name := range []string{"a", "b", "c"} {
		c.node[name].drain()
		c.node[name].restart()
		c.awaitWhole()
	}
	close(stop)
	load.Wait()
	t.Logf("%d sessions in %s, of whose requests %d were sent to a further issuer", done.Load(), time.Since(begun).Round(time.Second), elsewhere.Load())
	if done.Load() < 20 {
		t.Errorf("only %d sessions were begun meanwhile", done.Load())
	}
}

// losesTheLog: of two issuers that start at once and find the log gone, one begins it anew and the other goes on with that; what
// was revoked stays so. By word it is not begun while an issuer is up.
func (c *natsCluster) losesTheLog(t *testing.T) {
	access, _, err := login(c.issuer[1])
	if err != nil {
		t.Fatal(err)
	}
	c.sidekey("revoke", "--token", access, "--wait")
	c.proc[0].stop()
	one, two := filepath.Join(c.dir, "one.toml"), filepath.Join(c.dir, "two.toml")
	if out, err := exec.Command(binary, "bus", "begin-anew", "--yes", "--config", one).CombinedOutput(); err == nil || !strings.Contains(string(out), "stop every issuer first; up: two") {
		t.Errorf("begin-anew while an issuer is up: got %v, %s", err, out)
	}
	c.proc[1].stop()
	c.deleteLog(t)
	for n, config := range []string{one, two} {
		c.runIssuer(n, "--config", config)
	}
	begun := 0
	for n := range c.issuer {
		c.awaitIssuer(n)
		begun += strings.Count(c.proc[n].output(), "the log was begun anew: ")
	}
	if begun != 1 {
		t.Errorf("the log was begun anew %d times, want once", begun)
	}
	c.goesOn(t, access)
}

// losesTheLogUnderOne: an issuer that runs while another finds the log gone and begins it anew ends, as its supervisor starts it again,
// and goes on with the new log: it writes again.
func (c *natsCluster) losesTheLogUnderOne(t *testing.T) {
	access, _, err := login(c.issuer[1])
	if err != nil {
		t.Fatal(err)
	}
	c.sidekey("revoke", "--token", access)
	c.proc[0].stop()
	c.deleteLog(t)
	c.runIssuer(0, "--config", filepath.Join(c.dir, "one.toml"))
	c.awaitIssuer(0)
	if out := c.proc[0].output(); !strings.Contains(out, "the log was begun anew: ") {
		t.Errorf("the issuer that starts has not begun the log anew:\n%s", out)
	}
	await(t, "the issuer that ran to end", func() error {
		if !c.proc[1].over() {
			return errors.New("it runs")
		}
		return nil
	})
	if out := c.proc[1].output(); !strings.Contains(out, "another issuer has done so while this one ran, so this one ends to be started again") {
		t.Errorf("it ended for another reason:\n%s", out)
	}
	c.runIssuer(1, "--config", filepath.Join(c.dir, "two.toml"))
	c.awaitIssuer(1)
	c.goesOn(t, access)
}

// deleteLog deletes the log, as its owner does.
func (c *natsCluster) deleteLog(t *testing.T) {
	t.Helper()
	answer, err := c.owner().Request("$JS.API.STREAM.DELETE.sidekey_log", nil, 5*time.Second)
	if err != nil || !strings.Contains(string(answer.Data), `"success":true`) {
		t.Fatalf("deleting the log: got %v, %s", err, answer.Data)
	}
}

// goesOn: the log that was begun anew knows what was revoked, and each issuer writes into it.
func (c *natsCluster) goesOn(t *testing.T, access string) {
	t.Helper()
	for _, agent := range []string{c.near, c.far} {
		if got := verify(t, agent, access); got == http.StatusOK {
			t.Errorf("%s takes what was revoked before the log was lost", agent)
		}
	}
	for n, issuer := range c.issuer {
		fresh, _, err := login(issuer)
		if err != nil {
			t.Fatal(err)
		}
		awaitVerify(t, "a new token", []string{c.near, c.far}[n], fresh, http.StatusOK)
		if status, err := c.revokeAt(issuer, fresh); err != nil || status/100 != 2 {
			t.Errorf("revoking at issuer %d: got %d, %v", n, status, err)
		}
	}
	c.awaitWhole()
}
