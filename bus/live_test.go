package bus

import (
	"strconv"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// TestKnownEntriesCostAHash: an entry that was read already and comes again, as anybody can make it,
// is told by its hash: no signature is checked (the reader here has no key) and nothing is read back.
func TestKnownEntriesCostAHash(t *testing.T) {
	r := new(Reader)
	at, subject, body := Position{Epoch: 1, Seq: 7}, "sidekey.log.revoke", []byte("{}")
	if err := r.seen.note(message{at: at, signed: signedBytes(subject, at, body)}); err != nil {
		t.Fatal(err)
	}
	rd := &reading{r: r, cursor: Cursor{Position: at}}
	err := rd.live(t.Context(), &nats.Msg{Subject: "sidekey.live.revoke", Data: body, Header: nats.Header{
		jetstream.SubjectHeader:  {subject},
		jetstream.SequenceHeader: {strconv.FormatUint(at.Seq, 10)},
		headerEpoch:              {"1"},
		headerSignature:          {"AAAA"},
	}})
	if err != nil {
		t.Errorf("a known entry: got %v, want it ignored", err)
	}
}
