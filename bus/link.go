package bus

import (
	"context"
	"time"
)

// statusEvery is how often an agent tells its status.
const statusEvery = 10 * time.Second

// Link tells an agent's status to the issuers.
type Link struct {
	Conn   *Conn
	Agent  string                 // its name
	Status func() ([]byte, error) // JSON with the members "agent", "run", "version", "epoch" and "applied_seq"
}

// Run tells the status, at once and every few seconds, until ctx ends. An agent serves without being heard.
func (l *Link) Run(ctx context.Context) {
	for {
		wait := statusEvery
		if !l.tell() {
			wait = time.Second
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

func (l *Link) tell() bool {
	body, err := l.Status()
	if err == nil {
		err = l.Conn.nc.Publish(l.Conn.subjects.status(encodePart(l.Agent)), body)
	}
	if err != nil {
		l.Conn.log.Debug("could not tell the status", "error", err)
	}
	return err == nil
}
