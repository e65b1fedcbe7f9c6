package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/backup"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// restoredFiles are those of a data_dir that a restore makes, or that would be of another state. The first two may be there
// if they are the backup's own: with a NATS elsewhere the operator has them already.
var restoredFiles = []string{masterKeyFile, bus.KeysFile, revokedFile, "jetstream", "log", revisionsFile, revisionsFile + ".records", identityDir, adminTokenFile, clusterStore, peersFile, founderFile}

// write makes the state. What fails is undone.
func (r *restoring) write(ctx context.Context) (err error) {
	dir := r.cfg.DataDir
	if err := makeDataDir("data_dir", dir); err != nil {
		return err
	}
	p := &issuerProcess{cfg: r.cfg, log: r.log, buckets: map[string]*bus.Bucket{}}
	p.cfg.Bus.Listen = "127.0.0.1:0" // nobody is let in before all is there
	defer p.close()
	if err := p.lock(ctx); err != nil {
		return err
	}
	r.again = exists(filepath.Join(dir, restoringFile))
	if err := r.undo(dir); err != nil { // of one that died
		return err
	}
	elsewhere := len(r.cfg.Bus.URLs) > 0
	if !elsewhere && !r.secrets.Founder {
		return errors.New("restoring: the backup is of an issuer that had not the bus's own keys (it had joined another, or used a NATS of your own): restore onto a NATS with bus.urls, or restore a backup of the first issuer")
	}
	if err := r.open(ctx, p, elsewhere); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.undoBus(p, elsewhere))
			p.close()
			err = errors.Join(err, r.undo(dir))
		}
	}()
	if err := r.fill(ctx, p); err != nil {
		return err
	}
	if err := r.begin(ctx, p); err != nil {
		return err
	}
	p.close()
	return os.Remove(filepath.Join(dir, restoringFile))
}

// open checks that nothing is there, writes the files, and reaches the bus.
func (r *restoring) open(ctx context.Context, p *issuerProcess, elsewhere bool) error {
	if err := r.prepare(p); err != nil {
		return err
	}
	octx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	if elsewhere {
		if err := p.openBus(octx); err != nil {
			return err
		}
		if r.again { // it had found nothing there
			if err := p.conn.RemoveState(octx); err != nil {
				return err
			}
		}
		found, err := p.conn.State(octx)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			return fmt.Errorf("restoring onto the bus at %s: there is state of a sidekey already: %s; if nothing of it is wanted, remove each (nats stream rm NAME)", strings.Join(r.cfg.Bus.URLs, ", "), strings.Join(found, ", "))
		}
	}
	if err := r.files(); err != nil {
		return errors.Join(err, r.undo(r.cfg.DataDir))
	}
	if elsewhere {
		return nil
	}
	if err := p.openBus(octx); err != nil {
		p.close()
		return errors.Join(err, r.undo(r.cfg.DataDir))
	}
	return nil
}

// prepare parses the backup's secrets for p, and refuses a folder that holds a state, or a key that is another one.
func (r *restoring) prepare(p *issuerProcess) (err error) {
	if p.master, err = keyring.ParseMasterKey([]byte(r.secrets.Master)); err != nil {
		return err
	}
	if r.secrets.Bus != nil {
		if p.keys, err = bus.ParseKeys(r.secrets.Bus); err != nil {
			return err
		}
	}
	var found []string
	for _, name := range restoredFiles {
		path := filepath.Join(r.cfg.DataDir, name)
		if !exists(path) || r.sameMaster(name, path) || r.sameKeys(p, name, path) {
			continue
		}
		found = append(found, name)
	}
	if len(found) > 0 {
		return errNotEmpty(r.cfg.DataDir, found)
	}
	if path := r.cfg.masterKeyFile; path != "" && !r.sameMaster(masterKeyFile, path) {
		return fmt.Errorf("restoring: the master key in %s is not the backup's, or is not there; put the backup's there (`age -d FILE | tar -xO secrets.json` shows it)", path)
	}
	return nil
}

