package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"filippo.io/age"
)

// All three disks of a cluster are lost. It is founded anew from a backup, on one of its hosts: the agent follows by itself, the others
// join anew, and none of them comes back by what it had; sessions of before are over, and revocations are not.
func TestClusterRestored(t *testing.T) {
	need(t)
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SIDEKEY_ISSUER_BACKUP_RECIPIENTS", key.Recipient().String())
	c := newCluster(t, 3)
	founder, second, third := c.node[0], c.node[1], c.node[2]
	c.user("alice")
	agent, _ := c.agent("web")
	access, refresh, err := login(founder.URL)
	if err != nil {
		t.Fatal(err)
	}
	revoked, _, err := login(second.URL)
	if err != nil {
		t.Fatal(err)
	}
	third.sidekey("revoke", "--token", revoked, "--wait")
	identity, file := filepath.Join(c.dir, "key.txt"), filepath.Join(c.dir, "backup.age")
	c.write(identity, key.String()+"\n")
	second.sidekey("backup", file, "--recipient", key.Recipient().String())

	for _, n := range c.node {
		n.kill()
	}
	for _, n := range []*issuerNode{founder, second} {
		if err := os.Rename(n.Dir, n.Dir+".lost"); err != nil {
			t.Fatal(err)
		}
	}
	restore := exec.Command(binary, "restore", file, "--config", founder.config, "--identity", identity, "--longest-lease", "1m", "--format", "table")
	if out, err := restore.CombinedOutput(); err != nil || !strings.Contains(string(out), "issuers are struck off") {
		t.Fatalf("restoring: %v\n%s", err, out)
	}
	founder.restart()
	founder.awaitReady()

	// The third still has its disk, and with it the state of before: it may not come back, nor begin a state of its own.
	third.restart()
	c.node = []*issuerNode{founder}
	rejoin := func(n *issuerNode, name string) {
		token := n.Dir + ".again"
		c.write(token, founder.sidekey("issuers", "add", name))
		n.restart("--join", token)
		n.awaitReady()
		c.node = append(c.node, n)
	}
	rejoin(second, second.Name)
	if third.ready() == nil {
		t.Error("an issuer of before is ready by what it had")
	}
	third.stop()
	if err := os.Rename(third.Dir, third.Dir+".before"); err != nil {
		t.Fatal(err)
	}
	rejoin(third, third.Name)
	c.awaitReplicas()

	founder.kill()
	for _, n := range []*issuerNode{second, third} {
		n.awaitReady()
		if _, err := balanced([]string{n.URL}, 0, "/api/token/refresh/", map[string]any{"refresh": refresh}, new(atomic.Int64)); err == nil || !strings.Contains(err.Error(), "status 401") {
			t.Errorf("going on at %s with a session of before: got %v, want 401", n.Name, err)
		}
		fresh, _, err := login(n.URL)
		if err != nil {
			t.Errorf("logging in at %s: %v", n.Name, err)
		}
		await(t, "the agent to accept a new token", func() error { return verdict(agent, fresh, http.StatusOK) })
	}
	for name, token := range map[string]string{"of before": access, "revoked before the backup": revoked} {
		if err := verdict(agent, token, http.StatusUnauthorized); err != nil {
			t.Errorf("a token %s: %v", name, err)
		}
	}
}

// verdict asks an agent about a token, and says so if the status is another.
func verdict(agent, token string, want int) error {
	text, err := json.Marshal(map[string]string{"token": token})
	if err != nil {
		return err
	}
	status, said, err := postJSON(agent+"/v1/verify", text)
	if err != nil || status != want {
		return fmt.Errorf("status %d, want %d: %v %v", status, want, said, err)
	}
	return nil
}
