package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"filippo.io/age"
	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/backup"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// restoreGap is how far above the backup's every sequence goes on: no fleet can have seen so many more. session_seq and
// cutoffs are compared over epochs, and records by their versions.
const restoreGap = 1 << 32

// restoreWithin bounds one restore.
const restoreWithin = 4 * time.Hour

// restoreFlags are those of `sidekey restore`.
type restoreFlags struct {
	identity, passphrase string
	keepSessions         bool
	without              []string // agents
	revocations          []string // folders
	longest              time.Duration
	check                bool
}

func (a *app) restoreCommand() *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make an issuer's state from a backup, in an empty data_dir, before that issuer is started",
		Long: "Read the whole backup first, and write nothing unless it is sound. The log is begun under a new epoch, so agents follow by\n" +
			"themselves, and keep every revocation that they know. Nobody knows what happened since the backup: all sessions end, all\n" +
			"keys that sign are replaced, unused join tokens are void. docs/backup.md has what is lost, and what to compare afterwards.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), restoreWithin)
			defer cancel()
			return a.restore(ctx, args[0], f)
		},
	}
	cmd.Flags().StringVar(&f.identity, "identity", "", "file with the age identity (AGE-SECRET-KEY-1…) that opens it; - is standard input")
	cmd.Flags().StringVar(&f.passphrase, "passphrase", "", "the passphrase that opens it: @FILE, or - for standard input")
	cmd.Flags().BoolVar(&f.keepSessions, "keep-sessions", false, "keep sessions and signing keys: only if nothing was changed since the backup; what was revoked, or used, since then is good again")
	cmd.Flags().StringArrayVar(&f.without, "without-agent", nil, "an agent that is not to be let in again: it was removed since the backup; may be repeated")
	cmd.Flags().StringArrayVar(&f.revocations, "revocations-from", nil, "folder with a copy of the log, of which the revocations are taken too: data_dir/log of an issuer, or an agent's data_dir; may be repeated")
	cmd.Flags().DurationVar(&f.longest, "longest-lease", lease.MaxLength, "the longest agent.max_staleness in the fleet: so long nothing is confirmed afterwards")
	cmd.Flags().BoolVar(&f.check, "check", false, "read and judge the backup, and write nothing")
	a.addKeyFlags(cmd.Flags(), "log_level", "log_format")
	return a.addFormat(cmd)
}

// restoring is one restore.
type restoring struct {
	app   *app
	flags restoreFlags
	cfg   Config
	log   hclog.Logger
	file  *os.File
	with  []age.Identity
	judge issuer.Restoring

	// From the backup.
	head      backup.Head
	secrets   backup.Secrets
	man       *backup.Manifest
	known     *replica.Replica
	authority *keyring.Authority // signs the log
	agents    []bus.Member
	private   map[string]bool // records of private keys that are given up
	revoked   []string        // nkeys that are refused
	issuers   int             // struck off

	own    unfinished // this restore's
	marked bool       // on a bus elsewhere there may be something of it
	learnt [2]int     // revocations more, credentials fewer, by revocations-from
	at     bus.Position
}

func (a *app) restore(ctx context.Context, path string, f restoreFlags) error {
	cfg, err := a.config(defaultConfig())
	if err != nil {
		return err
	}
	if f.longest <= 0 || f.longest > lease.MaxLength {
		return usagef("--longest-lease is over 0 and at most %s", lease.MaxLength)
	}
	r := &restoring{app: a, flags: f, cfg: cfg, log: newLogger(cfg, a.stderr), private: map[string]bool{}}
	r.judge = issuer.Restoring{KeepSessions: f.keepSessions, Now: time.Now()}
	if r.with, err = a.backupIdentity(f); err != nil {
		return err
	}
	if r.file, err = os.Open(path); err != nil {
		return fmt.Errorf("reading the backup: %w", err)
	}
	defer r.file.Close()
	if err := r.look(); err != nil {
		return err
	}
	if f.check {
		return r.report("the backup is sound; nothing was written")
	}
	if err := r.write(ctx); err != nil {
		return err
	}
	return r.report("restored; start the issuer")
}

