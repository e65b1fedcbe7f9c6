package bus_test

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// An issuer writes to the log of the embedded server, and a reader that knows nothing but the
// authority's public key reads it.
func Example() {
	dir, err := os.MkdirTemp("", "sidekey")
	check(err)
	defer os.RemoveAll(dir)
	keys, err := bus.NewKeys()
	check(err)
	server, err := bus.StartServer(bus.ServerConfig{Listen: "127.0.0.1:0", Dir: dir, Keys: keys})
	check(err)
	defer server.Close()
	user, err := keys.IssuerUser("issuer-1")
	check(err)
	conn, err := bus.Connect(bus.ConnectConfig{Server: server, User: user})
	check(err)
	defer conn.Close()

	ctx := context.Background()
	authority, err := keyring.NewAuthority()
	check(err)
	log, err := bus.OpenLog(ctx, conn, bus.LogConfig{Authority: authority, Issuer: "issuer-1"})
	check(err)
	defer log.Close()
	_, err = log.Append(ctx, &bus.Revocation{ID: "9f2c", ExpiresAt: 1767225600, Reason: "lost laptop"})
	check(err)

	enough := errors.New("enough")
	reader := bus.NewReader(conn, authority.Public())
	err = reader.Follow(ctx, bus.Cursor{}, func(entries []bus.Entry, head uint64) error {
		for _, en := range entries {
			fmt.Println(en.Seq, "of", head, en.Fact.Kind(), en.Fact.(*bus.Revocation).ID)
		}
		return enough
	})
	fmt.Println(err)
	// Output:
	// 1 of 1 revoke 9f2c
	// enough
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
