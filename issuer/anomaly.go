package issuer

import (
	"context"
	"errors"
	"net/netip"

	"github.com/sidekey/sidekey/keyring"
)

// Anomaly is what is done about a refresh that comes from elsewhere than its session. The zero value is OnlyLog.
type Anomaly string

// The anomalies' ends. RequireLogin refuses the refresh and leaves the session as it is: who holds the session at its
// own place goes on, and a thief elsewhere gets nothing, whoever of them comes first. Revoke ends the session on every
// agent, also for who holds it rightly: for those who would rather log in once too often.
const (
	OnlyLog      Anomaly = "log"
	RequireLogin Anomaly = "require_login"
	Revoke       Anomaly = "revoke"
)

// place is where somebody is, as roughly as it takes to tell that it is another place. The zero value is unknown.
type place struct {
	Network   string `json:"network,omitempty"`    // /24 of an IPv4 address, /48 of an IPv6 address
	UserAgent string `json:"user_agent,omitempty"` // 256 bytes at most; as the client says
}

func placeOf(o Origin) place {
	p := place{UserAgent: o.UserAgent}
	if ip, err := netip.ParseAddr(o.Address); err == nil {
		bits := 48
		if ip = ip.Unmap().WithZone(""); ip.Is4() {
			bits = 24
		}
		if network, err := ip.Prefix(bits); err == nil {
			p.Network = network.String()
		}
	}
	return p
}

// latest is where the session was last seen.
func (s *session) latest() place {
	if s.Last == (place{}) {
		return s.From
	}
	return s.Last
}

// fromElsewhere judges where a refresh comes from, notes it in the record, and tells of a new place. What is unknown,
// here or in the record, is no news. An error refuses the refresh; nothing of it is written then.
func (i *Issuer) fromElsewhere(ctx context.Context, s *session, p *presented) error {
	here := placeOf(originOf(ctx))
	verdict := OnlyLog
	for _, c := range []struct {
		what             string
		here, from, last string
		then             Anomaly
	}{
		{"network", here.Network, s.From.Network, s.latest().Network, i.cfg.OnNewNetwork},
		{"user agent", here.UserAgent, s.From.UserAgent, s.latest().UserAgent, i.cfg.OnNewAgent},
	} {
		if c.here == "" || c.last == "" || c.here == c.from || c.here == c.last {
			continue
		}
		pairs := []any{"sub", s.Subject, "sid", s.ID, "new", c.what, "known", c.last, "network", here.Network}
		switch c.then {
		case RequireLogin, Revoke:
			i.refusal(ctx, "refresh from elsewhere", append(pairs, "then", string(c.then))...)
		default:
			i.event(ctx, "refresh from elsewhere", append(pairs, "then", string(OnlyLog))...)
		}
		if c.then == Revoke || c.then == RequireLogin && verdict == OnlyLog {
			verdict = c.then
		}
	}
	switch verdict {
	case Revoke:
		if _, err := i.endSession(ctx, s.Subject, s.ID, "refreshed from elsewhere"); err != nil {
			return err
		}
		return keyring.Deny(keyring.Revoked, p.KeyID, errors.New("the session was refreshed from elsewhere and has ended"))
	case RequireLogin:
		return keyring.Deny(keyring.Revoked, p.KeyID, errors.New("the session belongs elsewhere: log in here"))
	}
	s.Last = s.latest()
	if here.Network != "" {
		s.Last.Network = here.Network
	}
	if here.UserAgent != "" {
		s.Last.UserAgent = here.UserAgent
	}
	return nil
}
