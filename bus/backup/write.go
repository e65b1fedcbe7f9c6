package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"filippo.io/age"

	"github.com/sidekey/sidekey/bus"
)

// Source is what a backup is taken of. Each call may be made once, in the order of the fields.
type Source struct {
	Head    Head // Format and From are filled in
	Secrets Secrets
	// Mark appends an entry of no meaning: what was acknowledged before is in the log in front of it.
	Mark func(context.Context) (bus.Position, error)
	// Buckets are read in this order, before the image.
	Buckets []Records
	// Image gives the log's state where that is read up to a position, or beyond it.
	Image func(context.Context, bus.Position) ([]byte, bus.Cursor, error)
	// Keys is read after the image: a private key is stored before its first entry is appended.
	Keys Records
	// Audit calls fn with each record of the audit; nil: it is left out.
	Audit func(ctx context.Context, fn func(issuer string, record []byte) error) error
}

// Records is a state bucket to be read. *bus.Bucket is one.
type Records interface {
	Name() string // bus.BucketUsers and so on
	Each(ctx context.Context, filter string, fn func(bus.Record) error) error
	LastSeq(ctx context.Context) (uint64, error)
}

// Take writes a backup of what src gives to w, encrypted to the recipients, and tells what is in it. It holds no more of
// it in memory than the log's image and a megabyte. After an error what was written is no backup, and does not read as one.
func Take(ctx context.Context, w io.Writer, to []age.Recipient, src Source) (*Head, *Manifest, error) {
	sealed, err := age.Encrypt(w, to...)
	if err != nil {
		return nil, nil, fmt.Errorf("encrypting the backup: %w", err)
	}
	t := &taking{tar: tar.NewWriter(sealed), when: time.Unix(src.Head.Time, 0), man: Manifest{Buckets: make(map[string]Bucket)}}
	head, err := t.take(ctx, &src)
	if err == nil {
		err = t.tar.Close()
	}
	if err == nil {
		err = sealed.Close()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("taking a backup: %w", err)
	}
	return head, &t.man, nil
}

// taking is one Take.
type taking struct {
	tar  *tar.Writer
	when time.Time
	man  Manifest
}

func (t *taking) take(ctx context.Context, src *Source) (head *Head, err error) {
	head = &src.Head
	head.Format = Format
	if head.From, err = src.Mark(ctx); err != nil {
		return nil, err
	}
	if err = t.json(headMember, head); err == nil {
		err = t.json(secretsMember, src.Secrets)
	}
	for _, b := range src.Buckets {
		if err == nil {
			err = t.bucket(ctx, b)
		}
	}
	if err != nil {
		return nil, err
	}
	img, at, err := src.Image(ctx, head.From)
	if err != nil {
		return nil, err
	}
	t.man.At = at.Position
	if err = t.member(imageMember, img); err == nil {
		err = t.bucket(ctx, src.Keys)
	}
	if err == nil && src.Audit != nil {
		err = t.audit(ctx, src.Audit)
	}
	if err == nil {
		err = t.json(manifestMember, t.man)
	}
	return head, err
}

// bucket writes all records of one. Its last revision is asked for before: what is restored begins far above it anyway.
func (t *taking) bucket(ctx context.Context, b Records) error {
	last, err := b.LastSeq(ctx)
	if err != nil {
		return err
	}
	sum := Bucket{Last: last}
	p := &pieces{t: t, folder: bucketFolder + b.Name() + "/"}
	err = b.Each(ctx, "", func(rec bus.Record) error {
		sum.Records++
		sum.Last = max(sum.Last, rec.Revision)
		return p.line(line(rec))
	})
	if err == nil {
		err = p.flush()
	}
	t.man.Buckets[b.Name()] = sum
	return err
}

func (t *taking) audit(ctx context.Context, each func(context.Context, func(string, []byte) error) error) error {
	p := &pieces{t: t, folder: auditFolder}
	err := each(ctx, func(issuer string, record []byte) error {
		t.man.Audit++
		return p.line(auditLine{issuer, record})
	})
	if err != nil {
		return err
	}
	return p.flush()
}

// pieces are the members of a list of lines.
type pieces struct {
	t      *taking
	folder string
	n      int
	buf    bytes.Buffer
}

func (p *pieces) line(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	p.buf.Write(append(text, '\n'))
	if p.buf.Len() < pieceBytes {
		return nil
	}
	return p.flush()
}

func (p *pieces) flush() error {
	if p.buf.Len() == 0 {
		return nil
	}
	p.n++
	err := p.t.member(pieceName(p.folder, p.n), p.buf.Bytes())
	p.buf.Reset()
	return err
}

func pieceName(folder string, n int) string { return fmt.Sprintf("%s%06d.jsonl", folder, n) }

func (t *taking) json(name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return t.member(name, append(text, '\n'))
}

// member writes one, and notes it for the manifest.
func (t *taking) member(name string, content []byte) error {
	sum := sha256.Sum256(content)
	t.man.Members = append(t.man.Members, Member{Name: name, Size: int64(len(content)), SHA256: sum[:]})
	err := t.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(content)), ModTime: t.when, Typeflag: tar.TypeReg})
	if err != nil {
		return err
	}
	_, err = t.tar.Write(content)
	return err
}
