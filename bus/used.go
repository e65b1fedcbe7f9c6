package bus

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// contextUsed is what the signature of a used message begins with.
const contextUsed = "sidekey-used-1\x00"

// Bounds of what an agent tells of the credentials that were used.
const (
	usedEvery  = time.Minute
	usedWithin = 2 * time.Second // for an issuer to confirm that it has a message
	usedAge    = time.Hour       // an older use is not believed: it should have been told long ago
	maxUsed    = 4096            // credentials in one message; more are told in further ones
	maxUsedLen = 64 << 10        // bytes of one message
	maxUnsaid  = 1 << 16         // credentials whose use is kept while no issuer hears it; more are dropped
)

// usedMessage says when credentials were last used, on <prefix>.used.<agent>, signed with the agent's key:
//
//	{"agent": "web-1", "used": {"k_2f9c…": 1767225600}}
type usedMessage struct {
	Agent string           `json:"agent"`
	Used  map[string]int64 `json:"used"` // by Credential.ID: NumericDates
}

// take takes what was used since the last call, the later time where both name one.
func (l *Link) take() {
	if l.Used == nil || l.Key == nil {
		return
	}
	for id, at := range l.Used() {
		if was, known := l.unsaid[id]; known && was >= at || id == "" || len(id) > MaxID {
			continue
		} else if !known && len(l.unsaid) >= maxUnsaid {
			continue
		}
		if l.unsaid == nil {
			l.unsaid = make(map[string]int64)
		}
		l.unsaid[id] = at
	}
}

// tellUsed tells what was used, message by message. What no issuer confirms is told again with the next.
func (l *Link) tellUsed(ctx context.Context) {
	l.take()
	for len(l.unsaid) > 0 && l.Conn.Connected() {
		msg, size := usedMessage{Agent: l.Agent, Used: make(map[string]int64)}, 0
		for id, at := range l.unsaid {
			// Six bytes are the longest that JSON makes of one; 24 are the number and what is around.
			if size += 6*len(id) + 24; len(msg.Used) == maxUsed || size > maxUsedLen-6*maxAgentName-64 {
				break
			}
			msg.Used[id] = at
		}
		if err := l.sayUsed(ctx, &msg); err != nil {
			l.Conn.log.Debug("could not tell which credentials were used", "error", err)
			return
		}
		for id := range msg.Used {
			delete(l.unsaid, id)
		}
	}
}

func (l *Link) sayUsed(ctx context.Context, msg *usedMessage) error {
	body, err := json.Marshal(msg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, usedWithin)
	defer cancel()
	_, err = l.Conn.nc.RequestMsgWithContext(ctx, &nats.Msg{
		Subject: l.Conn.subjects.used(encodePart(l.Agent)), Data: body, Header: signatureHeader(ed25519.Sign(l.Key, append([]byte(contextUsed), body...))),
	})
	return err
}

// OnUsed calls fn with what an agent says of the credentials that were used: ids and NumericDates of the
// last hour, of which it may have invented any. Of several issuers one gets each message. fn is called by one
// goroutine, and is to be quick. The returned function ends it.
func (f *Fleet) OnUsed(fn func(agent string, used map[string]int64)) (stop func(), err error) {
	sub, err := f.conn.nc.QueueSubscribe(f.conn.subjects.used(Any), "issuers", func(m *nats.Msg) {
		msg, err := f.used(m)
		if err != nil {
			f.conn.log.Debug("ignoring what an agent says was used", "subject", m.Subject, "error", err)
			return
		}
		if len(msg.Used) > 0 {
			fn(msg.Agent, msg.Used)
		}
		m.Respond(nil) //nolint:errcheck // it tells it again, which is harmless
	})
	if err != nil {
		return nil, fmt.Errorf("listening to which credentials are used: %w", err)
	}
	if f.conn.Connected() {
		f.conn.nc.FlushTimeout(attempt) //nolint:errcheck // it is heard of a little later, then
	}
	return func() { sub.Unsubscribe() }, nil //nolint:errcheck // the connection may be closed already
}

// used proves a message, and leaves in it the times that are believed.
func (f *Fleet) used(m *nats.Msg) (msg usedMessage, err error) {
	if len(m.Data) > maxUsedLen {
		return msg, fmt.Errorf("%w: a message of %d bytes", ErrForged, len(m.Data))
	}
	s, err := spokenUpTo(m, m.Subject[len(f.conn.subjects.used("")):], maxUsedLen)
	if err != nil {
		return msg, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), attempt)
	defer cancel()
	key, err := f.KnownSigningKey(ctx, s.Agent)
	if err != nil {
		return msg, err
	}
	if !ed25519.Verify(key, append([]byte(contextUsed), s.Body...), s.Signature) {
		return msg, ErrForged
	}
	if err := json.Unmarshal(s.Body, &msg); err != nil {
		return msg, err
	}
	if msg.Agent != s.Agent || len(msg.Used) > maxUsed {
		return msg, fmt.Errorf("%w: %d uses of agent %q", ErrForged, len(msg.Used), msg.Agent)
	}
	now := time.Now()
	for id, at := range msg.Used {
		switch {
		case id == "" || len(id) > MaxID || at < now.Add(-usedAge).Unix():
			delete(msg.Used, id)
		case at > now.Unix():
			msg.Used[id] = now.Unix()
		}
	}
	return msg, nil
}
