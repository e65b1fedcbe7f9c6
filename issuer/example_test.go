package issuer_test

import (
	"context"
	"fmt"

	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// An issuer on a bus in memory: its first key, a user, a login, a refresh.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	log, keys, feed := bustest.NewLog(), new(bustest.Bucket), issuer.NewFeed()
	read := replica.New(replica.Config{Open: issuer.OpenSecret(keys), Journal: feed.Note})
	go read.Follow(ctx, log)

	i, err := issuer.New(issuer.Config{URL: "https://auth.example", Alg: keyring.EdDSA}, issuer.Parts{
		Log: log, Replica: read, Feed: feed, Fleet: new(bustest.Fleet), Keys: keys,
		Users: new(bustest.Bucket), Subjects: new(bustest.Bucket), Sessions: new(bustest.Bucket), Clients: new(bustest.Bucket),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	go i.Run(ctx)
	for i.Ready() != nil {
		<-read.Changed()
	}

	if _, err := i.AddUser(ctx, issuer.NewUser{Username: "alice", Password: "wonderland"}); err != nil {
		fmt.Println(err)
		return
	}
	tokens, err := i.Login(ctx, issuer.Credentials{Username: "alice", Password: "wonderland"})
	if err != nil {
		fmt.Println(err)
		return
	}
	next, err := i.Refresh(ctx, tokens.Refresh)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(next.SessionID == tokens.SessionID, next.Refresh != tokens.Refresh)
	_, err = i.Login(ctx, issuer.Credentials{Username: "alice", Password: "looking-glass"})
	fmt.Println(err)
	// Output:
	// true true
	// no active account found with the given credentials
}
