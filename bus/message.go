package bus

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
)

// The headers that an entry carries beside its body.
const (
	headerEpoch     = "Sidekey-Epoch"
	headerSignature = "Sidekey-Signature" // base64url of Ed25519 over signedBytes
)

// message is an entry as NATS delivers it, proven or not.
type message struct {
	subject   string
	at        Position
	signature []byte
	body      []byte
	signed    []byte // what the signature covers
}

func (r *Reader) proven(m message) bool { return r.authority.Verify(m.signed, m.signature) }

// parseMessage reads an entry's headers. Nothing of it is believed yet.
func parseMessage(subject, seqText string, h nats.Header, body []byte) (message, error) {
	seq, err := strconv.ParseUint(seqText, 10, 64)
	if err != nil {
		return message{}, fmt.Errorf("%w: a message without a sequence on %q", ErrForged, subject)
	}
	epoch, err := strconv.ParseUint(h.Get(headerEpoch), 10, 64)
	if err != nil || epoch == 0 {
		return message{}, fmt.Errorf("%w: entry %d (%s) has no epoch", ErrForged, seq, subject)
	}
	sig, err := base64.RawURLEncoding.DecodeString(h.Get(headerSignature))
	if err != nil {
		return message{}, fmt.Errorf("%w: entry %d (%s) has an unreadable signature", ErrForged, seq, subject)
	}
	at := Position{Epoch: epoch, Seq: seq}
	return message{subject: subject, at: at, signature: sig, body: body, signed: signedBytes(subject, at, body)}, nil
}

func equal(b []byte, c Chain) bool { return string(b) == string(c[:]) }

// kindOf is the last part of an entry's subject.
func kindOf(subject string) Kind { return Kind(subject[strings.LastIndexByte(subject, '.')+1:]) }
