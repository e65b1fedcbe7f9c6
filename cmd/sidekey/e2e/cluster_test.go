package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// Three issuers and nothing else: founded by one, grown to three, each killed in turn.
func TestClusterGrowsAndSurvivesEach(t *testing.T) {
	need(t)
	c := newCluster(t, 3)
	for _, n := range c.node {
		n.kill()
		for _, other := range c.node {
			if other != n {
				other.awaitReady()
			}
		}
		n.restart()
		n.awaitReady()
	}
}

// Each issuer in turn is stopped and started again under load, and no client that goes on to the next issuer where
// one refuses, as a balancer does, sees a request fail.
func TestClusterRollingRestart(t *testing.T) {
	need(t)
	c := newCluster(t, 3)
	c.user("alice")
	agent, _ := c.agent("web")
	var urls []string
	for _, n := range c.node {
		urls = append(urls, n.URL)
	}
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
				if err := oneSession(urls, turn, agent, &elsewhere); err != nil {
					t.Errorf("a request failed: %v", err)
					return
				}
				done.Add(1)
			}
		})
	}
	for _, n := range c.node {
		n.stop()
		n.restart()
		n.awaitReady()
	}
	close(stop)
	load.Wait()
	t.Logf("%d sessions, of whose requests %d were sent to a further issuer", done.Load(), elsewhere.Load())
	if done.Load() < 10 {
		t.Errorf("only %d sessions were begun meanwhile", done.Load())
	}
}

// user adds a user whose password is wonderland.
func (c *issuers) user(name string) {
	c.t.Helper()
	await(c.t, "user "+name+" to be added", func() error {
		up := c.up()
		if up == nil {
			return errors.New("no issuer is up")
		}
		res, body := do(c.t, http.MethodPost, up.URL+"/admin/v1/users", http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + up.token()}},
			`{"username":"`+name+`","password":"wonderland"}`)
		if res.StatusCode >= 300 {
			return errors.New(body)
		}
		return nil
	})
}

// A removed issuer that does not end by itself, frozen here, keeps no route: the others end theirs, and open none to it.
// Thawed, it stops.
func TestClusterCutsRemovedIssuers(t *testing.T) {
	need(t)
	c := newCluster(t, 3)
	first, second, third := c.node[0], c.node[1], c.node[2]
	for _, n := range []*issuerNode{first, second} {
		await(t, "routes to both others", n.hasRoutes(2))
	}
	third.signal(syscall.SIGSTOP)
	c.remove(first, third.Name)
	for _, n := range []*issuerNode{first, second} {
		await(t, "the route of the one that was removed to end", n.hasRoutes(1))
	}
	third.signal(syscall.SIGCONT)
	third.awaitRemoved()
	for _, n := range []*issuerNode{first, second} {
		n.awaitReady()
		if err := n.hasRoutes(1)(); err != nil {
			t.Error(err)
		}
	}
}

func (n *issuerNode) hasRoutes(want int) func() error {
	return func() error {
		_, body := do(n.c.t, http.MethodGet, n.URL+"/metrics", nil, "")
		if !strings.Contains(body, fmt.Sprintf("\nsidekey_bus_server_routes %d\n", want)) {
			_, line, _ := strings.Cut(body, "\nsidekey_bus_server_routes ")
			return fmt.Errorf("%s: want %d routes, got %.3s", n.Name, want, line)
		}
		return nil
	}
}

// A host is replaced while it is up, then the founder's after its loss. Who was removed says so and stays out, and
// what was acknowledged before is there, also when of the first three none is left.
func TestClusterReplacesIssuers(t *testing.T) {
	need(t)
	c := newCluster(t, 3)
	founder, second, third := c.node[0], c.node[1], c.node[2]
	c.user("alice")
	_, refresh, err := login(founder.URL)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := founder.trySidekey("issuers", "remove", "a"); err == nil || !strings.Contains(out, "does not remove itself") {
		t.Fatalf("an issuer that removes itself: got %v, %s", err, out)
	}
	c.remove(second, third.Name)
	third.awaitRemoved()
	c.add("d")
	c.awaitReplicas()

	founder.kill()
	second.awaitReady()
	c.remove(second, founder.Name)
	founder.restart()
	founder.awaitRemoved()
	await(t, "an issuer to say that it refuses the route of the one that was removed", func() error {
		if !strings.Contains(second.proc.output()+c.node[1].proc.output(), `refusing a route: it is not of a present issuer of this cluster: "a-`) {
			return errors.New("none does")
		}
		return nil
	})
	c.add("e")
	c.awaitReplicas()

	second.kill() // the last of those that were there
	for _, n := range c.node {
		if n == second {
			continue
		}
		n.awaitReady()
		answer, err := balanced([]string{n.URL}, 0, "/api/token/refresh/", map[string]any{"refresh": refresh}, new(atomic.Int64))
		if err != nil {
			t.Fatalf("going on at %s with a session of the founder's: %v", n.Name, err)
		}
		if next, ok := answer["refresh"].(string); ok {
			refresh = next
		}
		if _, _, err := login(n.URL); err != nil {
			t.Errorf("logging in at %s: %v", n.Name, err)
		}
	}
}
