package bus_test

import (
	"testing"

	"github.com/sidekey/sidekey/bus"
)

// writeCheckpoint writes a checkpoint that says nothing of leases.
func writeCheckpoint(t testing.TB, l *bus.Log, at bus.Cursor, image []byte) {
	t.Helper()
	if err := l.WriteCheckpoint(t.Context(), at, image, nil); err != nil {
		t.Fatalf("WriteCheckpoint: %v", err)
	}
}
