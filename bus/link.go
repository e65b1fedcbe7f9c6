package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// statusEvery is how often an agent tells its status.
const statusEvery = 10 * time.Second

// Link is an agent's side of the fleet: it registers and tells its status.
type Link struct {
	Conn         *Conn
	Registration Registration
	Status       func() ([]byte, error) // JSON with the member "agent"
}

// Run registers, again until an issuer has answered, and then speaks until ctx ends. Whatever fails
// is tried again: an agent serves without being heard.
func (l *Link) Run(ctx context.Context) {
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		err := l.register(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		l.Conn.log.Warn("could not register at an issuer, trying again", "error", err)
		if !sleep(ctx, pause) {
			return
		}
	}
	l.Conn.log.Info("registered", "agent", l.Registration.Agent)
	for {
		l.tell()
		if !sleep(ctx, statusEvery) {
			return
		}
	}
}

func (l *Link) register(ctx context.Context) error {
	if err := checkAgentName(l.Registration.Agent); err != nil {
		return err
	}
	body, err := json.Marshal(l.Registration)
	if err != nil {
		return err
	}
	rctx, cancel := context.WithTimeout(ctx, registerWithin)
	defer cancel()
	m, err := l.Conn.nc.RequestWithContext(rctx, l.Conn.subjects.register(), body)
	if err != nil {
		return fmt.Errorf("registering agent %q: %w; is an issuer up?", l.Registration.Agent, err)
	}
	var ans answer
	if err := json.Unmarshal(m.Data, &ans); err != nil {
		return fmt.Errorf("registering agent %q: the answer is no JSON: %w", l.Registration.Agent, err)
	}
	if ans.Error != "" {
		return fmt.Errorf("registering agent %q: the issuer answered: %w", l.Registration.Agent, errors.New(ans.Error))
	}
	return nil
}

func (l *Link) tell() {
	body, err := l.Status()
	if err == nil {
		err = l.Conn.nc.Publish(l.Conn.subjects.status(encodePart(l.Registration.Agent)), body)
	}
	if err != nil {
		l.Conn.log.Debug("could not tell the status", "error", err)
	}
}
