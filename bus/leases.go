package bus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// maxSpoken bounds a request, grant or acknowledgement: a page of JSON.
const maxSpoken = 8 << 10

// Spoken is a message between an agent and an issuer that is no entry: a body, and the sender's
// signature over it (header Sidekey-Signature). Nothing of it is believed before that is checked.
type Spoken struct {
	Agent     string // the last part of its subject, decoded; whose key must have signed is up to the body
	Body      []byte
	Signature []byte
	Reply     func(body, signature []byte) error // sends the answer; nil: none is wanted
}

// Answer answers a request.
func (s Spoken) Answer(body, signature []byte) error {
	if s.Reply == nil {
		return errors.New("answering an agent: it did not ask for an answer")
	}
	return s.Reply(body, signature)
}

func signatureHeader(signature []byte) nats.Header {
	return nats.Header{headerSignature: {base64.RawURLEncoding.EncodeToString(signature)}}
}

func spoken(m *nats.Msg, part string) (Spoken, error) { return spokenUpTo(m, part, maxSpoken) }

func spokenUpTo(m *nats.Msg, part string, longest int) (Spoken, error) {
	agent, err := decodePart(part)
	if err != nil {
		return Spoken{}, err
	}
	sig, err := base64.RawURLEncoding.DecodeString(m.Header.Get(headerSignature))
	if err != nil || len(m.Data) > longest {
		return Spoken{}, fmt.Errorf("%w: a message of %d bytes", ErrForged, len(m.Data))
	}
	s := Spoken{Agent: agent, Body: m.Data, Signature: sig}
	if m.Reply != "" {
		s.Reply = func(body, signature []byte) error {
			return m.RespondMsg(&nats.Msg{Data: body, Header: signatureHeader(signature)})
		}
	}
	return s, nil
}

// AskLease sends an agent's request for a lease and waits for an issuer's answer.
func (c *Conn) AskLease(ctx context.Context, agent string, body, signature []byte) (Spoken, error) {
	m, err := c.nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: c.subjects.lease(encodePart(agent)), Data: body, Header: signatureHeader(signature)})
	if err != nil {
		return Spoken{}, fmt.Errorf("asking for a lease: %w; is an issuer up?", err)
	}
	return spoken(m, encodePart(agent))
}

// Acknowledge sends an agent's acknowledgement.
func (c *Conn) Acknowledge(agent string, body, signature []byte) error {
	return c.nc.PublishMsg(&nats.Msg{Subject: c.subjects.ack(encodePart(agent)), Data: body, Header: signatureHeader(signature)})
}

// Listen calls lease for each lease request that this issuer is to answer (of several issuers, one
// gets it) and ack for each acknowledgement (all issuers get it), until the returned function is called.
func (c *Conn) Listen(lease, ack func(Spoken)) (stop func(), err error) {
	handle := func(fn func(Spoken), subject func(string) string) nats.MsgHandler {
		prefix := subject("")
		return func(m *nats.Msg) {
			s, err := spoken(m, m.Subject[len(prefix):])
			if err != nil {
				c.log.Debug("ignoring a message", "subject", m.Subject, "error", err)
				return
			}
			fn(s)
		}
	}
	leases, err := c.nc.QueueSubscribe(c.subjects.lease(Any), "issuers", handle(lease, c.subjects.lease))
	if err != nil {
		return nil, fmt.Errorf("listening to agents: %w", err)
	}
	acks, err := c.nc.Subscribe(c.subjects.ack(Any), handle(ack, c.subjects.ack))
	if err != nil {
		leases.Unsubscribe() //nolint:errcheck // the connection is gone
		return nil, fmt.Errorf("listening to agents: %w", err)
	}
	return func() {
		leases.Unsubscribe() //nolint:errcheck // the connection may be closed already
		acks.Unsubscribe()   //nolint:errcheck
	}, nil
}

func (c *Conn) grantsStream(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        c.subjects.grantsStream(),
		Description: "sidekey: who was granted a lease by which tick; for issuers",
		Subjects:    []string{c.subjects.grants()},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew, // dropped behind a checkpoint, which has what still counts, and never by age
		Replicas:    replicas,
		AllowDirect: true,
	}
}

// WriteGrants writes a list of grants, and returns its place and its hash when it is durable: the
// tick that answers it names both.
func (l *Log) WriteGrants(ctx context.Context, list []byte) (seq uint64, hash []byte, err error) {
	sum := sha256.Sum256(list)
	err = retry(ctx, func(ctx context.Context) error {
		ack, err := l.conn.js.PublishMsg(ctx, &nats.Msg{Subject: l.conn.subjects.grants(), Data: list}, jetstream.WithRetryAttempts(0))
		if err == nil {
			seq = ack.Sequence
		}
		return err
	})
	if err != nil {
		return 0, nil, fmt.Errorf("writing the grants of a tick: %w", err)
	}
	return seq, sum[:], nil
}

// ReadGrants reads the list that a tick names. ErrNotFound: it is gone. ErrForged: what is there is
// not what the tick was signed over.
func (l *Log) ReadGrants(ctx context.Context, seq uint64, hash []byte) ([]byte, error) {
	var raw *jetstream.RawStreamMsg
	err := retry(ctx, func(ctx context.Context) error {
		s, err := l.conn.js.Stream(ctx, l.conn.subjects.grantsStream())
		if err == nil {
			raw, err = s.GetMsg(ctx, seq)
		}
		return err
	})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("reading the grants of a tick: %w", err)
	}
	if sum := sha256.Sum256(raw.Data); !bytes.Equal(sum[:], hash) {
		return nil, fmt.Errorf("reading the grants of a tick: %w: their hash is not the signed one", ErrForged)
	}
	return raw.Data, nil
}
