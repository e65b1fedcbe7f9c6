package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	lock, err := lockDir("data_dir", dir) // longer than p is open
	if err != nil {
		return err
	}
	defer lock.Close()
	p := &issuerProcess{cfg: r.cfg, log: r.log, buckets: map[string]*bus.Bucket{}}
	p.cfg.Bus.Listen = "127.0.0.1:0" // nobody is let in before all is there
	defer p.close()
	if err := r.clear(ctx, p); err != nil {
		return err
	}
	whole := false
	defer func() {
		if err == nil || whole {
			return
		}
		if left := r.undo(p); left != nil { // in one line: no other is shown
			err = errors.New(strings.ReplaceAll(errors.Join(err, left).Error(), "\n", "; "))
		}
	}()
	for _, step := range []func(context.Context, *issuerProcess) error{r.files, r.open, r.fill, r.begin, r.close} {
		if err := step(ctx, p); err != nil {
			return err
		}
	}
	whole = true
	if err := removeRestoring(dir); err != nil {
		return fmt.Errorf("everything is restored, but %s is there still, or may be after a loss of power: %w; remove it yourself, and run `sync`", filepath.Join(dir, restoringFile), err)
	}
	return nil
}

// clear removes what a restore that died has left, the bus's part first, and refuses whatever else is in the way. The file that
// keeps issuers away stays until this restore has written its own.
func (r *restoring) clear(ctx context.Context, p *issuerProcess) error {
	died, err := readUnfinished(r.cfg.DataDir)
	if err != nil {
		return err
	}
	if !r.elsewhere() && !r.secrets.Founder {
		return errors.New("restoring: the backup is of an issuer that had not the bus's own keys (it had joined another, or used a NATS of your own): restore onto a NATS with bus.urls (--config FILE), or restore a backup of an issuer that has them")
	}
	if died.Bus && !r.elsewhere() {
		return fmt.Errorf("restoring: the restore that died in %s was onto a NATS of your own, and may have left half of a state there: give the same configuration again (--config FILE), with bus.urls", r.cfg.DataDir)
	}
	if err := r.prepare(p, died.Made); err != nil {
		return err
	}
	if r.elsewhere() {
		if err := r.clearBus(ctx, p, died.ID); err != nil {
			return err
		}
	}
	return died.removeFiles(r.cfg.DataDir)
}

// elsewhere tells whether the bus is not to be made here.
func (r *restoring) elsewhere() bool { return len(r.cfg.Bus.URLs) > 0 }

// open makes the bus, or marks the one elsewhere.
func (r *restoring) open(ctx context.Context, p *issuerProcess) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	if !r.elsewhere() {
		return p.openBus(ctx)
	}
	err := p.conn.MarkRestore(ctx, r.own.ID, r.cfg.replicas())
	r.marked = !errors.Is(err, bus.ErrOtherState) // after any other error it may be there
	return err
}

// close says that what is on the bus is whole, and ends it where it was made here.
func (r *restoring) close(ctx context.Context, p *issuerProcess) error {
	if r.elsewhere() {
		if err := p.conn.RemoveMark(ctx, r.own.ID); err != nil {
			return err
		}
	}
	p.close()
	return nil
}

// prepare parses the backup's secrets for p, and refuses a folder that holds a state, or a key that is another one, unless a
// restore that died has made that.
func (r *restoring) prepare(p *issuerProcess, made []string) (err error) {
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
		if !exists(path) || slices.Contains(made, name) || r.sameMaster(name, path) || r.sameKeys(p, name, path) {
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
func (r *restoring) files(_ context.Context, p *issuerProcess) error {
	dir := r.cfg.DataDir
	r.own = unfinished{ID: randomToken(), Bus: r.elsewhere()}
	for _, name := range restoredFiles {
		if !exists(filepath.Join(dir, name)) {
			r.own.Made = append(r.own.Made, name)
		}
	}
	if err := r.own.write(dir); err != nil {
		return err
	}
	if r.cfg.masterKeyFile == "" && slices.Contains(r.own.Made, masterKeyFile) {
		if err := bus.WriteFile(filepath.Join(dir, masterKeyFile), p.master.Text()); err != nil {
			return fmt.Errorf("restoring the master key: %w", err)
		}
	}
	if p.keys != nil && slices.Contains(r.own.Made, bus.KeysFile) {
		return bus.WriteKeys(filepath.Join(dir, bus.KeysFile), p.keys, p.master)
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
	p.authority = r.authority
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
