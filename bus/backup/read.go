package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/sidekey/sidekey/bus"
)

// Visitor is told what a backup holds, in its order. Nothing of it is proven to be whole before Read has returned: who
// writes what it is told reads the file once before, with a Visitor that only looks. A nil member is passed over.
type Visitor struct {
	Head    func(Head) error
	Secrets func(Secrets) error
	Record  func(bucket string, rec bus.Record) error
	Image   func([]byte) error
	Audit   func(issuer string, record []byte) error
}

// Read opens a backup and calls v with what is in it. ErrDamaged: it is not whole, was altered, or is no backup; any error
// of v is returned as it is.
func Read(r io.Reader, v Visitor, identities ...age.Identity) (*Manifest, error) {
	plain, err := open(r, identities)
	if err != nil {
		return nil, err
	}
	rd := &reader{tar: tar.NewReader(plain), visit: v, found: Manifest{Buckets: make(map[string]Bucket)}}
	man, err := rd.read()
	if err != nil {
		return nil, err
	}
	// To the very end: only there is it certain that nothing was cut off.
	rest, err := io.Copy(io.Discard, plain)
	switch {
	case err != nil:
		return nil, damaged("it was cut short or altered: %v", err)
	case rest > 0:
		return nil, damaged("%d bytes stand behind its end", rest)
	}
	return man, nil
}

// open begins to decrypt.
func open(r io.Reader, identities []age.Identity) (io.Reader, error) {
	plain, err := age.Decrypt(r, identities...)
	var nobody *age.NoIdentityMatchError
	switch {
	case errors.As(err, &nobody):
		return nil, errors.New("opening the backup: it is not encrypted to this identity, or the passphrase is another; nothing was done")
	case err != nil:
		return nil, damaged("it does not open: %v", err)
	}
	return plain, nil
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("reading the backup: %w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// reader is one Read: it holds what it finds against the manifest at the end.
type reader struct {
	tar   *tar.Reader
	visit Visitor
	found Manifest
	image bool
}

func (rd *reader) read() (*Manifest, error) {
	for {
		name, content, err := rd.next()
		if err != nil {
			return nil, err
		}
		if name == manifestMember {
			return rd.end(content)
		}
		sum := sha256.Sum256(content)
		rd.found.Members = append(rd.found.Members, Member{Name: name, Size: int64(len(content)), SHA256: sum[:]})
		if err := rd.member(name, content); err != nil {
			return nil, err
		}
	}
}

// next reads one member whole.
func (rd *reader) next() (name string, content []byte, err error) {
	h, err := rd.tar.Next()
	if err != nil {
		return "", nil, damaged("it ends before its manifest: %v", err)
	}
	most := int64(maxMember)
	if h.Name == imageMember {
		most = maxImage
	}
	if h.Typeflag != tar.TypeReg || h.Size < 0 || h.Size > most {
		return "", nil, damaged("member %q is no file, or is over %d bytes", h.Name, most)
	}
	content, err = io.ReadAll(rd.tar)
	if err != nil {
		return "", nil, damaged("member %q was cut short or altered: %v", h.Name, err)
	}
	return h.Name, content, nil
}

// member takes one in, in its place: head, secrets, buckets, image, buckets, audit.
func (rd *reader) member(name string, content []byte) error {
	n := len(rd.found.Members)
	folder, piece, _ := strings.Cut(strings.TrimPrefix(name, bucketFolder), "/")
	switch {
	case n == 1:
		return rd.head(name, content)
	case n == 2 && name == secretsMember:
		var s Secrets
		if err := decode(name, content, &s); err != nil {
			return err
		}
		return call(rd.visit.Secrets, s)
	case n == 2:
		return damaged("member %q stands where %q belongs", name, secretsMember)
	case name == imageMember && !rd.image:
		rd.image = true
		return call(rd.visit.Image, content)
	case strings.HasPrefix(name, bucketFolder) && folder != "" && strings.HasSuffix(piece, ".jsonl"):
		return rd.records(folder, name, content)
	case strings.HasPrefix(name, auditFolder) && rd.image:
		return rd.audit(name, content)
	}
	return damaged("member %q is not one that a backup has there", name)
}

// head is read before anything is believed of the rest.
func (rd *reader) head(name string, content []byte) error {
	var h Head
	if name != headMember || json.Unmarshal(content, &h) != nil {
		return damaged("it does not begin with %s: it is no backup of sidekey's", headMember)
	}
	if h.Format != Format {
		return fmt.Errorf("reading the backup: it is of the format %q, written by sidekey %q, and this sidekey reads %q; restore it with that version", h.Format, h.Version, Format)
	}
	return call(rd.visit.Head, h)
}

func call[T any](fn func(T) error, v T) error {
	if fn == nil {
		return nil
	}
	return fn(v)
}

func (rd *reader) records(bucket, name string, content []byte) error {
	sum := rd.found.Buckets[bucket]
	for text := range bytes.Lines(content) {
		var l line
		if err := decode(name, text, &l); err != nil {
			return err
		}
		sum.Records++
		if rd.visit.Record == nil {
			continue
		}
		if err := rd.visit.Record(bucket, bus.Record(l)); err != nil {
			return err
		}
	}
	rd.found.Buckets[bucket] = sum
	return nil
}

func (rd *reader) audit(name string, content []byte) error {
	for text := range bytes.Lines(content) {
		var l auditLine
		if err := decode(name, text, &l); err != nil {
			return err
		}
		rd.found.Audit++
		if rd.visit.Audit == nil {
			continue
		}
		if err := rd.visit.Audit(l.Issuer, l.Record); err != nil {
			return err
		}
	}
	return nil
}

// decode does not repeat what it cannot read: it may be a secret.
func decode(name string, text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if d.Decode(v) != nil {
		return damaged("member %q is not what this version of sidekey knows", name)
	}
	return nil
}

// end holds what was found against the manifest.
func (rd *reader) end(content []byte) (*Manifest, error) {
	var man Manifest
	if err := decode(manifestMember, content, &man); err != nil {
		return nil, err
	}
	if !rd.image {
		return nil, damaged("it has no %s", imageMember)
	}
	same := slices.EqualFunc(man.Members, rd.found.Members, func(a, b Member) bool {
		return a.Name == b.Name && a.Size == b.Size && bytes.Equal(a.SHA256, b.SHA256)
	})
	for name, sum := range man.Buckets {
		same = same && rd.found.Buckets[name].Records == sum.Records
	}
	for name := range rd.found.Buckets {
		_, listed := man.Buckets[name]
		same = same && listed
	}
	if !same || man.Audit != rd.found.Audit {
		return nil, damaged("what is in it is not what its manifest lists")
	}
	if _, err := rd.tar.Next(); !errors.Is(err, io.EOF) {
		return nil, damaged("something stands behind its manifest")
	}
	return &man, nil
}
