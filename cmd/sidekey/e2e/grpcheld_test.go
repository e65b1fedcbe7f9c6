package e2e

import (
	"bytes"
	bigendian "encoding/binary"
	"errors"
	"net"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"
)

// heldCall is a check of which half is sent: the agent has begun it, and waits.
type heldCall struct {
	conn     net.Conn
	fr       *http2.Framer
	rest     []byte
	begun    chan struct{} // the agent has read what was sent
	goneAway chan struct{} // the agent takes no more calls on this connection
	answered chan struct{}
	closed   chan struct{}
	answer   bytes.Buffer // of the call; once it is answered
}

// holdCall begins one at a unix socket, on a connection of its own.
func holdCall(t *testing.T, socket string, req *authv3.CheckRequest) *heldCall {
	t.Helper()
	message, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	message = append(bigendian.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", authv3.Authorization_Check_FullMethodName}, {":authority", "agent"},
		{"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	half := len(message) / 2
	h := &heldCall{conn: conn, fr: http2.NewFramer(conn, conn), rest: message[half:],
		begun: make(chan struct{}), goneAway: make(chan struct{}), answered: make(chan struct{}), closed: make(chan struct{})}
	_, err = conn.Write([]byte(http2.ClientPreface))
	if err := errors.Join(err,
		h.fr.WriteSettings(),
		h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}),
		h.fr.WriteData(1, false, message[:half]),
		h.fr.WritePing(false, [8]byte{'b', 'e', 'g', 'u', 'n'}),
	); err != nil {
		t.Fatal(err)
	}
	go h.read()
	h.await(t, "to be read", h.begun)
	return h
}

// read answers what must be answered, and tells of what comes. No frame is written by others while it runs but finish's, which
// it does not overlap: the agent asks nothing between its farewell and the answer.
func (h *heldCall) read() {
	defer close(h.closed)
	for {
		f, err := h.fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = h.fr.WriteSettingsAck() // a connection that is gone is read as such
			}
		case *http2.PingFrame:
			if f.IsAck() {
				close(h.begun)
			} else {
				_ = h.fr.WritePing(true, f.Data)
			}
		case *http2.GoAwayFrame:
			if f.LastStreamID == 1 { // the second one: the first says only that it will
				close(h.goneAway)
			}
		case *http2.DataFrame:
			h.answer.Write(f.Data())
		case *http2.HeadersFrame:
			if f.StreamEnded() {
				close(h.answered)
			}
		}
	}
}

func (h *heldCall) await(t *testing.T, what string, done chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("a call waits in vain %s", what)
	}
}

// finish sends the other half and gives what the agent says.
func (h *heldCall) finish(t *testing.T) string {
	t.Helper()
	if err := h.fr.WriteData(1, true, h.rest); err != nil {
		t.Fatal(err)
	}
	h.await(t, "for its answer", h.answered)
	if h.answer.Len() < 5 {
		return "no message"
	}
	got := new(authv3.CheckResponse)
	if err := proto.Unmarshal(h.answer.Bytes()[5:], got); err != nil {
		t.Fatal(err)
	}
	return envoyTold(got)
}