// backupIdentity is what opens a backup.
func (a *app) backupIdentity(f restoreFlags) ([]age.Identity, error) {
	switch {
	case (f.identity == "") == (f.passphrase == ""):
		return nil, usagef("say what opens the backup: --identity FILE or --passphrase @FILE")
	case f.passphrase != "" && f.passphrase != "-" && !strings.HasPrefix(f.passphrase, "@"):
		return nil, usagef("--passphrase takes @FILE, or - for standard input: an argument is seen by other processes")
	case f.passphrase != "":
		text, err := a.secretArg("passphrase", f.passphrase)
		if err != nil {
			return nil, err
		}
		id, err := age.NewScryptIdentity(text)
		return []age.Identity{id}, err
	}
	from := "@" + f.identity
	if f.identity == "-" {
		from = "-"
	}
	text, err := a.secretArg("identity", from)
	if err != nil {
		return nil, err
	}
	ids, err := age.ParseIdentities(strings.NewReader(text))
	if err != nil { // not err: it may quote the key
		return nil, errors.New("reading the identity: it is none of age's: want lines of AGE-SECRET-KEY-1…, as age-keygen writes them, not encrypted")
	}
	return ids, nil
}

// read goes through the backup from its beginning.
func (r *restoring) read(v backup.Visitor) (*backup.Manifest, error) {
	if _, err := r.file.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading the backup: %w; it has to be a file, since it is read twice", err)
	}
	return backup.Read(r.file, v, r.with...)
}

// look reads the backup whole and judges all that is in it. Nothing is written.
func (r *restoring) look() error {
	judge := r.judge
	man, err := r.read(backup.Visitor{
		Head:    func(h backup.Head) error { r.head = h; return nil },
		Secrets: r.lookAtSecrets,
		Image:   r.lookAtImage,
		Record: func(bucket string, rec bus.Record) error {
			if err := r.lookAtRecord(bucket, rec); err != nil {
				return err
			}
			_, err := judge.Record(bucket, rec)
			return err
		},
	})
	if err != nil {
		return err
	}
	if r.man = man; r.authority == nil {
		return errors.New("reading the backup: it lacks the key that signs the log, and agents believe no other: it is not of a sidekey's whole state; take another one")
	}
	if r.flags.check {
		r.judge.Sessions, r.judge.Tokens = judge.Sessions, judge.Tokens
	}
	if now := r.judge.Now.Unix(); now < r.head.Time {
		return fmt.Errorf("restoring: the backup is of %s, and this host's clock says %s: set the clock right; a log that begins in the past is refused by the agents", stamp(r.head.Time), stamp(now))
	}
	for _, name := range r.flags.without {
		if !slices.ContainsFunc(r.agents, func(m bus.Member) bool { return m.Name == name }) {
			return fmt.Errorf("restoring: --without-agent %q: the backup has no such agent", name)
		}
	}
	for _, dir := range r.flags.revocations {
		if err := r.learn(dir); err != nil {
			return err
		}
	}
	r.known.ForgetKeys(func(f *bus.KeyFact) bool {
		forget := r.judge.ForgetsKey(f)
		r.private[issuer.PrivateName(f.KeyID)] = forget
		return forget
	})
	return nil
}

func (r *restoring) lookAtSecrets(s backup.Secrets) error {
	r.secrets, r.revoked = s, s.Revoked
	if _, err := keyring.ParseMasterKey([]byte(s.Master)); err != nil {
		return fmt.Errorf("reading the backup: its master key: %w", err)
	}
	if s.Bus == nil {
		return nil
	}
	_, err := bus.ParseKeys(s.Bus)
	if err != nil {
		return fmt.Errorf("reading the backup: its bus keys: %w", err)
	}
	return nil
}

func (r *restoring) lookAtImage(img []byte) error {
	r.known = replica.New(replica.Config{})
	if err := r.known.Load(img); err != nil {
		return fmt.Errorf("reading the backup: %w", err)
	}
	return nil
}

// lookAtRecord keeps what is asked for by itself: the agents, and the key that signs the log.
func (r *restoring) lookAtRecord(bucket string, rec bus.Record) (err error) {
	switch {
	case bucket == bus.BucketAgents:
		var m bus.Member
		if err := json.Unmarshal(rec.Value, &m); err != nil {
			return errors.New("reading the backup: the record of an agent is damaged")
		}
		r.agents = append(r.agents, m)
	case bucket == bus.BucketKeys && rec.Name == authorityName:
		if r.authority, err = keyring.ParseAuthority(rec.Value); err != nil {
			return fmt.Errorf("reading the backup: the key that signs the log: %w", err)
		}
	}
	return nil
}

