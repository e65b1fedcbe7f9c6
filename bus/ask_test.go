package bus_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/keyring"
)

// asked is a bus with agents that answer, and what each was asked.
type asked struct {
	*bustest.Bus
	asker *bus.Asker
	keys  map[string]ed25519.PublicKey

	mu   sync.Mutex
	seen []bus.Question
}

func newAsked(t *testing.T) *asked {
	t.Helper()
	a := &asked{Bus: bustest.Start(t), keys: make(map[string]ed25519.PublicKey)}
	a.asker = &bus.Asker{Conn: a.Connect(t), Authority: a.Authority, Logger: hclog.NewNullLogger(),
		Key: func(_ context.Context, agent string) (ed25519.PublicKey, error) {
			if k := a.keys[agent]; k != nil {
				return k, nil
			}
			return nil, bus.ErrNotFound
		},
	}
	return a
}

// agent lets an agent listen that is connected as connected, calls itself name and signs with key.
func (a *asked) agent(t *testing.T, connected, name string, key ed25519.PrivateKey, authority keyring.AuthorityKey) {
	t.Helper()
	ans := &bus.Answerer{
		Conn: a.ConnectAgent(t, connected), Authority: authority, Agent: name, Run: "run of " + connected, Key: key, Logger: hclog.NewNullLogger(),
		Judge: func(q bus.Question) bus.Answer {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.seen = append(a.seen, q)
			return bus.Answer{Position: bus.Position{Epoch: 1, Seq: 7}, Status: 200}
		},
	}
	stop, err := ans.Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	if err := ans.Conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

// ask gives the runs that answered, in a time in which all can.
func (a *asked) ask(t *testing.T, q bus.Question) map[string]bus.Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	heard := make(map[string]bus.Answer)
	if err := a.asker.Ask(ctx, q, func(ans bus.Answer) { heard[ans.Run] = ans }); err != nil {
		t.Fatal(err)
	}
	return heard
}

func generate(t *testing.T) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return public, private
}

// TestAsk: of all who answer only those are heard who are who they say; a question that is not the
// authority's is answered by nobody.
func TestAsk(t *testing.T) {
	t.Parallel()
	a := newAsked(t)
	var web1, web2 ed25519.PrivateKey
	a.keys["web-1"], web1 = generate(t)
	a.keys["web-2"], web2 = generate(t)
	_, stranger := generate(t)
	own := a.Authority.Public()
	a.agent(t, "web-1", "web-1", web1, own)
	a.agent(t, "web-2", "web-2", stranger, own) // with another key than it enrolled with
	a.agent(t, "web-3", "web-1", web2, own)     // another's name: the bus itself takes no such answer
	a.agent(t, "web-4", "web-4", stranger, own) // nobody knows it
	seq := uint64(3)
	heard := a.ask(t, bus.Question{ID: "j", Token: []byte("hash"), SessionSeq: &seq})
	if ans, ok := heard["run of web-1"]; len(heard) != 1 || !ok || ans.Agent != "web-1" || ans.Seq != 7 || ans.Status != 200 {
		t.Errorf("Ask: heard %+v, want web-1 alone", heard)
	}
	a.mu.Lock()
	for _, q := range a.seen {
		if q.ID != "j" || string(q.Token) != "hash" || *q.SessionSeq != 3 || len(q.Nonce) != 16 {
			t.Errorf("the question as it came: got %+v", q)
		}
	}
	asked := len(a.seen)
	a.mu.Unlock()

	other, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	a.asker.Authority = other
	if heard := a.ask(t, bus.Question{ID: "j"}); len(heard) != 0 {
		t.Errorf("Ask under another authority: heard %v, want nobody", heard)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.seen) != asked {
		t.Errorf("Ask under another authority: %d agents judged, want none", len(a.seen)-asked)
	}
}

// TestAskBounds: what does not fit into a message is said, and not sent.
func TestAskBounds(t *testing.T) {
	a := newAsked(t)
	err := a.asker.Ask(t.Context(), bus.Question{ID: fmt.Sprintf("%9000d", 1)}, func(bus.Answer) {})
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Ask with 9000 bytes: got %v, want it refused at once", err)
	}
}

// TestForgedQuestions: they are looked at no faster than true ones are answered, and reported once.
func TestForgedQuestions(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	var logged bytes.Buffer // written by the one goroutine that judges, before it does
	_, key := generate(t)
	judged := make(chan time.Time, 1)
	ans := &bus.Answerer{
		Conn: b.ConnectAgent(t, "web-1"), Authority: b.Authority.Public(), Agent: "web-1", Run: "r", Key: key,
		Logger: hclog.New(&hclog.LoggerOptions{Output: &logged}),
		Judge:  func(bus.Question) bus.Answer { judged <- time.Now(); return bus.Answer{} },
	}
	stop, err := ans.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if err := ans.Conn.Flush(); err != nil { // else the questions may be there before who is asked
		t.Fatal(err)
	}
	nc := owner(t, b)
	begun := time.Now()
	for range 20 {
		if err := nc.Publish("sidekey.ask", []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	good := []byte("{}")
	m := &nats.Msg{Subject: "sidekey.ask", Data: good, Header: nats.Header{}}
	m.Header.Set("Sidekey-Signature", base64.RawURLEncoding.EncodeToString(b.Authority.Sign(append([]byte("sidekey-ask-1\x00"), good...))))
	if err := nc.PublishMsg(m); err != nil {
		t.Fatal(err)
	}
	select {
	case at := <-judged:
		if took := at.Sub(begun); took < 20*20*time.Millisecond {
			t.Errorf("20 forged questions were looked at in %s", took)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the true question behind them was not judged")
	}
	if n := strings.Count(logged.String(), "not answering"); n != 1 {
		t.Errorf("20 forged questions are %d lines in the log, want 1", n)
	}
}
