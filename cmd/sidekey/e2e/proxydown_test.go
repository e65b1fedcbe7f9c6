package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hanging: an agent that takes connections and never answers is waited for as long as the file says, over connections that were kept
// as over new ones. Nothing passes, and what is answered then has that status.
func (p *proxyTest) hanging(t *testing.T, status int) {
	agent := p.cluster.proc.Process
	goOn := func() { _ = agent.Signal(syscall.SIGCONT) } // it is there: its cleanup ends it
	if err := agent.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer goOn()
	before := p.served.Load()
	var wg sync.WaitGroup
	for _, path := range []string{"/private", "/public/x", "/api/1", "/api/2"} {
		client := p.newClient()
		wg.Go(func() {
			began := time.Now()
			a, err := p.try(t.Context(), client, http.MethodGet, path, p.with("X-Auth-Subject", "mallory"), nil)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				return
			}
			p.stopped(t, "the agent hangs, "+path, before, a, status)
			if took := time.Since(began); took < 4*time.Second || took > 15*time.Second { // on a machine that does more than this
				t.Errorf("%s: answered after %s, want the 5s of the file", path, took)
			} else {
				t.Logf("%s: %d after %s", path, a.StatusCode, took.Round(10*time.Millisecond))
			}
		})
	}
	wg.Wait()
	goOn()
	p.passesAgain(t)
}

// passesAgain waits until the agent is asked again.
func (p *proxyTest) passesAgain(t *testing.T) {
	t.Helper()
	await(t, "the agent to be asked again", func() error {
		a, err := p.try(t.Context(), p.client, http.MethodGet, "/private", p.with(), nil)
		if err == nil && a.StatusCode != http.StatusOK {
			err = fmt.Errorf("got %d", a.StatusCode)
		}
		return err
	})
}

func (p *proxyTest) agentDown(t *testing.T) {
	p.relay.down()
	before := p.served.Load()
	for _, path := range []string{"/private", "/public/x"} {
		p.stopped(t, "the agent is down, "+path, before, p.send(t, http.MethodGet, path, p.with("X-Auth-Subject", "mallory"), nil), p.kind.down)
	}
	p.relay.up()
	p.passesAgain(t)
}
