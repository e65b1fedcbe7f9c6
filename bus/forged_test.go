package bus_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/keyring"
)

// stored is a message as it stands in the log, or as somebody would like it to.
type stored struct {
	subject   string
	epoch     uint64
	signature []byte
	body      []byte
}

// signed makes an entry that the authority did sign, for that place.
func signed(b *bustest.Bus, subject string, at bus.Position, body []byte) stored {
	return stored{subject, at.Epoch, b.Authority.Sign(bus.SignedBytes(subject, at, body)), body}
}

func (s stored) msg(subject string) *nats.Msg {
	return &nats.Msg{Subject: subject, Data: s.body, Header: nats.Header{
		"Sidekey-Epoch":     {fmt.Sprint(s.epoch)},
		"Sidekey-Signature": {base64.RawURLEncoding.EncodeToString(s.signature)},
	}}
}

// put stores it straight in the stream, as the bus's owner can.
func (s stored) put(t *testing.T, nc *nats.Conn) uint64 {
	t.Helper()
	m, err := nc.RequestMsg(s.msg(s.subject), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var ack struct {
		Seq   uint64 `json:"seq"`
		Error any    `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &ack); err != nil || ack.Error != nil {
		t.Fatalf("storing an entry: %s %v", m.Data, err)
	}
	return ack.Seq
}

func body(t *testing.T, f bus.Fact) []byte {
	t.Helper()
	b, err := bus.Encode(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const revokeSubject = "sidekey.log.revoke"

// TestGarbageOnTheLiveLog: what the authority did not sign is not applied, and does not stop a reader.
func TestGarbageOnTheLiveLog(t *testing.T) {
	b := bustest.Start(t)
	l, nc := b.Log(t), owner(t, b)
	first := mustAppend(t, l, revocation("a"))
	f := follow(t, b.Reader(t), bus.Cursor{})
	f.reach(t, 1)
	next := bus.Position{Epoch: first.Epoch, Seq: first.Seq + 1}
	good := signed(b, revokeSubject, next, body(t, revocation("forged")))
	other, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	foreign := good
	foreign.signature = other.Sign(bus.SignedBytes(revokeSubject, next, good.body))
	unsigned, altered, later := good, good, good
	unsigned.signature = nil
	altered.body = body(t, revocation("altered"))
	later.epoch++
	live := func(s stored, seq string) {
		t.Helper()
		m := s.msg("sidekey.live.revoke")
		m.Header.Set("Nats-Subject", s.subject)
		m.Header.Set("Nats-Sequence", seq)
		if err := nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []stored{unsigned, foreign, altered, later} {
		live(s, "2")
	}
	live(good, "3")  // signed for another place
	live(good, "")   // for none
	live(good, "-1") // for none
	live(stored{subject: "sidekey.log.tick", epoch: first.Epoch, signature: good.signature, body: good.body}, "2")
	for _, data := range [][]byte{nil, []byte("{}"), make([]byte, 100_000)} {
		if err := nc.Publish("sidekey.live.revoke", data); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, revocation("b"))
	f.reach(t, 2)
	if got := fmt.Sprint(ids(f.entries())); got != "[a b]" {
		t.Errorf("got %s, want [a b]", got)
	}
}

// TestForgedEntries: an entry in the stream that the authority did not sign for that very place
// stops the reader there. What stands before it is applied, nothing behind it is.
func TestForgedEntries(t *testing.T) {
	t.Parallel()
	for name, forge := range map[string]func(b *bustest.Bus, next bus.Position, good, before stored) stored{
		"unsigned": func(_ *bustest.Bus, _ bus.Position, good, _ stored) stored { good.signature = nil; return good },
		"an alien signature": func(_ *bustest.Bus, _ bus.Position, good, _ stored) stored {
			good.signature = make([]byte, 64)
			return good
		},
		"altered": func(_ *bustest.Bus, _ bus.Position, good, _ stored) stored {
			good.body = append(good.body, ' ')
			return good
		},
		"an older entry again": func(_ *bustest.Bus, _ bus.Position, _, before stored) stored { return before },
		"signed as another kind": func(_ *bustest.Bus, _ bus.Position, good, _ stored) stored {
			good.subject = "sidekey.log.key"
			return good
		},
		"of another epoch": func(_ *bustest.Bus, _ bus.Position, good, _ stored) stored { good.epoch++; return good },
		"without an epoch": func(_ *bustest.Bus, _ bus.Position, good, _ stored) stored { good.epoch = 0; return good },
		"of a later sequence": func(b *bustest.Bus, next bus.Position, good, _ stored) stored {
			next.Seq++
			return signed(b, good.subject, next, good.body)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := bustest.Start(t)
			l, nc := b.Log(t), owner(t, b)
			mustAppend(t, l, revocation("a"))
			r := b.Reader(t)
			running := follow(t, r, bus.Cursor{})
			running.reach(t, 1)
			last := mustAppend(t, l, revocation("b"))
			running.reach(t, 2)
			l.Close() // nobody appends while the forger does
			before := signed(b, revokeSubject, last, body(t, revocation("b")))
			next := bus.Position{Epoch: last.Epoch, Seq: last.Seq + 1}
			good := signed(b, revokeSubject, next, body(t, revocation("c")))
			forge(b, next, good, before).put(t, nc)
			next.Seq++
			signed(b, revokeSubject, next, body(t, revocation("d"))).put(t, nc)
			running.ends(t, bus.ErrForged)
			cold := follow(t, b.Reader(t), bus.Cursor{})
			cold.ends(t, bus.ErrForged)
			for who, f := range map[string]*follower{"a running reader": running, "a cold reader": cold} {
				if got := fmt.Sprint(ids(f.entries())); got != "[a b]" {
					t.Errorf("%s: got %s, want [a b]", who, got)
				}
			}
			again := follow(t, r, running.entries()[1].Cursor())
			again.ends(t, bus.ErrForged)
			if again.calls() != 0 {
				t.Error("the reader that tries again was told that it is at the head")
			}
		})
	}
}

// TestUnknownKind: an entry of a kind, or with a member, of a later version stops the reader before it.
func TestUnknownKind(t *testing.T) {
	for name, s := range map[string]stored{
		"kind":   {subject: "sidekey.log.rules", body: []byte(`{}`)},
		"member": {subject: revokeSubject, body: []byte(`{"jti":"x","exp":9999999999,"unless":"friday"}`)},
		"fact":   {subject: revokeSubject, body: []byte(`{"exp":9999999999}`)},
	} {
		t.Run(name, func(t *testing.T) {
			b := bustest.Start(t)
			l := b.Log(t)
			last := mustAppend(t, l, revocation("a"))
			f := follow(t, b.Reader(t), bus.Cursor{})
			f.reach(t, 1)
			signed(b, s.subject, bus.Position{Epoch: last.Epoch, Seq: 2}, s.body).put(t, owner(t, b))
			f.ends(t, bus.ErrUnknown)
			cold := follow(t, b.Reader(t), bus.Cursor{})
			cold.ends(t, bus.ErrUnknown)
			if got := fmt.Sprint(ids(f.entries()), ids(cold.entries())); got != "[a] [a]" {
				t.Errorf("got %s, want [a] [a]", got)
			}
		})
	}
}

// chain computes the chain over bodies, all of one kind, as the log's writers must.
func chain(epoch, first uint64, subject string, before bus.Chain, bodies ...[]byte) bus.Chain {
	for i, body := range bodies {
		sum := sha256.Sum256(bus.SignedBytes(subject, bus.Position{Epoch: epoch, Seq: first + uint64(i)}, body))
		before = sha256.Sum256(append(before[:], sum[:]...))
	}
	return before
}

// TestChain: the chain is what the documents say, and a signed tick that is chained to other
// entries is the sign of a fork. What stands before it is not applied either: it is the fork.
func TestChain(t *testing.T) {
	b := bustest.Start(t)
	l, nc := b.Log(t), owner(t, b)
	var bodies [][]byte
	var epoch uint64
	for _, id := range []string{"a", "b"} {
		fact := revocation(id) // once: its end is a time from now
		bodies, epoch = append(bodies, body(t, fact)), mustAppend(t, l, fact).Epoch
	}
	r := b.Reader(t)
	f := follow(t, r, bus.Cursor{})
	at := f.reach(t, 2)
	if want := chain(epoch, 1, revokeSubject, bus.Chain{}, bodies...); at.Chain != want {
		t.Fatalf("the chain at entry 2: got %x, want %x", at.Chain, want)
	}
	l.Close()
	c := body(t, revocation("c"))
	fork := chain(epoch, 2, revokeSubject, chain(epoch, 1, revokeSubject, bus.Chain{}, bodies[0]), body(t, revocation("other")), c)
	signed(b, revokeSubject, bus.Position{Epoch: epoch, Seq: 3}, c).put(t, nc)
	f.reach(t, 3)
	bad := body(t, &bus.Tick{Time: 1, Issuer: "i", Head: 3, Chain: fork[:]})
	signed(b, "sidekey.log.tick", bus.Position{Epoch: epoch, Seq: 4}, bad).put(t, nc)
	f.ends(t, bus.ErrRollback)
	again := follow(t, b.Reader(t), at) // as a restarted process, from its own disk
	again.ends(t, bus.ErrRollback)
	if got := again.entries(); len(got) != 0 {
		t.Errorf("entries of a fork were applied: %v", ids(got))
	}
}

// TestForgedCheckpoints: of a checkpoint nothing is believed before its signature and its hash.
func TestForgedCheckpoints(t *testing.T) {
	b := bustest.Start(t)
	l, nc := b.Log(t), owner(t, b)
	mustAppend(t, l, revocation("a"), revocation("b"))
	entries := all(t, b, 2)
	writeCheckpoint(t, l, entries[0].Cursor(), []byte("the first image"))
	r := b.Reader(t)
	last := func(subject string) *nats.Msg {
		t.Helper()
		m, err := nc.Request("$JS.API.DIRECT.GET.sidekey_checkpoint."+subject, nil, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	good := last("sidekey.checkpoint.manifest")
	publish := func(subject string, sig []string, data []byte) {
		t.Helper()
		m := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{}}
		if sig != nil {
			m.Header["Sidekey-Signature"] = sig
		}
		if _, err := nc.RequestMsg(m, 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	sig := good.Header["Sidekey-Signature"]
	for name, do := range map[string]func(){
		"unsigned": func() { publish("sidekey.checkpoint.manifest", nil, good.Data) },
		"altered":  func() { publish("sidekey.checkpoint.manifest", sig, append([]byte(" "), good.Data...)) },
		"alien": func() {
			publish("sidekey.checkpoint.manifest", []string{base64.RawURLEncoding.EncodeToString(make([]byte, 64))}, good.Data)
		},
		"no manifest": func() { publish("sidekey.checkpoint.manifest", sig, nil) },
		"an entry's own": func() {
			publish("sidekey.checkpoint.manifest", []string{base64.RawURLEncoding.EncodeToString(b.Authority.Sign(bus.SignedBytes("x", bus.Position{}, good.Data)))}, good.Data)
		},
	} {
		do()
		if img, err := r.Checkpoint(t.Context()); !errors.Is(err, bus.ErrForged) {
			t.Errorf("%s: got %q, %v, want ErrForged", name, img, err)
		}
	}
	publish("sidekey.checkpoint.manifest", sig, good.Data) // the old one again: true, if old
	if img, err := r.Checkpoint(t.Context()); err != nil || string(img) != "the first image" {
		t.Errorf("Checkpoint: got %q, %v", img, err)
	}
	var m struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(good.Data, &m); err != nil {
		t.Fatal(err)
	}
	request(t, nc, "$JS.API.STREAM.PURGE.sidekey_checkpoint", `{"filter":"sidekey.checkpoint.chunk.>"}`)
	if _, err := r.Checkpoint(t.Context()); err == nil {
		t.Error("Checkpoint whose chunks are gone: no error")
	}
	publish("sidekey.checkpoint.chunk."+m.ID, nil, []byte("another image!!"))
	if img, err := r.Checkpoint(t.Context()); !errors.Is(err, bus.ErrForged) {
		t.Errorf("Checkpoint with other chunks: got %q, %v, want ErrForged", img, err)
	}
}

// TestSignedBytes: they are what the document says.
func TestSignedBytes(t *testing.T) {
	got := bus.SignedBytes("sidekey.log.key", bus.Position{Epoch: 7, Seq: 9}, []byte("body"))
	want := []byte("sidekey-entry-1\x00")
	want = binary.BigEndian.AppendUint64(want, 7)
	want = binary.BigEndian.AppendUint64(want, 9)
	want = binary.BigEndian.AppendUint32(want, 15)
	want = append(want, "sidekey.log.keybody"...)
	if string(got) != string(want) {
		t.Errorf("signedBytes: got %q, want %q", got, want)
	}
}
