package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Pauses between two looks at how many replicas the streams have: while some lack theirs, and when none does.
const (
	lookAtReplicas = time.Second
	seldom         = 5 * time.Second
)

// KeepReplicas gives every stream and bucket of this sidekey so many replicas, as soon as the cluster has servers
// for them, until ctx ends, and says which servers hold them all. Of several issuers that call it the one does it to
// which may says so.
func (c *Conn) KeepReplicas(ctx context.Context, may func() bool, replicas int) {
	said := "" // the servers last named
	for pause := lookAtReplicas; sleep(ctx, pause); {
		pause = lookAtReplicas
		if !may() {
			said = ""
			continue
		}
		servers, err := c.raiseReplicas(ctx, replicas)
		if err != nil {
			said = ""
			if ctx.Err() == nil {
				c.log.Warn("could not give a stream its replicas, trying again", "replicas", replicas, "error", err)
			}
			continue
		}
		if servers == nil {
			said = ""
			continue
		}
		if all := strings.Join(servers, " "); all != said {
			said = all
			c.log.Info("every stream is held by all its servers", "replicas", replicas, "servers", all)
		}
		pause = seldom
	}
}

// LeadsWith tells whether the server leads its cluster, and knows so many servers in it.
func (s *Server) LeadsWith(servers int) bool {
	return s.srv.JetStreamIsLeader() && len(s.srv.JetStreamClusterPeers()) >= servers
}

// raiseReplicas looks once, and gives the servers that hold streams, when each stream is held whole by so many; nil:
// one is not, and the loss of a server that holds it may be the loss of the stream.
func (c *Conn) raiseReplicas(ctx context.Context, replicas int) ([]string, error) {
	lctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	lack := false
	var servers []string
	list := c.js.ListStreams(lctx)
	for info := range list.Info() {
		name := info.Config.Name
		if !strings.HasPrefix(strings.TrimPrefix(name, "KV_"), string(c.subjects)+"_") {
			continue
		}
		if info.Config.Replicas < replicas {
			lack = true
			cfg := info.Config
			cfg.Replicas = replicas
			if err := retry(ctx, func(ctx context.Context) error { _, err := c.js.UpdateStream(ctx, cfg); return err }); err != nil {
				return nil, fmt.Errorf("stream %s: %w", name, err)
			}
			continue
		}
		by := holders(info)
		lack = lack || len(by) < replicas
		servers = append(servers, by...)
	}
	if err := list.Err(); err != nil || lack {
		return nil, err
	}
	return sortedSet(servers), nil
}

// holders are the servers that hold all of a stream.
func holders(info *jetstream.StreamInfo) []string {
	if info.Cluster == nil || info.Cluster.Leader == "" {
		return nil
	}
	by := []string{info.Cluster.Leader}
	for _, r := range info.Cluster.Replicas {
		if r.Current && !r.Offline {
			by = append(by, r.Name)
		}
	}
	return by
}

// AwaitLeader returns when JetStream answers: a cluster that starts elects a leader first, and needs more than half of
// its servers for that.
func (c *Conn) AwaitLeader(ctx context.Context) error {
	for said := time.Now(); ; {
		actx, cancel := context.WithTimeout(ctx, attempt)
		_, err := c.js.AccountInfo(actx)
		cancel()
		if err == nil {
			return nil
		}
		if !passing(err) && !errors.Is(err, jetstream.ErrJetStreamNotEnabled) {
			return fmt.Errorf("waiting for the bus's JetStream: %w", err)
		}
		if time.Since(said) > 5*time.Second {
			said = time.Now()
			c.log.Warn("waiting for the cluster to have a leader: that needs more than half of its servers", "error", err)
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return fmt.Errorf("waiting for the cluster to have a leader: %w; that needs more than half of its servers", errors.Join(ctx.Err(), err))
		}
	}
}

// leaderGet reads a subject's newest message from the stream's leader, or gives jetstream.ErrMsgNotFound. Direct gets
// are answered by any replica, and first by that of the server that was asked.
func (c *Conn) leaderGet(ctx context.Context, stream, subject string) (*jetstream.RawStreamMsg, error) {
	body, err := json.Marshal(map[string]string{"last_by_subj": subject})
	if err != nil {
		return nil, err
	}
	m, err := c.nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: "$JS.API.STREAM.MSG.GET." + stream, Data: body})
	if err != nil {
		return nil, err
	}
	var ans struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Hdrs    []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &ans); err != nil {
		return nil, fmt.Errorf("reading %s: %w", subject, err)
	}
	switch {
	case ans.Error != nil && ans.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, jetstream.ErrMsgNotFound
	case ans.Error != nil:
		return nil, ans.Error
	case ans.Message == nil || ans.Message.Subject != subject:
		return nil, fmt.Errorf("reading %s: the server's answer has no message", subject)
	}
	raw := &jetstream.RawStreamMsg{Subject: ans.Message.Subject, Sequence: ans.Message.Seq, Data: ans.Message.Data, Time: ans.Message.Time}
	if len(ans.Message.Hdrs) > 0 {
		if raw.Header, err = nats.DecodeHeadersMsg(ans.Message.Hdrs); err != nil {
			return nil, fmt.Errorf("reading %s: %w", subject, err)
		}
	}
	return raw, nil
}
