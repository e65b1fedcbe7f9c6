package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/backup"
	"github.com/sidekey/sidekey/issuer"
)

// backupFlags are those of `sidekey backup`.
type backupFlags struct {
	recipients     []string
	recipientsFile string
	passphrase     string
	withAudit      bool
	force          bool
}

func (a *app) backupCommand() *cobra.Command {
	var f backupFlags
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write an encrypted backup of the issuers' whole state, while they run",
		Long: "Ask the issuer for a backup of everything: keys, users, sessions, the log. The issuer encrypts it, to age recipients\n" +
			"(age1…, as age-keygen prints them; its own issuer.backup_recipients where none are given) or with a passphrase; what\n" +
			"arrives here is encrypted. Over TCP it takes no recipients but its own, and no passphrase. FILE - is standard output.\n" +
			"Who can open it can do all that an issuer can. docs/backup.md says what is in it and how it is restored.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.backup(cmd.Context(), args[0], f) },
	}
	cmd.Flags().StringArrayVar(&f.recipients, "recipient", nil, "an age recipient that is to be able to open it; may be repeated")
	cmd.Flags().StringVar(&f.recipientsFile, "recipients-file", "", "file with age recipients, one a line")
	cmd.Flags().StringVar(&f.passphrase, "passphrase", "", "encrypt with a passphrase instead: @FILE, or - for standard input")
	cmd.Flags().BoolVar(&f.withAudit, "with-audit", false, "take the audit too")
	cmd.Flags().BoolVar(&f.force, "force", false, "write over FILE if it is there")
	return cmd
}

func (a *app) backup(ctx context.Context, path string, f backupFlags) error {
	body, err := a.backupRequest(f)
	if err != nil {
		return err
	}
	out, err := a.openBackup(path, f.force)
	if err != nil {
		return err
	}
	defer out.drop()
	c, err := a.adminClient()
	if err != nil {
		return err
	}
	trailer, err := c.download(ctx, "/admin/v1/backup", body, out, issuer.BackupTrailer)
	if err != nil {
		return err
	}
	var s issuer.BackupSummary
	if err := json.Unmarshal([]byte(trailer), &s); err != nil {
		return errors.New("taking a backup: the issuer broke off in the middle; look at its log, and try again")
	}
	if err := out.keep(); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	var counts []string
	for _, name := range []string{bus.BucketUsers, bus.BucketSessions, bus.BucketClients, bus.BucketCredentials, bus.BucketAgents} {
		counts = append(counts, fmt.Sprintf("%d %s", s.Buckets[name].Records, name))
	}
	a.note("%d bytes of issuer %s: all that was acknowledged up to entry %d of epoch %d is in it; %s", out.n, s.Head.Issuer, s.Head.From.Seq, s.Head.From.Epoch, strings.Join(counts, ", "))
	return nil
}

// backupRequest reads who is to be able to open the backup, and judges that before anything is asked for.
func (a *app) backupRequest(f backupFlags) (map[string]any, error) {
	recipients := slices.Clone(f.recipients)
	if f.recipientsFile != "" {
		text, err := readSecretFile(f.recipientsFile)
		if err != nil {
			return nil, fmt.Errorf("reading the recipients: %w", err)
		}
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				recipients = append(recipients, line)
			}
		}
	}
	body := map[string]any{"audit": f.withAudit}
	passphrase := ""
	if f.passphrase != "" {
		if f.passphrase != "-" && !strings.HasPrefix(f.passphrase, "@") {
			return nil, usagef("--passphrase takes @FILE, or - for standard input: an argument is seen by other processes, and stays in the shell's history")
		}
		var err error
		if passphrase, err = a.secretArg("passphrase", f.passphrase); err != nil {
			return nil, err
		}
		body["passphrase"] = passphrase
	}
	if len(recipients) > 0 {
		body["recipients"] = recipients
	}
	if len(recipients) == 0 && passphrase == "" {
		return body, nil // the issuer has its own
	}
	if _, err := backup.Recipients(recipients, passphrase); err != nil {
		return nil, usageError{err.Error()}
	}
	return body, nil
}

// backupFile is FILE while it is written: it has its name only when it is whole.
type backupFile struct {
	io.Writer
	tmp   *os.File // nil: standard output
	path  string
	force bool
	n     int64
}

func (a *app) openBackup(path string, force bool) (*backupFile, error) {
	if path == "-" {
		if f, ok := a.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return nil, usagef("a backup is no text: name a file, or pipe it")
		}
		return &backupFile{Writer: a.stdout}, nil
	}
	if _, err := os.Lstat(path); err == nil && !force {
		return nil, fmt.Errorf("writing %s: it is there already; name another file, or give --force", path)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp*") // 0600
	if err != nil {
		return nil, fmt.Errorf("writing a backup: %w", err)
	}
	return &backupFile{Writer: tmp, tmp: tmp, path: path, force: force}, nil
}