func (r *restoring) sameMaster(name, path string) bool {
	text, err := os.ReadFile(path)
	return name == masterKeyFile && err == nil && bytes.Equal(bytes.TrimSpace(text), []byte(r.secrets.Master))
}

func (r *restoring) sameKeys(p *issuerProcess, name, path string) bool {
	if name != bus.KeysFile || p.keys == nil {
		return false
	}
	keys, err := bus.ReadKeys(path, p.master)
	if err != nil {
		return false
	}
	have, err := keys.Plain()
	return err == nil && bytes.Equal(have, r.secrets.Bus)
}

// files writes the data_dir's own, the list of what is to be undone first.
func (r *restoring) files() error {
	dir := r.cfg.DataDir
	master, err := keyring.ParseMasterKey([]byte(r.secrets.Master))
	if err != nil {
		return err
	}
	for _, name := range restoredFiles {
		if !exists(filepath.Join(dir, name)) {
			r.made = append(r.made, name)
		}
	}
	list, err := json.Marshal(r.made)
	if err != nil {
		return err
	}
	if err := bus.WriteFile(filepath.Join(dir, restoringFile), append(list, '\n')); err != nil {
		return fmt.Errorf("restoring into %s: %w", dir, err)
	}
	if r.cfg.masterKeyFile == "" && slices.Contains(r.made, masterKeyFile) {
		if err := bus.WriteFile(filepath.Join(dir, masterKeyFile), master.Text()); err != nil {
			return fmt.Errorf("restoring the master key: %w", err)
		}
	}
	if r.secrets.Bus != nil && slices.Contains(r.made, bus.KeysFile) {
		keys, err := bus.ParseKeys(r.secrets.Bus)
		if err != nil {
			return err
		}
		if err := bus.WriteKeys(filepath.Join(dir, bus.KeysFile), keys, master); err != nil {
			return err
		}
	}
	return nil
}

// fill writes the buckets and the audit.
func (r *restoring) fill(ctx context.Context, p *issuerProcess) (err error) {
	for name, sum := range r.man.Buckets {
		if p.buckets[name], err = bus.RestoreBucket(ctx, p.conn, name, p.master, r.cfg.replicas(), sum.Last+restoreGap); err != nil {
			return err
		}
	}
	c := r.cfg.Issuer
	p.trail, err = bus.OpenAudit(ctx, p.conn, bus.AuditConfig{Issuer: r.cfg.Agent.Name, Replicas: r.cfg.replicas(), Master: p.master, MaxAge: c.AuditMaxAge, MaxBytes: int64(c.AuditMaxMiB) << 20})
	if err != nil {
		return err
	}
	man, err := r.read(backup.Visitor{
		Record: func(bucket string, rec bus.Record) error { return r.record(ctx, p, bucket, rec) },
		Audit: func(issuer string, record []byte) error {
			return p.trail.Restore(ctx, issuer, record)
		},
	})
	if err == nil && !slices.EqualFunc(man.Members, r.man.Members, func(a, b backup.Member) bool { return bytes.Equal(a.SHA256, b.SHA256) }) {
		err = errors.New("restoring: the backup was changed while it was read")
	}
	if err != nil {
		return err
	}
	name, value := r.judge.Mark()
	if _, err = p.buckets[bus.BucketKeys].Create(ctx, name, value); err != nil {
		return err
	}
	slices.Sort(r.revoked)
	list, err := json.Marshal(slices.Compact(r.revoked))
	if err == nil && len(r.revoked) > 0 {
		err = bus.WriteFile(filepath.Join(r.cfg.DataDir, revokedFile), append(list, '\n'))
	}
	return err
}

// record writes one, if it is to be there.
func (r *restoring) record(ctx context.Context, p *issuerProcess, bucket string, rec bus.Record) error {
	value, err := r.judge.Record(bucket, rec)
	switch {
	case err != nil:
	case bucket == bus.BucketAgents:
		value, err = r.agent(value)
	case bucket == bus.BucketIssuers:
		value, err = r.issuer(value)
	}
	if err != nil || value == nil || bucket == bus.BucketKeys && r.private[rec.Name] {
		return err
	}
	_, err = p.buckets[bucket].Create(ctx, rec.Name, value)
	return err
}

