package lease

import (
	"errors"
	"fmt"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// Bounds of a lease's length. An agent asks for its max_staleness.
const (
	MinLength = 100 * time.Millisecond
	MaxLength = 24 * time.Hour
)

// Mode is what an agent does without a lease.
type Mode string

// The modes, as agent.on_stale names them.
const (
	Refuse Mode = "refuse" // it answers 503
	Serve  Mode = "serve"  // it goes on: it cannot be fenced, only its acknowledgement settles it
)

// Request asks for a lease. It is sent signed with the agent's own key.
//
//	{"agent": "web-1", "run": "…", "nonce": "base64 of 16 bytes", "length_ms": 900000, "mode": "refuse"}
type Request struct {
	Agent  string `json:"agent"`
	Run    string `json:"run"`
	Nonce  []byte `json:"nonce"` // 128 random bits, used once
	Length int64  `json:"length_ms"`
	Mode   Mode   `json:"mode"`
}

// Check tells what is wrong with a request, before anything of it is kept.
func (r *Request) Check() error {
	length := time.Duration(r.Length) * time.Millisecond
	switch {
	case r.Agent == "" || r.Run == "" || r.Run == anyRun || len(r.Run) > maxRun:
		return errors.New("a lease request names its agent and run")
	case len(r.Nonce) != nonceSize:
		return fmt.Errorf("a lease request has a nonce of %d bytes, not %d", len(r.Nonce), nonceSize)
	case r.Length <= 0 || length < MinLength || length > MaxLength:
		return fmt.Errorf("a lease is %s to %s long, not %s (agent.max_staleness)", MinLength, MaxLength, length)
	case r.Mode != Refuse && r.Mode != Serve:
		return fmt.Errorf("a lease request has the mode %q, not refuse or serve (agent.on_stale)", r.Mode)
	}
	return nil
}

const (
	nonceSize = 16
	maxRun    = 64
)

// Grant is the answer to a request, under the authority's signature: when the tick at Position was
// acknowledged, the log held nothing that the request's sender can have missed but what stands
// before that tick.
//
//	{"agent": "web-1", "run": "…", "nonce": "…", "epoch": …, "seq": 412, "chain": […], "length_ms": 900000, "mode": "refuse"}
type Grant struct {
	Request
	bus.Position
	Chain bus.Chain `json:"chain"` // the chain at Position; the agent's own must match
}

// List is what an issuer writes to the grants stream before the tick that answers it: who will
// hold how long a lease. The tick has its hash.
//
//	{"issuer": "issuer-1", "grants": [{"agent": …}, …]}
type List struct {
	Issuer string    `json:"issuer"`
	Grants []Request `json:"grants"`
}

// Lease is a grant in force. It is immutable.
type Lease struct {
	Begin    Reading // when it was asked for, not when it was answered
	Length   time.Duration
	Mode     Mode
	Position bus.Position // of the tick: it counts once that is applied
	Chain    bus.Chain    // at Position
}

// Live tells whether the lease has not ended.
func (l *Lease) Live(now Reading) bool { return longest(l.Begin, now) < l.Length }

// Vouches tells whether its holder may vouch by it: it has not ended, or its holder goes on without.
func (l *Lease) Vouches(now Reading) bool { return l.Mode == Serve || l.Live(now) }

// Left is how long the lease lasts, 0 once it has ended.
func (l *Lease) Left(now Reading) time.Duration { return max(0, l.Length-longest(l.Begin, now)) }

// Age is how old the holder's knowledge can be.
func (l *Lease) Age(now Reading) time.Duration { return max(0, longest(l.Begin, now)) }