// learn takes the revocations of another copy of the log: that of an issuer, or an agent's.
func (r *restoring) learn(dir string) error {
	more := replica.New(replica.Config{})
	there, err := replica.ReadStore(dir, r.authority.Public(), more)
	if err != nil {
		return fmt.Errorf("reading the copy of the log in %s: %w", dir, err)
	}
	if !there {
		return fmt.Errorf("reading the copy of the log in %s: there is none; name data_dir/log of an issuer, or the data_dir of an agent", dir)
	}
	revocations, credentials := r.known.Unite(more)
	r.learnt[0] += revocations
	r.learnt[1] += credentials
	return nil
}

func stamp(at int64) string { return time.Unix(at, 0).UTC().Format(time.RFC3339) }

// report tells what was done, and what is to be looked at.
func (r *restoring) report(done string) error {
	type agent struct {
		Name    string `json:"name"`
		Joined  int64  `json:"joined"`
		Removed int64  `json:"removed,omitempty"`
	}
	answer := struct {
		Done        string       `json:"done"`
		Time        int64        `json:"time"` // of the backup
		From        bus.Position `json:"from"`
		At          bus.Position `json:"at"` // of the new log; zero: none was begun
		Sessions    int          `json:"sessions_ended"`
		Keys        int          `json:"keys_replaced"`
		Tokens      int          `json:"join_tokens_void"`
		Revocations int          `json:"revocations"`
		Learnt      int          `json:"revocations_learnt"`
		Agents      []agent      `json:"agents"`
	}{done, r.head.Time, r.head.From, r.at, r.judge.Sessions, r.judge.Keys, r.judge.Tokens, r.known.Revocations(), r.learnt[0], nil}
	for _, m := range r.agents {
		answer.Agents = append(answer.Agents, agent{m.Name, m.Joined, m.RemovedAt})
	}
	body, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	err = r.app.answer(body, func(w *tabwriter.Writer) {
		row(w, "backup", fmt.Sprintf("of %s, %s old, entry %d of epoch %d", stamp(r.head.Time), r.judge.Now.Sub(time.Unix(r.head.Time, 0)).Round(time.Second), r.head.From.Seq, r.head.From.Epoch))
		if r.at != (bus.Position{}) {
			row(w, "log", fmt.Sprintf("begun anew at entry %d of epoch %d, with %d revocations", r.at.Seq, r.at.Epoch, r.known.Revocations()))
		}
		row(w, "learnt", fmt.Sprintf("%d revocations since the backup, %d credentials withdrawn since", r.learnt[0], r.learnt[1]))
		row(w, "ended", fmt.Sprintf("%d sessions, %d keys that sign, %d join tokens", r.judge.Sessions, r.judge.Keys, r.judge.Tokens))
		for _, a := range answer.Agents {
			if a.Removed == 0 {
				row(w, "agent", fmt.Sprintf("%s, joined %s", a.Name, stamp(a.Joined)))
			} else {
				row(w, "agent", fmt.Sprintf("%s, removed %s", a.Name, stamp(a.Removed)))
			}
		}
	})
	if err == nil {
		r.app.note("%s", done)
	}
	if err == nil && r.at != (bus.Position{}) {
		r.app.note("compare, since nobody knows what was done after the backup: agents list (remove whom you had removed; who joined since must join again), credentials list and users list (revoke and disable again what was)")
		if r.issuers > 0 {
			r.app.note("%d issuers are struck off, for one that was removed since would be let in again: the others join anew (issuers add), each with a fresh data_dir", r.issuers)
		}
		r.app.note("nothing is confirmed for %s from the issuer's start: who holds a lease is not known", r.flags.longest)
	}
	return err
}

// errNotEmpty names what is in the way.
func errNotEmpty(dir string, found []string) error {
	return fmt.Errorf("restoring into %s: %s is there already; a backup is restored into an empty folder: move what is there away and keep it (its log/ can be named with --revocations-from)", dir, strings.Join(found, ", "))
}

// exists tells whether there is a file.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// checkRestored refuses a folder into which a restore came to no end.
func checkRestored(dir string) error {
	if exists(filepath.Join(dir, restoringFile)) {
		return fmt.Errorf("refusing to start: a restore into %s was not finished; run `sidekey restore` again", dir)
	}
	return nil
}