// agent strikes off whom --without-agent names.
func (r *restoring) agent(value []byte) ([]byte, error) {
	var m bus.Member
	if err := json.Unmarshal(value, &m); err != nil {
		return nil, err
	}
	if !slices.Contains(r.flags.without, m.Name) {
		return value, nil
	}
	value, nkeys, err := bus.StrikeOff(value, r.judge.Now.Unix())
	r.revoked = append(r.revoked, nkeys...)
	for at := range r.agents {
		if r.agents[at].Name == m.Name {
			r.agents[at].RemovedAt = r.judge.Now.Unix()
		}
	}
	return value, err
}

// issuer leaves no issuer's record: one that was removed since the backup would be let in again, to all secrets, and a cluster is
// founded anew, by who has new keys. Their credentials are refused for ever; they join anew. With the sessions kept nothing has
// happened since, and issuers that bring no server stay.
func (r *restoring) issuer(value []byte) ([]byte, error) {
	var m bus.Member
	if err := json.Unmarshal(value, &m); err != nil {
		return nil, errors.New("restoring: the record of an issuer is damaged")
	}
	if r.flags.keepSessions && m.Route == "" {
		return value, nil
	}
	_, nkeys, err := bus.StrikeOff(value, r.judge.Now.Unix())
	r.revoked = append(r.revoked, nkeys...)
	r.issuers++
	return nil, err
}

// begin makes the log, under a new epoch. Who held leases after the backup is not known: anybody, for as long as may be.
func (r *restoring) begin(ctx context.Context, p *issuerProcess) (err error) {
	if p.authority, err = r.authority(); err != nil {
		return err
	}
	longest := map[string]time.Duration{"agents that joined since the backup": r.flags.longest}
	for _, m := range r.agents {
		longest[m.Name] = r.flags.longest
	}
	known := r.known.Cursor()
	held, err := json.Marshal(lease.Blanket(longest, known.Position))
	if err != nil {
		return err
	}
	known.Seq += restoreGap
	cfg := bus.LogConfig{Authority: p.authority, Issuer: r.cfg.Agent.Name, Replicas: r.cfg.replicas()}
	if r.at, err = bus.BeginAnew(ctx, p.conn, cfg, known, r.known.ImageAt, held); err != nil {
		return err
	}
	return r.event(ctx, p)
}

// event writes into the audit that the state was restored.
func (r *restoring) event(ctx context.Context, p *issuerProcess) error {
	text, err := json.Marshal(issuer.AuditEvent{
		Time: r.judge.Now.UTC().Format("2006-01-02T15:04:05.000Z"), Issuer: r.cfg.Agent.Name, Event: "restored from a backup", Outcome: issuer.Done,
		Details: map[string]any{
			"time": r.head.Time, "from": r.head.From.Seq, "epoch": r.at.Epoch, "seq": r.at.Seq, "sessions_kept": r.flags.keepSessions, "sessions_ended": r.judge.Sessions,
		},
	})
	if err != nil {
		return err
	}
	_, err = p.trail.Write(ctx, append(text, '\n'))
	return err
}

// undoBus removes from a bus elsewhere what a failed restore has made there; it was empty before.
func (r *restoring) undoBus(p *issuerProcess, elsewhere bool) error {
	if !elsewhere {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	return p.conn.RemoveState(ctx)
}

// undo removes what an unfinished restore has made in the folder, by its own list.
func (r *restoring) undo(dir string) error {
	path := filepath.Join(dir, restoringFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var made []string
	if err == nil {
		err = json.Unmarshal(text, &made)
	}
	for _, name := range made {
		if err == nil && slices.Contains(restoredFiles, name) {
			err = os.RemoveAll(filepath.Join(dir, name))
		}
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("removing what an unfinished restore has left in %s: %w; empty the folder yourself", dir, err)
	}
	return nil
}
