package issuer

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"filippo.io/age"

	"github.com/sidekey/sidekey/bus/backup"
)

// Backup writes a backup of all that this issuer is to w, encrypted to the recipients; with the audit, where that is
// asked for. After an error what was written is none.
type Backup func(ctx context.Context, w io.Writer, to []age.Recipient, withAudit bool) (*backup.Head, *backup.Manifest, error)

// backupWithin bounds one backup, backupStall how long its reader may take nothing, and backupHeld what is held back of it,
// so that a fault at its very beginning is an answer and not a broken one.
const (
	backupWithin = 4 * time.Hour
	backupStall  = time.Minute
	backupHeld   = 64 << 10
)

// BackupTrailer is the trailer of the answer's stream that says what is in it: a BackupSummary. Without one it is not whole.
const BackupTrailer = "Sidekey-Backup"

// BackupSummary is what may be known of a backup without opening it.
type BackupSummary struct {
	Head    backup.Head              `json:"head"`
	At      uint64                   `json:"at"` // the sequence of the log's image
	Buckets map[string]backup.Bucket `json:"buckets"`
	Audit   int                      `json:"audit"`
}

// backupRequest is the body of POST /admin/v1/backup. With neither recipients nor a passphrase it is for
// Config.BackupRecipients.
type backupRequest struct {
	Recipients []string `json:"recipients"`
	Passphrase string   `json:"passphrase"`
	Audit      bool     `json:"audit"`
}

// backupFor tells to whom a backup is encrypted. Who asks from elsewhere has the admin token and nothing else, which opens no
// secret: they get none by choosing who can open a backup.
func (i *Issuer) backupFor(in *backupRequest, local bool) ([]age.Recipient, error) {
	mine := i.cfg.BackupRecipients
	if len(in.Recipients) == 0 && in.Passphrase == "" {
		in.Recipients = mine
	}
	here := "or ask over the unix socket (issuer.admin_listen = \"unix:…\"), on this host and as the issuer's user"
	switch {
	case local:
	case len(mine) == 0:
		return nil, &bodyError{http.StatusForbidden, "over TCP a backup is taken only for the recipients that issuer.backup_recipients names, and it names none: " +
			"with the admin token alone anybody could take every secret. Set it at the issuer, " + here}
	case in.Passphrase != "":
		return nil, &bodyError{http.StatusForbidden, "over TCP a backup is taken only for the recipients that issuer.backup_recipients names, with no passphrase; leave that out, " + here}
	default:
		for _, to := range in.Recipients {
			if !slices.Contains(mine, to) {
				return nil, &bodyError{http.StatusForbidden, fmt.Sprintf("over TCP a backup is taken only for the recipients that issuer.backup_recipients names, and %q is none of them; add it there, %s",
					backup.Shorten(to), here)}
			}
		}
	}
	to, err := backup.Recipients(in.Recipients, in.Passphrase)
	if err != nil {
		return nil, &bodyError{http.StatusBadRequest, err.Error()}
	}
	return to, nil
}

// serveBackup streams a backup: POST /admin/v1/backup {"recipients": ["age1…"]} or {"passphrase": "…"}, {"audit": true}. What
// leaves this process is encrypted. One is taken at a time. local: who asks is at the unix socket.
func (i *Issuer) serveBackup(w http.ResponseWriter, r *http.Request, local bool) {
	var in backupRequest
	var to []age.Recipient
	err := readJSON(r, &in)
	if err == nil {
		to, err = i.backupFor(&in, local)
	}
	switch {
	case err == nil && i.Backup == nil:
		err = fmt.Errorf("taking a backup: this issuer has no state of its own: %w", ErrNotFound)
	case err == nil && !i.backingUp.CompareAndSwap(false, true):
		err = &bodyError{http.StatusConflict, "a backup is being taken already; wait until it is done"}
	case err == nil:
		defer i.backingUp.Store(false)
	}
	if err != nil {
		i.audited(func(w http.ResponseWriter, r *http.Request) { i.fail(w, r, err) })(w, r)
		return
	}
	pairs := []any{"method", r.Method, "path", auditPath(r), "call", newID()}
	if err := i.audits.record(r.Context(), adminCall, Attempt, pairs); err != nil {
		i.failAudit(w, r, err, "nothing was done: the audit cannot be written; try again")
		return
	}
	i.streamBackup(w, r, to, in.Audit, pairs)
}

// streamBackup takes the backup and records how that ended. A fault in the middle breaks the connection off.
func (i *Issuer) streamBackup(w http.ResponseWriter, r *http.Request, to []age.Recipient, withAudit bool, pairs []any) {
	ctx, cancel := context.WithTimeout(r.Context(), backupWithin)
	defer cancel()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", BackupTrailer)
	out := &patientWriter{to: w, ctl: http.NewResponseController(w)}
	held := bufio.NewWriterSize(out, backupHeld)
	head, man, err := i.Backup(ctx, held, to, withAudit)
	outcome := Done
	if err != nil {
		outcome = Failed
	} else {
		i.event(ctx, "backup taken", "recipients", len(to), "from", head.From.Seq, "at", man.At.Seq, "audit", man.Audit)
	}
	rctx, stop := context.WithTimeout(context.WithoutCancel(ctx), 2*applyTimeout)
	defer stop()
	aerr := i.audits.record(rctx, adminCall, outcome, append(pairs, "bytes", out.written+int64(held.Buffered())))
	if err == nil && aerr == nil {
		err = held.Flush()
	}
	switch {
	case err == nil && aerr == nil:
		text, merr := json.Marshal(BackupSummary{*head, man.At.Seq, man.Buckets, man.Audit})
		if merr == nil {
			w.Header().Set(BackupTrailer, string(text))
		}
		return
	case out.written > 0:
		i.log.Error("a backup failed", "error", err, "audit_error", aerr)
		panic(http.ErrAbortHandler) // the client must not take it for a whole one
	}
	w.Header().Del("Trailer")
	w.Header().Del("Content-Type")
	if aerr != nil {
		i.failAudit(w, r, aerr, "the audit cannot be written, so the backup is withheld; try again")
		return
	}
	i.fail(w, r, fmt.Errorf("taking a backup: %w: %w", ErrUnavailable, err))
}

// patientWriter writes to a client for as long as it takes something now and then.
type patientWriter struct {
	to      http.ResponseWriter
	ctl     *http.ResponseController
	written int64
}

// Write implements io.Writer.
func (p *patientWriter) Write(b []byte) (int, error) {
	_ = p.ctl.SetReadDeadline(time.Time{}) // the server's bounds are for calls that end soon; a test's recorder has none
	_ = p.ctl.SetWriteDeadline(time.Now().Add(backupStall))
	n, err := p.to.Write(b)
	p.written += int64(n)
	return n, err
}
