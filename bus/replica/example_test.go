package replica_test

import (
	"context"
	"fmt"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// A replica follows a log, and answers whether a token is revoked.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	log := bustest.NewLog()
	r := replica.New(replica.Config{})
	go r.Follow(ctx, log) //nolint:errcheck // it ends with ctx

	token := replica.Fingerprint(&keyring.Claims{ID: "9f2c", Subject: "alice"})
	fmt.Println("revoked:", r.Revoked(&token))
	pos, err := log.Append(ctx, &bus.Revocation{ID: "9f2c", ExpiresAt: time.Now().Add(time.Hour).Unix()})
	if err == nil {
		err = r.Wait(ctx, pos.Seq)
	}
	if err != nil {
		panic(err)
	}
	fmt.Println("revoked:", r.Revoked(&token))
	// Output:
	// revoked: false
	// revoked: true
}
