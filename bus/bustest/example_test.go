package bustest_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// The log in memory keeps the contract of the one on NATS, and fails when it is told to, in the two
// ways in which a publish can fail.
func Example() {
	ctx := context.Background()
	log := bustest.NewLog()
	lost := errors.New("no answer")
	log.Fail(bustest.Failure{Err: lost}, bustest.Failure{Err: lost, Stored: true})
	for _, id := range []string{"a", "b", "c"} {
		pos, err := log.Append(ctx, &bus.Revocation{ID: id, ExpiresAt: 1767225600})
		fmt.Println(id, pos.Seq, err)
	}
	enough := errors.New("enough")
	log.Follow(ctx, bus.Cursor{}, func(entries []bus.Entry, _ uint64) error { //nolint:errcheck // it is enough
		for _, en := range entries {
			fmt.Println("in the log:", en.Fact.(*bus.Revocation).ID)
		}
		return enough
	})
	// Output:
	// a 0 no answer
	// b 1 no answer
	// c 2 <nil>
	// in the log: b
	// in the log: c
}
