package bus_test

import (
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// writeCheckpoint writes a checkpoint that says nothing of leases.
func writeCheckpoint(t testing.TB, l *bus.Log, at bus.Cursor, image []byte) {
	t.Helper()
	if err := l.WriteCheckpoint(t.Context(), at, image, nil); err != nil {
		t.Fatalf("WriteCheckpoint: %v", err)
	}
}

// owner connects as one who owns the bus and its issuers' account.
func owner(t testing.TB, b *bustest.Bus) *nats.Conn {
	t.Helper()
	return operator(t, b, b.Issuer(t))
}
