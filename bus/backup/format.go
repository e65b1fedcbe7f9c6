package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"filippo.io/age"

	"github.com/sidekey/sidekey/bus"
)

// Format is what this package writes, and the only one that it reads.
const Format = "sidekey-backup-1"

// The archive's members.
const (
	headMember     = "head.json"
	secretsMember  = "secrets.json"
	imageMember    = "log/image"
	manifestMember = "manifest.json"
	bucketFolder   = "buckets/"
	auditFolder    = "audit/"
)

// Bounds of what is written and read at once. An image is what bus.WriteCheckpoint takes, too.
const (
	pieceBytes = 1 << 20   // a member of lines ends when it has grown so long
	maxImage   = 512 << 20 // of log/image
	maxMember  = 64 << 20  // of any other member: a line is never split
)

// ErrDamaged means that a file is no backup, or not a whole one. Nothing of it is to be believed.
var ErrDamaged = errors.New("the backup is damaged")

// Head says what a backup is of. It is read before anything else, and refused where Format is not ours.
type Head struct {
	Format  string `json:"format"`
	Version string `json:"version"` // of the sidekey that wrote it
	Issuer  string `json:"issuer"`  // the name of the issuer that wrote it
	URL     string `json:"url"`     // issuer.url
	Time    int64  `json:"time"`    // NumericDate: when it was begun
	// From is where the log stood when the backup was begun: what was acknowledged before that is in it.
	From bus.Position `json:"from"`
}

// Secrets are what lies in an issuer's data_dir and is in no bucket.
type Secrets struct {
	Master  string          `json:"master"`            // as master.key has it
	Bus     json.RawMessage `json:"bus,omitempty"`     // bus.Keys.Plain; absent with a NATS that sidekey has no keys of
	Founder bool            `json:"founder"`           // Bus has the operator's own key: an embedded server can be made of it
	Revoked []string        `json:"revoked,omitempty"` // nkeys of credentials that were cut off
}

// Manifest is the last member.
type Manifest struct {
	// At is where the log's image stands: of what was revoked while the backup was made, all up to there is in it.
	At      bus.Position      `json:"at"`
	Buckets map[string]Bucket `json:"buckets"`
	Audit   int               `json:"audit"` // records; 0 also where they were not asked for
	Members []Member          `json:"members"`
}

// Bucket counts the records of one.
type Bucket struct {
	Records int    `json:"records"`
	Last    uint64 `json:"last"` // the highest revision: a bucket that is restored begins above it
}

// Member is one member of the archive, in its order.
type Member struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 []byte `json:"sha256"`
}

// line is a record of a bucket: {"name": "_YWxpY2U", "value": "base64", "revision": 17}.
type line struct {
	Name     string `json:"name"`
	Value    []byte `json:"value"`
	Revision uint64 `json:"revision"`
}

// auditLine is a record of the audit: {"issuer": "auth-1", "record": "base64"}.
type auditLine struct {
	Issuer string `json:"issuer"`
	Record []byte `json:"record"`
}

// Recipients parses who is to be able to open a backup: age recipients (age1…), or else one passphrase.
func Recipients(recipients []string, passphrase string) ([]age.Recipient, error) {
	switch {
	case passphrase != "" && len(recipients) > 0:
		return nil, errors.New("a backup is encrypted to recipients or with a passphrase, not with both")
	case passphrase != "":
		if len(passphrase) < minPassphrase {
			return nil, fmt.Errorf("the passphrase is too short: give at least %d characters; several random words are best", minPassphrase)
		}
		r, err := age.NewScryptRecipient(passphrase)
		return []age.Recipient{r}, err
	case len(recipients) == 0:
		return nil, errors.New("say who is to be able to open the backup: an age recipient (age1…, made with age-keygen) or a passphrase")
	case len(recipients) > maxRecipients:
		return nil, fmt.Errorf("there are %d recipients, and %d are the most", len(recipients), maxRecipients)
	}
	var parsed []age.Recipient
	for _, text := range recipients {
		one, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil || len(one) != 1 {
			return nil, fmt.Errorf("%q is no age recipient: want age1…, as age-keygen prints it", Shorten(text))
		}
		parsed = append(parsed, one...)
	}
	return parsed, nil
}

// Bounds of Recipients.
const (
	minPassphrase = 12
	maxRecipients = 32
)

// Shorten gives of a recipient what an error may quote: it keeps that short, and a secret key that was given by mistake out of it.
func Shorten(text string) string {
	if strings.HasPrefix(strings.ToUpper(text), "AGE-SECRET-KEY") {
		return "AGE-SECRET-KEY-…"
	}
	return text[:min(len(text), 24)]
}
