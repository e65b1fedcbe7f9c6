package agent_test

import (
	"context"
	"fmt"
	"time"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// An agent is fed by the log: here by hand, in a process by Replica.Follow. The token that it
// accepted is refused as soon as the revocation is applied.
func Example() {
	rep := replica.New(replica.Config{})
	ctx, done := context.WithCancel(context.Background())
	_ = rep.Follow(ctx, emptyLog{done}) // an empty log: the first full sync is over at once

	a, err := agent.New(agent.Config{Name: "web-1", Leeway: 5 * time.Second}, agent.Parts{Replica: rep, Leases: always{}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer a.Close()

	key, _ := keyring.Generate(keyring.EdDSA, 0)
	jwk, _ := key.PublicJWK()
	_ = rep.Apply(bus.Entry{Position: bus.Position{Epoch: 1, Seq: 1}, Fact: &bus.KeyFact{
		KeyID: key.ID(), Alg: "EdDSA", State: "active", JWK: jwk, Issuer: "https://issuer.example", Audience: "https://api.example",
	}})
	now := time.Now()
	token, _ := key.Sign(keyring.AccessToken, keyring.Claims{
		Issuer: "https://issuer.example", Subject: "alice", Audience: []string{"https://api.example"}, ID: "9f2c", Scope: "read",
		IssuedAt: keyring.At(now), NotBefore: keyring.At(now), ExpiresAt: keyring.At(now.Add(15 * time.Minute)),
	})

	v := a.Verify(token, agent.Query{Scope: "read"})
	fmt.Println(v.Status, v.Token().Claims.Subject, v.Seq)
	v = a.Verify(token, agent.Query{Scope: "write"})
	fmt.Println(v.Status, v.Reason)

	_ = rep.Apply(bus.Entry{Position: bus.Position{Epoch: 1, Seq: 2}, Fact: &bus.Revocation{ID: "9f2c", ExpiresAt: now.Add(time.Hour).Unix()}})
	v = a.Verify(token, agent.Query{})
	fmt.Println(v.Status, v.Reason, v.Seq)
	// Output:
	// 200 alice 1
	// 403 insufficient_scope
	// 401 revoked 2
}