// Write implements io.Writer.
func (b *backupFile) Write(p []byte) (int, error) {
	n, err := b.Writer.Write(p)
	b.n += int64(n)
	return n, err
}

// keep gives the file its name. Without force it takes no other's place, however late that came.
func (b *backupFile) keep() error {
	if b.tmp == nil {
		return nil
	}
	if err := errors.Join(b.tmp.Sync(), b.tmp.Close()); err != nil {
		return err
	}
	if !b.force {
		err := os.Link(b.tmp.Name(), b.path)
		if err == nil || errors.Is(err, fs.ErrExist) {
			return errors.Join(err, os.Remove(b.tmp.Name()), syncFolder(b.path))
		} // else the file system has no links
	}
	return errors.Join(os.Rename(b.tmp.Name(), b.path), syncFolder(b.path))
}

// syncFolder makes what came to path, or went from there, outlive a loss of power. It is a variable for a test to listen in.
var syncFolder = func(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// drop removes what was not kept.
func (b *backupFile) drop() {
	if b.tmp != nil {
		b.tmp.Close()
		os.Remove(b.tmp.Name()) //nolint:errcheck // it is gone where it was kept
	}
}

// download posts body and writes the answer to w as it comes, however long that takes; it gives a trailer.
func (c *client) download(ctx context.Context, path string, body any, w io.Writer, trailer string) (string, error) {
	req, err := c.request(ctx, http.MethodPost, path, body)
	if err != nil {
		return "", err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return "", c.unreachable(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err != nil {
			return "", c.unreachable(err)
		}
		return "", c.refused(reply{status: resp.StatusCode, body: text})
	}
	var failed error
	if _, err := io.Copy(writerFunc(func(p []byte) (int, error) {
		n, err := w.Write(p)
		failed = err
		return n, err
	}), resp.Body); failed != nil {
		return "", fmt.Errorf("writing what %s sends: %w", c.who, failed)
	} else if err != nil {
		return "", fmt.Errorf("reading from %s at %s: it broke off in the middle (%w); look at its log, and try again", c.who, c.addr, err)
	}
	return resp.Trailer.Get(trailer), nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// takeBackup is issuer.Parts.Backup: it knows all that a backup is of.
func (p *issuerProcess) takeBackup(ctx context.Context, w io.Writer, to []age.Recipient, withAudit bool) (*backup.Head, *backup.Manifest, error) {
	secrets, err := p.backupSecrets()
	if err != nil {
		return nil, nil, err
	}
	src := backup.Source{
		Head:    backup.Head{Version: version(), Issuer: p.cfg.Agent.Name, URL: p.cfg.Issuer.URL, Time: time.Now().Unix()},
		Secrets: *secrets, Mark: p.entries.Tick, Keys: p.buckets[bus.BucketKeys],
		Image: func(ctx context.Context, at bus.Position) ([]byte, bus.Cursor, error) {
			if err := p.replica.Wait(ctx, at.Seq); err != nil {
				return nil, bus.Cursor{}, err
			}
			return p.replica.Image()
		},
	}
	for _, name := range backupOrder(p.buckets) {
		src.Buckets = append(src.Buckets, p.buckets[name])
	}
	if withAudit {
		src.Audit = p.trail.Each
	}
	return backup.Take(ctx, w, to, src)
}

// backupOrder gives the buckets but the keys, so that of two which are written one after the other the later is read first
// (docs/backup.md).
func backupOrder(buckets map[string]*bus.Bucket) []string {
	names := []string{bus.BucketSessions, bus.BucketCredentials, bus.BucketUsers, bus.BucketSubjects, bus.BucketClients, bus.BucketAgents, bus.BucketIssuers, bus.BucketJoins}
	var more []string
	for name := range buckets {
		if !slices.Contains(names, name) && name != bus.BucketKeys {
			more = append(more, name)
		}
	}
	slices.Sort(more)
	return append(names, more...)
}

// backupSecrets are those of the data_dir.
func (p *issuerProcess) backupSecrets() (*backup.Secrets, error) {
	s := &backup.Secrets{Master: string(bytes.TrimSpace(p.master.Text()))}
	if p.keys == nil {
		return s, nil
	}
	plain, err := p.keys.Plain()
	if err != nil {
		return nil, err
	}
	s.Bus, s.Founder = plain, p.keys.Operates()
	s.Revoked, err = bus.ReadRevoked(filepath.Join(p.cfg.DataDir, revokedFile))
	return s, err
}
